#include "host/checkpoint_copy.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "host/fields.h"
#include "host/migration.h"
#include "host/peers.h"
#include "host/vms.h"

#include <ferry/checkpoint.h>

#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK_SIZE (3u << 20) /* 4 MiB as text */

/* --- source --- */

static int find_file(struct host *host, const char *name, const char *to, char file[static PATH_MAX],
                     struct ferry_error *err)
{
    const char *path;
    struct vm *vm;
    bool moves;

    host_lock(host);
    vm = vms_find(host, name);
    moves = vm && vm->suspended && vm->migration && vm->migration->outgoing && vm->migration->cold &&
            strcmp(vm->migration->destination, to) == 0;
    path = moves ? json_string_value(json_object_get(vm->suspended, "file")) : NULL;
    snprintf(file, PATH_MAX, "%s", path ? path : "");
    host_unlock(host);
    return path ? 0
                : error_set(err, HOST_CONFLICT, "VM %s is not suspended on host %s and moving to host %s",
                            name, host->config->name, to);
}

/* Bytes read at *offset, which moves over a hole; 0 at the end. */
static ssize_t read_data(int fd, uint64_t *offset, void *data)
{
    off_t at = lseek(fd, (off_t)*offset, SEEK_DATA);
    ssize_t got;

    if (at < 0 && errno == ENXIO)
        return 0;
    if (at < 0 && errno != EINVAL)
        return -errno;
    if (at >= 0)
        *offset = (uint64_t)at;
    got = pread(fd, data, CHUNK_SIZE, (off_t)*offset);
    return got < 0 ? -errno : got;
}

int checkpoint_copy_read(struct host *host, const char *vm, const char *to, uint64_t offset, json_t **answer,
                         struct ferry_error *err)
{
    char file[PATH_MAX];
    CLEANUP_CLOSE int fd = -1;
    struct stat status;
    uint8_t *data;
    char *text;
    ssize_t got;
    int result = find_file(host, vm, to, file, err);

    if (result < 0)
        return result;
    fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0)
        return error_set_errno(err, -errno, "cannot read %s", file);
    data = malloc(CHUNK_SIZE);
    text = malloc(CHUNK_SIZE / 3 * 4 + 1);
    got = data && text ? read_data(fd, &offset, data) : -ENOMEM;
    if (got < 0) {
        result = error_set_errno(err, (int)got, "cannot read %s", file);
    } else {
        EVP_EncodeBlock((unsigned char *)text, data, (int)got);
        *answer = json_pack("{s:I, s:s, s:I}", "offset", (json_int_t)offset, "data", got ? text : "", "size",
                            (json_int_t)status.st_size);
        result = *answer ? 0 : error_set(err, -ENOMEM, "out of memory");
    }
    free(data);
    free(text);
    return result;
}

/* --- destination --- */

/* Writes what TEXT holds at OFFSET of a file of SIZE bytes. Bytes written, or a negative errno. */
static ssize_t write_data(int fd, const char *text, uint64_t offset, uint64_t size)
{
    size_t length = strlen(text);
    size_t padding = length >= 2 ? (text[length - 1] == '=') + (text[length - 2] == '=') : 0;
    uint8_t *data = malloc(length / 4 * 3 + 1);
    int decoded = data && length % 4 == 0 && length <= CHUNK_SIZE / 3 * 4
                      ? EVP_DecodeBlock(data, (const unsigned char *)text, (int)length)
                      : -1;
    size_t count = decoded > (int)padding ? (size_t)decoded - padding : 0;
    ssize_t result = -EPROTO;
    size_t done = 0;

    if (count > 0 && offset <= size && count <= size - offset) {
        result = (ssize_t)count;
        while (result > 0 && done < count) {
            ssize_t put = pwrite(fd, data + done, count - done, (off_t)(offset + done));

            if (put < 0)
                result = -errno;
            else
                done += (size_t)put;
        }
    }
    free(data);
    return result;
}

static int fetch(struct host *host, const char *address, const char *vm, int fd, struct ferry_error *err)
{
    uint64_t offset = 0;

    for (;;) {
        char path[HOST_NAME_SIZE * 2 + 64];
        const char *data = NULL;
        uint64_t at = 0, size = 0;
        const struct field fields[] = {
            {"offset", FIELD_UINT, true, &at},
            {"data", FIELD_STRING, true, &data},
            {"size", FIELD_UINT, true, &size},
        };
        json_t *answer = NULL;
        ssize_t put = 0;
        int result;

        snprintf(path, sizeof(path), "/v1/vms/%s/suspended?offset=%llu&to=%s", vm, (unsigned long long)offset,
                 host->config->name);
        result = peer_call(host, address, "GET", path, NULL, PEER_PROMPT, &answer, err);
        if (result == 0)
            result = fields_read(answer, fields, 3, FIELDS_LOOSE, "the answer of the source", err);
        if (result == 0 && data[0])
            put = at >= offset ? write_data(fd, data, at, size) : -EPROTO;
        else if (result == 0 && ftruncate(fd, (off_t)size) < 0)
            put = -errno;
        if (put < 0)
            result = error_set_errno(err, (int)put, "cannot write it");
        offset = at + (uint64_t)(put > 0 ? put : 0);
        json_decref(answer);
        if (result < 0 || put == 0)
            return result;
    }
}

static int check_is(const char *file, const char *id, struct ferry_error *err)
{
    struct ferry_checkpoint *checkpoint = NULL;
    int result = ferry_checkpoint_open(&checkpoint, file, err);

    if (result == 0 && strcmp(ferry_checkpoint_info(checkpoint)->id, id) != 0)
        result = error_set(err, -EPROTO, "it is another one");
    ferry_checkpoint_close(checkpoint);
    return result;
}

int checkpoint_copy_fetch(struct host *host, const char *address, const char *vm, const char *id,
                          const char *file, struct ferry_error *err)
{
    char partial[PATH_MAX + 16];
    CLEANUP_CLOSE int fd = -1;
    int result;

    snprintf(partial, sizeof(partial), "%s.partial", file);
    fd = open(partial, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return error_set_errno(err, -errno, "cannot make %s", partial);
    result = fetch(host, address, vm, fd, err);
    if (result == 0 && fsync(fd) < 0)
        result = error_set_errno(err, -errno, "cannot write %s", partial);
    if (result == 0)
        result = check_is(partial, id, err);
    if (result == 0 && rename(partial, file) < 0)
        result = error_set_errno(err, -errno, "cannot make %s", file);
    if (result < 0) {
        unlink(partial);
        return error_prefix(err, result, "the file of VM %s could not be fetched", vm);
    }
    return 0;
}
