#include "base/log.h"

#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* PIPE_BUF on Linux: up to this, a write to a pipe (standard error under a supervisor) is never split. */
#define LINE_SIZE 4096

/* A root (parent NULL) has a destination; a view has a tag and its parent's destination. */
struct log {
    struct log *parent;
    char tag[LOG_TAG_SIZE];
    struct log_labels labels;

    /* the rest: roots only */
    int fd;
    bool owns_fd;
    enum log_level threshold;
    uint64_t dropped; /* atomic */
    bool torn;        /* atomic: the last line was cut short by the destination */

    uint64_t size;  /* atomic: of the destination, as far as it counts */
    bool called;    /* atomic: full was, since the size was set */
    uint64_t limit; /* constant; 0: none */
    log_full *full;
    void *full_opaque;

    /* Guards listener and opaque; held for reading while the listener runs, so that it may log itself. */
    pthread_rwlock_t listener_lock;
    log_listener *listener;
    void *listener_opaque;
};

static struct log *log_new(int fd, bool owns_fd, enum log_level threshold)
{
    struct log *log = calloc(1, sizeof(*log));

    if (!log)
        return NULL;
    log->fd = fd;
    log->owns_fd = owns_fd;
    log->threshold = threshold;
    pthread_rwlock_init(&log->listener_lock, NULL);
    return log;
}

int log_open_file(struct log **out, const char *path, enum log_level threshold, struct ferry_error *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0640);

    *out = NULL;
    if (fd < 0)
        return error_set_errno(err, -errno, "cannot open log file %s", path);
    *out = log_new(fd, true, threshold);
    if (!*out) {
        close(fd);
        return error_set(err, -ENOMEM, "out of memory while opening log file %s", path);
    }
    return 0;
}

struct log *log_open_fd(int fd, enum log_level threshold)
{
    return log_new(fd, false, threshold);
}

int log_descriptor(const struct log *log)
{
    while (log->parent)
        log = log->parent;
    return log->fd;
}

/* Replaces what could break the line or talk to a terminal: C0, DEL, and C1 in UTF-8 (c2 80 to c2 9f). */
static void sanitize(char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        unsigned char byte = (unsigned char)text[i];

        if (byte < 0x20 || byte == 0x7f) {
            text[i] = '?';
        } else if (byte == 0xc2 && i + 1 < size && ((unsigned char)text[i + 1] & 0xe0) == 0x80) {
            text[i] = '?';
            text[i + 1] = '?';
        }
    }
}

struct log *log_scope(struct log *parent, const char *tag)
{
    struct log *log = calloc(1, sizeof(*log));

    if (!log)
        return NULL;
    log->parent = parent;
    log->labels = parent->labels;
    snprintf(log->tag, sizeof(log->tag), "%s", tag);
    sanitize(log->tag, strlen(log->tag));
    return log;
}

struct log *log_scope_labelled(struct log *parent, const char *tag, const struct log_labels *labels)
{
    struct log *log = log_scope(parent, tag);

    if (log)
        log->labels = *labels;
    return log;
}

void log_close(struct log *log)
{
    if (!log)
        return;
    if (!log->parent) {
        if (log->owns_fd)
            close(log->fd);
        pthread_rwlock_destroy(&log->listener_lock);
    }
    free(log);
}

static struct log *log_root(struct log *log)
{
    while (log->parent)
        log = log->parent;
    return log;
}

void log_set_listener(struct log *log, log_listener *listener, void *opaque)
{
    struct log *root = log_root(log);

    pthread_rwlock_wrlock(&root->listener_lock);
    root->listener = listener;
    root->listener_opaque = opaque;
    pthread_rwlock_unlock(&root->listener_lock);
}

uint64_t log_dropped(const struct log *log)
{
    while (log->parent)
        log = log->parent;
    return __atomic_load_n(&log->dropped, __ATOMIC_RELAXED);
}

void log_set_limit(struct log *log, uint64_t limit, log_full *full, void *opaque)
{
    log->limit = limit;
    log->full = full;
    log->full_opaque = opaque;
}

void log_set_size(struct log *log, uint64_t size)
{
    struct log *root = log_root(log);

    __atomic_store_n(&root->size, size, __ATOMIC_RELAXED);
    __atomic_store_n(&root->called, false, __ATOMIC_RELAXED);
}

static const char *level_name(enum log_level level)
{
    switch (level) {
    case LOG_LEVEL_DEBUG:
        return "DEBUG";
    case LOG_LEVEL_INFO:
        return "INFO ";
    case LOG_LEVEL_WARN:
        return "WARN ";
    case LOG_LEVEL_ERROR:
        return "ERROR";
    }
    return "?    ";
}

/* Appends "[outer] [inner] "; stops when full. Returns the new length. */
static size_t put_tags(const struct log *log, char *line, size_t used)
{
    int added;

    if (!log->parent)
        return used;
    used = put_tags(log->parent, line, used);
    if (!log->tag[0])
        return used;
    added = snprintf(line + used, LINE_SIZE - used, "[%s] ", log->tag);
    if (added < 0 || (size_t)added >= LINE_SIZE - used)
        return used;
    return used + (size_t)added;
}

/* Keeps a cut-off text from ending in the middle of a UTF-8 character. */
static size_t whole_characters(const char *text, size_t size)
{
    size_t start = size;

    while (start > 0 && size - start < 3 && ((unsigned char)text[start - 1] & 0xc0) == 0x80)
        start--;
    if (start > 0 && (unsigned char)text[start - 1] >= 0xc0)
        return start - 1;
    return size;
}

/* The first one to find it too large calls. */
static void count_bytes(struct log *root, uint64_t count)
{
    uint64_t size = __atomic_add_fetch(&root->size, count, __ATOMIC_RELAXED);

    if (root->limit > 0 && size > root->limit && !__atomic_exchange_n(&root->called, true, __ATOMIC_RELAXED))
        root->full(root->full_opaque);
}

/*
 * One write(2) a line. When the destination took only a part (a disk that just filled up), the next line that
 * gets through starts with a newline, so that the stump does not swallow it.
 */
static void write_line(struct log *root, char *line, size_t size)
{
    size_t skip = __atomic_exchange_n(&root->torn, false, __ATOMIC_RELAXED) ? 0 : 1;
    size_t left = size - skip;
    ssize_t written;

    do
        written = write(root->fd, line + skip, left);
    while (written < 0 && errno == EINTR);
    if (written > 0)
        count_bytes(root, (uint64_t)written);
    if (written == (ssize_t)left)
        return;
    if (written > 0 || !skip)
        __atomic_store_n(&root->torn, true, __ATOMIC_RELAXED);
    __atomic_fetch_add(&root->dropped, 1, __ATOMIC_RELAXED);
}

static void call_listener(struct log *log, struct log *root, enum log_level level, const char *text)
{
    const struct log_line line = {.level = level, .tag = log->tag, .text = text, .labels = &log->labels};

    pthread_rwlock_rdlock(&root->listener_lock);
    if (root->listener)
        root->listener(root->listener_opaque, &line);
    pthread_rwlock_unlock(&root->listener_lock);
}

void log_write(struct log *log, enum log_level level, const char *format, ...)
{
    char line[LINE_SIZE];
    char time_text[CLOCK_TEXT_SIZE];
    struct log *root;
    size_t text_start;
    size_t size;
    int head;
    int length;
    va_list args;

    if (!log)
        return;
    root = log_root(log);
    if (level < root->threshold && level < LOG_LEVEL_INFO)
        return;

    /* line[0] is the newline that only a line after a torn one begins with */
    head = snprintf(line, sizeof(line), "\n%s %s ", clock_format(clock_realtime_ns(), time_text),
                    level_name(level));
    text_start = put_tags(log, line, (size_t)head);

    va_start(args, format);
    length = vsnprintf(line + text_start, sizeof(line) - text_start, format, args);
    va_end(args);
    if (length < 0)
        length = 0;
    size = text_start + (size_t)length;
    if (size > sizeof(line) - 2)
        size = text_start + whole_characters(line + text_start, sizeof(line) - 2 - text_start);
    sanitize(line + text_start, size - text_start);
    line[size] = '\0';

    if (level >= LOG_LEVEL_INFO)
        call_listener(log, root, level, line + text_start);
    if (level < root->threshold)
        return;
    line[size] = '\n';
    write_line(root, line, size + 1);
}
