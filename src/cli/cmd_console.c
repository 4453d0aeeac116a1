#include "cli/command.h"

#include "base/error.h"
#include "cli/guest_output.h"
#include "cli/moved.h"
#include "cli/object.h"
#include "cli/signals.h"
#include "cli/terminal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ESCAPE     0x1d /* Ctrl-] */
#define CHUNK_SIZE 4096
#define BREAKS_MAX 5

/* Why the copying of bytes ended. */
enum console_end {
    CONSOLE_DETACHED = 1, /* Ctrl-], or nobody reads our output */
    CONSOLE_CLOSED,       /* by the host: the guest is off or somewhere else */
    CONSOLE_SIGNAL,
};

struct console {
    struct cli *cli;
    const char *vm;
    struct client_pipe pipe;
    struct signals signals;
    struct terminal terminal;
    struct guest_output output;
    bool input_ended;
    char pending[CHUNK_SIZE]; /* typed, not yet sent */
    size_t pending_size;
    int signal;      /* the one that ended it */
    unsigned breaks; /* of the connection in a row, with nothing received in between */
};

/* On a terminal it is read even while the guest takes nothing, so that Ctrl-] is always heard; what then does
 * not fit is lost, as on a real line. */
static void read_input(struct console *console, enum console_end *end)
{
    char typed[CHUNK_SIZE];
    size_t room = sizeof(console->pending) - console->pending_size;
    ssize_t got = read(STDIN_FILENO, typed, sizeof(typed));
    size_t size = got > 0 ? (size_t)got : 0;
    const char *escape = console->terminal.is_raw ? memchr(typed, ESCAPE, size) : NULL;

    if (got < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (got <= 0) {
        /* A pipe that is empty: what the guest says is still shown. A terminal that is gone: done. */
        console->input_ended = true;
        if (console->terminal.is_raw)
            *end = CONSOLE_DETACHED;
        return;
    }
    if (escape) {
        size = (size_t)(escape - typed);
        *end = CONSOLE_DETACHED;
    }
    size = size < room ? size : room;
    memcpy(console->pending + console->pending_size, typed, size);
    console->pending_size += size;
}

static void send_pending(struct console *console, enum console_end *end)
{
    ssize_t sent = client_pipe_write(&console->pipe, console->pending, console->pending_size);

    if (sent == -EAGAIN)
        return;
    if (sent < 0) {
        *end = CONSOLE_CLOSED;
        return;
    }
    console->pending_size -= (size_t)sent;
    memmove(console->pending, console->pending + sent, console->pending_size);
}

static void receive(struct console *console, enum console_end *end)
{
    char data[CHUNK_SIZE];
    ssize_t got;

    /* All there is: a TLS layer may hold bytes that poll(2) does not know of. */
    while ((got = client_pipe_read(&console->pipe, data, sizeof(data))) > 0) {
        console->breaks = 0;
        if (guest_output_write(&console->output, data, (size_t)got)) {
            *end = CONSOLE_DETACHED;
            return;
        }
    }
    if (got != -EAGAIN)
        *end = CONSOLE_CLOSED;
}

/* SIGTSTP: gives the terminal back for the time this program is stopped. */
static void handle_signal(struct console *console, enum console_end *end)
{
    int number = signals_next(&console->signals);

    if (number == SIGTSTP) {
        terminal_end(&console->terminal);
        raise(SIGSTOP);
        terminal_begin(&console->terminal, STDIN_FILENO);
    } else if (number != 0) {
        console->signal = number;
        *end = CONSOLE_SIGNAL;
    }
}

static enum console_end copy(struct console *console)
{
    enum console_end end = 0;

    if (console->pipe.early_size > 0 &&
        guest_output_write(&console->output, console->pipe.early, console->pipe.early_size))
        end = CONSOLE_DETACHED;
    while (end == 0) {
        bool want_input = !console->input_ended && (console->terminal.is_raw || console->pending_size == 0);
        struct pollfd waits[] = {
            {.fd = want_input ? STDIN_FILENO : -1, .events = POLLIN},
            {.fd = console->pipe.fd, .events = (short)(POLLIN | (console->pending_size ? POLLOUT : 0))},
            {.fd = console->signals.fd, .events = POLLIN},
        };

        int ready = poll(waits, 3, (int)console->cli->client.timeout_ms);

        if (ready < 0 && errno != EINTR)
            return CONSOLE_CLOSED;
        /* A guest may have nothing to say; a host must live. */
        if (ready == 0 && client_get(&console->cli->client, "/v1/host", NULL, NULL) < 0)
            return CONSOLE_CLOSED;
        if (ready <= 0)
            continue;
        if (waits[2].revents)
            handle_signal(console, &end);
        if (waits[1].revents & (POLLIN | POLLHUP | POLLERR))
            receive(console, &end);
        if (end == 0 && waits[0].revents)
            read_input(console, &end);
        if (end != CONSOLE_CLOSED && end != CONSOLE_SIGNAL && console->pending_size > 0)
            send_pending(console, &end);
    }
    return end;
}

static int attach(struct console *console, struct ferry_error *err)
{
    struct cli *cli = console->cli;
    char *path = client_path("/v1/vms/%s/console", console->vm);
    json_t *host = NULL;
    int result = client_upgrade(&cli->client, path, "ferry-console", &console->pipe, err);

    free(path);
    if (result < 0)
        return result;
    if (client_get(&cli->client, "/v1/host", &host, NULL) == 0)
        snprintf(console->output.host, sizeof(console->output.host), "%s", object_text(host, "name"));
    json_decref(host);
    if (isatty(STDIN_FILENO))
        fprintf(stderr, "attached to %s on %s; Ctrl-] detaches\n", console->vm, console->output.host);
    return 0;
}

/* From attached to ended, the terminal being raw only in between. */
static enum console_end talk(struct console *console)
{
    enum console_end end;

    signals_begin(&console->signals, (const int[]){SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, 0});
    terminal_begin(&console->terminal, STDIN_FILENO);
    end = copy(console);
    if (console->terminal.is_raw)
        fputs("\r\n", stderr);
    terminal_end(&console->terminal);
    signals_end(&console->signals);
    client_pipe_close(&console->pipe);
    return end;
}

/* The connection ended by itself: goes after the VM (*go_on), or says why it is over. */
static int go_after(struct console *console, bool *go_on, struct ferry_error *err)
{
    struct cli *cli = console->cli;
    struct moved moved;
    int result = moved_follow(&cli->client, console->vm, &moved, err);

    if (result < 0)
        return result;
    if (moved.kind == MOVED_NOT && ++console->breaks > BREAKS_MAX)
        return error_set(err, -EPIPE, "ferryd at %s ends the connection again and again; %s is still there",
                         cli->client.target, console->vm);
    *go_on = moved.kind != MOVED_ENDED;
    if (moved.kind == MOVED_AWAY)
        fprintf(stderr, "%s moved to %s\n", console->vm, moved.host);
    else if (moved.kind == MOVED_ENDED)
        fprintf(stderr, "%s: %s\n", console->vm, moved.why);
    return 0;
}

static int console_run(struct cli *cli, struct ferry_error *err)
{
    struct console console = {.cli = cli, .vm = args_operand(&cli->args, 0), .pipe = {.fd = -1}};
    bool go_on = true, was_attached = false, again;
    int result = 0;

    guest_output_init(&console.output, cli, console.vm);
    while (result == 0 && go_on) {
        enum console_end end = CONSOLE_CLOSED;

        go_on = false;
        result = attach(&console, err);
        if (result == 0)
            end = talk(&console);
        /* Nobody answers, or the VM has ended and is still listed as running: find out what became of it. */
        again = was_attached && (result == -ECONNREFUSED || result == -EPIPE || result == -EBUSY);
        if (result < 0 && result != -ENOENT && !again)
            return result;
        was_attached = true;
        if (end == CONSOLE_CLOSED)
            result = go_after(&console, &go_on, err);
        else if (end == CONSOLE_SIGNAL)
            cli->exit_status = 128 + console.signal;
        else if (isatty(STDIN_FILENO))
            fprintf(stderr, "detached; %s goes on\n", console.vm);
    }
    return result;
}

const struct command command_console = {
    .name = "console",
    .group = "Virtual machines",
    .summary = "Use a VM's console; Ctrl-] detaches",
    .text =
        "What is typed goes to the guest, Ctrl-C too; Ctrl-] ends it and leaves the guest as it is. When the "
        "VM moves to a host that this one knows, the console follows. What the guest wrote before is in "
        "ferry logs. Without a terminal standard input is copied to the guest and what it writes to standard "
        "output, until the guest is off. With --json what it writes comes as objects, one a line.",
    .operands =
        (const struct operand[]){
            {.name = "VM", .kind = VALUE_VM},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry console web", "log in to web"},
            {"echo reboot | ferry console web", "types a line into it"},
            {NULL, NULL},
        },
    .needs_host = true,
    .run = console_run,
};
