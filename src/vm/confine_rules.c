/*
 * Each block begins with why its calls are needed. To find out what a change needs: scripts/run-tests with
 * `ferryd --seccomp log` or, quicker, strace -f of a ferry-vm that runs with --seccomp off.
 */
#include "vm/confine_rules.h"

#include "base/thread.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <net/if.h>
#include <sched.h>
#include <seccomp.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#define GENERAL   (1 << THREAD_GENERAL)
#define VCPU      (1 << THREAD_VCPU)
#define IO        (1 << THREAD_IO)
#define NET       (1 << THREAD_NET)
#define MIGRATION (1 << THREAD_MIGRATION)
/* A migration is started by the main thread, whose filter it has as well: what it needs both may. */
#define CONTROL (GENERAL | MIGRATION)
#define EVERY   (CONTROL | VCPU | IO | NET)

#define CALL(name, who)                                                                                      \
    {                                                                                                        \
        .call = SCMP_SYS(name), .kinds = (who)                                                               \
    }
#define CALL_IF(name, who, number, bits, wants) CALL_REFUSED(name, who, number, bits, wants, 0)
#define CALL_REFUSED(name, who, number, bits, wants, error)                                                  \
    {                                                                                                        \
        .call = SCMP_SYS(name), .kinds = (who), .test = CONFINE_EQUAL, .argument = (number),                 \
        .refusal = (error), .mask = (bits), .value = (wants)                                                 \
    }
#define CALL_WITH(name, who, number, wants) CALL_IF(name, who, number, UINT32_MAX, (uint32_t)(wants))
#define CALL_OWN(name, who)                                                                                  \
    {                                                                                                        \
        .call = SCMP_SYS(name), .kinds = (who), .test = CONFINE_OWN_PID, .argument = 0                       \
    }

/* A request is 32 bits for the kernel, whatever is above them. */
#define IOCTL(who, request) CALL_IF(ioctl, who, 1, UINT32_MAX, (uint32_t)(request))
#define IOCTLS(who, type)   CALL_IF(ioctl, who, 1, 0xff00, (type) << 8)
#define NEW_NAMESPACES                                                                                       \
    (CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET |               \
     CLONE_NEWCGROUP)
#define A_THREAD (CLONE_VM | CLONE_THREAD)

const struct confine_rule confine_rules[] = {
    /* What the C library does for any thread: locks, heap, stack, clock, end. Memory is never executable. */
    CALL(futex, EVERY),
    CALL_IF(mmap, EVERY, 2, PROT_EXEC, 0),
    CALL_IF(mprotect, EVERY, 2, PROT_EXEC, 0),
    CALL(munmap, EVERY),
    CALL(mremap, EVERY),
    CALL(madvise, EVERY),
    CALL(brk, EVERY),
    CALL(rt_sigprocmask, EVERY),
    CALL(rt_sigreturn, EVERY),
    CALL(restart_syscall, EVERY),
    CALL(rseq, EVERY),
    CALL(set_robust_list, EVERY),
    CALL(clock_gettime, EVERY),
    CALL(gettimeofday, EVERY),
    CALL(clock_nanosleep, EVERY),
    CALL(sched_yield, EVERY),
    CALL(getrandom, EVERY),
    CALL(getpid, EVERY),
    CALL(gettid, EVERY),
    CALL(exit, EVERY),
    CALL(exit_group, EVERY),
    CALL_WITH(prctl, EVERY, 0, PR_SET_NAME),
    CALL_WITH(prctl, EVERY, 0, PR_GET_NAME),

    /* The heap looks in /proc once, when it gives memory back, and goes on without an answer. */
    CALL_REFUSED(openat, VCPU | IO, 2, UINT32_MAX, O_RDONLY | O_CLOEXEC, EACCES),

    /* vCPUs are kicked, and a broken assertion aborts: signals to this process. */
    CALL_OWN(tgkill, EVERY),
    CALL_OWN(kill, CONTROL),

    /* The log, eventfds, the console's descriptors; what the C library says when it finds the heap damaged.
     */
    CALL(read, EVERY),
    CALL(write, EVERY),
    CALL(writev, EVERY),
    /* A vCPU or device with much to say empties the console's log for an arriving guest's (vm/console.c). */
    CALL_WITH(ftruncate, VCPU | IO, 1, 0),

    /* A vCPU: guest code, its interrupts, what is asked when it crashes; the ring of pages it wrote to. Its
     * turns, when it is slowed, are ended by a timer. */
    IOCTL(VCPU, KVM_RUN),
    IOCTL(VCPU, KVM_GET_REGS),
    IOCTL(VCPU, KVM_RESET_DIRTY_RINGS),
    IOCTL(VCPU | IO | NET, KVM_IRQ_LINE),
    CALL(rt_sigtimedwait, VCPU),
    CALL(timer_create, VCPU),
    CALL(timer_settime, VCPU),

    /* Disks: files that are open, by the ring or by a pool of threads. (What the ring may do is restricted in
     * disk/io_uring.c: filters do not see it.) */
    CALL(io_uring_enter, IO | CONTROL),
    CALL(preadv, IO | CONTROL),
    CALL(preadv2, IO | CONTROL),
    CALL(pwritev, IO | CONTROL),
    CALL(pwritev2, IO | CONTROL),
    CALL(pread64, IO | CONTROL),
    CALL(pwrite64, IO | CONTROL),
    CALL(fdatasync, IO | CONTROL),
    CALL(fsync, CONTROL),
    CALL(fallocate, IO | CONTROL),

    /* User-mode network (libslirp): sockets for what the guest connects to, and the host's
     * name servers as resolv.conf has them. It asks for the number of a network interface by any socket. */
    CALL_IF(openat, NET, 2, O_ACCMODE | O_CREAT | O_TRUNC, O_RDONLY),
    CALL_REFUSED(socket, NET, 0, UINT32_MAX, AF_UNIX, EAFNOSUPPORT),
    IOCTL(NET, SIOCGIFINDEX),
    IOCTL(NET, FIONREAD),

    /* Connections: of a guest, between the two ends of a migration, the control socket and the console. */
    CALL_WITH(socket, NET | CONTROL, 0, AF_INET),
    CALL_WITH(socket, NET | CONTROL, 0, AF_INET6),
    CALL_WITH(socket, CONTROL, 0, AF_UNIX),
    CALL(bind, NET | CONTROL),
    CALL(listen, NET | CONTROL),
    CALL(accept, NET | CONTROL),
    CALL(accept4, NET | CONTROL),
    CALL(connect, NET | CONTROL),
    CALL(shutdown, NET | CONTROL),
    CALL(getsockname, NET | CONTROL),
    CALL(getpeername, NET | CONTROL),
    CALL(getsockopt, NET | CONTROL),
    CALL(setsockopt, NET | CONTROL),
    CALL(sendto, NET | CONTROL),
    CALL(sendmsg, NET | CONTROL),
    CALL(recvfrom, NET | CONTROL),
    CALL(recvmsg, NET | CONTROL),
    CALL(readv, NET | CONTROL),
    CALL(poll, NET | CONTROL),
    CALL(ppoll, NET | CONTROL),
    CALL(fcntl, NET | CONTROL),
    CALL(close, NET | CONTROL),

    /* Files: the VM's directory, locks, disks' images, certificates, checkpoints. */
    CALL(openat, CONTROL),
    CALL(fstat, NET | IO | CONTROL),
    CALL(newfstatat, NET | IO | CONTROL),
    CALL(statfs, CONTROL),
    CALL(fstatfs, CONTROL),
    CALL(statx, CONTROL),
    CALL(lseek, NET | CONTROL),
    CALL(access, CONTROL),
    CALL(faccessat, CONTROL),
    CALL(faccessat2, CONTROL),
    CALL(readlink, CONTROL),
    CALL(unlink, CONTROL),
    CALL(unlinkat, CONTROL),
    CALL(rename, CONTROL),
    CALL(renameat, CONTROL),
    CALL(renameat2, CONTROL),
    CALL(linkat, CONTROL),
    CALL(ftruncate, CONTROL),
    CALL(sync_file_range, CONTROL),
    CALL(getdents64, CONTROL),
    CALL(dup2, CONTROL),
    CALL(dup3, CONTROL),
    CALL(chmod, CONTROL),
    IOCTL(CONTROL, BLKGETSIZE64),

    /* The event loop, and waiting in a migration. */
    CALL(epoll_create1, CONTROL),
    CALL(epoll_ctl, CONTROL),
    CALL(epoll_wait, CONTROL),
    CALL(epoll_pwait, CONTROL),
    CALL(eventfd2, CONTROL),
    CALL(timerfd_create, CONTROL),
    CALL(timerfd_settime, CONTROL),
    CALL(timer_delete, CONTROL),

    /* State, memory and its dirty log: saved, loaded, reset, by KVM's calls of all kinds; faults of memory
     * that arrives later; what tells used memory from holes; memory of a file. */
    IOCTLS(CONTROL, KVMIO),
    IOCTLS(CONTROL, UFFDIO),
    IOCTL(CONTROL, USERFAULTFD_IOC_NEW),
    CALL(userfaultfd, CONTROL),
    CALL(membarrier, CONTROL),
    CALL(mincore, CONTROL),
    CALL(memfd_create, CONTROL),

    /* Threads, not processes: clone3's flags are behind a pointer, and without it the C library uses clone.
     * What a thread's urgency is, its rights and its filter. */
    CALL_REFUSED(clone3, EVERY, 0, 0, 0, ENOSYS),
    CALL_IF(clone, IO | CONTROL, 0, A_THREAD | NEW_NAMESPACES, A_THREAD),
    CALL(sched_setscheduler, CONTROL),
    CALL(sched_getaffinity, EVERY),
    CALL_WITH(sched_setaffinity, CONTROL, 0, 0),
    CALL(getpriority, CONTROL),
    CALL(setpriority, CONTROL),
    CALL(capget, GENERAL),
    CALL(capset, GENERAL),
    CALL_WITH(seccomp, GENERAL, 0, SECCOMP_SET_MODE_FILTER),

    /* SIGPIPE is kept from calls that raise it. */
    CALL(rt_sigpending, CONTROL),
    CALL(rt_sigtimedwait, CONTROL),

    /* The C library's sorting, and OpenSSL asking whether it has rights that its caller has not. */
    CALL(sysinfo, CONTROL),
    CALL(uname, CONTROL),
    CALL(getuid, CONTROL),
    CALL(geteuid, CONTROL),
    CALL(getgid, CONTROL),
    CALL(getegid, CONTROL),

    /* What libraries ask now and then, to write a warning (is that a terminal?) or of themselves, and do
     * without: no guest ends for that. */
    CALL_REFUSED(ioctl, EVERY, 1, UINT32_MAX, TCGETS, ENOTTY),
    CALL_REFUSED(access, VCPU | IO | NET, 0, 0, 0, EACCES),
    CALL_REFUSED(getcpu, EVERY, 0, 0, 0, EPERM),
    CALL_REFUSED(getrusage, EVERY, 0, 0, 0, EPERM),
    CALL_REFUSED(times, EVERY, 0, 0, 0, EPERM),
    CALL_REFUSED(sched_getscheduler, EVERY, 0, 0, 0, EPERM),
    CALL_REFUSED(sched_getparam, EVERY, 0, 0, 0, EPERM),
#ifndef CONFINE_SANITIZED
    CALL_REFUSED(sysinfo, VCPU | IO | NET, 0, 0, 0, EPERM),
    CALL_REFUSED(uname, VCPU | IO | NET, 0, 0, 0, EPERM),
    CALL_REFUSED(fstat, VCPU, 0, 0, 0, EACCES),
    CALL_REFUSED(newfstatat, VCPU, 0, 0, 0, EACCES),
    CALL_REFUSED(lseek, VCPU | IO, 0, 0, 0, EACCES),
    CALL_REFUSED(readlink, VCPU | IO | NET, 0, 0, 0, EACCES),
    CALL_REFUSED(prlimit64, EVERY, 0, 0, 0, EPERM),
#endif

#ifdef CONFINE_SANITIZED
    /* The sanitizers' own threads and signal stacks, their look at /proc, and at exit a process that looks
     * for leaks from outside. Only in builds for tests. */
    CALL(clone, EVERY),
    CALL(prctl, EVERY),
    CALL(ptrace, EVERY),
    CALL(wait4, EVERY),
    CALL(kill, EVERY),
    CALL(tkill, EVERY),
    CALL(sigaltstack, EVERY),
    CALL(rt_sigaction, EVERY),
    CALL(openat, EVERY),
    CALL(close, EVERY),
    CALL(fstat, EVERY),
    CALL(newfstatat, EVERY),
    CALL(readlink, EVERY),
    CALL(lseek, EVERY),
    CALL(getdents64, EVERY),
    CALL(pipe2, EVERY),
    CALL(prlimit64, EVERY),
    CALL(getppid, EVERY),
    CALL(getuid, EVERY),
    CALL(geteuid, EVERY),
    CALL(sysinfo, EVERY),
    CALL(uname, EVERY),
    CALL(process_vm_readv, EVERY),
    CALL(set_tid_address, EVERY),
    CALL(personality, EVERY),
#endif

    {.kinds = 0},
};
