/*
 * The three views of this host's migrations as text, for cat and grep: STATE_DIR/migration/active, history
 * and failed, a line a migration.
 *
 *     2026-11-21T03:31:41.012+01:00 id=1b4e… vm=web from=a to=b side=source kind=hot … key=value …
 *
 * A line begins with the time the migration ended, or began when it has not. `history` and `failed` have the
 * newest MIGRATION_FILES_LINES, oldest first, after lines that begin with '#': the statistics. What the
 * records say is written anew, as a whole file that takes the old one's place, at most once a second, by a
 * thread of its own: no migration waits for it, and what cannot be written (a full disk) is left as it was
 * and tried again. After a crash the next ferryd writes them from the records.
 */
#ifndef FERRY_HOST_MIGRATION_FILES_H
#define FERRY_HOST_MIGRATION_FILES_H

#include "host/host.h"

#define MIGRATION_FILES_LINES 1000

/* Makes the directory; what cannot be made is logged, and no files are written. */
int migration_files_start(struct host *host, struct ferry_error *err);
/* After the host's last migration was recorded: writes once more. Not started: nothing. */
void migration_files_stop(struct host *host);

/* The text of a file: LIST as of migrations_list (newest first), STATISTICS as of statistics_of_host (NULL:
 * none; VIEW tells which). To be freed; NULL when out of memory. */
char *migration_files_text(const json_t *list, enum store_view view, const json_t *statistics);

#endif
