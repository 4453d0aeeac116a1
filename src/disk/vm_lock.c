#include "disk/vm_lock.h"

#include "base/buffer.h"
#include "base/cleanup.h"
#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

/*
 * The record, little-endian, one 512-byte sector so that a write is whole or not there:
 *
 *     0   "ferryvml"   8   version u32 (1)   12  state u32   16  generation u64   24  pid u64
 *     32  vm[64]   96  holder[64]   160  destination[64]   224  migration[40]   264  source[64]
 *     328 copied u32 (0 or 1; 1 in handover only)   332  zeros   504  XXH3-64 of 0..503
 */
#define RECORD_SIZE     512
#define RECORD_CHECKSUM 504
#define RECORD_VERSION  1
static const char record_magic[8] = {'f', 'e', 'r', 'r', 'y', 'v', 'm', 'l'};

enum {
    MIGRATION_FIELD_SIZE = 40,
    TAKE_ATTEMPTS = 5,
};

struct vm_lock {
    char *path;
    int fd;
    int synchronous; /* O_DSYNC, or 0 for a local one */
    bool taken;
};

const char *vm_lock_state_name(enum vm_lock_state state)
{
    static const char *const names[] = {"new", "held", "handover", "acquired", "started"};

    return (unsigned)state < sizeof(names) / sizeof(names[0]) ? names[state] : "unknown";
}

int vm_lock_place(char path[static PATH_MAX], const char *disk, const char *lock_dir, const char *vm,
                  struct ferry_error *err)
{
    CLEANUP_FREE char *real = disk ? realpath(disk, NULL) : NULL;
    struct stat status;
    int length = 0;

    if (disk && (!real || stat(real, &status) < 0))
        return error_set_errno(err, -errno, "cannot look at disk %s", disk);
    if (disk && S_ISREG(status.st_mode))
        length = snprintf(path, PATH_MAX, "%s" VM_LOCK_SUFFIX, real);
    else if (lock_dir && lock_dir[0])
        length = snprintf(path, PATH_MAX, "%s/%s" VM_LOCK_SUFFIX, lock_dir, vm);
    if (length >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "the path of the lock file of VM %s is too long", vm);
    return length > 0;
}

static int lock_file_open(const char *path, int synchronous, struct ferry_error *err)
{
    CLEANUP_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | synchronous, 0660);
    struct stat status;

    if (fd < 0)
        return error_set_errno(err, -errno, "cannot open the VM's lock file %s", path);
    if (fstat(fd, &status) < 0)
        return error_set_errno(err, -errno, "cannot look at the VM's lock file %s", path);
    if (!S_ISREG(status.st_mode))
        return error_set(err, -EINVAL, "the VM's lock file %s is not a regular file; move it away", path);
    return TAKE_FD(fd);
}

static int vm_lock_create(struct vm_lock **out, const char *path, int synchronous, struct ferry_error *err)
{
    CLEANUP_CLOSE int fd = lock_file_open(path, synchronous, err);

    if (fd < 0)
        return fd;

    struct vm_lock *lock = calloc(1, sizeof(*lock));
    CLEANUP_FREE char *copy = strdup(path);

    if (!lock || !copy) {
        free(lock);
        return error_set(err, -ENOMEM, "out of memory opening the lock file %s", path);
    }
    lock->path = TAKE_POINTER(copy);
    lock->fd = TAKE_FD(fd);
    lock->synchronous = synchronous;
    *out = lock;
    return 0;
}

int vm_lock_open(struct vm_lock **out, const char *path, struct ferry_error *err)
{
    return vm_lock_create(out, path, O_DSYNC, err);
}

int vm_lock_open_local(struct vm_lock **out, const char *path, struct ferry_error *err)
{
    return vm_lock_create(out, path, 0, err);
}

void vm_lock_close(struct vm_lock *lock)
{
    if (!lock)
        return;
    close(lock->fd); /* the kernel drops the lock with the last descriptor */
    free(lock->path);
    free(lock);
}

const char *vm_lock_path(const struct vm_lock *lock)
{
    return lock->path;
}

bool vm_lock_is_taken(const struct vm_lock *lock)
{
    return lock->taken;
}

/* Words for a lock that another process has. */
static int vm_lock_refused(struct vm_lock *lock, struct ferry_error *err)
{
    struct vm_lock_record record;

    if (vm_lock_read(lock, &record, NULL) < 0 || record.state == VM_LOCK_NEW)
        return error_set(err, -EBUSY, "another process holds the lock %s", lock->path);
    return error_set(err, -EBUSY, "%s runs on host %s (process %" PRId64 "), which holds the lock %s",
                     record.vm, record.holder, record.pid, lock->path);
}

/* Whether the path still names the file that is open: somebody may have removed it. */
static bool vm_lock_is_in_place(const struct vm_lock *lock)
{
    struct stat open_file, named;

    return fstat(lock->fd, &open_file) == 0 && lstat(lock->path, &named) == 0 &&
           open_file.st_dev == named.st_dev && open_file.st_ino == named.st_ino;
}

static int vm_lock_reopen(struct vm_lock *lock, struct ferry_error *err)
{
    int fd = lock_file_open(lock->path, lock->synchronous, err);

    if (fd < 0)
        return fd;
    close(lock->fd); /* its lock goes with it */
    lock->fd = fd;
    return 0;
}

static int vm_lock_try(struct vm_lock *lock, struct ferry_error *err)
{
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    while (fcntl(lock->fd, F_OFD_SETLK, &whole) < 0) {
        if (errno == EINTR)
            continue;
        if (errno == EAGAIN || errno == EACCES)
            return vm_lock_refused(lock, err);
        return error_set_errno(err, -errno, "cannot lock %s; is the storage reachable?", lock->path);
    }
    return 0;
}

int vm_lock_take(struct vm_lock *lock, struct ferry_error *err)
{
    int result;

    if (lock->taken)
        return 0;
    for (int attempt = 0; attempt < TAKE_ATTEMPTS; attempt++) {
        if (attempt > 0 && (result = vm_lock_reopen(lock, err)) < 0)
            return result;
        result = vm_lock_try(lock, err);
        /* A lock on a file that nobody else can find excludes nobody; nor is its holder the VM's. */
        if (vm_lock_is_in_place(lock)) {
            lock->taken = result == 0;
            return result;
        }
    }
    return error_set(err, -ESTALE, "the lock file %s is replaced again and again; leave it alone",
                     lock->path);
}

int vm_lock_is_held_elsewhere(const struct vm_lock *lock, bool *held, struct ferry_error *err)
{
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int result;

    do
        result = fcntl(lock->fd, F_OFD_GETLK, &whole) < 0 ? -errno : 0;
    while (result == -EINTR);
    if (result < 0)
        return error_set_errno(err, result, "cannot look at the lock %s; is the storage reachable?",
                               lock->path);
    if (!vm_lock_is_in_place(lock))
        return error_set(err, -ESTALE, "the lock file %s was replaced", lock->path);
    *held = whole.l_type != F_UNLCK;
    return 0;
}

void vm_lock_drop(struct vm_lock *lock)
{
    struct flock whole = {.l_type = F_UNLCK, .l_whence = SEEK_SET};

    if (!lock->taken)
        return;
    fcntl(lock->fd, F_OFD_SETLK, &whole);
    lock->taken = false;
}

/* A fixed-size field that must be NUL-terminated text. */
static bool record_get_text(struct reader *in, char *out, size_t out_size, size_t field_size)
{
    const uint8_t *field = reader_view(in, field_size);
    size_t limit = out_size < field_size ? out_size : field_size;
    const uint8_t *end = field ? memchr(field, 0, limit) : NULL;

    if (!end)
        return false;
    memcpy(out, field, (size_t)(end - field) + 1);
    return true;
}

static int record_decode(const uint8_t *bytes, struct vm_lock_record *record)
{
    struct reader in = reader_init(bytes, RECORD_SIZE);
    const uint8_t *magic = reader_view(&in, sizeof(record_magic));
    struct reader checksum = reader_init(bytes + RECORD_CHECKSUM, 8);

    if (memcmp(magic, record_magic, sizeof(record_magic)) != 0 || reader_get_u32(&in) != RECORD_VERSION ||
        reader_get_u64(&checksum) != XXH3_64bits(bytes, RECORD_CHECKSUM))
        return -EBADMSG;

    uint32_t state = reader_get_u32(&in);

    record->state = (enum vm_lock_state)state;
    record->generation = reader_get_u64(&in);
    record->pid = (int64_t)reader_get_u64(&in);
    if (state < VM_LOCK_HELD || state > VM_LOCK_STARTED || record->generation == 0 ||
        !record_get_text(&in, record->vm, sizeof(record->vm), VM_LOCK_NAME_SIZE) ||
        !record_get_text(&in, record->holder, sizeof(record->holder), VM_LOCK_NAME_SIZE) ||
        !record_get_text(&in, record->destination, sizeof(record->destination), VM_LOCK_NAME_SIZE) ||
        !record_get_text(&in, record->migration, sizeof(record->migration), MIGRATION_FIELD_SIZE) ||
        !record_get_text(&in, record->source, sizeof(record->source), VM_LOCK_NAME_SIZE))
        return -EBADMSG;
    record->copied = reader_get_u32(&in) != 0 && state == VM_LOCK_HANDOVER;
    return 0;
}

int vm_lock_refuse_moving(const struct vm_lock_record *record, const char *path, struct ferry_error *err)
{
    if (record->copied)
        return error_set(
            err, -EBUSY,
            "these disks are what %s left on host %s when it was given to host %s with copies of "
            "them (migration %s); if host %s has it they may be removed, with their lock %.150s; "
            "if not, ferry recover %s on host %s takes it back",
            record->vm, record->source, record->destination, record->migration, record->destination, path,
            record->vm, record->source);
    return error_set(err, -EBUSY,
                     "%s is being moved from %s to %s (migration %s, %s); ask those hosts, or decide with: "
                     "ferry recover %s",
                     record->vm, record->source, record->destination, record->migration,
                     vm_lock_state_name(record->state), record->vm);
}

int vm_lock_read(struct vm_lock *lock, struct vm_lock_record *record, struct ferry_error *err)
{
    uint8_t bytes[RECORD_SIZE];
    ssize_t got;

    do {
        got = pread(lock->fd, bytes, sizeof(bytes), 0);
    } while (got < 0 && errno == EINTR);
    if (got < 0)
        return error_set_errno(err, -errno, "cannot read the lock file %s; is the storage reachable?",
                               lock->path);
    memset(record, 0, sizeof(*record));
    if (got == 0)
        return 0;
    if (got != RECORD_SIZE || record_decode(bytes, record) < 0)
        return error_set(err, -EBADMSG,
                         "the lock file %s does not hold a lock record; find out which host runs the VM, "
                         "then remove the file",
                         lock->path);
    return 0;
}

/* The text, cut to fit, and zeros up to FIELD_SIZE. */
static void record_put_text(struct buffer *out, const char *text, size_t field_size)
{
    static const uint8_t zeros[VM_LOCK_NAME_SIZE];
    size_t length = strlen(text);

    if (length > field_size - 1)
        length = field_size - 1;
    buffer_put(out, text, length);
    buffer_put(out, zeros, field_size - length);
}

int vm_lock_write(struct vm_lock *lock, const struct vm_lock_record *record, struct ferry_error *err)
{
    struct buffer out CLEANUP(buffer_free) = BUFFER_INIT;
    static const uint8_t zeros[RECORD_SIZE];

    assert(lock->taken);
    assert(record->state != VM_LOCK_NEW && record->generation > 0);
    buffer_put(&out, record_magic, sizeof(record_magic));
    buffer_put_u32(&out, RECORD_VERSION);
    buffer_put_u32(&out, record->state);
    buffer_put_u64(&out, record->generation);
    buffer_put_u64(&out, (uint64_t)record->pid);
    record_put_text(&out, record->vm, VM_LOCK_NAME_SIZE);
    record_put_text(&out, record->holder, VM_LOCK_NAME_SIZE);
    record_put_text(&out, record->destination, VM_LOCK_NAME_SIZE);
    record_put_text(&out, record->migration, MIGRATION_FIELD_SIZE);
    record_put_text(&out, record->source, VM_LOCK_NAME_SIZE);
    buffer_put_u32(&out, record->copied && record->state == VM_LOCK_HANDOVER);
    buffer_put(&out, zeros, RECORD_CHECKSUM - out.size);
    buffer_put_u64(&out, buffer_failed(&out) ? 0 : XXH3_64bits(out.data, RECORD_CHECKSUM));
    if (buffer_failed(&out))
        return error_set(err, -ENOMEM, "out of memory writing the lock file %s", lock->path);

    ssize_t put;

    do {
        put = pwrite(lock->fd, out.data, out.size, 0);
    } while (put < 0 && errno == EINTR);
    if (put < 0)
        return error_set_errno(err, -errno, "cannot write the lock file %s", lock->path);
    if (put != RECORD_SIZE)
        return error_set(err, -EIO, "the lock file %s took only %zd of %d bytes", lock->path, put,
                         RECORD_SIZE);
    return 0;
}
