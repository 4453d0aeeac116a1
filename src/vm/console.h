/*
 * The guest's console outside the guest: a log file, sockets, and a history that moves with the VM.
 *
 *     machine ──console_output──▶ ring of the last CONSOLE_HISTORY_SIZE bytes ──┬─▶ console.log
 *     (any thread)                                                             └─▶ clients of console.sock
 *     machine ◀──── input ──────────────────────────────────────────────────────── clients
 *
 * The log is the last CONSOLE_LOG_SIZE bytes (and up to a quarter more before it is cut, at the start of a
 * line, by putting a new file in its place). The ring is what moves: at the destination the log is that
 * history and then the new output, nothing missing and nothing twice. Clients see what comes after they
 * connected; one that does not read misses what falls out of the ring.
 *
 * Output may come from any thread and is never lost for the log: when the loop does not keep up, the thread
 * that brings it writes the log itself. Everything else is for the loop's thread, except where said.
 */
#ifndef FERRY_VM_CONSOLE_H
#define FERRY_VM_CONSOLE_H

#include "base/buffer.h"
#include "base/log.h"
#include "base/loop.h"
#include "bus/state.h"

#include <ferry/error.h>

#include <stdbool.h>
#include <stddef.h>

#define CONSOLE_HISTORY_SIZE (256u * 1024)
#define CONSOLE_LOG_SIZE     (1024u * 1024)
#define CONSOLE_CLIENTS_MAX  32
#define CONSOLE_SECTION      "console"

/* Where input goes; returns how many bytes were taken. */
typedef size_t console_sink(void *opaque, const void *data, size_t size);

struct console;

/*
 * LOG_PATH is opened, or created with mode 0640; its end becomes the history. SOCKET_PATH is listened on;
 * both are borrowed, as are loop and log.
 */
int console_new(struct console **out, struct loop *loop, struct log *log, const char *log_path,
                const char *socket_path, struct ferry_error *err);
/* Writes what is left and removes the socket. NULL allowed. */
void console_free(struct console *console);

/* Input is kept back until there is a sink. */
void console_set_sink(struct console *console, console_sink *sink, void *opaque);

/* Any thread. */
void console_output(struct console *console, const void *data, size_t size);
/* Any thread: the sink has room again. */
void console_input_ready(struct console *console);
/* Any thread: everything so far is in the log when it returns. */
void console_flush(struct console *console);

/* The history as a state section. Any thread; nothing is written to the log before the next flush. */
extern const struct state_table console_state;
void console_save(struct console *console, struct buffer *out);
/*
 * The history comes from another process of this host, whose directory is DIRECTORY (a descriptor, borrowed):
 * what has that one's log of the same name becomes the log, not only the history. That process must have
 * flushed it when the next flush comes. Before console_load.
 */
void console_set_former(struct console *console, int directory);
/* Replaces history and, at the next flush, the log. Nothing was output here before. */
int console_load(struct console *console, uint32_t version, struct reader *in, struct ferry_error *err);

#endif
