#include "host/vm_process.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "host/checkpoint.h"
#include "host/cpu_baseline.h"
#include "base/thread.h"
#include "host/fields.h"
#include "host/migration.h"
#include "host/vm_directory.h"
#include "host/vms.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define READY_FD          3
#define ADOPT_INTERVAL_MS 200
#define HEAR_OUT_MS       2000
#define LOG_TAIL_SIZE     4096 /* holds the last words of who wrote it */

extern char **environ;

/* When the process started, in clock ticks since boot (proc(5), stat field 22); 0 when there is none. */
static uint64_t start_time(pid_t pid)
{
    char path[64];
    char line[1024];
    FILE *file;
    char *rest;
    uint64_t ticks = 0;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    file = fopen(path, "re");
    if (!file)
        return 0;
    rest = fgets(line, sizeof(line), file) ? strrchr(line, ')') : NULL;
    fclose(file);
    for (unsigned field = 3; rest && field <= 22; field++) {
        rest = strchr(rest + 1, ' ');
        if (rest && field == 22)
            ticks = strtoull(rest + 1, NULL, 10);
    }
    return ticks;
}

static int file_path(const char *directory, const char *file, char path[static PATH_MAX])
{
    return snprintf(path, PATH_MAX, "%s/%s", directory, file) < PATH_MAX ? 0 : -ENAMETOOLONG;
}

/* A file in the process's directory. */
static void process_path(const struct vm_process *process, const char *file, char path[static PATH_MAX])
{
    snprintf(path, PATH_MAX, "/proc/self/fd/%d/%s", process->dir_fd, file);
}

static int record_process(struct host *host, const struct vm *vm, const char *directory, pid_t pid,
                          struct ferry_error *err)
{
    char path[PATH_MAX];
    char text[160];

    if (file_path(directory, "process.json", path) < 0)
        return error_set(err, -ENAMETOOLONG, "the path of VM %s is too long", vm->name);
    snprintf(text, sizeof(text), "{\"pid\": %d, \"start_time\": %llu, \"boot_id\": \"%s\"}\n", (int)pid,
             (unsigned long long)start_time(pid), host->boot_id);
    return host_write_file(path, text, err);
}

static struct vm_process *process_new(struct host *host, struct vm *vm, const char *directory, pid_t pid,
                                      bool child)
{
    struct vm_process *process = calloc(1, sizeof(*process));

    if (!process)
        return NULL;
    process->host = host;
    process->vm = vm;
    process->pid = pid;
    process->child = child;
    process->refs = 1;
    process->pidfd = pidfd_open(pid, 0);
    process->dir_fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (process->pidfd < 0 || process->dir_fd < 0) {
        if (process->pidfd >= 0)
            close(process->pidfd);
        if (process->dir_fd >= 0)
            close(process->dir_fd);
        free(process);
        return NULL;
    }
    fcntl(process->pidfd, F_SETFD, FD_CLOEXEC);
    pthread_rwlock_init(&process->client_lock, NULL);
    host_lock(host);
    vm->refs++;
    host_unlock(host);
    return process;
}

void vm_process_unref(struct vm_process *process)
{
    struct host *host;
    bool last;

    if (!process)
        return;
    host = process->host;
    host_lock(host);
    last = --process->refs == 0;
    host_unlock(host);
    if (!last)
        return;
    jsonrpc_client_free(process->client);
    vm_unref(host, process->vm);
    pthread_rwlock_destroy(&process->client_lock);
    close(process->pidfd);
    close(process->dir_fd);
    free(process->remains);
    free(process);
}

/* What the VM tells; on the client's reader thread. */
static void hear(void *opaque, const char *method, json_t *params)
{
    struct vm_process *process = opaque;

    if (!method) {
        /* the pidfd tells about its end; who waits for its last words may go on */
        host_lock(process->host);
        __atomic_store_n(&process->disconnected, true, __ATOMIC_RELEASE);
        host_changed(process->host);
        host_unlock(process->host);
    } else if (strcmp(method, "vm.state") == 0) {
        vms_state_told(process, params);
    } else if (strncmp(method, "migration.", 10) == 0) {
        migration_told(process, method, params);
    } else if (strncmp(method, "checkpoint", 10) == 0) {
        checkpoint_told(process, params);
    }
}

/* Connects and subscribes. client_lock is held for writing. */
static int make_client(struct vm_process *process, uint64_t deadline, struct ferry_error *err)
{
    char path[PATH_MAX];
    char thread_name[16];
    struct jsonrpc_client *client = NULL;
    int result = 0;

    process_path(process, "control.sock", path);
    snprintf(thread_name, sizeof(thread_name), "vm-%.12s", process->vm->name);
    __atomic_store_n(&process->disconnected, false, __ATOMIC_RELEASE);
    if (result == 0)
        result = jsonrpc_client_connect(&client, path, thread_name, deadline, hear, process, err);
    if (result == 0)
        result = jsonrpc_client_call(client, "subscribe", NULL, deadline, NULL, err);
    if (result == 0)
        process->client = client;
    else
        jsonrpc_client_free(client);
    return result;
}

/* Makes sure that there is a connection, unless it is ending this moment. */
static int connect_client(struct vm_process *process, uint64_t deadline, struct ferry_error *err)
{
    int result = 0;
    bool good;

    pthread_rwlock_rdlock(&process->client_lock);
    good = process->client && !__atomic_load_n(&process->disconnected, __ATOMIC_ACQUIRE);
    pthread_rwlock_unlock(&process->client_lock);
    if (good)
        return 0;
    pthread_rwlock_wrlock(&process->client_lock);
    if (process->client && __atomic_load_n(&process->disconnected, __ATOMIC_ACQUIRE)) {
        jsonrpc_client_free(process->client);
        process->client = NULL;
    }
    if (!process->client)
        result = make_client(process, deadline, err);
    pthread_rwlock_unlock(&process->client_lock);
    return result;
}

int vm_process_call(struct vm_process *process, const char *method, json_t *params, int64_t timeout_ms,
                    json_t **result, struct ferry_error *err)
{
    uint64_t deadline = clock_deadline(timeout_ms);
    int status = connect_client(process, deadline, err);

    if (result)
        *result = NULL;
    if (status < 0) {
        json_decref(params);
        return error_prefix(err, status, "ferry-vm of VM %s (process %d) does not answer", process->vm->name,
                            (int)process->pid);
    }
    pthread_rwlock_rdlock(&process->client_lock);
    if (process->client) {
        status = jsonrpc_client_call(process->client, method, params, deadline, result, err);
    } else {
        json_decref(params);
        status = error_set(err, -EPIPE, "the connection to ferry-vm of VM %s has ended", process->vm->name);
    }
    pthread_rwlock_unlock(&process->client_lock);
    return status;
}

bool vm_process_call_came_late(int result)
{
    /* The connection ended, or its socket is gone, or nobody serves it any more. */
    return result == -EPIPE || result == -ENOENT || result == -ECONNREFUSED;
}

void vm_process_kill(struct vm_process *process)
{
    pidfd_send_signal(process->pidfd, SIGKILL, NULL, 0);
}

static bool wait_end(const struct vm_process *process, int timeout_ms)
{
    struct pollfd poll_end = {.fd = process->pidfd, .events = POLLIN};

    return poll(&poll_end, 1, timeout_ms) == 1;
}

/* A program that the kernel runs by itself; a script would run another. */
static bool is_program(const char *path)
{
    static const char magic[] = "\177ELF";
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    char begin[sizeof(magic) - 1];

    return fd >= 0 && read(fd, begin, sizeof(begin)) == (ssize_t)sizeof(begin) &&
           memcmp(begin, magic, sizeof(begin)) == 0;
}

int vm_process_is_outdated(const struct vm_process *process)
{
    const char *program = process->host->config->vm_program;
    struct stat installed, running;
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/exe", (int)process->pid);
    if (stat(path, &running) < 0 || stat(program, &installed) < 0)
        return -errno;
    /* A file that a process runs is never written to: another Ferry is another file. */
    if (running.st_dev == installed.st_dev && running.st_ino == installed.st_ino)
        return 0;
    return is_program(program) ? 1 : -ENOEXEC;
}

bool vm_process_gone(const struct vm_process *process)
{
    return wait_end(process, 0);
}

/* What ferry-vm has written of a forbidden call before it ended (vm/confine.c): CALL gets "thread T made
 * system call N". False: nothing. */
static bool find_forbidden_call(const struct vm_process *process, char *call, size_t size)
{
    static const char who[] = "ferry-vm: ", begin[] = "ferry-vm: thread ", end[] = ", which it may not make";
    CLEANUP_CLOSE int fd = openat(process->dir_fd, "vm.log", O_RDONLY | O_CLOEXEC);
    off_t length = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    char tail[LOG_TAIL_SIZE];
    ssize_t got;

    call[0] = '\0';
    if (length < 0)
        return false;
    got = pread(fd, tail, sizeof(tail) - 1, length > LOG_TAIL_SIZE - 1 ? length - (LOG_TAIL_SIZE - 1) : 0);
    tail[got > 0 ? got : 0] = '\0';
    for (char *at = strstr(tail, begin); at; at = strstr(at + 1, begin)) {
        const char *over = strstr(at, end);
        const char *line_end = strchr(at, '\n');

        if (over && (!line_end || over < line_end)) {
            const char *said = at + strlen(who);

            snprintf(call, size, "%.*s", (int)(over - said), said);
        }
    }
    return call[0] != '\0';
}

void vm_process_last_words(struct vm_process *process, char *text, size_t size)
{
    siginfo_t info = {0};
    char call[128];

    if (!process->child || waitid(P_PIDFD, (id_t)process->pidfd, &info, WEXITED | WNOHANG) < 0 ||
        info.si_pid == 0) {
        snprintf(text, size, "ferry-vm is gone without a word");
        return;
    }
    process->child = false; /* reaped */
    if (info.si_code == CLD_EXITED)
        snprintf(text, size, "ferry-vm ended with status %d", info.si_status);
    else if (info.si_status != SIGSYS)
        snprintf(text, size, "ferry-vm was killed by signal %d", info.si_status);
    else if (find_forbidden_call(process, call, sizeof(call)))
        snprintf(text, size, "ferry-vm was ended for a system call that it may not make: %s", call);
    else
        snprintf(text, size,
                 "ferry-vm was ended for a system call that it may not make; its log may tell which");
}

struct start {
    const char *directory;
    const char *former; /* of the process that has the VM; NULL: none */
    unsigned flags;     /* enum vm_process_flags */
    int64_t timeout_ms;
    const char *cpu_features;               /* as ferry-vm has it; NULL: all */
    const struct vm_process_resume *resume; /* NULL: it boots */
};

/* The child's descriptors: no input, its words into the VM's log, the ready pipe as READY_FD, nothing else.
 */
static int spawn(const struct config *config, const struct start *start, int ready, pid_t *pid,
                 struct ferry_error *err)
{
    char log_path[PATH_MAX];
    char generation[24];
    char log_limit[48];
    char *argv[32] = {"ferry-vm", "--dir",  (char *)start->directory, "--ready-fd",
                      "3",        "--host", (char *)config->name};
    size_t argc = 7;
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    int rc;

    if (start->former) {
        argv[argc++] = "--upgrade";
        argv[argc++] = (char *)start->former;
    }
    if (start->flags & VM_PROCESS_INCOMING)
        argv[argc++] = "--incoming";
    if (start->flags & VM_PROCESS_PAUSED)
        argv[argc++] = "--paused";
    if (start->resume) {
        argv[argc++] = "--resume";
        argv[argc++] = (char *)start->resume->file;
        argv[argc++] = start->resume->eager ? "--eager" : "--lazy";
    }
    if (start->resume && start->resume->new_identity)
        argv[argc++] = "--new-identity";
    if (start->resume && start->resume->new_generation)
        argv[argc++] = "--new-generation";
    if (start->resume && start->resume->generation) {
        snprintf(generation, sizeof(generation), "%llu", (unsigned long long)start->resume->generation);
        argv[argc++] = "--lock-generation";
        argv[argc++] = generation;
    }
    if (config->insecure)
        argv[argc++] = "--insecure";
    if (config->lock_dir[0]) {
        argv[argc++] = "--lock-dir";
        argv[argc++] = (char *)config->lock_dir;
    }
    if (start->cpu_features) {
        argv[argc++] = "--cpu-features";
        argv[argc++] = (char *)start->cpu_features;
    }
    if (config->lock_wait[0]) {
        argv[argc++] = "--lock-wait";
        argv[argc++] = (char *)config->lock_wait;
    }
    snprintf(log_limit, sizeof(log_limit), "%llu,%u", (unsigned long long)config->vm_log_size,
             config->log_files);
    argv[argc++] = "--log-limit";
    argv[argc++] = log_limit;
    if (strcmp(config->seccomp, "on") != 0) { /* what ferry-vm does by itself, if it was built so */
        argv[argc++] = "--seccomp";
        argv[argc++] = (char *)config->seccomp;
    }
    sigemptyset(&none);
    sigfillset(&all);
    if (file_path(start->directory, "vm.log", log_path) < 0)
        return error_set(err, -ENAMETOOLONG, "the path %.200s is too long", start->directory);

    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, log_path, O_WRONLY | O_CREAT | O_APPEND, 0640);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    posix_spawn_file_actions_adddup2(&actions, ready, READY_FD);
    posix_spawn_file_actions_addclosefrom_np(&actions, READY_FD + 1);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes,
                             POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    rc = posix_spawn(pid, config->vm_program, &actions, &attributes, argv, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return rc == 0 ? 0 : error_set_errno(err, -rc, "cannot start %s", config->vm_program);
}

/* Reads the line ferry-vm writes when it is ready, or why it is not. */
static int wait_ready(struct host *host, struct vm_process *process, int fd, uint64_t deadline,
                      struct ferry_error *err)
{
    char line[4096];
    size_t used = 0;
    json_t *word = NULL;
    const char *text;
    json_int_t number;
    int result = -EPROTO;

    while (used < sizeof(line) - 1 && !memchr(line, '\n', used)) {
        struct pollfd polls[2] = {{.fd = fd, .events = POLLIN}, {.fd = host->stop_fd, .events = POLLIN}};
        int ready = poll(polls, 2, clock_left_ms(deadline));
        ssize_t got;

        if (ready < 0 && errno == EINTR)
            continue;
        if (ready <= 0)
            return error_set(err, -ETIMEDOUT, "ferry-vm did not get ready in time");
        if (polls[1].revents)
            return error_set(err, -ECANCELED, "ferryd is stopping");
        got = read(fd, line + used, sizeof(line) - 1 - used);
        if (got <= 0)
            break;
        used += (size_t)got;
    }
    line[used] = '\0';
    word = used ? fields_parse(line, strcspn(line, "\n"), "what ferry-vm says", err) : NULL;
    text = json_string_value(json_object_get(word, "error"));
    number = json_integer_value(json_object_get(word, "errno"));
    if (json_is_true(json_object_get(word, "ok"))) {
        result = 0;
    } else if (text) {
        /* what ferry-vm finds wrong with the files is a failure; what makes no sense was refused before */
        result =
            error_set(err, number > 0 && number < 4096 && number != EINVAL ? -(int)number : -EIO, "%s", text);
    } else {
        char why[128];

        wait_end(process, (int)host_vm_ms(host));
        vm_process_last_words(process, why, sizeof(why));
        result = error_set(err, -EPROTO, "%s before it was ready; see ferryd's log", why);
    }
    json_decref(word);
    return result;
}

/* A start that failed leaves no process: it is ended and waited for. */
static void discard(struct vm_process *process)
{
    siginfo_t info;

    vm_process_kill(process);
    if (wait_end(process, (int)host_start_ms(process->host)))
        waitid(P_PIDFD, (id_t)process->pidfd, &info, WEXITED | WNOHANG);
    vm_process_unref(process);
}

static int process_start(struct vm_process **out, struct host *host, struct vm *vm, const struct start *start,
                         struct ferry_error *err)
{
    CLEANUP_CLOSE int ready_read = -1;
    CLEANUP_CLOSE int ready_write = -1;
    struct vm_process *process;
    int pipe_fds[2];
    pid_t pid = -1;
    int result;

    *out = NULL;
    if (pipe2(pipe_fds, O_CLOEXEC) < 0)
        return error_set_errno(err, -errno, "cannot make a pipe for ferry-vm");
    ready_read = pipe_fds[0];
    ready_write = pipe_fds[1];
    result = spawn(host->config, start, ready_write, &pid, err);
    if (result < 0)
        return result;
    close(TAKE_FD(ready_write));
    process = process_new(host, vm, start->directory, pid, true);
    if (!process) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        return error_set(err, -ENOMEM, "cannot watch the process of VM %s", vm->name);
    }
    result = record_process(host, vm, start->directory, pid, err);
    if (result == 0)
        result = wait_ready(host, process, ready_read, clock_deadline(start->timeout_ms), err);
    if (result == 0)
        result = connect_client(process, clock_deadline(host_vm_ms(host)), err);
    if (result < 0) {
        discard(process);
        return result;
    }
    *out = process;
    return 0;
}

int vm_process_start(struct vm_process **out, struct host *host, struct vm *vm, unsigned flags,
                     int64_t timeout_ms, struct ferry_error *err)
{
    struct start start = {.directory = vm->directory, .flags = flags, .timeout_ms = timeout_ms};
    char *cpu_features = NULL;
    int result = flags & VM_PROCESS_INCOMING /* what it was given arrives with it */
                     ? 0
                     : cpu_baseline_for_vm(host, vm->definition, &cpu_features, err);

    start.cpu_features = cpu_features;
    if (result == 0)
        result = process_start(out, host, vm, &start, err);
    free(cpu_features);
    return result;
}

int vm_process_resume(struct vm_process **out, struct host *host, struct vm *vm, unsigned flags,
                      const struct vm_process_resume *resume, int64_t timeout_ms, struct ferry_error *err)
{
    const struct start start = {
        .directory = vm->directory, .flags = flags, .timeout_ms = timeout_ms, .resume = resume};

    return process_start(out, host, vm, &start, err);
}

int vm_process_start_next(struct vm_process **out, struct host *host, struct vm *vm, const char *directory,
                          int64_t timeout_ms, struct ferry_error *err)
{
    const struct start start = {.directory = directory, .former = vm->directory, .timeout_ms = timeout_ms};

    return process_start(out, host, vm, &start, err);
}

void vm_process_kill_in(const struct host *host, const char *directory)
{
    char path[PATH_MAX];
    uint64_t pid = 0;
    uint64_t started = 0;
    const struct field fields[] = {{"pid", FIELD_UINT, true, &pid},
                                   {"start_time", FIELD_UINT, true, &started}};
    json_t *record = NULL;
    int pidfd = -1;

    if (file_path(directory, "process.json", path) == 0 && host_read_json(path, &record, NULL) == 0 &&
        fields_read(record, fields, 2, FIELDS_LOOSE, path, NULL) == 0 && pid > 0 && pid <= INT32_MAX)
        pidfd = pidfd_open((pid_t)pid, 0);
    json_decref(record);
    if (pidfd < 0)
        return;
    if (start_time((pid_t)pid) == started) {
        struct pollfd end = {.fd = pidfd, .events = POLLIN};

        pidfd_send_signal(pidfd, SIGKILL, NULL, 0);
        poll(&end, 1, (int)host_start_ms(host));
    }
    close(pidfd);
}

json_t *vm_process_exit(const struct vm_process *process)
{
    char path[PATH_MAX];
    json_t *word = NULL;

    process_path(process, "exit.json", path);
    host_read_json(path, &word, NULL);
    return word;
}

int vm_process_adopt(struct vm_process **out, struct host *host, struct vm *vm, const char *directory,
                     struct ferry_error *err)
{
    char path[PATH_MAX];
    uint64_t pid = 0;
    uint64_t started = 0;
    const struct field fields[] = {{"pid", FIELD_UINT, true, &pid},
                                   {"start_time", FIELD_UINT, true, &started}};
    uint64_t deadline = clock_deadline(host_vm_ms(host));
    struct vm_process *process;
    json_t *record = NULL;
    int result = file_path(directory, "process.json", path);

    *out = NULL;
    if (result == 0)
        result = host_read_json(path, &record, err);
    if (result == 0)
        result = fields_read(record, fields, 2, FIELDS_LOOSE, path, err);
    json_decref(record);
    if (result < 0)
        return result;
    if (pid == 0 || pid > INT32_MAX || start_time((pid_t)pid) != started)
        return error_set(err, -ESRCH, "process %llu is gone", (unsigned long long)pid);
    process = process_new(host, vm, directory, (pid_t)pid, false);
    if (!process || start_time((pid_t)pid) != started || vm_process_gone(process)) {
        vm_process_unref(process);
        return error_set(err, -ESRCH, "process %llu is gone", (unsigned long long)pid);
    }
    /* It may be just starting: its socket may not be there yet. One that hangs is not asked twice. */
    while (connect_client(process, deadline, err) < 0 && clock_left_ms(deadline) != 0) {
        if (wait_end(process, ADOPT_INTERVAL_MS))
            break;
    }
    *out = process;
    return 0;
}

/* What the process said before it ended is still being read: nothing of it shall be lost. */
static void hear_out(struct vm_process *process)
{
    struct host *host = process->host;
    uint64_t deadline = clock_deadline(HEAR_OUT_MS);
    bool connected;

    pthread_rwlock_rdlock(&process->client_lock);
    connected = process->client != NULL;
    pthread_rwlock_unlock(&process->client_lock);
    host_lock(host);
    while (connected && !__atomic_load_n(&process->disconnected, __ATOMIC_ACQUIRE) && !host->stopping) {
        if (!thread_cond_wait_until(&host->changed, &host->lock, deadline))
            break;
    }
    host_unlock(host);
}

/* One that was replaced is gone, or is not our business any more: its reference and its directory go. */
static void forget_leaving(struct vm_process *process)
{
    struct host *host = process->host;
    char *remains = NULL;
    struct ferry_error err;
    char last_words[128];

    host_lock(host);
    for (struct vm_process **link = &host->leaving; *link; link = &(*link)->leaving) {
        if (*link == process) {
            *link = process->leaving;
            remains = process->remains;
            process->remains = NULL;
            break;
        }
    }
    host_unlock(host);
    if (!remains)
        return;
    vm_process_last_words(process, last_words, sizeof(last_words)); /* and reaps it */
    if (vm_directory_remove_path(remains, &err) < 0)
        log_warn(host->log, "%s", err.text);
    free(remains);
    vm_process_unref(process);
}

static void end_of_patience(void *opaque)
{
    struct vm_process *process = opaque;

    log_warn(process->host->log, "VM %s: its former process %d does not end; killing it", process->vm->name,
             (int)process->pid);
    vm_process_kill(process);
}

/* On the loop's thread, with a reference. */
static void be_patient(void *opaque)
{
    struct vm_process *process = opaque;

    if (process->watch && !process->patience &&
        loop_timer_add(process->host->loop, end_of_patience, process, &process->patience, NULL) == 0)
        loop_timer_arm(process->patience, process->host->config->start_timeout_ns);
    if (!process->watch)
        forget_leaving(process); /* it had ended before */
    vm_process_unref(process);
}

void vm_process_leave(struct vm_process *process, const char *remains)
{
    struct host *host = process->host;

    host_lock(host);
    process->remains = strdup(remains);
    process->leaving = host->leaving;
    host->leaving = process;
    process->refs++;
    host_unlock(host);
    if (loop_post(host->loop, be_patient, process) < 0)
        vm_process_unref(process); /* it is not killed, should it hang */
}

void vm_processes_forget_leaving(struct host *host)
{
    while (host->leaving) {
        struct vm_process *process = host->leaving;

        host->leaving = process->leaving;
        loop_timer_remove(process->patience);
        if (process->watch) {
            loop_watch_remove(process->watch);
            vm_process_unref(process);
        }
        vm_process_unref(process);
    }
}

static void ended(void *opaque, unsigned events)
{
    struct vm_process *process = opaque;

    (void)events;
    loop_watch_remove(process->watch);
    process->watch = NULL;
    loop_timer_remove(process->patience);
    process->patience = NULL;
    hear_out(process);
    vms_process_ended(process);
    forget_leaving(process);
    vm_process_unref(process); /* the watch's reference */
}

static void add_watch(void *opaque)
{
    struct vm_process *process = opaque;
    struct ferry_error err;

    if (loop_watch_add(process->host->loop, process->pidfd, LOOP_READ, ended, process, &process->watch,
                       &err) < 0) {
        log_error(process->host->log, "VM %s: its end will not be noticed: %s", process->vm->name, err.text);
        vm_process_unref(process);
    }
}

int vm_process_watch(struct vm_process *process)
{
    struct host *host = process->host;
    int result;

    host_lock(host);
    process->refs++;
    host_unlock(host);
    result = loop_post(host->loop, add_watch, process);
    if (result < 0)
        vm_process_unref(process);
    return result;
}
