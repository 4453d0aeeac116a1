/*
 * Which state table a section of a VM is written by, for who looks into a checkpoint without having the VM.
 */
#ifndef FERRY_VM_SECTIONS_H
#define FERRY_VM_SECTIONS_H

#include "bus/state.h"

/* SECTION as "virtio-blk0", of a VM on MACHINE ("riscv64", "x86_64"). NULL: this ferry knows none of that
 * name. */
const struct state_table *section_table(const char *machine, const char *section);

#endif
