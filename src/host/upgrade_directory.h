/*
 * Directories of a VM that has two processes for a moment (upgrade.h).
 *
 *     STATE_DIR/vms/NAME    the VM's: that of the process that has it
 *     STATE_DIR/new/NAME    of the process that is to take it over, with upgrade.json: {id, old_pid,
 * old_version} STATE_DIR/old/ID      of a process that was replaced by upgrade ID and has not ended yet
 *
 * When the new process has the VM, the first two change places, at once. So what bears the mark upgrade.json
 * in STATE_DIR/new is not decided yet; what does not is a former process's, and can go. The processes do not
 * notice: they use names relative to their current directory.
 *
 * These take no lock: the caller has claimed the VM, or its migration has.
 */
#ifndef FERRY_HOST_UPGRADE_DIRECTORY_H
#define FERRY_HOST_UPGRADE_DIRECTORY_H

#include "host/vms.h"

#define UPGRADE_SOCKET "./migrate.sock" /* in the new process's directory */

int upgrade_directory_path(const struct host *host, const char *name, char path[static PATH_MAX],
                           struct ferry_error *err);
/* Makes it anew, marked. Refused where directories cannot change places. */
int upgrade_directory_make(struct host *host, const struct vm *vm, const char *id, const char *old_version,
                           pid_t old_pid, struct ferry_error *err);
void upgrade_directory_remove(struct host *host, const struct vm *vm);
/* upgrade.json, or NULL. New reference. */
json_t *upgrade_directory_mark(const struct host *host, const char *name);

/* The VM's directory and the new one change places; the mark goes. */
int upgrade_directory_exchange(struct host *host, const struct vm *vm, struct ferry_error *err);
/* Afterwards: the former process's logs go on among the VM's, and its directory goes to REMAINS. */
int upgrade_directory_put_off(struct host *host, const struct vm *vm, const char *id,
                              char remains[static PATH_MAX], struct ferry_error *err);

/* Which process DIRECTORY/process.json speaks of; 0: none. */
pid_t upgrade_directory_pid(const char *directory);
/* Calls for every VM's directory in STATE_DIR/new. */
void upgrade_directory_each(struct host *host, void (*call)(struct host *host, const char *name));
/* The process in STATE_DIR/new/NAME is killed, if there is one, and the directory removed: it is a former
 * process's, or nobody has a use for it. */
void upgrade_directory_clear(struct host *host, const char *name);
/* At the start of ferryd: the same for all that is in STATE_DIR/old. */
void upgrade_directory_sweep(struct host *host);

#endif
