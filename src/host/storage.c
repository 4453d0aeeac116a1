#include "host/storage.h"

#include "base/error.h"
#include "host/fields.h"
#include "host/storage_file.h"

#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

static bool is_writable(const json_t *disk)
{
    return !json_is_true(json_object_get(disk, "readonly"));
}

/* --- the plan --- */

json_t *storage_plan(const struct host *host, const json_t *definition)
{
    json_t *seen = checks_describe_disks(definition);
    json_t *disk;
    size_t i;

    json_array_foreach(seen, i, disk)
    {
        struct disk_shape shape;
        struct ferry_error err;

        if (disk_shape_read(&shape, text_of(disk, "path"), &err) < 0)
            shape = (struct disk_shape){0};
        json_object_set_new(disk, "size", json_integer((json_int_t)shape.size));
        json_object_set_new(disk, "bytes", json_integer((json_int_t)shape.bytes));
        json_object_set_new(disk, "mode", json_integer((json_int_t)shape.mode));
        json_object_set_new(disk, "changed_ns", json_integer((json_int_t)shape.changed_ns));
    }
    return json_pack("{s:s, s:o}", "boot_id", host->boot_id, "disks", seen);
}

/* Where the disk at PATH goes. -ENAMETOOLONG. */
static int map_path(char to[static PATH_MAX], const char *path, const char *directory)
{
    const char *name = strrchr(path, '/');
    size_t length = directory ? strlen(directory) : 0;
    int written;

    if (length == 0)
        written = snprintf(to, PATH_MAX, "%s", path);
    else
        written = snprintf(to, PATH_MAX, "%s%s%s", directory, directory[length - 1] == '/' ? "" : "/",
                           name ? name + 1 : path);
    return written < PATH_MAX ? 0 : -ENAMETOOLONG;
}

json_t *storage_definition(const json_t *definition, const char *directory)
{
    json_t *mapped = json_deep_copy(definition);
    json_t *disk;
    size_t i;

    json_array_foreach(definition_disks(mapped), i, disk)
    {
        char to[PATH_MAX];

        if (map_path(to, text_of(disk, "path"), directory) == 0)
            json_object_set_new(disk, "path", json_string(to));
    }
    return mapped;
}

bool storage_moves(const json_t *cold)
{
    return json_is_object(json_object_get(cold, "storage"));
}

bool storage_moves_lock(const json_t *cold, const json_t *definition)
{
    json_t *disk;
    size_t i;

    json_array_foreach(definition_disks(definition), i, disk)
    {
        if (is_writable(disk))
            return storage_moves(cold);
    }
    return false;
}

/* As same_file of checks.c, of a file here. */
static bool is_here(const json_t *there, const char *path, bool same_machine)
{
    struct stat status;

    if (stat(path, &status) < 0 || !S_ISREG(status.st_mode))
        return false;
    return json_integer_value(json_object_get(there, "size")) == (json_int_t)status.st_size &&
           json_integer_value(json_object_get(there, "inode")) == (json_int_t)status.st_ino &&
           (!same_machine ||
            json_integer_value(json_object_get(there, "device")) == (json_int_t)status.st_dev);
}

static int read_disk(struct storage_disk *disk, const json_t *there, const json_t *here, bool same_machine,
                     struct ferry_error *err)
{
    uint64_t mode = 0;
    const struct field fields[] = {
        {"path", FIELD_STRING, true, &disk->from},
        {"size", FIELD_UINT, true, &disk->shape.size},
        {"bytes", FIELD_UINT, true, &disk->shape.bytes},
        {"mode", FIELD_UINT, true, &mode},
        {"changed_ns", FIELD_UINT, true, &disk->shape.changed_ns},
    };
    int result = fields_read(there, fields, 5, FIELDS_LOOSE, "a disk of \"storage\"", err);

    if (result < 0)
        return result;
    disk->shape.mode = (mode_t)(mode & 0777);
    disk->to = text_of(here, "path");
    disk->readonly = !is_writable(here);
    disk->stays =
        disk->readonly && strcmp(disk->from, disk->to) == 0 && is_here(there, disk->to, same_machine);
    return 0;
}

int storage_read(struct storage_disks *disks, const struct host *host, const json_t *cold,
                 const json_t *definition, struct ferry_error *err)
{
    json_t *plan = json_object_get(cold, "storage");
    json_t *here = definition_disks(definition);
    json_t *there = NULL;
    const char *boot_id = NULL;
    const struct field fields[] = {
        {"boot_id", FIELD_STRING, true, &boot_id},
        {"disks", FIELD_ARRAY, true, &there},
    };
    int result;

    *disks = (struct storage_disks){0};
    if (!plan)
        return -ENOENT;
    result = fields_read(plan, fields, 2, FIELDS_LOOSE, "\"storage\"", err);
    if (result == 0 &&
        (json_array_size(there) != json_array_size(here) || json_array_size(there) > DEFINITION_DISKS_MAX))
        result = error_set(err, HOST_USAGE, "\"storage\" has other disks than the definition");
    for (size_t i = 0; result == 0 && i < json_array_size(there); i++) {
        result = read_disk(&disks->disk[i], json_array_get(there, i), json_array_get(here, i),
                           strcmp(boot_id, host->boot_id) == 0, err);
        disks->count = disks->parts = i + 1;
    }
    return result;
}

int storage_read_all(struct storage_disks *disks, const struct host *host, const json_t *cold,
                     const json_t *definition, struct ferry_error *err)
{
    struct storage_disk *file;
    int result = storage_read(disks, host, cold, definition, err);

    if (!storage_file_moves(cold) || (result < 0 && result != -ENOENT))
        return result;
    file = &disks->disk[disks->count];
    result = storage_file_read(file, disks->file, host, cold, definition_name(definition), err);
    if (result == 0 && !file->stays)
        disks->parts++;
    return result;
}

uint64_t storage_bytes(const struct storage_disks *disks)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < disks->parts; i++)
        bytes += disks->disk[i].stays ? 0 : disks->disk[i].shape.bytes;
    return bytes;
}

const struct storage_disk *storage_lock_disk(const struct storage_disks *disks)
{
    for (size_t i = 0; i < disks->count; i++) {
        if (!disks->disk[i].readonly)
            return &disks->disk[i];
    }
    return NULL;
}

/* --- checks: source --- */

static int check_from(const struct check_context *context, const char *path, const char *directory,
                      struct ferry_error *err)
{
    struct disk_shape shape;
    struct ferry_error why;
    struct stat status;
    char to[PATH_MAX];

    if (disk_shape_read(&shape, path, &why) < 0)
        return error_set(err, HOST_REFUSED, "VM %s cannot move with its disks: on host %s, %.300s",
                         context->vm, context->source, why.text);
    if (!directory[0] && stat(path, &status) == 0 && S_ISBLK(status.st_mode))
        return error_set(err, HOST_REFUSED,
                         "VM %s cannot move with its disks: %.200s is a block device, and becomes a file on "
                         "host %s; say in which directory: --storage=DIR",
                         context->vm, path, context->destination);
    if (map_path(to, path, directory) < 0)
        return error_set(err, HOST_REFUSED,
                         "VM %s cannot move with its disks: the path of %.200s would be too long in %.200s",
                         context->vm, path, directory);
    return 0;
}

/* In a directory they have nothing but their file names. */
static int check_names_differ(const struct check_context *context, struct ferry_error *err)
{
    json_t *mapped = storage_definition(context->definition, context->storage);
    json_t *disks = definition_disks(mapped);
    int result = 0;

    for (size_t i = 0; i < json_array_size(disks); i++) {
        for (size_t j = 0; j < i && result == 0; j++) {
            const char *path = text_of(json_array_get(disks, i), "path");

            if (strcmp(path, text_of(json_array_get(disks, j), "path")) == 0)
                result = error_set(err, HOST_REFUSED,
                                   "VM %s cannot move with its disks: two of them would be %.200s on host %s",
                                   context->vm, path, context->destination);
        }
    }
    json_decref(mapped);
    return result;
}

int storage_check_source(const struct check_context *context, struct ferry_error *err)
{
    json_t *disk;
    size_t i;
    int result = 0;

    if (!context->storage)
        return 0;
    if (json_array_size(definition_disks(context->definition)) == 0)
        return error_set(err, HOST_REFUSED, "VM %s has no disks to move; leave --storage out", context->vm);
    json_array_foreach(definition_disks(context->definition), i, disk)
    {
        if (result == 0)
            result = check_from(context, text_of(disk, "path"), context->storage, err);
    }
    return result < 0 ? result : check_names_differ(context, err);
}

/* A ferryd that knows nothing of it would take the VM without its disks, or before it was given. */
int storage_check_known(const struct check_context *context, struct ferry_error *err)
{
    bool moves = storage_moves(context->cold) || storage_file_moves(context->cold);

    if (!moves || json_object_get(context->there_answer, "storage"))
        return 0;
    return error_set(err, HOST_REFUSED,
                     "VM %s cannot move with its %s: the Ferry of host %s does not know how to take %s; "
                     "bring both hosts to the same version",
                     context->vm, storage_moves(context->cold) ? "disks" : "file", context->destination,
                     storage_moves(context->cold) ? "them" : "it");
}

/* --- checks: destination --- */

/* Of the directory that PATH is in. */
static void directory_of(const char *path, char directory[static PATH_MAX])
{
    const char *slash = strrchr(path, '/');
    int length = slash && slash > path ? (int)(slash - path) : 1;

    snprintf(directory, PATH_MAX, "%.*s", length, path);
}

static int check_to(const struct check_context *context, const struct storage_disk *disk, const json_t *there,
                    bool same_machine, struct ferry_error *err)
{
    char directory[PATH_MAX];
    struct stat status;

    if (is_here(there, disk->to, same_machine))
        return error_set(
            err, HOST_REFUSED,
            "VM %s cannot move with its disks: host %s reaches %.200s already, as the same file; "
            "leave --storage out, or say --storage=DIR",
            context->vm, context->destination, disk->to);
    if (lstat(disk->to, &status) == 0)
        return error_set(err, HOST_REFUSED,
                         "VM %s cannot move with its disks: %.200s exists already on host %s, and is never "
                         "overwritten; move it away there, or say --storage=DIR",
                         context->vm, disk->to, context->destination);
    directory_of(disk->to, directory);
    if (stat(directory, &status) < 0 || !S_ISDIR(status.st_mode))
        return error_set(err, HOST_REFUSED,
                         "VM %s cannot move with its disks: there is no directory %.200s on host %s; make it "
                         "there, or say --storage=DIR",
                         context->vm, directory, context->destination);
    if (access(directory, W_OK | X_OK) < 0)
        return error_set(err, HOST_REFUSED,
                         "VM %s cannot move with its disks: host %s cannot write into %.200s (%s); check "
                         "permissions",
                         context->vm, context->destination, directory, strerror(errno));
    return 0;
}

static int read_plan(const struct check_context *context, struct storage_disks *disks,
                     struct ferry_error *err)
{
    int result = storage_read(disks, context->host, context->cold, context->definition, err);

    return result == -ENOENT ? 0 : result;
}

int storage_check_place(const struct check_context *context, struct ferry_error *err)
{
    const json_t *plan = json_object_get(context->cold, "storage");
    bool same_machine = strcmp(text_of(plan, "boot_id"), context->host->boot_id) == 0;
    struct storage_disks disks;
    int result = read_plan(context, &disks, err);

    for (size_t i = 0; result == 0 && i < disks.count; i++) {
        if (!disks.disk[i].stays)
            result = check_to(context, &disks.disk[i], json_array_get(json_object_get(plan, "disks"), i),
                              same_machine, err);
    }
    return result;
}

static unsigned long long mib_up(uint64_t bytes)
{
    uint64_t rest = bytes & ((1u << 20) - 1);

    return (bytes >> 20) + (rest ? 1 : 0);
}

/* Several may go to one file system. */
static int check_file_system(const struct check_context *context, const struct storage_disks *disks,
                             const struct stat *status, const char *directory, struct ferry_error *err)
{
    struct statvfs room;
    uint64_t needed = 0, free_bytes;

    for (size_t i = 0; i < disks->parts; i++) {
        char other[PATH_MAX];
        struct stat place;

        directory_of(disks->disk[i].to, other);
        if (!disks->disk[i].stays && stat(other, &place) == 0 && place.st_dev == status->st_dev)
            needed += disks->disk[i].shape.bytes;
    }
    if (statvfs(directory, &room) < 0)
        return error_set_errno(err, -errno, "cannot tell how much room there is in %.200s on host %s",
                               directory, context->destination);
    free_bytes = (uint64_t)room.f_bavail * room.f_frsize;
    if (needed <= free_bytes)
        return 0;
    return error_set(err, HOST_REFUSED,
                     "VM %s cannot move with its %s %llu MiB in %.200s on host %s, where %llu MiB are free; "
                     "make room there%s",
                     context->vm, disks->count ? "disks: they need" : "file: it needs", mib_up(needed),
                     directory, context->destination, (unsigned long long)(free_bytes >> 20),
                     disks->count ? ", or say --storage=DIR" : "");
}

int storage_check_room(const struct check_context *context, struct ferry_error *err)
{
    struct storage_disks disks;
    int result = storage_read_all(&disks, context->host, context->cold, context->definition, err);

    if (result == -ENOENT)
        return 0;
    for (size_t i = 0; result == 0 && i < disks.parts; i++) {
        char directory[PATH_MAX];
        struct stat status;

        directory_of(disks.disk[i].to, directory);
        if (!disks.disk[i].stays && stat(directory, &status) == 0)
            result = check_file_system(context, &disks, &status, directory, err);
    }
    return result;
}

int storage_check_shared(const struct check_context *context, struct ferry_error *err)
{
    struct storage_disks disks;
    int result = read_plan(context, &disks, err);

    for (size_t i = 0; result == 0 && i < disks.count; i++) {
        if (disks.disk[i].stays)
            result = error_set(err, HOST_REFUSED,
                               "disk %.200s of VM %s is not copied: it is read-only, and host %s reaches it "
                               "already, as the same file",
                               disks.disk[i].to, context->vm, context->destination);
    }
    return result;
}
