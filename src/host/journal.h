/*
 * ferryd's log lines for systemd's journal, with what they are about as fields of their own, so that
 *
 *     journalctl FERRY_MIGRATION_ID=1b4e28ba-…
 *
 * finds all of one migration, of both hosts when their journals are in one place. Only when standard error is
 * the journal (systemd says so by $JOURNAL_STREAM); ferryd.log has every line all the same. Spoken is the
 * journal's own protocol: a datagram a line, to its socket (systemd.io/JOURNAL_NATIVE_PROTOCOL). Fields:
 * MESSAGE, PRIORITY (of syslog), SYSLOG_IDENTIFIER, FERRY_HOST (where it happened), and as far as there are
 * such FERRY_VM, FERRY_MIGRATION_ID, FERRY_CODE (of an event). Nothing waits for the journal: what it does
 * not take at once is left out.
 */
#ifndef FERRY_HOST_JOURNAL_H
#define FERRY_HOST_JOURNAL_H

#include "base/log.h"

#include <stdbool.h>

#define JOURNAL_SOCKET "/run/systemd/journal/socket"

struct journal;

/* Whether FD is what STREAM ("DEVICE:INODE", NULL allowed) names. */
bool journal_is_stream(const char *stream, int fd);

/* SOCKET_PATH need not be there yet. HOST: this host's name; both are copied. */
int journal_open(struct journal **out, const char *socket_path, const char *host, struct ferry_error *err);
/* After the log has no listener any more. NULL allowed. */
void journal_close(struct journal *journal);

/* The log's, with the journal as its opaque. */
log_listener journal_listen;

#endif
