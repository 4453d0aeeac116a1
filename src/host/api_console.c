/* The guest's console: its history as a stream, and the live connection by HTTP upgrade. Also what the VM's
 * process says, which is read like the history. */
#include "host/api.h"

#include "base/buffer.h"
#include "base/error.h"
#include "base/sock.h"
#include "host/vms.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOG_CHANGES  (IN_MODIFY | IN_CREATE | IN_MOVED_TO)
#define SLICE_MS     1000 /* how often a quiet stream looks whether its client is still there */
#define PUMP_SIZE    4096
#define LOG_FILE_MAX (2 << 20) /* more than ferry-vm lets console.log grow */

/* --- history --- */

struct log_stream {
    struct host *host;
    struct vm *vm; /* a reference */
    int client_fd;
    int fd;      /* the file; -1: not there yet */
    int inotify; /* -1: not following */
    bool follow;
    char path[PATH_MAX];
};

static void log_stream_free(void *opaque)
{
    struct log_stream *stream = opaque;

    if (stream->fd >= 0)
        close(stream->fd);
    if (stream->inotify >= 0)
        close(stream->inotify);
    vm_unref(stream->host, stream->vm);
    free(stream);
}

/* True when there may be more: the file grew, was replaced, or the VM still runs. */
static bool wait_more(struct log_stream *stream)
{
    struct pollfd polls[2] = {{.fd = stream->inotify, .events = POLLIN},
                              {.fd = stream->host->stop_fd, .events = POLLIN}};
    char events[4096];
    bool runs;

    if (!stream->follow || host_stopping(stream->host) || api_client_gone(stream->client_fd))
        return false;
    host_lock(stream->host);
    /* In an upgrade the former process may have ended before the new one is the VM's. */
    runs = stream->vm->process != NULL || stream->vm->newcomer != NULL;
    host_unlock(stream->host);
    if (poll(polls, 2, runs ? SLICE_MS : 0) == 0)
        return runs;
    while (read(stream->inotify, events, sizeof(events)) > 0)
        ;
    return !polls[1].revents;
}

/* All of a log file; at most LOG_FILE_MAX bytes of its end. False when it cannot be read. */
static bool read_whole(int fd, struct buffer *out)
{
    struct stat status;
    off_t from;
    ssize_t got;

    if (fstat(fd, &status) < 0)
        return false;
    from = status.st_size > LOG_FILE_MAX ? status.st_size - LOG_FILE_MAX : 0;
    if (!buffer_reserve(out, LOG_FILE_MAX))
        return false;
    got = pread(fd, out->data, LOG_FILE_MAX, from);
    out->size = got > 0 ? (size_t)got : 0;
    return got >= 0;
}

/* How much of the beginning of FRESH is the end of OLD: what both have. */
static off_t overlap(int old, int fresh)
{
    struct buffer before = BUFFER_INIT;
    struct buffer after = BUFFER_INIT;
    off_t common = 0;

    if (read_whole(old, &before) && read_whole(fresh, &after)) {
        size_t start = before.size > after.size ? before.size - after.size : 0;

        for (size_t i = start; i < before.size && common == 0; i++) {
            if (before.data[i] == after.data[0] && memcmp(before.data + i, after.data, before.size - i) == 0)
                common = (off_t)(before.size - i);
        }
    }
    buffer_free(&before);
    buffer_free(&after);
    return common;
}

/*
 * ferry-vm keeps a long log short by putting a new file, which may begin with the end of the old one, in its
 * place: all of the old one was read, so reading goes on behind what both have. A file begun anew in place is
 * read from its beginning.
 */
static void follow_replacement(struct log_stream *stream)
{
    struct stat ours, named;
    int fresh;

    if (stream->fd < 0) {
        stream->fd = open(stream->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        return;
    }
    if (fstat(stream->fd, &ours) < 0)
        return;
    if (stat(stream->path, &named) == 0 && (named.st_ino != ours.st_ino || named.st_dev != ours.st_dev)) {
        fresh = open(stream->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fresh < 0 || lseek(stream->fd, 0, SEEK_CUR) < ours.st_size) {
            if (fresh >= 0)
                close(fresh);
            return; /* not all of the old one yet */
        }
        lseek(fresh, overlap(stream->fd, fresh), SEEK_SET);
        /* After an upgrade it is another directory, too. */
        inotify_add_watch(stream->inotify, stream->vm->directory, LOG_CHANGES);
        close(stream->fd);
        stream->fd = fresh;
    } else if (lseek(stream->fd, 0, SEEK_CUR) > ours.st_size) {
        lseek(stream->fd, 0, SEEK_SET);
    }
}

static size_t fill_log(void *opaque, char *buffer, size_t size)
{
    struct log_stream *stream = opaque;

    for (;;) {
        ssize_t got = stream->fd >= 0 ? read(stream->fd, buffer, size) : 0;

        if (got > 0)
            return (size_t)got;
        if (got < 0 && errno != EINTR)
            return 0;
        if (!wait_more(stream))
            return 0;
        follow_replacement(stream);
    }
}

/* The file NAME of the VM's directory. */
static int answer_log(struct api_request *request, const char *name)
{
    struct log_stream *stream = calloc(1, sizeof(*stream));
    int result;

    if (!stream)
        return error_set(&request->err, -ENOMEM, "out of memory");
    stream->host = request->host;
    stream->client_fd = api_client_fd(request);
    stream->inotify = -1;
    stream->fd = -1;
    result = api_query_bool(request, "follow", &stream->follow);
    if (result == 0) {
        stream->vm = vm_get(request->host, request->arguments[0], &request->err);
        result = stream->vm ? 0 : HOST_NOT_FOUND;
    }
    if (result < 0) {
        log_stream_free(stream);
        return result;
    }
    if (snprintf(stream->path, sizeof(stream->path), "%s/%s", stream->vm->directory, name) >= PATH_MAX)
        stream->path[0] = '\0';
    if (stream->follow) {
        api_bear_with_reader(request);
        stream->inotify = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
        inotify_add_watch(stream->inotify, stream->vm->directory, LOG_CHANGES);
    }
    stream->fd = open(stream->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    return api_answer_stream(request, "application/octet-stream", fill_log, stream, log_stream_free);
}

int api_console_log(struct api_request *request)
{
    return answer_log(request, "console.log");
}

int api_vm_log(struct api_request *request)
{
    return answer_log(request, "vm.log");
}

/* --- live --- */

struct console {
    struct host *host;
    int vm_fd;
    /* of a conversation on a thread of its own */
    int client_fd;
    struct MHD_UpgradeResponseHandle *handle;
};

/* Blocking, all of it; false when the other end is gone, or takes nothing any more. */
static bool pass_on(const struct console *console, int fd, const char *data, size_t size)
{
    return sock_write_full(fd, data, size, clock_deadline(host_peer_ms(console->host)),
                           console->host->stop_fd, NULL) == 0;
}

/* One direction's turn: false when either end is gone. */
static bool pump(const struct console *console, int from, int to)
{
    char data[PUMP_SIZE];
    ssize_t got = recv(from, data, sizeof(data), MSG_DONTWAIT);

    if (got < 0)
        return errno == EAGAIN || errno == EINTR;
    return got > 0 && pass_on(console, to, data, (size_t)got);
}

/* Until an end goes away or the host stops; then all is closed. */
static void *pump_both(void *opaque)
{
    struct console *console = opaque;
    int client = console->client_fd;
    bool open = true;

    while (open) {
        struct pollfd polls[3] = {{.fd = client, .events = POLLIN},
                                  {.fd = console->vm_fd, .events = POLLIN},
                                  {.fd = console->host->stop_fd, .events = POLLIN}};

        if (poll(polls, 3, -1) < 0 && errno != EINTR)
            break;
        open = !polls[2].revents;
        if (open && polls[0].revents)
            open = pump(console, client, console->vm_fd);
        if (open && polls[1].revents)
            open = pump(console, console->vm_fd, client);
    }
    close(console->vm_fd);
    /* libmicrohttpd's thread of the connection ends only then, and the daemon waits for it: the host is still
     * there. */
    MHD_upgrade_action(console->handle, MHD_UPGRADE_ACTION_CLOSE);
    free(console);
    return NULL;
}

/*
 * The connection is ours now. In the clear this is its thread, and stays so. With TLS libmicrohttpd needs
 * that thread, to encrypt what is said on a socket of its own: the conversation goes on another.
 */
static void converse(void *opaque, struct MHD_Connection *connection, void *context, const char *extra,
                     size_t extra_size, MHD_socket client, struct MHD_UpgradeResponseHandle *handle)
{
    struct console *console = opaque;
    pthread_attr_t detached;
    pthread_t thread;
    bool secure = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_GNUTLS_SESSION) != NULL;

    (void)context;
    console->client_fd = client;
    console->handle = handle;
    if (extra_size > 0 && !pass_on(console, console->vm_fd, extra, extra_size))
        shutdown(console->vm_fd, SHUT_RDWR); /* which ends the conversation */
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    if (!secure) {
        pump_both(console);
    } else if (pthread_create(&thread, &detached, pump_both, console) != 0) {
        close(console->vm_fd);
        free(console);
        MHD_upgrade_action(handle, MHD_UPGRADE_ACTION_CLOSE);
    }
    pthread_attr_destroy(&detached);
}

static int connect_console(struct api_request *request, int *fd)
{
    struct vm *vm = vm_get(request->host, request->arguments[0], &request->err);
    char path[PATH_MAX];
    bool runs;

    if (!vm)
        return HOST_NOT_FOUND;
    host_lock(request->host);
    runs = vm->process != NULL;
    host_unlock(request->host);
    if (snprintf(path, sizeof(path), "%s/console.sock", vm->directory) >= PATH_MAX)
        path[0] = '\0';
    vm_unref(request->host, vm);
    if (!runs)
        return error_set(&request->err, HOST_CONFLICT, "VM %s does not run", request->arguments[0]);
    *fd =
        sock_connect(path, clock_deadline(host_vm_ms(request->host)), request->host->stop_fd, &request->err);
    if (*fd < 0)
        return error_prefix(&request->err, *fd, "the console of VM %s cannot be reached",
                            request->arguments[0]);
    return 0;
}

int api_console(struct api_request *request)
{
    const char *upgrade = MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND, "Upgrade");
    struct console *console;
    int fd = -1;
    int result;

    if (!upgrade || strcasecmp(upgrade, "ferry-console") != 0)
        return error_set(&request->err, HOST_USAGE, "the console needs Upgrade: ferry-console");
    result = connect_console(request, &fd);
    if (result < 0)
        return result;
    console = calloc(1, sizeof(*console));
    if (console) {
        *console = (struct console){.host = request->host, .vm_fd = fd};
        request->response = MHD_create_response_for_upgrade(converse, console);
    }
    if (!request->response) {
        free(console);
        close(fd);
        return error_set(&request->err, -ENOMEM, "out of memory");
    }
    MHD_add_response_header(request->response, "Upgrade", "ferry-console");
    request->status = MHD_HTTP_SWITCHING_PROTOCOLS;
    return 0;
}
