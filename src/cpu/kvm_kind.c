/*
 * The guest: 64-bit mode from the first instruction on (SDM volume 3, 10.8.5), one page of 2 MiB mapped as it
 * is, of which the first 32 KiB exist. It does what a Linux kernel does at every turn, in ring 0, and then
 * says so by an I/O port.
 */
#include "cpu/kvm_kind.h"

#include "base/error.h"

#include <errno.h>

const char *kvm_kind_name(enum kvm_kind kind)
{
    return kind == KVM_HARDWARE          ? "hardware-assisted"
           : kind == KVM_PARAVIRTUALISED ? "para-virtualised"
                                         : "none";
}

#ifdef __x86_64__

#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define MEMORY_SIZE 0x8000
#define PML4        0x1000
#define PDPT        0x2000
#define PD          0x3000
#define CODE        0x4000
#define GDT         0x5000
#define DATA        0x6000 /* 16 zero bytes for cmpxchg16b */
#define STACK       0x8000
#define PORT        0xf4
#define EXITS_MAX   16

#define CR0_PE_PG    0x80000001u
#define CR4_PAE      0x20u
#define EFER_LME_LMA 0x500u

static const uint8_t code[] = {
    0x48,      0x0f,
    0xc7,      0x0e, /* cmpxchg16b (%rsi) */
    0x6a,      0x10, /* push $0x10: SS */
    0x68,      0x00,
    0x80,      0x00,
    0x00,            /* push $STACK: RSP */
    0x9c,            /* pushf */
    0x6a,      0x08, /* push $8: CS */
    0x68,      (CODE + 21) & 0xff,
    CODE >> 8, 0x00,
    0x00,            /* push $1f: RIP */
    0x48,      0xcf, /* iretq */
    0xe6,      PORT, /* 1: out %al, $PORT */
    0xf4,            /* hlt */
};

struct guest {
    int kvm, vm, vcpu;
    uint8_t *memory;
    struct kvm_run *run;
    size_t run_size;
};

static void guest_free(struct guest *guest)
{
    if (guest->run)
        munmap(guest->run, guest->run_size);
    if (guest->memory)
        munmap(guest->memory, MEMORY_SIZE);
    for (size_t i = 0; i < 3; i++) {
        int fd = i == 0 ? guest->vcpu : i == 1 ? guest->vm : guest->kvm;

        if (fd >= 0)
            close(fd);
    }
}

static void *map(size_t size, int flags, int fd)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

    return memory == MAP_FAILED ? NULL : memory;
}

static void put64(struct guest *guest, size_t at, uint64_t value)
{
    memcpy(guest->memory + at, &value, sizeof(value));
}

static void fill_memory(struct guest *guest)
{
    put64(guest, PML4, PDPT | 3);
    put64(guest, PDPT, PD | 3);
    put64(guest, PD, 0x83);                       /* present, writable, 2 MiB */
    put64(guest, GDT + 0x08, 0x00af9b000000ffff); /* 64-bit code, ring 0 */
    put64(guest, GDT + 0x10, 0x00cf93000000ffff); /* data */
    memcpy(guest->memory + CODE, code, sizeof(code));
}

static int guest_make(struct guest *guest, struct ferry_error *err)
{
    struct kvm_userspace_memory_region region = {.memory_size = MEMORY_SIZE};
    int size;

    guest->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (guest->kvm < 0)
        return error_set_errno(err, -errno, "cannot open /dev/kvm");
    guest->vm = ioctl(guest->kvm, KVM_CREATE_VM, 0);
    size = ioctl(guest->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (guest->vm < 0 || size < (int)sizeof(*guest->run))
        return error_set_errno(err, -errno, "KVM makes no VM");
    guest->run_size = (size_t)size;
    guest->memory = map(MEMORY_SIZE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    if (!guest->memory)
        return error_set(err, -ENOMEM, "out of memory for a VM to try KVM with");
    region.userspace_addr = (uintptr_t)guest->memory;
    if (ioctl(guest->vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
        return error_set_errno(err, -errno, "KVM takes no memory");
    guest->vcpu = ioctl(guest->vm, KVM_CREATE_VCPU, 0);
    if (guest->vcpu >= 0)
        guest->run = map(guest->run_size, MAP_SHARED, guest->vcpu);
    if (!guest->run)
        return error_set_errno(err, -errno, "KVM makes no vCPU");
    fill_memory(guest);
    return 0;
}

/* As if 64-bit mode had been entered just now. */
static int guest_start(struct guest *guest, struct ferry_error *err)
{
    struct kvm_segment cs = {
        .limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    struct kvm_segment ds = {
        .limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    struct kvm_regs regs = {.rip = CODE, .rsp = STACK, .rsi = DATA, .rflags = 2};
    struct kvm_sregs sregs;

    if (ioctl(guest->vcpu, KVM_GET_SREGS, &sregs) < 0)
        return error_set_errno(err, -errno, "KVM does not tell a vCPU's registers");
    sregs.cs = cs;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = ds;
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 0x17;
    sregs.cr0 = CR0_PE_PG;
    sregs.cr3 = PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME_LMA;
    if (ioctl(guest->vcpu, KVM_SET_SREGS, &sregs) < 0 || ioctl(guest->vcpu, KVM_SET_REGS, &regs) < 0)
        return error_set_errno(err, -errno, "KVM does not take a vCPU's registers");
    return 0;
}

/* 0 when it got to its end. */
static int guest_run(struct guest *guest, struct ferry_error *err)
{
    for (unsigned i = 0; i < EXITS_MAX; i++) {
        if (ioctl(guest->vcpu, KVM_RUN, 0) < 0 && errno != EINTR && errno != EAGAIN)
            return error_set_errno(err, -errno, "KVM does not run a guest's kernel mode");
        if (guest->run->exit_reason == KVM_EXIT_IO && guest->run->io.port == PORT)
            return 0;
        if (guest->run->exit_reason != KVM_EXIT_INTR)
            break;
    }
    return error_set(err, -EOPNOTSUPP, "its KVM does not run what every Linux kernel does (exit %u)",
                     guest->run->exit_reason);
}

enum kvm_kind kvm_kind_probe(struct ferry_error *why)
{
    struct guest guest = {.kvm = -1, .vm = -1, .vcpu = -1};
    enum kvm_kind kind = KVM_NONE;

    if (guest_make(&guest, why) == 0 && guest_start(&guest, why) == 0)
        kind = guest_run(&guest, why) == 0 ? KVM_HARDWARE : KVM_PARAVIRTUALISED;
    guest_free(&guest);
    return kind;
}

#else

enum kvm_kind kvm_kind_probe(struct ferry_error *why)
{
    error_set(why, -EOPNOTSUPP, "this host is not an x86-64");
    return KVM_NONE;
}

#endif
