/*
 * What the KVM of this host is good for. A para-virtualised one (without the CPU's own virtualisation, as
 * inside many clouds' VMs) runs a guest's user mode as it is and has the host's kernel emulate its kernel
 * mode; that emulator lacks instructions which every Linux kernel needs. What it has is found out by trying.
 */
#ifndef FERRY_CPU_KVM_KIND_H
#define FERRY_CPU_KVM_KIND_H

#include <ferry/error.h>

enum kvm_kind {
    KVM_NONE = 1,
    KVM_PARAVIRTUALISED, /* bare-metal guests only */
    KVM_HARDWARE,        /* any guest */
};

/* Runs a guest of a dozen instructions, some milliseconds. WHY says why it is not KVM_HARDWARE. */
enum kvm_kind kvm_kind_probe(struct ferry_error *why);
/* "hardware-assisted", "para-virtualised", "none" */
const char *kvm_kind_name(enum kvm_kind kind);

#endif
