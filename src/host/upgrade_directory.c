#include "host/upgrade_directory.h"

#include "base/error.h"
#include "host/fields.h"
#include "host/vm_directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MARK         "upgrade.json"
#define ROOM_OF_NAME 64

static int state_path(const struct host *host, const char *parent, const char *name,
                      char path[static PATH_MAX], struct ferry_error *err)
{
    if (snprintf(path, PATH_MAX, "%s/%s/%s", host->config->state_dir, parent, name) >=
        PATH_MAX - ROOM_OF_NAME)
        return error_set(err, -ENAMETOOLONG, "the path of the state directory is too long");
    return 0;
}

/* "new" is as long as "vms": a socket's path that fits there fits here. */
int upgrade_directory_path(const struct host *host, const char *name, char path[static PATH_MAX],
                           struct ferry_error *err)
{
    return state_path(host, "new", name, path, err);
}

static int make_parent(const struct host *host, const char *parent, struct ferry_error *err)
{
    char path[PATH_MAX];
    int result = state_path(host, parent, "", path, err);

    if (result == 0 && mkdir(path, 0750) < 0 && errno != EEXIST)
        result = error_set_errno(err, -errno, "cannot make %s", path);
    return result;
}

static void join(char path[static PATH_MAX], const char *directory, const char *file)
{
    if (snprintf(path, PATH_MAX, "%s/%s", directory, file) >= PATH_MAX)
        path[0] = '\0'; /* which no call takes */
}

/* Tried on two of its own. */
static int check_exchange(const char *directory, struct ferry_error *err)
{
    char one[PATH_MAX], other[PATH_MAX];
    int result = 0;

    join(one, directory, "one");
    join(other, directory, "other");
    if (mkdir(one, 0750) < 0 || mkdir(other, 0750) < 0 ||
        renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE) < 0)
        result = error_set_errno(err, -errno, "directories cannot change places in %s", directory);
    rmdir(one);
    rmdir(other);
    return result;
}

static int write_mark(const char *directory, const char *id, const char *old_version, pid_t old_pid,
                      struct ferry_error *err)
{
    json_t *mark = json_pack("{s:s, s:i, s:o}", "id", id, "old_pid", (int)old_pid, "old_version",
                             fields_text(old_version));
    char *text = mark ? json_dumps(mark, JSON_COMPACT) : NULL;
    char path[PATH_MAX];
    int result = text ? 0 : error_set(err, -ENOMEM, "out of memory");

    join(path, directory, MARK);
    if (result == 0)
        result = host_write_file(path, text, err);
    free(text);
    json_decref(mark);
    return result;
}

int upgrade_directory_make(struct host *host, const struct vm *vm, const char *id, const char *old_version,
                           pid_t old_pid, struct ferry_error *err)
{
    char path[PATH_MAX];
    int result = make_parent(host, "new", err);

    if (result == 0)
        result = make_parent(host, "old", err);
    if (result == 0)
        result = upgrade_directory_path(host, vm->name, path, err);
    if (result < 0)
        return result;
    upgrade_directory_remove(host, vm);
    result = vm_directory_make_path(path, vm->definition, err);
    if (result < 0)
        return result;
    result = check_exchange(path, err);
    if (result == 0)
        result = write_mark(path, id, old_version, old_pid, err);
    if (result < 0)
        upgrade_directory_remove(host, vm);
    return result;
}

void upgrade_directory_remove(struct host *host, const struct vm *vm)
{
    struct ferry_error err;
    char path[PATH_MAX];

    if (upgrade_directory_path(host, vm->name, path, &err) < 0 || vm_directory_remove_path(path, &err) < 0)
        log_warn(host->log, "VM %s: %s", vm->name, err.text);
}

json_t *upgrade_directory_mark(const struct host *host, const char *name)
{
    char directory[PATH_MAX], path[PATH_MAX];
    json_t *mark = NULL;

    if (upgrade_directory_path(host, name, directory, NULL) < 0)
        return NULL;
    join(path, directory, MARK);
    host_read_json(path, &mark, NULL);
    return mark;
}

int upgrade_directory_exchange(struct host *host, const struct vm *vm, struct ferry_error *err)
{
    char fresh[PATH_MAX], mark[PATH_MAX];
    int result = upgrade_directory_path(host, vm->name, fresh, err);

    if (result == 0 && renameat2(AT_FDCWD, fresh, AT_FDCWD, vm->directory, RENAME_EXCHANGE) < 0)
        result = error_set_errno(err, -errno, "%s cannot take the place of %s", fresh, vm->directory);
    if (result < 0)
        return result;
    join(mark, vm->directory, MARK);
    unlink(mark);
    return 0;
}

/* vm.log of the former process becomes vm.log.1, its vm.log.1 becomes vm.log.2 and so on; at most KEPT. */
static void keep_logs(const char *former, const char *directory, int kept)
{
    for (int number = kept - 1; number >= 0; number--) {
        char name[32] = "vm.log", from[PATH_MAX], to[PATH_MAX];

        if (number > 0)
            snprintf(name, sizeof(name), "vm.log.%d", number);
        join(from, former, name);
        snprintf(name, sizeof(name), "vm.log.%d", number + 1);
        join(to, directory, name);
        (void)rename(from, to); /* there need not be that many */
    }
}

int upgrade_directory_put_off(struct host *host, const struct vm *vm, const char *id,
                              char remains[static PATH_MAX], struct ferry_error *err)
{
    char former[PATH_MAX];
    int result = upgrade_directory_path(host, vm->name, former, err);

    if (result == 0)
        result = state_path(host, "old", id, remains, err);
    if (result < 0)
        return result;
    keep_logs(former, vm->directory, (int)host->config->log_files);
    return rename(former, remains) < 0 ? error_set_errno(err, -errno, "%s cannot be put off", former) : 0;
}

pid_t upgrade_directory_pid(const char *directory)
{
    char path[PATH_MAX];
    json_t *record = NULL;
    json_int_t pid;

    join(path, directory, "process.json");
    host_read_json(path, &record, NULL);
    pid = json_integer_value(json_object_get(record, "pid"));
    json_decref(record);
    return pid > 0 && pid <= INT32_MAX ? (pid_t)pid : 0;
}

/* Calls for the names in STATE_DIR/PARENT. */
static void each(struct host *host, const char *parent, void (*call)(struct host *host, const char *name))
{
    char path[PATH_MAX];
    struct dirent *entry;
    DIR *directory = state_path(host, parent, "", path, NULL) == 0 ? opendir(path) : NULL;

    while (directory && (entry = readdir(directory)))
        if (config_name_valid(entry->d_name) && strlen(entry->d_name) < HOST_NAME_SIZE)
            call(host, entry->d_name);
    if (directory)
        closedir(directory);
}

void upgrade_directory_each(struct host *host, void (*call)(struct host *host, const char *name))
{
    each(host, "new", call);
}

static void clear_away(struct host *host, const char *parent, const char *name)
{
    struct ferry_error err;
    char path[PATH_MAX];

    if (state_path(host, parent, name, path, &err) < 0)
        return;
    vm_process_kill_in(host, path);
    if (vm_directory_remove_path(path, &err) < 0)
        log_warn(host->log, "%s", err.text);
}

static void sweep(struct host *host, const char *name)
{
    clear_away(host, "old", name);
}

void upgrade_directory_sweep(struct host *host)
{
    each(host, "old", sweep);
}

void upgrade_directory_clear(struct host *host, const char *name)
{
    clear_away(host, "new", name);
}
