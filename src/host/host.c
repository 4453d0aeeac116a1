#include "host/host.h"

#include "base/buffer.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/rotate.h"
#include "base/hugepages.h"
#include "base/thread.h"
#include "host/agreement.h"
#include "host/api.h"
#include "host/certificate.h"
#include "host/checkpoint.h"
#include "host/cpu_baseline.h"
#include "host/definition.h"
#include "host/events.h"
#include "host/fields.h"
#include "host/machines.h"
#include "host/journal.h"
#include "host/migration.h"
#include "host/migration_files.h"
#include "host/peers.h"
#include "host/probe.h"
#include "host/upgrade.h"
#include "host/vms.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_MAX        (16u << 20)
#define MEMORY_RESERVED (128ull << 20) /* what is never given to VMs */
#define MEMORY_A_VM     (32ull << 20)  /* what a ferry-vm needs beside its guest's memory */

bool host_stopping(struct host *host)
{
    return __atomic_load_n(&host->stopping, __ATOMIC_ACQUIRE);
}

void host_record_failed(struct host *host, const struct ferry_error *err)
{
    log_error(host->log, "not recorded (VMs are not affected): %s", err->text);
}

/* --- files --- */

int host_write_file(const char *path, const char *text, struct ferry_error *err)
{
    char temporary[PATH_MAX];
    CLEANUP_CLOSE int fd = -1;
    size_t size = strlen(text);
    size_t done = 0;

    if (snprintf(temporary, sizeof(temporary), "%s.new", path) >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "the path %s is too long", path);
    fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
    if (fd < 0)
        return error_set_errno(err, -errno, "cannot write %s", path);
    while (done < size) {
        ssize_t written = write(fd, text + done, size - done);

        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            break;
        done += (size_t)written;
    }
    if (done < size || fsync(fd) < 0 || rename(temporary, path) < 0) {
        int code = -errno;

        unlink(temporary);
        return error_set_errno(err, code, "cannot write %s", path);
    }
    return 0;
}

void host_sync_directory(const char *path)
{
    const char *slash = strrchr(path, '/');
    char directory[PATH_MAX];
    CLEANUP_CLOSE int fd = -1;

    snprintf(directory, sizeof(directory), "%.*s", slash && slash > path ? (int)(slash - path) : 1,
             slash ? path : ".");
    fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0)
        (void)fsync(fd);
}

int host_rename_new(const char *from, const char *to, struct ferry_error *err)
{
    int result = renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE);

    /* Some file systems cannot do that. */
    if (result < 0 && (errno == EINVAL || errno == ENOSYS)) {
        result = link(from, to);
        if (result == 0)
            unlink(from);
    }
    if (result < 0 && errno == EEXIST)
        return error_set(err, HOST_CONFLICT, "%s exists already, and is never overwritten", to);
    if (result < 0)
        return error_set_errno(err, -errno, "cannot make %s", to);
    host_sync_directory(to);
    return 0;
}

int host_read_json(const char *path, json_t **out, struct ferry_error *err)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct buffer buffer = BUFFER_INIT;
    ssize_t got = 1;
    int result = 0;

    *out = NULL;
    if (fd < 0)
        return error_set_errno(err, -errno, "cannot read %s", path);
    while (got > 0 && buffer.size < FILE_MAX && buffer_reserve(&buffer, 65536)) {
        got = read(fd, buffer.data + buffer.size, 65536);
        if (got > 0)
            buffer.size += (size_t)got;
    }
    if (got != 0)
        result = error_set(err, got < 0 ? -errno : -EFBIG, "cannot read %s", path);
    if (result == 0) {
        *out = fields_parse((const char *)buffer.data, buffer.size, path, err);
        if (!*out)
            result = -EINVAL;
    }
    buffer_free(&buffer);
    return result;
}

/* --- memory and machines --- */

/* A field of /proc/meminfo, in bytes; 0 when it is not there. */
static uint64_t meminfo(const char *field)
{
    FILE *file = fopen("/proc/meminfo", "re");
    char line[128];
    uint64_t bytes = 0;

    while (file && fgets(line, sizeof(line), file)) {
        if (strncmp(line, field, strlen(field)) == 0 && line[strlen(field)] == ':')
            bytes = strtoull(line + strlen(field) + 1, NULL, 10) * 1024;
    }
    if (file)
        fclose(file);
    return bytes;
}

uint64_t host_memory_total(const struct host *host)
{
    uint64_t total = meminfo("MemTotal");

    return host->config->memory_limit && host->config->memory_limit < total ? host->config->memory_limit
                                                                            : total;
}

static uint64_t minus(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

uint64_t host_memory_allowed(struct host *host)
{
    uint64_t limit = host->config->memory_limit;

    if (!limit)
        return UINT64_MAX;
    host_lock(host);
    for (struct vm *vm = host->vms; vm; vm = vm->next) {
        if (vm->process || vm->memory_promised)
            limit = minus(limit, definition_memory(vm->definition));
    }
    host_unlock(host);
    return limit;
}

/* Bytes promised to VMs whose memory is of pages of that size; 0: of ordinary ones. */
static uint64_t memory_promised(struct host *host, uint64_t page_size)
{
    uint64_t promised = 0;

    host_lock(host);
    for (struct vm *vm = host->vms; vm; vm = vm->next) {
        if (vm->memory_promised && definition_hugepages(vm->definition) == page_size)
            promised += vm->memory_promised;
    }
    host_unlock(host);
    return promised;
}

uint64_t host_memory_available(struct host *host)
{
    uint64_t available = minus(meminfo("MemAvailable"), MEMORY_RESERVED);
    uint64_t allowed = host_memory_allowed(host);

    available = minus(minus(available, memory_promised(host, 0)), MEMORY_A_VM);
    return allowed < available ? allowed : available;
}

static int hugepages_now(struct host *host, uint64_t page_size, struct hugepages *pages,
                         struct ferry_error *err)
{
    int result = hugepages_read(host->hugepages_directory, page_size, pages, err);

    if (result == 0)
        pages->available = minus(pages->available, memory_promised(host, page_size) / page_size);
    return result;
}

int host_check_hugepages(struct host *host, const json_t *definition, struct ferry_error *err)
{
    uint64_t page_size = definition_hugepages(definition);
    uint64_t needed = page_size ? definition_memory(definition) / page_size : 0;
    char advice[HUGEPAGES_ADVICE_SIZE];
    struct hugepages pages;
    int result = page_size ? hugepages_now(host, page_size, &pages, err) : 0;

    if (result < 0)
        return error_prefix(err, result, "host %s", host->config->name);
    if (!page_size || needed <= pages.available)
        return 0;
    return error_set(
        err, -EBUSY, "it needs %llu huge pages of %s, host %s has %llu free; set more aside on that host: %s",
        (unsigned long long)needed, hugepages_size_name(page_size), host->config->name,
        (unsigned long long)pages.available, hugepages_advice(page_size, &pages, needed, advice));
}

static json_t *hugepages_list(struct host *host)
{
    static const uint64_t sizes[] = {HUGEPAGES_2M, HUGEPAGES_1G};
    json_t *list = json_array();

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct hugepages pages;

        if (hugepages_now(host, sizes[i], &pages, NULL) == 0)
            json_array_append_new(list, json_pack("{s:I, s:I, s:I}", "size", (json_int_t)sizes[i], "total",
                                                  (json_int_t)pages.total, "available",
                                                  (json_int_t)pages.available));
    }
    return list;
}

json_t *host_object(struct host *host)
{
    json_t *object;
    bool enabled;

    host_lock(host);
    enabled = host->migration_enabled;
    host_unlock(host);
    object = json_pack(
        "{s:s, s:s, s:i, s:s, s:s, s:I, s:I, s:o, s:i, s:s, s:s, s:o, s:i, s:s, s:o}", "name",
        host->config->name, "version", FERRY_VERSION, "protocol", HOST_PROTOCOL, "address", api_address(host),
        "migrate_address", host->config->migrate_address, "memory_total", (json_int_t)host_memory_total(host),
        "memory_available", (json_int_t)host_memory_available(host), "machines", machines_list(), "vms",
        (int)vms_count(host), "migration", enabled ? "enabled" : "disabled", "migration_status",
        certificate_migration_status(host), "certificate", certificate_object(host), "pid", (int)getpid(),
        "started", host->started, "state_dir", fields_text(host->config->state_dir));
    json_object_set_new(object, "hugepages", hugepages_list(host));
    json_object_set_new(object, "kvm", machines_kvm(host));
    json_object_set_new(object, "seccomp", json_string(host->config->seccomp));
    json_object_set_new(object, "cpu", cpu_baseline_host_object(host));
    json_object_set_new(object, "cpu_baseline", cpu_baseline_get(host));
    json_object_set_new(object, "migrate_max", json_integer((json_int_t)host->config->migrate_max));
    json_object_set_new(object, "migrate_bandwidth",
                        json_integer((json_int_t)host->config->migrate_bandwidth));
    return object;
}

void host_set_migration(struct host *host, bool enabled)
{
    struct ferry_error err;
    bool changed;

    host_lock(host);
    changed = host->migration_enabled != enabled;
    host->migration_enabled = enabled;
    host_unlock(host);
    if (!changed)
        return;
    if (host->store->ops->setting_put(host->store, "migration", enabled ? "enabled" : "disabled", &err) < 0)
        host_record_failed(host, &err);
    events_emit(host, EVENT_HOST_SETTING, NULL, NULL, NULL, "migration %s on host %s",
                enabled ? "enabled" : "disabled", host->config->name);
}

/* --- start and stop --- */

/* The lock is the kernel's: it goes with the process, whatever ends it. The number is for people. */
static int take_state_dir(struct host *host, struct ferry_error *err)
{
    const char *directory = host->config->state_dir;
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    char path[PATH_MAX];
    char text[32] = "";

    if (mkdir(directory, 0750) < 0 && errno != EEXIST)
        return error_set_errno(err, -errno, "cannot make the state directory %s", directory);
    if (snprintf(path, sizeof(path), "%s/ferryd.pid", directory) >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "the path of the state directory is too long");
    host->pid_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (host->pid_fd < 0)
        return error_set_errno(err, -errno, "cannot write to the state directory %s", directory);
    if (fcntl(host->pid_fd, F_OFD_SETLK, &lock) < 0) {
        ssize_t got = read(host->pid_fd, text, sizeof(text) - 1);

        text[got > 0 ? strspn(text, "0123456789") : 0] = '\0';
        return error_set(err, -EBUSY,
                         "another ferryd (process %s) has the state directory %s; stop it, or use another "
                         "directory",
                         text[0] ? text : "unknown", directory);
    }
    snprintf(text, sizeof(text), "%d\n", (int)getpid());
    if (ftruncate(host->pid_fd, 0) < 0 || pwrite(host->pid_fd, text, strlen(text), 0) < 0)
        log_warn(host->log, "cannot write %s: %s", path, strerror(errno)); /* a full disk: go on */
    return 0;
}

/* On the thread that logs. */
static void rotate_log(void *opaque)
{
    struct host *host = opaque;
    struct ferry_error err;
    char path[PATH_MAX];
    int result;

    if (snprintf(path, sizeof(path), "%s/ferryd.log", host->config->state_dir) >= PATH_MAX)
        return; /* it was opened, so it is not */
    result = rotate_descriptor(path, host->config->log_files, log_descriptor(host->log), &err);
    log_set_size(host->log, 0); /* on an error it is tried again when as much has come again */
    if (result < 0)
        log_warn(host->log, "%s; the log goes on where it was", err.text);
}

static int open_log(struct host *host, struct ferry_error *err)
{
    const struct config *config = host->config;
    struct stat status;
    char path[PATH_MAX];
    int result = 0;

    if (snprintf(path, sizeof(path), "%s/ferryd.log", config->state_dir) >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "the path of the state directory is too long");
    if (stat(path, &status) < 0)
        status.st_size = 0;
    if ((uint64_t)status.st_size > config->log_size) {
        result = rotate_files(path, config->log_files, err);
        status.st_size = 0;
    }
    if (result == 0)
        result = log_open_file(&host->log, path, LOG_LEVEL_DEBUG, err);
    if (result == 0) {
        log_set_size(host->log, (uint64_t)status.st_size);
        log_set_limit(host->log, config->log_size, rotate_log, host);
    }
    return result;
}

/* ferryd.log is enough to go on with. */
static void open_journal(struct host *host)
{
    const char *path = getenv("FERRY_JOURNAL_SOCKET");
    struct ferry_error err;

    if (!journal_is_stream(getenv("JOURNAL_STREAM"), STDERR_FILENO))
        return;
    if (journal_open(&host->journal, path ? path : JOURNAL_SOCKET, host->config->name, &err) < 0)
        log_warn(host->log, "%s", err.text);
    else
        log_set_listener(host->log, journal_listen, host->journal);
}

static int open_records(struct host *host, struct ferry_error *err)
{
    char path[PATH_MAX];
    char *value = NULL;
    int result;

    if (snprintf(path, sizeof(path), "%s/ferryd.db", host->config->state_dir) >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "the path of the state directory is too long");
    host->kvm = kvm_kind_probe(&host->kvm_why);
    result = store_open_sqlite(&host->store, path, err);
    if (result == 0)
        result = host->store->ops->setting_get(host->store, "migration", &value, err);
    host->migration_enabled = !value || strcmp(value, "disabled") != 0;
    free(value);
    if (result == 0)
        result = events_new(host, err);
    if (result == 0)
        result = cpu_baseline_open(host, err);
    if (result == 0)
        result = peers_load(host, err);
    return result;
}

static void read_boot_id(struct host *host)
{
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");

    if (!file || !fgets(host->boot_id, sizeof(host->boot_id), file))
        snprintf(host->boot_id, sizeof(host->boot_id), "unknown");
    if (file)
        fclose(file);
    host->boot_id[strcspn(host->boot_id, "\n")] = '\0';
}

static int check_lock_dir(const struct config *config, struct ferry_error *err)
{
    struct stat status;

    if (!config->lock_dir[0])
        return 0;
    if (stat(config->lock_dir, &status) < 0)
        return error_set_errno(err, -errno, "the lock directory %s cannot be used", config->lock_dir);
    if (!S_ISDIR(status.st_mode) || access(config->lock_dir, R_OK | W_OK | X_OK) < 0)
        return error_set(err, -EACCES, "the lock directory %s is no directory that ferryd can write to",
                         config->lock_dir);
    return 0;
}

int host_new(struct host **out, const struct config *config, struct loop *loop, struct ferry_error *err)
{
    struct host *host = calloc(1, sizeof(*host));
    int result;

    *out = NULL;
    if (!host)
        return error_set(err, -ENOMEM, "out of memory");
    host->config = config;
    host->loop = loop;
    host->pid_fd = -1;
    pthread_mutex_init(&host->lock, NULL);
    thread_cond_init(&host->changed);
    clock_format(clock_realtime_ns(), host->started);
    read_boot_id(host);
    host->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    host->probe = probe_new();
    result = host->stop_fd < 0 ? error_set_errno(err, -errno, "cannot start") : 0;
    if (result == 0 && !host->probe)
        result = error_set(err, -ENOMEM, "out of memory");
    if (result == 0)
        result = take_state_dir(host, err);
    if (result == 0)
        result = open_log(host, err);
    if (result == 0)
        open_journal(host);
    if (result == 0)
        result = check_lock_dir(config, err);
    if (result == 0)
        result = certificate_load(host, err);
    if (result == 0)
        result = open_records(host, err);
    if (result == 0)
        result = api_listen(host, err); /* before VMs are touched: the address may be taken */
    if (result == 0)
        result = vms_adopt(host, err);
    if (result == 0) {
        upgrades_adopt_processes(host);
        migrations_adopt(host);
        upgrades_adopt(host);
        vms_drop_leftovers(host);
        checkpoints_adopt(host);
        result = api_serve(host, err);
    }
    if (result == 0)
        result = agreement_start(host, err);
    if (result == 0)
        result = migration_files_start(host, err);
    if (result < 0) {
        host_free(host);
        return result;
    }
    host->ready = true;
    events_emit(host, EVENT_HOST_STARTED, NULL, NULL, NULL, "ferryd %s started on host %s (process %d)",
                FERRY_VERSION, config->name, (int)getpid());
    *out = host;
    return 0;
}

static void announce_stop(struct host *host)
{
    uint64_t one = 1;

    host_lock(host);
    __atomic_store_n(&host->stopping, true, __ATOMIC_RELEASE);
    host_changed(host);
    host_unlock(host);
    if (host->stop_fd >= 0)
        (void)!write(host->stop_fd, &one, sizeof(one));
    if (host->events)
        events_wake(host->events);
}

void host_free(struct host *host)
{
    if (!host)
        return;
    announce_stop(host);
    api_free(host);
    agreement_stop(host);
    migrations_reap(host, true);
    checkpoints_reap(host, true);
    migration_files_stop(host);
    probe_free(host->probe);
    vms_free(host);
    peers_free(host);
    if (host->ready)
        events_emit(host, EVENT_HOST_STOPPED, NULL, NULL, NULL, "ferryd stopped on host %s; its VMs run on",
                    host->config->name);
    events_free(host->events);
    cpu_baseline_close(host);
    store_close(host->store);
    credentials_unref(host->credentials);
    if (host->journal)
        log_set_listener(host->log, NULL, NULL);
    journal_close(host->journal);
    log_close(host->log);
    if (host->pid_fd >= 0)
        close(host->pid_fd);
    if (host->stop_fd >= 0)
        close(host->stop_fd);
    pthread_cond_destroy(&host->changed);
    pthread_mutex_destroy(&host->lock);
    free(host);
}
