#include "vm/console.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/sock.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK_SIZE   (16 * 1024)
#define INPUT_SIZE   4096
#define LOG_SIZE_CUT (CONSOLE_LOG_SIZE + CONSOLE_LOG_SIZE / 4)
/* After output was delivered the loop waits this long for more, so that a burst costs few wake-ups. */
#define GATHER_NS (2 * NS_PER_MS)

/* One connection to console.sock. */
struct console_client {
    struct console *console;
    struct console_client *next;
    int fd;
    struct loop_watch *watch; /* NULL: the other side is gone; what it typed is still delivered */
    uint64_t position;        /* of the output sent so far */
    uint8_t input[INPUT_SIZE];
    size_t input_size; /* received, not taken by the sink yet */
    bool writable;     /* false: waits for LOOP_WRITE */
    bool ended;        /* sends nothing more */
};

struct console {
    struct loop *loop;
    struct log *log;
    const char *log_path;
    const char *socket_path;
    int listen_fd;
    struct loop_watch *listen_watch;
    struct loop_timer *gather;
    struct console_client *clients;
    unsigned client_count;
    console_sink *sink;
    void *sink_opaque;

    pthread_mutex_t lock; /* guards the next seven */
    uint8_t *ring;
    uint64_t first;   /* positions count bytes that went through the ring: first byte kept, */
    uint64_t next;    /* one past the last, */
    uint64_t flushed; /* one past what is in the log, */
    uint64_t live;    /* and where loaded history ends, which clients do not get */
    bool posted;      /* the loop knows that there is output */
    bool input_posted;

    pthread_mutex_t file_lock; /* guards the log file; taken before `lock` */
    int log_fd;
    uint64_t log_size;
    bool replace;      /* the next flush begins the log anew */
    int former_fd;     /* directory of the log to begin it with; -1: with the history */
    int former_log_fd; /* that log, opened when state is loaded: who begins the log may not open files */
    bool failing;      /* the last write failed; said once */
};

/* ---- ring; lock held ---- */

static void ring_append(struct console *console, const uint8_t *data, size_t size)
{
    if (size > CONSOLE_HISTORY_SIZE) {
        console->next += size - CONSOLE_HISTORY_SIZE;
        data += size - CONSOLE_HISTORY_SIZE;
        size = CONSOLE_HISTORY_SIZE;
    }
    while (size > 0) {
        size_t at = console->next % CONSOLE_HISTORY_SIZE;
        size_t part = CONSOLE_HISTORY_SIZE - at < size ? CONSOLE_HISTORY_SIZE - at : size;

        memcpy(console->ring + at, data, part);
        console->next += part;
        data += part;
        size -= part;
    }
    if (console->next - console->first > CONSOLE_HISTORY_SIZE)
        console->first = console->next - CONSOLE_HISTORY_SIZE;
}

/* At most SIZE bytes from *position on, which is moved past them, and past what is gone from the ring. */
static size_t ring_copy(const struct console *console, uint64_t *position, uint8_t *out, size_t size)
{
    size_t done = 0;

    if (*position < console->first)
        *position = console->first;
    while (done < size && *position < console->next) {
        size_t at = *position % CONSOLE_HISTORY_SIZE;
        size_t part = CONSOLE_HISTORY_SIZE - at;

        if (part > console->next - *position)
            part = console->next - *position;
        if (part > size - done)
            part = size - done;
        memcpy(out + done, console->ring + at, part);
        *position += part;
        done += part;
    }
    return done;
}

/* ---- log file; file_lock held ---- */

static void file_failed(struct console *console)
{
    if (!console->failing)
        log_warn(console->log, "console.log cannot be written (%s); console output is missing from it",
                 strerror(errno));
    console->failing = true;
}

static void file_write(struct console *console, const uint8_t *data, size_t size)
{
    while (size > 0) {
        ssize_t count = write(console->log_fd, data, size);

        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0) {
            file_failed(console);
            return;
        }
        console->failing = false;
        console->log_size += (uint64_t)count;
        data += count;
        size -= (size_t)count;
    }
}

/* Copies from FROM's current offset to its end. */
static int file_copy(int from, int to, uint64_t *size)
{
    uint8_t chunk[CHUNK_SIZE];
    ssize_t count;

    while ((count = read(from, chunk, sizeof(chunk))) > 0) {
        if (write(to, chunk, (size_t)count) != count)
            return -1;
        *size += (uint64_t)count;
    }
    return (int)count;
}

/* Puts FROM just after the first newline at or after OFFSET, so that the log begins with a whole line. */
static int file_seek_line(int from, uint64_t offset)
{
    char part[512];
    ssize_t count = pread(from, part, sizeof(part), (off_t)offset);
    const char *newline = count > 0 ? memchr(part, '\n', (size_t)count) : NULL;

    if (newline)
        offset += (uint64_t)(newline + 1 - part);
    return lseek(from, (off_t)offset, SEEK_SET) < 0 ? -1 : 0;
}

/* A new file with the last CONSOLE_LOG_SIZE bytes takes the log's place; whoever reads the old one keeps it.
 */
static void file_cut(struct console *console)
{
    CLEANUP_CLOSE int from = open(console->log_path, O_RDONLY | O_CLOEXEC);
    CLEANUP_CLOSE int to = -1;
    char path[64];
    uint64_t size = 0;

    snprintf(path, sizeof(path), "%.58s.new", console->log_path);
    to = open(path, O_WRONLY | O_APPEND | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
    if (from < 0 || to < 0 || file_seek_line(from, console->log_size - CONSOLE_LOG_SIZE) < 0 ||
        file_copy(from, to, &size) < 0 || rename(path, console->log_path) < 0) {
        file_failed(console);
        unlink(path);
        return;
    }
    close(console->log_fd);
    console->log_fd = TAKE_FD(to);
    console->log_size = size;
}

/* The log becomes the former one's, in which the history is. */
static bool file_inherit(struct console *console)
{
    if (console->former_log_fd < 0)
        return false;
    if (file_copy(console->former_log_fd, console->log_fd, &console->log_size) == 0)
        return true;
    log_warn(console->log, "the console's earlier log is not in the new one: %s", strerror(errno));
    console->log_size = ftruncate(console->log_fd, 0) < 0 ? console->log_size : 0;
    return false;
}

static void file_begin_anew(struct console *console)
{
    if (ftruncate(console->log_fd, 0) < 0)
        return;
    console->replace = false;
    console->log_size = 0;
    if (!file_inherit(console))
        return;
    pthread_mutex_lock(&console->lock);
    if (console->flushed < console->live)
        console->flushed = console->live;
    pthread_mutex_unlock(&console->lock);
}

/* MAY_OPEN: the calling thread may open and rename files (confine_rules.c): vCPUs and devices may not. */
static void file_flush(struct console *console, bool may_open)
{
    uint8_t chunk[CHUNK_SIZE];
    size_t size;

    if (console->replace)
        file_begin_anew(console);
    do {
        pthread_mutex_lock(&console->lock);
        size = ring_copy(console, &console->flushed, chunk, sizeof(chunk));
        pthread_mutex_unlock(&console->lock);
        file_write(console, chunk, size);
    } while (size > 0);
    if (may_open && console->log_size > LOG_SIZE_CUT)
        file_cut(console);
}

void console_flush(struct console *console)
{
    pthread_mutex_lock(&console->file_lock);
    file_flush(console, true);
    pthread_mutex_unlock(&console->file_lock);
}

/* The history is full of what the loop has not had the time to write. */
static void console_make_room(struct console *console)
{
    pthread_mutex_lock(&console->file_lock);
    file_flush(console, false);
    pthread_mutex_unlock(&console->file_lock);
}

/* ---- clients; loop thread ---- */

static void client_close(struct console_client *client)
{
    struct console *console = client->console;
    struct console_client **link = &console->clients;

    while (*link != client)
        link = &(*link)->next;
    *link = client->next;
    console->client_count--;
    loop_watch_remove(client->watch);
    close(client->fd);
    free(client);
}

/* What the client is waited for: its input while there is room for it, its reading while it is behind. */
static void client_watch(struct console_client *client)
{
    unsigned events = 0;

    if (!client->watch)
        return;
    if (client->input_size < INPUT_SIZE && !client->ended)
        events |= LOOP_READ;
    if (!client->writable)
        events |= LOOP_WRITE;
    loop_watch_set(client->watch, events, NULL);
}

/* Reads what there is room for, which there is. False when the connection is broken. */
static bool client_receive(struct console_client *client)
{
    ssize_t count =
        recv(client->fd, client->input + client->input_size, INPUT_SIZE - client->input_size, MSG_DONTWAIT);

    if (count < 0)
        return errno == EAGAIN || errno == EINTR;
    /* The end of its input is not the end of its interest in output. */
    if (count == 0)
        client->ended = true;
    client->input_size += (size_t)count;
    return true;
}

/* Hands over what was typed, as far as it is taken. May close a client that is gone. */
static void client_give_input(struct console_client *client)
{
    struct console *console = client->console;

    if (!console->sink)
        return;
    for (;;) {
        size_t taken;

        /* Nobody tells any more when there is something to read. */
        if (!client->watch && !client->ended && client->input_size < INPUT_SIZE && !client_receive(client))
            client->ended = true;
        taken =
            client->input_size ? console->sink(console->sink_opaque, client->input, client->input_size) : 0;
        if (taken == 0)
            break;
        client->input_size -= taken;
        memmove(client->input, client->input + taken, client->input_size);
    }
    if (!client->watch && client->input_size == 0)
        client_close(client);
    else
        client_watch(client);
}

/* The other side is gone. May close the client. */
static void client_leave(struct console_client *client)
{
    loop_watch_remove(client->watch);
    client->watch = NULL;
    client_give_input(client);
}

/* False when the client is gone, and perhaps freed. */
static bool client_send(struct console_client *client)
{
    struct console *console = client->console;
    uint8_t chunk[CHUNK_SIZE];

    while (client->writable) {
        uint64_t position = client->position;
        ssize_t count;
        size_t size;

        pthread_mutex_lock(&console->lock);
        if (position < console->live)
            position = console->live;
        size = ring_copy(console, &position, chunk, sizeof(chunk));
        pthread_mutex_unlock(&console->lock);
        if (size == 0)
            return true;
        count = send(client->fd, chunk, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (count >= 0) {
            client->position = position - (size - (size_t)count);
        } else if (errno == EAGAIN) {
            client->writable = false;
            client_watch(client);
        } else if (errno != EINTR) {
            client_leave(client);
            return false;
        }
    }
    return true;
}

static void client_event(void *opaque, unsigned events)
{
    struct console_client *client = opaque;

    if (events & LOOP_READ && client->input_size < INPUT_SIZE && !client_receive(client)) {
        client_close(client);
        return;
    }
    if (events & LOOP_HANGUP) {
        client_leave(client);
        return;
    }
    client->writable |= (events & LOOP_WRITE) != 0;
    if (client_send(client))
        client_give_input(client);
}

static void console_accept(void *opaque, unsigned events)
{
    struct console *console = opaque;
    int fd = accept4(console->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct console_client *client;

    if (fd < 0)
        return;
    client = console->client_count < CONSOLE_CLIENTS_MAX ? calloc(1, sizeof(*client)) : NULL;
    if (!client || loop_watch_add(console->loop, fd, LOOP_READ, client_event, client, &client->watch, NULL)) {
        free(client);
        close(fd);
        return;
    }
    client->console = console;
    client->fd = fd;
    client->writable = true;
    pthread_mutex_lock(&console->lock);
    client->position = console->next;
    pthread_mutex_unlock(&console->lock);
    client->next = console->clients;
    console->clients = client;
    console->client_count++;
}

/* ---- output ---- */

static void console_deliver(struct console *console)
{
    struct console_client *next;

    console_flush(console);
    for (struct console_client *client = console->clients; client; client = next) {
        next = client->next;
        if (client->watch)
            client_send(client);
    }
}

/* Loop thread: there is output. Delivered at once, and again each GATHER_NS until no more comes. */
static void console_wake(void *opaque)
{
    struct console *console = opaque;

    console_deliver(console);
    loop_timer_arm(console->gather, GATHER_NS);
}

static void console_gathered(void *opaque)
{
    struct console *console = opaque;
    bool more;

    pthread_mutex_lock(&console->lock);
    more = console->flushed < console->next;
    console->posted = more;
    pthread_mutex_unlock(&console->lock);
    if (more)
        console_wake(console);
}

void console_output(struct console *console, const void *data, size_t size)
{
    const uint8_t *bytes = data;

    while (size > 0) {
        size_t part = size < CHUNK_SIZE ? size : CHUNK_SIZE;
        bool post;

        pthread_mutex_lock(&console->lock);
        if (console->next + part - console->flushed > CONSOLE_HISTORY_SIZE) {
            pthread_mutex_unlock(&console->lock);
            console_make_room(console);
            continue;
        }
        ring_append(console, bytes, part);
        post = !console->posted;
        console->posted = true;
        pthread_mutex_unlock(&console->lock);
        if (post && loop_post(console->loop, console_wake, console)) {
            pthread_mutex_lock(&console->lock);
            console->posted = false;
            pthread_mutex_unlock(&console->lock);
        }
        bytes += part;
        size -= part;
    }
}

/* ---- input ---- */

static void console_give_input(void *opaque)
{
    struct console *console = opaque;
    struct console_client *next;

    pthread_mutex_lock(&console->lock);
    console->input_posted = false;
    pthread_mutex_unlock(&console->lock);
    for (struct console_client *client = console->clients; client; client = next) {
        next = client->next;
        client_give_input(client);
    }
}

void console_input_ready(struct console *console)
{
    bool post;

    pthread_mutex_lock(&console->lock);
    post = !console->input_posted;
    console->input_posted = true;
    pthread_mutex_unlock(&console->lock);
    if (post && loop_post(console->loop, console_give_input, console)) {
        pthread_mutex_lock(&console->lock);
        console->input_posted = false;
        pthread_mutex_unlock(&console->lock);
    }
}

void console_set_sink(struct console *console, console_sink *sink, void *opaque)
{
    console->sink = sink;
    console->sink_opaque = opaque;
    console_give_input(console);
}

/* ---- state ---- */

struct console_section {
    struct buffer history;
};

static const struct state_field console_fields[] = {
    STATE_FIELD(struct console_section, history, STATE_BUFFER, .max = CONSOLE_HISTORY_SIZE),
};

const struct state_table console_state = {
    .name = "console",
    .version = 1,
    .fields = console_fields,
    .field_count = ARRAY_SIZE(console_fields),
    .object_size = sizeof(struct console_section),
};

void console_save(struct console *console, struct buffer *out)
{
    struct console_section section = {.history = BUFFER_INIT};
    uint64_t position = 0;

    pthread_mutex_lock(&console->lock);
    /* No more than there is: this is done while the guest stands still. */
    size_t size = (size_t)(console->next - console->first);

    if (buffer_reserve(&section.history, size))
        section.history.size = ring_copy(console, &position, section.history.data, size);
    pthread_mutex_unlock(&console->lock);
    if (buffer_failed(&section.history)) {
        out->failed = true;
        return;
    }
    state_save(&console_state, &section, out);
    buffer_free(&section.history);
}

void console_set_former(struct console *console, int directory)
{
    console->former_fd = directory;
}

int console_load(struct console *console, uint32_t version, struct reader *in, struct ferry_error *err)
{
    struct console_section section = {.history = BUFFER_INIT};
    int result = state_load(&console_state, CONSOLE_SECTION, version, &section, in, err);

    if (result)
        return result;
    pthread_mutex_lock(&console->file_lock);
    pthread_mutex_lock(&console->lock);
    console->first = console->flushed = console->next;
    ring_append(console, section.history.data, section.history.size);
    console->live = console->next;
    console->replace = true;
    if (console->former_fd >= 0 && console->former_log_fd < 0)
        console->former_log_fd = openat(console->former_fd, console->log_path, O_RDONLY | O_CLOEXEC);
    pthread_mutex_unlock(&console->lock);
    pthread_mutex_unlock(&console->file_lock);
    buffer_free(&section.history);
    return 0;
}

/* ---- making and ending ---- */

/* The end of what an earlier run of this VM left becomes history; it is in the log already. */
static int console_open_log(struct console *console, struct ferry_error *err)
{
    struct stat status;
    uint8_t chunk[CHUNK_SIZE];
    off_t offset;
    ssize_t count = 0;

    console->log_fd = open(console->log_path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0640);
    if (console->log_fd < 0 || fstat(console->log_fd, &status) < 0)
        return error_set_errno(err, -errno, "cannot open %s", console->log_path);
    console->log_size = (uint64_t)status.st_size;
    offset = status.st_size > CONSOLE_HISTORY_SIZE ? status.st_size - CONSOLE_HISTORY_SIZE : 0;
    /* To the size it had: another thing than a file may have no end. */
    while (offset < status.st_size) {
        count = pread(console->log_fd, chunk, sizeof(chunk), offset);
        if (count <= 0)
            break;
        ring_append(console, chunk, (size_t)count);
        offset += count;
    }
    if (count < 0)
        return error_set_errno(err, -errno, "cannot read %s", console->log_path);
    console->flushed = console->next;
    return 0;
}

int console_new(struct console **out, struct loop *loop, struct log *log, const char *log_path,
                const char *socket_path, struct ferry_error *err)
{
    struct console *console = calloc(1, sizeof(*console));
    int result;

    if (!console)
        return error_set(err, -ENOMEM, "out of memory for the console");
    *console = (struct console){.loop = loop,
                                .log = log,
                                .log_path = log_path,
                                .socket_path = socket_path,
                                .listen_fd = -1,
                                .former_fd = -1,
                                .former_log_fd = -1,
                                .log_fd = -1};
    pthread_mutex_init(&console->lock, NULL);
    pthread_mutex_init(&console->file_lock, NULL);
    console->ring = malloc(CONSOLE_HISTORY_SIZE);
    if (console->ring)
        result = console_open_log(console, err);
    else
        result = error_set(err, -ENOMEM, "out of memory for the console");
    if (!result)
        result = loop_timer_add(loop, console_gathered, console, &console->gather, err);
    if (!result) {
        console->listen_fd = sock_listen(socket_path, err);
        result = console->listen_fd < 0 ? console->listen_fd : 0;
    }
    if (!result)
        result = loop_watch_add(loop, console->listen_fd, LOOP_READ, console_accept, console,
                                &console->listen_watch, err);
    if (result) {
        console_free(console);
        return result;
    }
    *out = console;
    return 0;
}

void console_free(struct console *console)
{
    if (!console)
        return;
    if (console->log_fd >= 0)
        console_deliver(console);
    while (console->clients)
        client_close(console->clients);
    loop_watch_remove(console->listen_watch);
    loop_timer_remove(console->gather);
    if (console->listen_fd >= 0) {
        close(console->listen_fd);
        unlink(console->socket_path);
    }
    if (console->log_fd >= 0)
        close(console->log_fd);
    if (console->former_log_fd >= 0)
        close(console->former_log_fd);
    free(console->ring);
    pthread_mutex_destroy(&console->file_lock);
    pthread_mutex_destroy(&console->lock);
    free(console);
}
