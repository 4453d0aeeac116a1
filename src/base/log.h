/*
 * Logs for operators: one line an event, `2026-11-21T03:31:36.123+01:00 INFO  [migration 1b4e…] text`.
 *
 * A `struct log` is one destination (a file or a descriptor). It is created once, passed to what needs it,
 * and may be used from any thread; each line is one write(2), so lines of several threads never mix. When the
 * destination cannot be written (disk full) the line is dropped and counted, never an error to the caller.
 * `log_scope` gives a view that adds a migration id or other tag in brackets to every line; it borrows its
 * parent. Lines end at 4096 bytes; what is longer is cut off.
 */
#ifndef FERRY_BASE_LOG_H
#define FERRY_BASE_LOG_H

#include <ferry/error.h>

#include <stdarg.h>
#include <stdint.h>

enum log_level {
    LOG_LEVEL_DEBUG = 1,
    LOG_LEVEL_INFO = 2,
    LOG_LEVEL_WARN = 3,
    LOG_LEVEL_ERROR = 4,
};

#define LOG_TAG_SIZE 96

struct log;

/* Opens (appends to) PATH; the file is created with mode 0640. The caller owns the log. */
int log_open_file(struct log **out, const char *path, enum log_level threshold, struct ferry_error *err);

/* Writes to a descriptor that stays the caller's (2 for standard error). NULL when out of memory. */
struct log *log_open_fd(int fd, enum log_level threshold);

/* What it writes to. It may come to be another file (dup3). */
int log_descriptor(const struct log *log);

/* A view of PARENT whose lines carry [TAG]. Free with log_close before the parent. NULL when out of memory.
 */
struct log *log_scope(struct log *parent, const char *tag);

/* What lines are about, for who files them by it (a listener). Empty: nothing. */
#define LOG_LABEL_SIZE 64

struct log_labels {
    char vm[LOG_LABEL_SIZE];
    char migration[LOG_LABEL_SIZE];
    char host[LOG_LABEL_SIZE]; /* where it happened, if that is elsewhere */
    char code[LOG_LABEL_SIZE]; /* of an event */
};

/* As log_scope; its lines have these labels (a copy), those of views of it too. */
struct log *log_scope_labelled(struct log *parent, const char *tag, const struct log_labels *labels);

/* Frees the log or view. NULL is allowed. */
void log_close(struct log *log);

/*
 * Optional second consumer of every line at or above INFO (a UI, a control socket), whatever the threshold.
 * One a destination: setting it on a view sets it on the view's root. Called on the logging thread, several
 * threads at once; it may log, but not set a listener. Once log_set_listener returns, the former listener is
 * not running and will not be called again.
 */
struct log_line {
    enum log_level level;
    const char *tag; /* the innermost; "" without one */
    const char *text;
    const struct log_labels *labels; /* never NULL */
};

typedef void log_listener(void *opaque, const struct log_line *line);
void log_set_listener(struct log *log, log_listener *listener, void *opaque);

/*
 * Has FULL called once the log's destination has more than LIMIT bytes, as far as it counts: what was written
 * by this log, and log_set_size. Once, on the thread whose line it was, after that line; log_set_size makes
 * it due again. For rotating a file. Set on a root, before other threads use the log.
 */
typedef void log_full(void *opaque);
void log_set_limit(struct log *log, uint64_t limit, log_full *full, void *opaque);
/* How many bytes the destination has from now on. Any thread. */
void log_set_size(struct log *log, uint64_t size);

/* Lines dropped because they could not be written. */
uint64_t log_dropped(const struct log *log);

/* LOG may be NULL: nothing happens. Newlines and control characters in the text are replaced by '?'. */
void log_write(struct log *log, enum log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define log_debug(log, ...) log_write((log), LOG_LEVEL_DEBUG, __VA_ARGS__)
#define log_info(log, ...)  log_write((log), LOG_LEVEL_INFO, __VA_ARGS__)
#define log_warn(log, ...)  log_write((log), LOG_LEVEL_WARN, __VA_ARGS__)
#define log_error(log, ...) log_write((log), LOG_LEVEL_ERROR, __VA_ARGS__)

#endif
