/*
 * Migration objects (docs/API.md) for people: watching one, describing how it went.
 */
#ifndef FERRY_CLI_MIGRATION_H
#define FERRY_CLI_MIGRATION_H

#include "cli/command.h"

#define MIGRATION_SHORT_SIZE 9

/* The first characters of the id: enough to name it in commands. */
char *migration_short_id(const json_t *migration, char text[static MIGRATION_SHORT_SIZE]);
bool migration_has_ended(const json_t *migration);
bool migration_is_completed(const json_t *migration);
bool migration_is_upgrade(const json_t *migration); /* from one process to another of its host */
/* "process 123 (ferry-vm 0.1.0)": WHICH is "old" or "new". */
void migration_describe_process(const json_t *migration, const char *which, char *text, size_t size);

/* Waits for it to end. SHOW (may be NULL) sees every state on the way, and returns as a client_stream's
 * object. A ferryd that restarts meanwhile is waited for. With WAKE_FD readable (-1: none) it ends. Returns 0
 * with *last the final object (owned by the caller), 1 when ended by SHOW or WAKE_FD, or a negative errno. */
struct migration_watch {
    int (*show)(void *opaque, json_t *migration, struct ferry_error *err);
    void *opaque;
    int wake_fd;
};
int migration_watch(struct client *client, const char *id, const struct migration_watch *watch, json_t **last,
                    struct ferry_error *err);
/* The same of whatever is told of at PATH until it has `ended`. */
int migration_watch_path(struct client *client, const char *path, const struct migration_watch *watch,
                         json_t **last, struct ferry_error *err);

/* "ID: web moved from a to b: total 312 ms, downtime 2.1 ms, 44.1 MiB in 3 rounds"; for an upgrade
 * "web goes on in process 2 (ferry-vm 0.2.0), before: process 1 (ferry-vm 0.1.0); 31 ms, downtime 4.1 ms" */
void migration_print_summary(struct cli *cli, const json_t *migration);
/* "downtime 2.1 ms = pause 0.1 ms + wire 1 ms + …" */
void migration_print_downtime(struct cli *cli, const json_t *migration);
/* A table, a line a round. */
void migration_print_rounds(struct cli *cli, const json_t *migration);
/* 0 when completed; else -EIO with what that means for the VM. */
int migration_check_outcome(const json_t *migration, struct ferry_error *err);

#endif
