/*
 * What a thread's filter forbids ends the process, by SIGSYS and with a line that names thread and call; what
 * it needs is let through. Each case is a process of its own.
 */
#include "base/error.h"
#include "base/thread.h"
#include "unit.h"
#include "vm/confine.h"
#include "vm/confine_rules.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

struct attempt {
    enum thread_kind kind;
    void (*act)(void);
    int call; /* what it is that is forbidden */
};

static void make_file(void)
{
    (void)!open("/tmp/ferry-test-confine", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
}

static void make_tcp_socket(void)
{
    (void)!socket(AF_INET, SOCK_STREAM, 0);
}

static void make_unix_socket(void)
{
    (void)!socket(AF_UNIX, SOCK_STREAM, 0);
}

static void run_program(void)
{
    char *arguments[] = {"/bin/true", NULL};
    char *environment[] = {NULL};

    execve(arguments[0], arguments, environment);
}

static void make_process(void)
{
    if (fork() == 0)
        _exit(0);
}

static void map_code(void)
{
    (void)!mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void make_code(void)
{
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    mprotect(page, 4096, PROT_READ | PROT_EXEC);
}

static void signal_other(void)
{
    kill(1, 0);
}

static void trace_other(void)
{
    syscall(SYS_ptrace, 16, 1, NULL, NULL);
}

static void change_handler(void)
{
    signal(SIGSYS, SIG_IGN);
}

/* Of everything that threads do. */
static void do_no_harm(void)
{
    char *memory[64];
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

    for (size_t i = 0; i < 64; i++) {
        memory[i] = malloc(i * 8192 + 1);
        memset(memory[i], 1, i * 8192 + 1);
    }
    for (size_t i = 0; i < 64; i++)
        free(memory[i]);
    pthread_mutex_lock(&lock);
    pthread_mutex_unlock(&lock);
    pthread_kill(pthread_self(), 0);
    if (write(STDOUT_FILENO, "", 0) != 0)
        _exit(3);
}

static int compare_bytes(const void *a, const void *b)
{
    return *(const uint8_t *)a - *(const uint8_t *)b;
}

/* What the C library and others do now and then on the way, and what they do without an answer to. */
static void ask_as_libraries_do(void)
{
    uint8_t many[4096] = {0};
    struct utsname name;
    struct rusage usage;
    struct rlimit limit;
    struct stat status;

    (void)get_nprocs();
    (void)isatty(STDERR_FILENO);
    (void)sysconf(_SC_PHYS_PAGES);
    (void)uname(&name);
    (void)getrusage(RUSAGE_SELF, &usage);
    (void)getrlimit(RLIMIT_STACK, &limit);
    (void)fstat(STDERR_FILENO, &status);
    (void)stat("/etc/localtime", &status);
    (void)lseek(STDERR_FILENO, 0, SEEK_CUR);
    (void)access("/etc/localtime", R_OK);
    qsort(many, sizeof(many), 1, compare_bytes);
}

#ifndef CONFINE_SANITIZED
static void damage_heap(void)
{
    void *volatile memory = malloc(64);

    free(memory);
    free(memory);
}
#endif

static void *act_main(void *argument)
{
    ((const struct attempt *)argument)->act();
    return NULL;
}

/* In the child. */
static int attempt(const struct attempt *attempt, enum confine_mode mode)
{
    struct confine *confine = NULL;
    struct thread thread;
    struct ferry_error err = {0};
    int result;

    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    result = confine_new(&confine, mode, &err);
    if (result == 0 && attempt->kind == THREAD_GENERAL) {
        prctl(PR_SET_NAME, "attempt");
        result = confine_self(confine, &err);
        if (result == 0)
            attempt->act();
    } else if (result == 0) {
        result = thread_start(&thread, attempt->kind, "attempt", act_main, (void *)attempt, &err);
        if (result == 0)
            thread_join(&thread);
    }
    if (result < 0)
        fprintf(stderr, "%s\n", err.text);
    return result < 0 ? 2 : 0;
}

/* Returns the child's status; TEXT is what it said. */
static int status_of(const struct attempt *what, enum confine_mode mode, char *text, size_t size)
{
    size_t used = 0;
    int pipes[2];
    int status;
    pid_t child;

    assert_int_equal(pipe(pipes), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(pipes[1], STDERR_FILENO);
        _exit(attempt(what, mode));
    }
    close(pipes[1]);
    for (ssize_t got = 1; got > 0 && used < size - 1; used += (size_t)(got > 0 ? got : 0))
        got = read(pipes[0], text + used, size - 1 - used);
    text[used] = '\0';
    close(pipes[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

/* For the sanitizers' sake. */
static bool is_let_through(int call)
{
#ifdef CONFINE_SANITIZED
    static const int calls[] = {SYS_openat, SYS_clone, SYS_ptrace, SYS_kill, SYS_rt_sigaction};

    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        if (calls[i] == call)
            return true;
    }
#endif
    return false;
}

static void forbidden_call_ends_the_process_with_a_line(void **state)
{
    static const struct attempt attempts[] = {
        {THREAD_VCPU, make_file, SYS_openat},        {THREAD_VCPU, make_tcp_socket, SYS_socket},
        {THREAD_VCPU, run_program, SYS_execve},      {THREAD_VCPU, map_code, SYS_mmap},
        {THREAD_VCPU, make_code, SYS_mprotect},      {THREAD_VCPU, make_process, SYS_clone},
        {THREAD_VCPU, trace_other, SYS_ptrace},      {THREAD_VCPU, change_handler, SYS_rt_sigaction},
        {THREAD_IO, make_file, SYS_openat},          {THREAD_IO, make_tcp_socket, SYS_socket},
        {THREAD_IO, run_program, SYS_execve},        {THREAD_IO, make_process, SYS_clone},
        {THREAD_NET, make_file, SYS_openat},         {THREAD_NET, run_program, SYS_execve},
        {THREAD_NET, make_process, SYS_clone},       {THREAD_MIGRATION, run_program, SYS_execve},
        {THREAD_MIGRATION, make_process, SYS_clone}, {THREAD_MIGRATION, map_code, SYS_mmap},
        {THREAD_MIGRATION, signal_other, SYS_kill},  {THREAD_GENERAL, run_program, SYS_execve},
        {THREAD_GENERAL, make_process, SYS_clone},   {THREAD_GENERAL, make_code, SYS_mprotect},
        {THREAD_GENERAL, trace_other, SYS_ptrace},   {THREAD_GENERAL, change_handler, SYS_rt_sigaction},
    };

    for (size_t i = 0; i < sizeof(attempts) / sizeof(attempts[0]); i++) {
        char text[4096], line[64];
        int status;

        if (is_let_through(attempts[i].call))
            continue;
        status = status_of(&attempts[i], CONFINE_ON, text, sizeof(text));
        snprintf(line, sizeof(line), "ferry-vm: thread attempt made system call %d", attempts[i].call);
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSYS || !strstr(text, line))
            fail_msg("attempt %zu ended with status %#x and \"%s\" instead of SIGSYS and \"%s\"", i,
                     (unsigned)status, text, line);
    }
}

/* The C library asks so on the way to closing a connection, and goes on without. */
static void network_thread_gets_no_unix_socket(void **state)
{
    static const struct attempt unix_socket = {THREAD_NET, make_unix_socket, 0};
    char text[4096];

    assert_int_equal(status_of(&unix_socket, CONFINE_ON, text, sizeof(text)), 0);
    assert_string_equal(text, "");
}

static void assert_every_kind_may(void (*act)(void))
{
    for (unsigned kind = 0; kind < THREAD_KINDS; kind++) {
        const struct attempt harmless = {(enum thread_kind)kind, act, 0};
        char text[4096];
        int status = status_of(&harmless, CONFINE_ON, text, sizeof(text));

        if (status)
            fail_msg("kind %u ended with status %#x and \"%s\"", kind, (unsigned)status, text);
    }
}

static void threads_may_what_they_need(void **state)
{
    assert_every_kind_may(do_no_harm);
}

static void what_libraries_ask_ends_no_guest(void **state)
{
    assert_every_kind_may(ask_as_libraries_do);
}

/* As what it is, not as a forbidden call. */
static void damaged_heap_is_reported(void **state)
{
#ifndef CONFINE_SANITIZED
    for (unsigned kind = 0; kind < THREAD_KINDS; kind++) {
        const struct attempt damaging = {(enum thread_kind)kind, damage_heap, 0};
        char text[4096];
        int status = status_of(&damaging, CONFINE_ON, text, sizeof(text));

        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT || !strstr(text, "double free"))
            fail_msg("kind %u ended with status %#x and \"%s\"", kind, (unsigned)status, text);
    }
#endif
}

static void off_forbids_nothing(void **state)
{
    static const struct attempt attempts[] = {
        {THREAD_VCPU, make_tcp_socket, 0}, {THREAD_VCPU, make_process, 0}, {THREAD_GENERAL, map_code, 0}};
    char text[4096];

    for (size_t i = 0; i < sizeof(attempts) / sizeof(attempts[0]); i++)
        assert_int_equal(status_of(&attempts[i], CONFINE_OFF, text, sizeof(text)), 0);
}

static void log_lets_forbidden_calls_pass(void **state)
{
    static const struct attempt attempts[] = {{THREAD_VCPU, make_tcp_socket, 0},
                                              {THREAD_GENERAL, make_process, 0}};
    char text[4096];

    for (size_t i = 0; i < sizeof(attempts) / sizeof(attempts[0]); i++)
        assert_int_equal(status_of(&attempts[i], CONFINE_LOG, text, sizeof(text)), 0);
}

/* Ends the process with 10 and, added to it, 1 for any right at all, 2 for one that would undo the rest. */
static void look_at_rights(void)
{
    const uint64_t harmful = 1 << CAP_SYS_ADMIN | 1 << CAP_SETUID | 1 << CAP_SYS_MODULE | 1 << CAP_SYS_RAWIO |
                             1 << CAP_SYS_CHROOT | 1 << CAP_SETPCAP | 1 << CAP_NET_ADMIN | 1 << CAP_CHOWN;
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];

    if (syscall(SYS_capget, &header, sets) < 0)
        _exit(3);
    _exit(10 + (sets[0].permitted || sets[1].permitted) + (sets[0].permitted & harmful ? 2 : 0));
}

static void threads_keep_only_the_rights_they_need(void **state)
{
    static const struct {
        enum thread_kind kind;
        int status;
    } kinds[] = {
        {THREAD_VCPU, 10}, {THREAD_IO, 10}, {THREAD_NET, 11}, {THREAD_MIGRATION, 11}, {THREAD_GENERAL, 11}};

    if (geteuid() != 0)
        skip();
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        const struct attempt look = {kinds[i].kind, look_at_rights, 0};
        char text[4096];
        int status = status_of(&look, CONFINE_OFF, text, sizeof(text));

        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), kinds[i].status);
    }
}

static void modes_have_names(void **state)
{
    assert_int_equal(confine_mode_named("on"), CONFINE_ON);
    assert_int_equal(confine_mode_named("log"), CONFINE_LOG);
    assert_int_equal(confine_mode_named("off"), CONFINE_OFF);
    assert_int_equal(confine_mode_named("yes"), 0);
    assert_string_equal(confine_mode_name(CONFINE_ON), "on");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forbidden_call_ends_the_process_with_a_line),
        cmocka_unit_test(network_thread_gets_no_unix_socket),
        cmocka_unit_test(threads_may_what_they_need),
        cmocka_unit_test(what_libraries_ask_ends_no_guest),
        cmocka_unit_test(damaged_heap_is_reported),
        cmocka_unit_test(off_forbids_nothing),
        cmocka_unit_test(log_lets_forbidden_calls_pass),
        cmocka_unit_test(threads_keep_only_the_rights_they_need),
        cmocka_unit_test(modes_have_names),
    };

    if (confine_mode_default() == CONFINE_OFF) {
        fprintf(stderr, "built without system call filters\n");
        return 77; /* skipped */
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
