#include "vm/vm_log.h"

#include "base/error.h"
#include "base/rotate.h"
#include "vm/files.h"
#include "vm/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define VM_LOG_FILE "vm.log"

int vm_log_limit_parse(const char *text, struct vm_log_limit *limit, struct ferry_error *err)
{
    size_t digits = strspn(text, "0123456789");
    const char *rest = text + digits + 1;
    unsigned long long size = strtoull(text, NULL, 10);
    unsigned long kept = text[digits] == ',' ? strtoul(rest, NULL, 10) : ROTATE_KEPT_MAX + 1;

    if (digits == 0 || digits > 18 || text[digits] != ',' || strspn(rest, "0123456789") != strlen(rest) ||
        !*rest || size < VM_LOG_SIZE_MIN || kept > ROTATE_KEPT_MAX)
        return error_set(err, -EINVAL, "\"%.40s\" is not BYTES,FILES: at least %d, and 0 to %d", text,
                         VM_LOG_SIZE_MIN, ROTATE_KEPT_MAX);
    *limit = (struct vm_log_limit){.size = size, .kept = (unsigned)kept};
    return 0;
}

/* Loop thread: no other one may rename and open files. */
static void vm_log_rotate(void *opaque)
{
    struct vm *vm = opaque;
    struct ferry_error err;
    int result;

    pthread_mutex_lock(&vm->log_lock);
    result = rotate_descriptor(VM_LOG_FILE, vm->options.log_limit.kept, vm->log_fd, &err);
    if (result == 0)
        vm->log_rotated = true;
    pthread_mutex_unlock(&vm->log_lock);
    log_set_size(vm->log, 0);
    if (result < 0) {
        log_warn(vm->log, "%s; the log goes on where it was", err.text);
        return;
    }
    files_leave_terminal(vm->log_fd, NULL);
}

/* The thread that logs. */
static void vm_log_full(void *opaque)
{
    struct vm *vm = opaque;

    if (loop_post(vm->loop, vm_log_rotate, vm))
        log_set_size(vm->log, 0);
}

/* Our own descriptor: another file may come behind it. */
int vm_log_open(struct vm *vm, struct ferry_error *err)
{
    int result = rotate_files(VM_LOG_FILE, vm->options.log_limit.kept, err);

    if (result < 0)
        return result;
    vm->log_fd = open(VM_LOG_FILE, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0640);
    if (vm->log_fd < 0)
        return error_set_errno(err, -errno, "cannot open the VM's " VM_LOG_FILE);
    vm->log = log_open_fd(vm->log_fd, LOG_LEVEL_INFO);
    if (!vm->log)
        return error_set(err, -ENOMEM, "out of memory for the VM's log");
    log_set_limit(vm->log, vm->options.log_limit.size, vm_log_full, vm);
    return 0;
}

struct vm_log_section {
    struct buffer lines;
};

static const struct state_field vm_log_fields[] = {
    STATE_FIELD(struct vm_log_section, lines, STATE_BUFFER, .max = VM_LOG_SECTION_MAX),
};

const struct state_table vm_log_state = {
    .name = "log",
    .version = 1,
    .fields = vm_log_fields,
    .field_count = ARRAY_SIZE(vm_log_fields),
    .object_size = sizeof(struct vm_log_section),
};

/* A file that was begun a moment ago says little: the end of the one before it goes first. */
static void vm_log_read_end(struct vm *vm, struct buffer *lines)
{
    struct buffer newest = BUFFER_INIT;
    int before = -1;

    pthread_mutex_lock(&vm->log_lock);
    files_read_end(vm->log_fd, VM_LOG_SECTION_MAX, &newest);
    if (vm->log_rotated && newest.size < VM_LOG_SECTION_MAX)
        before = open(VM_LOG_FILE ".1", O_RDONLY | O_CLOEXEC);
    if (before >= 0) {
        files_read_end(before, VM_LOG_SECTION_MAX - newest.size, lines);
        close(before);
    }
    pthread_mutex_unlock(&vm->log_lock);
    buffer_put(lines, newest.data, newest.size);
    buffer_free(&newest);
}

int vm_log_save(struct vm *vm, struct buffer *out, struct ferry_error *err)
{
    struct vm_log_section section = {.lines = BUFFER_INIT};

    vm_log_read_end(vm, &section.lines);
    state_save(&vm_log_state, &section, out);
    buffer_free(&section.lines);
    return buffer_failed(out) ? error_set(err, -ENOMEM, "out of memory while saving the VM's log") : 0;
}

int vm_log_load(struct vm *vm, uint32_t version, struct reader *in, struct ferry_error *err)
{
    struct vm_log_section section = {.lines = BUFFER_INIT};
    int result = state_load(&vm_log_state, VM_LOG_SECTION, version, &section, in, err);

    if (result)
        return result;
    vm->log_history = section.lines;
    return 0;
}

/* What was there before must not fill the file by itself: at most half of it, whole lines. */
static size_t vm_log_history_start(const struct vm *vm, const struct buffer *history)
{
    uint64_t most = vm->options.log_limit.size / 2;
    const uint8_t *newline;
    size_t start;

    if (history->size <= most)
        return 0;
    start = history->size - (size_t)most;
    newline = memchr(history->data + start, '\n', history->size - start);
    return newline ? (size_t)(newline + 1 - history->data) : history->size;
}

void vm_log_join(struct vm *vm)
{
    struct buffer history;
    struct ferry_error err;
    struct stat status;
    size_t start;
    int result = 0;

    pthread_mutex_lock(&vm->lock);
    history = vm->log_history;
    vm->log_history = BUFFER_INIT;
    pthread_mutex_unlock(&vm->lock);
    start = vm_log_history_start(vm, &history);
    pthread_mutex_lock(&vm->log_lock);
    if (history.size > start)
        result = files_put_before(VM_LOG_FILE, vm->log_fd, history.data + start, history.size - start, &err);
    if (fstat(vm->log_fd, &status) == 0)
        log_set_size(vm->log, (uint64_t)status.st_size);
    pthread_mutex_unlock(&vm->log_lock);
    if (result < 0)
        log_warn(vm->log, "%s", err.text);
    buffer_free(&history);
    files_leave_terminal(vm->log_fd, NULL);
}
