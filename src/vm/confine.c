#include "vm/confine.h"

#include "base/error.h"
#include "base/thread.h"
#include "vm/capabilities.h"
#include "vm/confine_rules.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PROGRAM_MAX 4096 /* instructions; the kernel's limit */

struct confine {
    enum confine_mode mode;
    struct sock_fprog programs[THREAD_KINDS]; /* without instructions when nothing is confined */
};

/* ---- when a call is forbidden: in a signal handler, on the thread that made it ---- */

static void put_text(char **at, const char *end, const char *text)
{
    while (*text && *at < end)
        *(*at)++ = *text++;
}

static void put_number(char **at, const char *end, unsigned number)
{
    char digits[12];
    char *first = digits + sizeof(digits) - 1;

    *first = '\0';
    do
        *--first = (char)('0' + number % 10);
    while (number /= 10);
    put_text(at, end, first);
}

/* Those that somebody who broke out would try. */
static const char *call_name(int call)
{
    static const struct {
        int call;
        const char *name;
    } names[] = {
        {SYS_execve, "execve"}, {SYS_execveat, "execveat"}, {SYS_openat, "openat"},
        {SYS_socket, "socket"}, {SYS_connect, "connect"},   {SYS_clone, "clone"},
        {SYS_ptrace, "ptrace"}, {SYS_mmap, "mmap"},         {SYS_mprotect, "mprotect"},
        {SYS_ioctl, "ioctl"},   {SYS_mount, "mount"},       {SYS_setuid, "setuid"},
        {SYS_kill, "kill"},     {SYS_tgkill, "tgkill"},     {SYS_unshare, "unshare"},
        {SYS_bpf, "bpf"},
#ifdef SYS_open
        {SYS_open, "open"},     {SYS_fork, "fork"},         {SYS_vfork, "vfork"},
#endif
    };

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (names[i].call == call)
            return names[i].name;
    return NULL;
}

static void forbidden_call(int signal, siginfo_t *info, void *context)
{
    char line[160];
    char *at = line;
    const char *end = line + sizeof(line);
    char thread[16] = "?";
    const char *name = call_name(info->si_syscall);

    (void)prctl(PR_GET_NAME, thread);
    put_text(&at, end, "ferry-vm: thread ");
    put_text(&at, end, thread);
    put_text(&at, end, " made system call ");
    put_number(&at, end, (unsigned)info->si_syscall);
    if (name) {
        put_text(&at, end, " (");
        put_text(&at, end, name);
        put_text(&at, end, ")");
    }
    put_text(&at, end, ", which it may not make (--seccomp): the process ends\n");
    (void)!write(STDERR_FILENO, line, (size_t)(at - line));
    /* A forbidden call once more, while SIGSYS is blocked: the kernel ends the process by SIGSYS. */
    (void)syscall(SYS_execve, NULL, NULL, NULL);
    _exit(EXIT_FAILURE);
}

static int catch_forbidden_calls(struct ferry_error *err)
{
    struct sigaction action = {.sa_sigaction = forbidden_call, .sa_flags = SA_SIGINFO};

    sigfillset(&action.sa_mask);
    if (sigaction(SIGSYS, &action, NULL) < 0)
        return error_set_errno(err, -errno, "cannot set up the report of forbidden system calls");
    return 0;
}

/* ---- filters ---- */

static int add_rule(scmp_filter_ctx filter, const struct confine_rule *rule)
{
    uint32_t action = rule->refusal ? SCMP_ACT_ERRNO(rule->refusal) : SCMP_ACT_ALLOW;
    struct scmp_arg_cmp test = {.arg = rule->argument, .op = SCMP_CMP_MASKED_EQ};

    if (rule->test == CONFINE_ALWAYS || !rule->mask)
        return seccomp_rule_add(filter, action, rule->call, 0);
    test.datum_a = rule->mask;
    test.datum_b = rule->value;
    return seccomp_rule_add_array(filter, action, rule->call, 1, &test);
}

static int add_rules(scmp_filter_ctx filter, enum thread_kind kind)
{
    int result = 0;

    for (const struct confine_rule *rule = confine_rules; rule->kinds && result == 0; rule++) {
        struct confine_rule own = *rule;

        if (!(rule->kinds & 1 << kind))
            continue;
        if (rule->test == CONFINE_OWN_PID) {
            own.mask = UINT32_MAX;
            own.value = (uint32_t)getpid();
        }
        result = add_rule(filter, &own);
    }
    return result;
}

/* The program that libseccomp makes of the rules: it only gives it by a file. */
static int export_program(scmp_filter_ctx filter, struct sock_fprog *program)
{
    int fd = memfd_create("filter", MFD_CLOEXEC);
    struct stat file;
    int result = fd < 0 ? -errno : 0;

    if (result == 0)
        result = seccomp_export_bpf(filter, fd);
    if (result == 0 && fstat(fd, &file) < 0)
        result = -errno;
    if (result == 0 && (size_t)file.st_size > PROGRAM_MAX * sizeof(*program->filter))
        result = -E2BIG;
    if (result == 0) {
        program->len = (unsigned short)((size_t)file.st_size / sizeof(*program->filter));
        program->filter = malloc((size_t)file.st_size);
        result = program->filter ? 0 : -ENOMEM;
    }
    if (result == 0 && pread(fd, program->filter, (size_t)file.st_size, 0) != file.st_size)
        result = -EIO;
    if (fd >= 0)
        close(fd);
    return result;
}

static int make_program(struct confine *confine, enum thread_kind kind)
{
    uint32_t otherwise = confine->mode == CONFINE_LOG ? SCMP_ACT_LOG : SCMP_ACT_TRAP;
    scmp_filter_ctx filter = seccomp_init(otherwise);
    int result = filter ? 0 : -ENOMEM;

    /* Calls as another architecture's programs make them. */
    if (result == 0)
        result = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    /* By a tree instead of one after the other. */
    if (result == 0)
        result = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    if (result == 0)
        result = add_rules(filter, kind);
    if (result == 0)
        result = export_program(filter, &confine->programs[kind]);
    seccomp_release(filter);
    return result;
}

static int install(const struct confine *confine, enum thread_kind kind)
{
    const struct sock_fprog *program = &confine->programs[kind];
    int result = capabilities_keep_for_kind(kind);

    if (result < 0 || !program->len)
        return result;
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, program) < 0 ? -errno : 0;
}

/* A thread that cannot be confined must not run. */
static void confine_thread(void *opaque, enum thread_kind kind)
{
    int result = install(opaque, kind);

    if (result < 0) {
        fprintf(stderr, "ferry-vm: a thread cannot be confined: %s\n", strerror(-result));
        abort();
    }
}

/* Whether the kernel would take a filter; it is asked without giving it one. */
static bool kernel_has_filters(void)
{
    uint32_t action = SECCOMP_RET_TRAP;

    return syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0;
}

int confine_new(struct confine **out, enum confine_mode mode, struct ferry_error *err)
{
    struct confine *confine = calloc(1, sizeof(*confine));
    int result = 0;

    if (!confine)
        return error_set(err, -ENOMEM, "out of memory for the system call filters");
    confine->mode = mode;
    if (mode != CONFINE_OFF) {
        if (!kernel_has_filters())
            result = error_set(
                err, -ENOSYS, "this kernel has no system call filters (seccomp); --seccomp off runs without");
        for (unsigned kind = 0; kind < THREAD_KINDS && result == 0; kind++) {
            result = make_program(confine, (enum thread_kind)kind);
            if (result < 0)
                error_set_errno(err, result, "cannot make the system call filters");
        }
        if (result == 0)
            result = catch_forbidden_calls(err);
    }
    if (result < 0) {
        confine_free(confine);
        return result;
    }
    thread_set_guard(confine_thread, confine);
    *out = confine;
    return 0;
}

int confine_self(const struct confine *confine, struct ferry_error *err)
{
    int result = install(confine, THREAD_GENERAL);

    return result < 0 ? error_set_errno(err, result, "the main thread cannot be confined") : 0;
}

void confine_free(struct confine *confine)
{
    if (!confine)
        return;
    for (unsigned kind = 0; kind < THREAD_KINDS; kind++)
        free(confine->programs[kind].filter);
    thread_set_guard(NULL, NULL);
    free(confine);
}
