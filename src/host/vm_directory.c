#include "host/vm_directory.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "disk/vm_lock.h"
#include "host/fields.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define LOG_TAIL_SIZE 2048

static int file_path(const struct vm *vm, const char *file, char path[static PATH_MAX])
{
    return snprintf(path, PATH_MAX, "%s/%s", vm->directory, file) < PATH_MAX ? 0 : -ENAMETOOLONG;
}

int vm_directory_path(struct host *host, const char *name, char path[static PATH_MAX],
                      struct ferry_error *err)
{
    int length = snprintf(path, PATH_MAX, "%s/vms/%s", host->config->state_dir, name);

    if ((size_t)length + sizeof("/control.sock") > sizeof(((struct sockaddr_un *)0)->sun_path))
        return error_set(err, HOST_USAGE,
                         "the path %s is too long for sockets (%zu bytes); use a shorter name or state "
                         "directory",
                         path, sizeof(((struct sockaddr_un *)0)->sun_path) - sizeof("/control.sock"));
    return 0;
}

int vm_directory_write_definition(const char *directory, const json_t *definition, struct ferry_error *err)
{
    char *text = json_dumps(definition, JSON_INDENT(2));
    char path[PATH_MAX];
    int result;

    if (!text)
        result = error_set(err, -ENOMEM, "out of memory");
    else if (snprintf(path, sizeof(path), "%s/definition.json", directory) >= PATH_MAX)
        result = error_set(err, -ENAMETOOLONG, "the path %.200s is too long", directory);
    else
        result = host_write_file(path, text, err);
    free(text);
    return result;
}

int vm_directory_make_path(const char *directory, const json_t *definition, struct ferry_error *err)
{
    int result;

    if (mkdir(directory, 0750) < 0)
        return error_set_errno(err, errno == EEXIST ? -ENOTEMPTY : -errno, "cannot make %s", directory);
    result = vm_directory_write_definition(directory, definition, err);
    if (result < 0)
        vm_directory_remove_path(directory, NULL);
    return result;
}

int vm_directory_make(const struct vm *vm, struct ferry_error *err)
{
    return vm_directory_make_path(vm->directory, vm->definition, err);
}

static const char *const life_files[] = {"exit.json", "process.json", "handover", "control.sock",
                                         "console.sock"};

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

/* What is at PATH is the file that was made as PARTIAL, not one that somebody else has put there. */
static bool is_ours(const json_t *disk, const char *path)
{
    struct stat status;

    return json_is_integer(json_object_get(disk, "inode")) && lstat(path, &status) == 0 &&
           json_integer_value(json_object_get(disk, "inode")) == (json_int_t)status.st_ino &&
           json_integer_value(json_object_get(disk, "device")) == (json_int_t)status.st_dev;
}

void vm_directory_drop_disks_of(const json_t *disks)
{
    json_t *disk;
    size_t i;

    json_array_foreach(disks, i, disk)
    {
        const char *path = text_of(disk, "path");
        char lock[PATH_MAX];

        unlink(text_of(disk, "partial"));
        if (!is_ours(disk, path) || unlink(path) < 0)
            continue;
        if (snprintf(lock, sizeof(lock), "%s" VM_LOCK_SUFFIX, path) < PATH_MAX)
            unlink(lock);
    }
}

/* Of one that has not arrived. */
static void drop_disks(const struct vm *vm)
{
    json_t *mark = vm_directory_incoming(vm);

    vm_directory_drop_disks_of(json_object_get(mark, "disks"));
    json_decref(mark);
}

void vm_directory_retire(const struct vm *vm)
{
    char path[PATH_MAX];

    drop_disks(vm);
    vm_directory_arrived(vm);
    for (size_t i = 0; i < sizeof(life_files) / sizeof(life_files[0]); i++)
        if (file_path(vm, life_files[i], path) == 0)
            unlink(path);
}

int vm_directory_clean(const struct vm *vm, struct ferry_error *err)
{
    char path[PATH_MAX];
    json_t *incoming = vm_directory_incoming(vm);

    if (incoming) {
        const char *source = json_string_value(json_object_get(incoming, "source"));

        error_set(err, HOST_CONFLICT,
                  "it ended while it was arriving from host %s and may run there; if it does, remove it here",
                  source ? source : "?");
        json_decref(incoming);
        return HOST_CONFLICT;
    }
    for (size_t i = 0; i < sizeof(life_files) / sizeof(life_files[0]); i++) {
        if (file_path(vm, life_files[i], path) == 0 && unlink(path) < 0 && errno != ENOENT)
            return error_set_errno(err, -errno, "cannot remove %s", path);
    }
    return 0;
}

int vm_directory_remove_path(const char *path, struct ferry_error *err)
{
    DIR *directory = opendir(path);
    struct dirent *entry;

    if (!directory)
        return errno == ENOENT ? 0 : error_set_errno(err, -errno, "cannot remove %s", path);
    while ((entry = readdir(directory))) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlinkat(dirfd(directory), entry->d_name, 0);
    }
    closedir(directory);
    if (rmdir(path) < 0)
        return error_set_errno(err, -errno, "cannot remove %s", path);
    return 0;
}

int vm_directory_remove(const struct vm *vm, struct ferry_error *err)
{
    drop_disks(vm);
    return vm_directory_remove_path(vm->directory, err);
}

void vm_directory_log_tail(struct host *host, const struct vm *vm)
{
    char path[PATH_MAX];
    char text[LOG_TAIL_SIZE + 1];
    CLEANUP_CLOSE int fd = -1;
    struct stat status;
    ssize_t got;
    char *rest;

    if (file_path(vm, "vm.log", path) < 0)
        return;
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || fstat(fd, &status) < 0)
        return;
    got = pread(fd, text, LOG_TAIL_SIZE, status.st_size > LOG_TAIL_SIZE ? status.st_size - LOG_TAIL_SIZE : 0);
    if (got <= 0)
        return;
    text[got] = '\0';
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        log_info(host->log, "[vm %s] its log said: %s", vm->name, line);
}

json_t *vm_directory_exit(const struct vm *vm)
{
    char path[PATH_MAX];
    json_t *word = NULL;

    if (file_path(vm, "exit.json", path) == 0)
        host_read_json(path, &word, NULL);
    return word;
}

int vm_directory_leave_exit(const struct vm *vm, const char *why, struct ferry_error *err)
{
    char path[PATH_MAX];
    json_t *json = json_pack("{s:s, s:o}", "reason", "killed", "why", fields_text(why));
    char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
    int result = -ENAMETOOLONG;

    if (!text)
        result = error_set(err, -ENOMEM, "out of memory");
    else if (file_path(vm, "exit.json", path) < 0)
        error_set(err, result, "the path of VM %s is too long", vm->name);
    else
        result = host_write_file(path, text, err);
    free(text);
    json_decref(json);
    return result;
}

int vm_directory_mark_incoming(const struct vm *vm, const char *id, const char *source,
                               struct ferry_error *err)
{
    char path[PATH_MAX];
    char text[256];

    if (file_path(vm, "incoming.json", path) < 0)
        return error_set(err, -ENAMETOOLONG, "the path of VM %s is too long", vm->name);
    snprintf(text, sizeof(text), "{\"id\": \"%s\", \"source\": \"%s\"}\n", id, source);
    return host_write_file(path, text, err);
}

int vm_directory_mark_disks(const struct vm *vm, const char *id, const char *source, json_t *disks,
                            struct ferry_error *err)
{
    char path[PATH_MAX];
    json_t *json = json_pack("{s:s, s:s, s:O}", "id", id, "source", source, "disks", disks);
    char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
    int result = -ENAMETOOLONG;

    if (!text)
        result = error_set(err, -ENOMEM, "out of memory");
    else if (file_path(vm, "incoming.json", path) < 0)
        error_set(err, result, "the path of VM %s is too long", vm->name);
    else
        result = host_write_file(path, text, err);
    free(text);
    json_decref(json);
    return result;
}

json_t *vm_directory_incoming(const struct vm *vm)
{
    char path[PATH_MAX];
    json_t *mark = NULL;

    if (file_path(vm, "incoming.json", path) == 0)
        host_read_json(path, &mark, NULL);
    return mark;
}

void vm_directory_arrived(const struct vm *vm)
{
    char path[PATH_MAX];

    if (file_path(vm, "incoming.json", path) == 0)
        unlink(path);
}

int vm_directory_arrived_for_good(const struct vm *vm, struct ferry_error *err)
{
    char path[PATH_MAX];

    if (file_path(vm, "incoming.json", path) < 0 || unlink(path) < 0)
        return error_set_errno(err, -errno, "cannot remove incoming.json of VM %s", vm->name);
    host_sync_directory(path);
    return 0;
}

int vm_directory_mark_saving(const struct vm *vm, const char *id, const char *kind, const char *file,
                             struct ferry_error *err)
{
    char path[PATH_MAX];
    char started[CLOCK_TEXT_SIZE];
    json_t *json = json_pack("{s:s, s:s, s:o, s:s}", "id", id, "kind", kind, "file", fields_text(file),
                             "started", clock_format(clock_realtime_ns(), started));
    char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
    int result = -ENAMETOOLONG;

    if (!text)
        result = error_set(err, -ENOMEM, "out of memory");
    else if (file_path(vm, "saving.json", path) < 0)
        error_set(err, result, "the path of VM %s is too long", vm->name);
    else
        result = host_write_file(path, text, err);
    free(text);
    json_decref(json);
    return result;
}

static json_t *read_file(const struct vm *vm, const char *file)
{
    char path[PATH_MAX];
    json_t *json = NULL;

    if (file_path(vm, file, path) == 0)
        host_read_json(path, &json, NULL);
    return json;
}

json_t *vm_directory_saving(const struct vm *vm)
{
    return read_file(vm, "saving.json");
}

void vm_directory_saved(const struct vm *vm)
{
    char path[PATH_MAX];

    if (file_path(vm, "saving.json", path) == 0)
        unlink(path);
}

json_t *vm_directory_suspended(const struct vm *vm)
{
    return read_file(vm, "suspended.json");
}

void vm_directory_write_suspended(struct host *host, const struct vm *vm, const json_t *suspended)
{
    char path[PATH_MAX];
    struct ferry_error err = {0};
    char *text = suspended ? json_dumps(suspended, JSON_INDENT(2)) : NULL;
    int result = file_path(vm, "suspended.json", path);

    if (result == 0 && suspended)
        result = text ? host_write_file(path, text, &err) : -ENOMEM;
    else if (result == 0 && unlink(path) < 0 && errno != ENOENT)
        result = error_set_errno(&err, -errno, "cannot remove %s", path);
    if (result < 0)
        log_error(host->log, "VM %s: whether it is suspended could not be recorded: %s", vm->name, err.text);
    free(text);
}

bool vm_directory_has_process(const struct vm *vm)
{
    json_t *record = read_file(vm, "process.json");

    json_decref(record);
    return record != NULL;
}

bool vm_directory_has_ended(const struct vm *vm)
{
    json_t *left[2] = {read_file(vm, "exit.json"), read_file(vm, "suspended.json")};
    bool ended = left[0] || left[1];

    json_decref(left[0]);
    json_decref(left[1]);
    return ended;
}

/* The process makes the file with a "0" when it starts. What cannot be read may say anything. */
static bool says_handed_over(const char *path)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    char mark;

    if (fd < 0)
        return errno != ENOENT;
    return read(fd, &mark, 1) != 1 || mark != '0';
}

bool vm_directory_handed_over(struct host *host, const struct vm *vm)
{
    char path[PATH_MAX];
    json_t *record = NULL;
    const char *boot_id;
    bool same_boot;

    if (file_path(vm, "handover", path) < 0 || says_handed_over(path))
        return true;
    if (file_path(vm, "process.json", path) < 0 || host_read_json(path, &record, NULL) < 0)
        return true;
    boot_id = json_string_value(json_object_get(record, "boot_id"));
    same_boot = boot_id && strcmp(boot_id, host->boot_id) == 0;
    json_decref(record);
    return !same_boot;
}

void vm_directory_write_ban(struct host *host, const struct vm *vm)
{
    const struct vm_ban *ban = &vm->ban;
    char path[PATH_MAX];
    struct ferry_error err = {0};
    json_t *json =
        json_pack("{s:s, s:o, s:s, s:s, s:s}", "set_by", ban->by, "reason", fields_text(ban->reason), "host",
                  ban->host, "migration", ban->migration, "outcome", ban->outcome);
    char *text = json_dumps(json, JSON_INDENT(2));
    int result = text ? file_path(vm, "not-runnable.json", path) : -ENOMEM;

    if (result == 0)
        result = host_write_file(path, text, &err);
    if (result < 0)
        log_error(host->log, "VM %s: that it is not runnable here could not be recorded: %s", vm->name,
                  err.text);
    free(text);
    json_decref(json);
}

static void copy_text(char *out, size_t size, const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    snprintf(out, size, "%s", text ? text : "");
}

void vm_directory_read_ban(const struct vm *vm, struct vm_ban *ban)
{
    char path[PATH_MAX];
    json_t *json = NULL;
    int result = file_path(vm, "not-runnable.json", path);

    memset(ban, 0, sizeof(*ban));
    if (result == 0)
        result = host_read_json(path, &json, NULL);
    if (result == -ENOENT)
        return;
    copy_text(ban->by, sizeof(ban->by), json, "set_by");
    copy_text(ban->reason, sizeof(ban->reason), json, "reason");
    copy_text(ban->host, sizeof(ban->host), json, "host");
    copy_text(ban->migration, sizeof(ban->migration), json, "migration");
    copy_text(ban->outcome, sizeof(ban->outcome), json, "outcome");
    if (!ban->by[0]) { /* it is there and cannot be read: rather not */
        strcpy(ban->by, "Admin");
        strcpy(ban->reason, "not-runnable.json in its directory makes no sense");
    }
    json_decref(json);
}

void vm_directory_lift_ban(const struct vm *vm)
{
    char path[PATH_MAX];

    if (file_path(vm, "not-runnable.json", path) == 0)
        unlink(path);
}
