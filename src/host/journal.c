#include "host/journal.h"

#include "base/buffer.h"
#include "base/error.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

struct journal {
    int fd;
    struct sockaddr_un address;
    char host[LOG_LABEL_SIZE];
};

bool journal_is_stream(const char *stream, int fd)
{
    unsigned long long device, inode;
    struct stat status;
    char *end;

    if (!stream || fstat(fd, &status) < 0)
        return false;
    device = strtoull(stream, &end, 10);
    if (end == stream || *end != ':')
        return false;
    stream = end + 1;
    inode = strtoull(stream, &end, 10);
    return end != stream && !*end && device == status.st_dev && inode == status.st_ino;
}

int journal_open(struct journal **out, const char *socket_path, const char *host, struct ferry_error *err)
{
    struct journal *journal = calloc(1, sizeof(*journal));

    *out = NULL;
    if (!journal)
        return error_set(err, -ENOMEM, "out of memory");
    journal->address.sun_family = AF_UNIX;
    journal->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (journal->fd < 0 || strlen(socket_path) >= sizeof(journal->address.sun_path)) {
        int code = journal->fd < 0 ? -errno : -ENAMETOOLONG;

        journal_close(journal);
        return error_set_errno(err, code, "cannot speak with the journal at %s", socket_path);
    }
    memcpy(journal->address.sun_path, socket_path, strlen(socket_path) + 1);
    snprintf(journal->host, sizeof(journal->host), "%s", host);
    *out = journal;
    return 0;
}

void journal_close(struct journal *journal)
{
    if (!journal)
        return;
    if (journal->fd >= 0)
        close(journal->fd);
    free(journal);
}

/* "KEY=VALUE\n"; a value with a line feed in it would need another form, and a line of a log has none. */
static void put_field(struct buffer *message, const char *key, const char *value)
{
    if (!*value || strchr(value, '\n'))
        return;
    buffer_put(message, key, strlen(key));
    buffer_put_u8(message, '=');
    buffer_put(message, value, strlen(value));
    buffer_put_u8(message, '\n');
}

static const char *priority_of(enum log_level level)
{
    switch (level) {
    case LOG_LEVEL_ERROR:
        return "3";
    case LOG_LEVEL_WARN:
        return "4";
    case LOG_LEVEL_INFO:
        return "6";
    case LOG_LEVEL_DEBUG:
        break;
    }
    return "7";
}

void journal_listen(void *opaque, const struct log_line *line)
{
    const struct journal *journal = opaque;
    const struct log_labels *labels = line->labels;
    struct buffer message = BUFFER_INIT;

    put_field(&message, "MESSAGE", line->text);
    put_field(&message, "PRIORITY", priority_of(line->level));
    put_field(&message, "SYSLOG_IDENTIFIER", "ferryd");
    put_field(&message, "FERRY_HOST", labels->host[0] ? labels->host : journal->host);
    put_field(&message, "FERRY_VM", labels->vm);
    put_field(&message, "FERRY_MIGRATION_ID", labels->migration);
    put_field(&message, "FERRY_CODE", labels->code);
    if (!buffer_failed(&message))
        (void)sendto(journal->fd, message.data, message.size, MSG_DONTWAIT | MSG_NOSIGNAL,
                     (const struct sockaddr *)&journal->address, sizeof(journal->address));
    buffer_free(&message);
}
