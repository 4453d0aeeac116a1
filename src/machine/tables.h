/*
 * The state tables of CPUs, for who reads their sections without having a machine. KIND is a section's name
 * without its number: "hart", "vcpu", "irqchip". NULL: there is none.
 */
#ifndef FERRY_MACHINE_TABLES_H
#define FERRY_MACHINE_TABLES_H

#include "bus/state.h"

const struct state_table *soft_state_table(const char *kind); /* riscv64 */
const struct state_table *kvm_state_table(const char *kind);  /* x86_64; only where that is built */

#endif
