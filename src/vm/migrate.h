/*
 * A migration of this VM, on either side: from the request on the control socket through one libferry session
 * on a thread of its own ("migration") to the object that records it (docs/API.md "Migration object").
 *
 *     source       migration_prepare ──▶ migration_send ──▶ session ──▶ vm_migration_ended
 *     destination                        migration_receive ──▶ session ──▶ vm_migration_ended
 *
 * The thread ends when its session does: by itself, or after migration_abort or migration_cancel. All
 * functions are for the loop thread except where said.
 */
#ifndef FERRY_VM_MIGRATE_H
#define FERRY_VM_MIGRATE_H

#include "vm/vm.h"

#define MIGRATION_LOG_MAX 1000 /* lines kept in the object; older ones are in vm.log */

struct migration;

/* Params as in docs/API.md; anything else in them is refused. */
int migration_prepare(struct vm *vm, json_t *params, struct ferry_error *err);
int migration_send(struct vm *vm, json_t *params, struct ferry_error *err);
/* *result: {"address"}. */
int migration_receive(struct vm *vm, json_t *params, json_t **result, struct ferry_error *err);
/* The source sends no faster from now on. */
int migration_limit(struct vm *vm, json_t *params, struct ferry_error *err);
int migration_cancel(struct vm *vm, json_t *params, struct ferry_error *err);

/* Any thread; the migration is in progress. Ends it as failed, if that is still possible. */
void migration_abort(struct migration *migration, enum ferry_cause cause, const char *why);
/* For fault points, on the session's thread; when none runs there is nothing to lose. */
void migration_drop_connections(struct migration *migration);
/* Source, while the guest at the destination needs what is here: connects again now. */
int migration_reconnect(struct vm *vm, json_t *params, struct ferry_error *err);
/* Either side: what the other host's agent, or a person, says of the missing memory. */
int migration_end_fetch(struct vm *vm, json_t *params, struct ferry_error *err);
/* Source: a person's word. HERE: nothing ran at the destination, and the guest goes on here; else: what is
 * here is given up. */
int migration_end_serving(struct migration *migration, bool here, struct ferry_error *err);
/* As migrate.cancel, for the process's own reasons. */
void migration_give_up(struct migration *migration);

/* From preparation to the end of its thread. NULL: false. */
bool migration_active(const struct migration *migration);
/* It was prepared and the word to start has not come. */
bool migration_waiting(const struct migration *migration);
bool migration_is_source(const struct migration *migration);
/* Quick resume, as of this moment: the guest runs, or may run, at the destination, and memory is missing
 * there.
 */
bool migration_fetching(const struct migration *migration);
/* Destination: it has ended, and memory is missing for ever. NULL: false. */
bool migration_left_torn(const struct migration *migration);
/* From this process to another of the same host. */
bool migration_stays(const struct migration *migration);
const char *migration_id(const struct migration *migration);
const char *migration_destination(const struct migration *migration);
/* As the guest seam gets it. */
void migration_handover(const struct migration *migration, struct ferry_handover *handover);
/* As of the last news; final when not active. */
const struct ferry_progress *migration_progress(const struct migration *migration);
/* null for NULL. */
json_t *migration_json(const struct migration *migration, bool with_log);

/* Ended ones only. NULL allowed. */
void migration_free(struct migration *migration);

#endif
