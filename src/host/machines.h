/*
 * Which machine types this host can run, and which one a kernel is for.
 */
#ifndef FERRY_HOST_MACHINES_H
#define FERRY_HOST_MACHINES_H

#include "host/host.h"

/* NULL when VMs of this machine type run here, else why not. Asked anew each time: modules may be loaded, and
 * permissions given, while ferryd runs. */
const char *machines_missing(const char *machine);
/* [{machine, accel, available, why}] as the host object has it; new reference. */
json_t *machines_list(void);
/* {kind, why} of this host's KVM, which was tried when ferryd started; new reference. */
json_t *machines_kvm(const struct host *host);

enum kernel_kind {
    KERNEL_UNKNOWN = 1,
    KERNEL_RISCV64,        /* flat Image or ELF */
    KERNEL_X86_64,         /* ELF */
    KERNEL_X86_64_BZIMAGE, /* Linux */
};

/* By the first bytes of the file. KERNEL_UNKNOWN too when it cannot be read: whoever loads it says why. */
enum kernel_kind machines_kernel_kind(const char *path);
/* The machine type for the kernel: "riscv64" or "x86_64". */
const char *machines_for_kernel(const char *path);
/* HOST_REFUSED when this host cannot run the VM of DEFINITION, with the reason. */
int machines_check(const struct host *host, const json_t *definition, struct ferry_error *err);

#endif
