#include "host/migration_files.h"

#include "base/buffer.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/thread.h"
#include "host/migration.h"
#include "host/statistics.h"

#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAUSE_NS  NS_PER_S        /* between two writings */
#define RETRY_NS  (30 * NS_PER_S) /* after one that failed */
#define FIELD_MAX 1024            /* of one value; longer ones are cut */

static const struct {
    enum store_view view;
    const char *name;
} files[] = {
    {STORE_VIEW_ACTIVE, "active"},
    {STORE_VIEW_HISTORY, "history"},
    {STORE_VIEW_FAILED, "failed"},
};

#define FILES_COUNT (sizeof(files) / sizeof(files[0]))

struct migration_files {
    struct thread thread;
    unsigned version;         /* of the records, when they were written last */
    bool failing;             /* told already */
    char *texts[FILES_COUNT]; /* as they are on disk; NULL: not known */
};

/* --- text --- */

static void __attribute__((format(printf, 2, 3))) put(struct buffer *text, const char *format, ...)
{
    char piece[FIELD_MAX];
    va_list args;
    int length;

    va_start(args, format);
    length = vsnprintf(piece, sizeof(piece), format, args);
    va_end(args);
    if (length > 0)
        buffer_put(text, piece, (size_t)length < sizeof(piece) ? (size_t)length : sizeof(piece) - 1);
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

static unsigned long long number_of(const json_t *object, const char *key)
{
    json_int_t value = json_integer_value(json_object_get(object, key));

    return value > 0 ? (unsigned long long)value : 0;
}

/* One word: what could be taken for another field, or end the line, becomes '?'; nothing becomes '-'. */
static void put_word(struct buffer *text, const char *key, const char *value)
{
    put(text, " %s=", key);
    if (!*value)
        put(text, "-");
    for (size_t i = 0; value[i] && i < FIELD_MAX; i++)
        buffer_put_u8(text, (unsigned char)value[i] > ' ' && value[i] != 0x7f ? (uint8_t)value[i] : '?');
}

/* In quotation marks, which it has none of itself. */
static void put_quoted(struct buffer *text, const char *key, const char *value)
{
    put(text, " %s=\"", key);
    for (size_t i = 0; value[i] && i < FIELD_MAX; i++) {
        unsigned char byte = (unsigned char)value[i];

        buffer_put_u8(text, byte == '"' ? '\'' : byte < ' ' || byte == 0x7f ? '?' : byte);
    }
    buffer_put_u8(text, '"');
}

static void put_ms(struct buffer *text, const char *key, unsigned long long ns)
{
    put(text, " %s=%llu.%03llu", key, ns / NS_PER_MS, ns % NS_PER_MS / 1000);
}

static void put_active(struct buffer *text, const json_t *object)
{
    put(text, " state=%s(%llu)", text_of(object, "state"), number_of(object, "state_number"));
    put_quoted(text, "phase", text_of(object, "phase"));
    put(text, " percent=%llu queue=%llu rounds=%llu sent_bytes=%llu remaining_bytes=%llu",
        number_of(object, "percent"), number_of(object, "queue"), number_of(object, "round"),
        number_of(object, "wire_bytes"), number_of(object, "remaining_bytes"));
}

static void put_ended(struct buffer *text, const json_t *object)
{
    put_word(text, "outcome", text_of(object, "outcome"));
    put_word(text, "cause", text_of(object, "cause"));
    put_word(text, "started", text_of(object, "started"));
    put_ms(text, "total_ms", number_of(object, "total_ns"));
    put_ms(text, "downtime_ms", number_of(object, "downtime_ns"));
    put(text, " rounds=%llu sent_bytes=%llu agreed=%s", number_of(object, "round"),
        number_of(object, "wire_bytes"), json_is_false(json_object_get(object, "agreed")) ? "no" : "yes");
    put_quoted(text, "error", text_of(object, "error"));
}

static void put_migration(struct buffer *text, const json_t *object, enum store_view view)
{
    put(text, "%s", text_of(object, view == STORE_VIEW_ACTIVE ? "started" : "ended"));
    put_word(text, "id", text_of(object, "id"));
    put_word(text, "vm", text_of(object, "vm"));
    put_word(text, "from", text_of(object, "source"));
    put_word(text, "to", text_of(object, "destination"));
    put_word(text, "side", text_of(object, "side"));
    put_word(text, "kind", text_of(object, "kind"));
    if (view == STORE_VIEW_ACTIVE)
        put_active(text, object);
    else
        put_ended(text, object);
    put(text, "\n");
}

static void put_statistics(struct buffer *text, const json_t *statistics)
{
    static const char *const counts[] = {"count", "completed", "failed", "cancelled", "lost", "unknown"};
    const char *kind;
    json_t *sums;

    json_object_foreach(json_object_get(statistics, "kinds"), kind, sums)
    {
        const json_t *total = json_object_get(sums, "total_ns");
        const json_t *downtime = json_object_get(sums, "downtime_ns");
        unsigned long long success = number_of(sums, "success_permille");

        put(text, "# kind=%s", kind);
        for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
            put(text, " %s=%llu", counts[i], number_of(sums, counts[i]));
        if (json_is_integer(json_object_get(sums, "success_permille")))
            put(text, " success_percent=%llu.%llu", success / 10, success % 10);
        if (json_is_object(total)) {
            put_ms(text, "total_median_ms", number_of(total, "median"));
            put_ms(text, "total_p99_ms", number_of(total, "p99"));
        }
        if (json_is_object(downtime)) {
            put_ms(text, "downtime_median_ms", number_of(downtime, "median"));
            put_ms(text, "downtime_p99_ms", number_of(downtime, "p99"));
        }
        put(text, " sent_bytes=%llu\n", number_of(sums, "wire_bytes"));
    }
}

static void put_causes(struct buffer *text, const json_t *statistics)
{
    const char *kind, *cause;
    json_t *sums, *count;

    json_object_foreach(json_object_get(statistics, "kinds"), kind, sums)
    {
        json_object_foreach(json_object_get(sums, "causes"), cause, count)
            put(text, "# kind=%s cause=%s count=%llu\n", kind, cause,
                (unsigned long long)json_integer_value(count));
    }
}

char *migration_files_text(const json_t *list, enum store_view view, const json_t *statistics)
{
    struct buffer text = BUFFER_INIT;
    size_t count = json_array_size(list);
    char *copy;

    if (view == STORE_VIEW_HISTORY)
        put_statistics(&text, statistics);
    else if (view == STORE_VIEW_FAILED)
        put_causes(&text, statistics);
    if (count > MIGRATION_FILES_LINES)
        count = MIGRATION_FILES_LINES;
    while (count > 0)
        put_migration(&text, json_array_get(list, --count), view);
    copy = buffer_failed(&text) ? NULL : strndup(text.data ? (const char *)text.data : "", text.size);
    buffer_free(&text);
    return copy;
}

/* --- files --- */

/* Not synchronised to storage: the records are, and after a crash these files are made from them. */
static int write_file(const struct host *host, const char *name, const char *text, struct ferry_error *err)
{
    const char *directory = host->config->state_dir;
    size_t size = strlen(text), done = 0;
    CLEANUP_CLOSE int fd = -1;
    char path[PATH_MAX], fresh[PATH_MAX];

    if (snprintf(path, sizeof(path), "%s/migration/%s", directory, name) >= PATH_MAX ||
        snprintf(fresh, sizeof(fresh), "%s/migration/.%s.new", directory, name) >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "the path of the state directory is too long");
    fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0640);
    while (fd >= 0 && done < size) {
        ssize_t written = write(fd, text + done, size - done);

        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            break;
        done += (size_t)written;
    }
    if (fd < 0 || done < size || rename(fresh, path) < 0) {
        int code = -errno;

        unlink(fresh);
        return error_set_errno(err, code, "cannot write %s", path);
    }
    return 0;
}

static void tell(struct host *host, int result, const struct ferry_error *err)
{
    struct migration_files *state = host->files;

    if (result < 0 && !state->failing)
        log_warn(host->log, "%s; it is left as it was, and ferry migrations has what it does not", err->text);
    state->failing = result < 0;
}

static int write_view(struct host *host, size_t index, const json_t *statistics, struct ferry_error *err)
{
    struct migration_files *state = host->files;
    json_t *list = migrations_list(host, files[index].view);
    char *text = migration_files_text(list, files[index].view, statistics);
    int result;

    json_decref(list);
    if (!text)
        return error_set(err, -ENOMEM, "out of memory while writing about migrations");
    if (state->texts[index] && strcmp(text, state->texts[index]) == 0) {
        free(text);
        return 0;
    }
    result = write_file(host, files[index].name, text, err);
    free(state->texts[index]);
    state->texts[index] = NULL;
    if (result == 0)
        state->texts[index] = text;
    else
        free(text);
    return result;
}

/* ENDED: records of such may have changed, too. */
static void write_views(struct host *host, bool ended)
{
    json_t *statistics = ended ? statistics_of_host(host) : NULL;
    struct ferry_error err = {0};
    int result = 0;

    for (size_t i = 0; i < FILES_COUNT && result == 0; i++) {
        if (files[i].view == STORE_VIEW_ACTIVE || ended)
            result = write_view(host, i, statistics, &err);
    }
    json_decref(statistics);
    tell(host, result, &err);
    if (result < 0) {
        host_lock(host);
        host->files->version = host->records_version - 1; /* all of it next time */
        host_unlock(host);
    }
}

/* Under the lock. What of active ones is in their file changes with every word of their processes. */
static bool any_active(const struct host *host)
{
    for (const struct migration *migration = host->migrations; migration; migration = migration->next) {
        if (!migration->ended)
            return true;
    }
    return false;
}

static void *files_main(void *opaque)
{
    struct host *host = opaque;
    struct migration_files *state = host->files;
    bool first = true, were_active = false;

    host_lock(host);
    while (!host->stopping) {
        bool ended = first || state->version != host->records_version;
        bool active = any_active(host);
        uint64_t next;

        if (!ended && !active && !were_active) {
            thread_cond_wait_until(&host->changed, &host->lock, UINT64_MAX);
            continue;
        }
        first = false;
        were_active = active;
        state->version = host->records_version;
        host_unlock(host);
        write_views(host, ended);
        next = clock_now_ns() + (state->failing ? RETRY_NS : PAUSE_NS);
        host_lock(host);
        while (!host->stopping && thread_cond_wait_until(&host->changed, &host->lock, next))
            ;
    }
    host_unlock(host);
    return NULL;
}

int migration_files_start(struct host *host, struct ferry_error *err)
{
    char path[PATH_MAX];
    int result;

    if (snprintf(path, sizeof(path), "%s/migration", host->config->state_dir) >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "the path of the state directory is too long");
    if (mkdir(path, 0750) < 0 && errno != EEXIST)
        log_warn(host->log, "cannot make %s: %s; there will be no files about migrations", path,
                 strerror(errno));
    host->files = calloc(1, sizeof(*host->files));
    if (!host->files)
        return error_set(err, -ENOMEM, "out of memory");
    result = thread_start(&host->files->thread, THREAD_GENERAL, "files", files_main, host, err);
    if (result < 0) {
        free(host->files);
        host->files = NULL;
    }
    return result;
}

void migration_files_stop(struct host *host)
{
    struct migration_files *state = host->files;

    if (!state)
        return;
    thread_join(&state->thread);
    write_views(host, true);
    for (size_t i = 0; i < FILES_COUNT; i++)
        free(state->texts[i]);
    free(state);
    host->files = NULL;
}
