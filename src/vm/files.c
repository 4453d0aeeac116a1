#include "vm/files.h"

#include "base/cleanup.h"
#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static void json_release(json_t **json)
{
    json_decref(*json);
}

int files_read_definition(const char *path, struct machine_config *config, struct ferry_error *err)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    CLEANUP(json_release) json_t *json = NULL;
    json_error_t failure;
    struct stat status;
    int result;

    if (fd < 0 || fstat(fd, &status) < 0)
        return error_set_errno(err, -errno, "cannot read the VM's %s", path);
    if (!S_ISREG(status.st_mode) || status.st_size > FILES_DEFINITION_MAX)
        return error_set(err, -EINVAL, "the VM's %s is not a file of at most 1 MiB", path);
    json = json_loadfd(fd, JSON_REJECT_DUPLICATES, &failure);
    if (!json)
        return error_set(err, -EINVAL, "the VM's %s is not JSON: line %d: %s", path, failure.line,
                         failure.text);
    result = machine_config_from_json(config, json, err);
    return result ? error_prefix(err, result, "%s", path) : 0;
}

int files_write_json(const char *path, const json_t *json, struct ferry_error *err)
{
    char fresh[64];

    snprintf(fresh, sizeof(fresh), "%.58s.new", path);
    if (!json || json_dump_file(json, fresh, JSON_COMPACT) < 0 || rename(fresh, path) < 0) {
        int result = error_set_errno(err, -errno, "cannot write %s", path);

        unlink(fresh);
        return result;
    }
    return 0;
}

int files_open_handover(int *out, struct ferry_error *err)
{
    CLEANUP_CLOSE int fd = open(FILES_HANDOVER, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0640);
    int result;

    if (fd < 0)
        return error_set_errno(err, -errno, "cannot make the file " FILES_HANDOVER);
    result = files_mark_handover(fd, false, err);
    if (!result)
        *out = TAKE_FD(fd);
    return result;
}

int files_mark_handover(int fd, bool begun, struct ferry_error *err)
{
    ssize_t count = pwrite(fd, begun ? "1" : "0", 1, 0);

    if (count == 1)
        return 0;
    return error_set_errno(err, count < 0 ? -errno : -EIO, "cannot write the file " FILES_HANDOVER);
}

void files_read_end(int fd, size_t size_max, struct buffer *out)
{
    CLEANUP_FREE char *text = NULL;
    struct stat status;
    const char *start;
    off_t offset;
    ssize_t count;

    if (fstat(fd, &status) < 0 || status.st_size <= 0)
        return;
    offset = status.st_size > (off_t)size_max ? status.st_size - (off_t)size_max : 0;
    start = text = malloc((size_t)(status.st_size - offset));
    if (!text)
        return;
    count = pread(fd, text, (size_t)(status.st_size - offset), offset);
    if (count <= 0)
        return;
    if (offset > 0) {
        const char *newline = memchr(text, '\n', (size_t)count);

        start = newline ? newline + 1 : text;
    }
    buffer_put(out, start, (size_t)(text + count - start));
}

/* From FROM's current offset to its end. */
static int copy_rest(int from, int to)
{
    char chunk[4096];
    ssize_t count;

    while ((count = read(from, chunk, sizeof(chunk))) > 0)
        if (write(to, chunk, (size_t)count) != count)
            return -1;
    return (int)count;
}

int files_put_before(const char *path, int fd, const void *history, size_t size, struct ferry_error *err)
{
    CLEANUP_CLOSE int old = open(path, O_RDONLY | O_CLOEXEC);
    CLEANUP_CLOSE int new = -1;
    char fresh[64];

    snprintf(fresh, sizeof(fresh), "%.58s.new", path);
    new = open(fresh, O_RDWR | O_APPEND | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
    if (old < 0 || new < 0 || write(new, history, size) != (ssize_t)size || copy_rest(old, new) < 0 ||
        rename(fresh, path) < 0 || dup3(new, fd, O_CLOEXEC) < 0) {
        int result = error_set_errno(err, -errno, "the VM's earlier %s is not in its new one", path);

        unlink(fresh);
        return result;
    }
    /* What came to the old file after it was copied. */
    copy_rest(old, new);
    return 0;
}

void files_tell_ready(int fd, const struct ferry_error *err)
{
    json_t *json;
    char *text;

    if (fd < 0)
        return;
    if (err)
        json = json_pack("{s:s, s:i}", "error", err->text, "errno", -err->code);
    else
        json = json_pack("{s:b}", "ok", 1);
    text = json_dumps(json, JSON_COMPACT);
    /* Whoever does not listen any more learns nothing. */
    if (text)
        dprintf(fd, "%s\n", text);
    else
        dprintf(fd, "{\"error\": \"cannot start\", \"errno\": %d}\n", EIO);
    free(text);
    json_decref(json);
    close(fd);
}

int files_leave_terminal(int output, struct ferry_error *err)
{
    CLEANUP_CLOSE int input = open("/dev/null", O_RDONLY | O_CLOEXEC);

    if (input < 0 || dup2(input, 0) < 0 || dup2(output, 1) < 0 || dup2(output, 2) < 0)
        return error_set_errno(err, -errno, "cannot leave the terminal");
    return 0;
}
