#include "host/storage_file.h"

#include "base/error.h"
#include "host/fields.h"
#include "host/migration.h"
#include "host/migration_cold.h"

#include <ferry/checkpoint.h>

#include <string.h>

bool storage_file_moves(const json_t *cold)
{
    return strcmp(cold_text(cold, "state"), "suspended") == 0;
}

json_t *storage_file_shape(const char *path)
{
    struct disk_shape shape;

    if (disk_shape_read(&shape, path, NULL) < 0)
        shape = (struct disk_shape){0};
    return json_pack("{s:I, s:I, s:I, s:I}", "size", (json_int_t)shape.size, "bytes", (json_int_t)shape.bytes,
                     "mode", (json_int_t)shape.mode, "changed_ns", (json_int_t)shape.changed_ns);
}

bool storage_file_is(const char *path, const char *id)
{
    struct ferry_checkpoint *checkpoint = NULL;
    bool is = ferry_checkpoint_open(&checkpoint, path, NULL) == 0 &&
              strcmp(ferry_checkpoint_info(checkpoint)->id, id) == 0;

    ferry_checkpoint_close(checkpoint);
    return is;
}

int storage_file_read(struct storage_disk *file, char path[static PATH_MAX], const struct host *host,
                      const json_t *cold, const char *vm, struct ferry_error *err)
{
    const char *id = NULL;
    const char *from = NULL;
    json_t *shape = NULL;
    uint64_t mode = 0;
    struct disk_shape read = {0};
    const struct field fields[] = {
        {"file", FIELD_STRING, true, &from},
        {"checkpoint", FIELD_STRING, true, &id},
        {"shape", FIELD_OBJECT, true, &shape},
    };
    const struct field shape_fields[] = {
        {"size", FIELD_UINT, true, &read.size},
        {"bytes", FIELD_UINT, true, &read.bytes},
        {"mode", FIELD_UINT, true, &mode},
        {"changed_ns", FIELD_UINT, true, &read.changed_ns},
    };
    int written;
    int result = fields_read(cold, fields, 3, FIELDS_LOOSE, "\"cold\"", err);

    if (result == 0)
        result = fields_read(shape, shape_fields, 4, FIELDS_LOOSE, "\"shape\"", err);
    if (result < 0)
        return result;
    if (!migration_id_valid(id))
        return error_set(err, HOST_USAGE, "\"checkpoint\" must be a UUID in lower case");
    read.mode = (mode_t)(mode & 0777);
    *file = (struct storage_disk){.from = from, .to = path, .shape = read, .readonly = true};
    file->stays = from[0] == '/' && storage_file_is(from, id);
    if (file->stays)
        written = snprintf(path, PATH_MAX, "%s", from);
    else
        written = snprintf(path, PATH_MAX, "%s/%s-%s.ckpt", host->config->state_dir, vm, id);
    if (written >= PATH_MAX)
        return error_set(err, HOST_USAGE, "the path of the file of VM %s is too long", vm);
    return 0;
}

/* Of a VM that is suspended; -ENOENT: it is not. */
static int look(const struct check_context *context, struct storage_disk *file, struct ferry_error *err)
{
    char path[PATH_MAX];
    int result;

    if (!storage_file_moves(context->cold))
        return -ENOENT;
    result = storage_file_read(file, path, context->host, context->cold, context->vm, err);
    file->to = NULL;
    return result;
}

int storage_file_check(const struct check_context *context, struct ferry_error *err)
{
    struct storage_disk file;
    int result = look(context, &file, err);

    if (result == -ENOENT)
        return 0;
    if (result < 0 || file.stays || file.shape.size > 0)
        return result;
    return error_set(err, HOST_REFUSED,
                     "VM %s cannot move: the file that its guest is in, %.200s, is to be found neither on "
                     "host %s nor on host %s",
                     context->vm, file.from, context->source, context->destination);
}

int storage_file_check_copied(const struct check_context *context, struct ferry_error *err)
{
    struct storage_disk file;

    if (look(context, &file, err) < 0 || file.stays)
        return 0;
    return error_set(err, HOST_REFUSED,
                     "the file that the guest of VM %s is in, %.200s, is not to be found on host %s: it is "
                     "copied there",
                     context->vm, file.from, context->destination);
}
