/*
 * The files in a VM's directory that ferryd reads and writes; see vms.h for what is in it. They take no lock:
 * the caller has claimed the VM, or is the only one to know it.
 */
#ifndef FERRY_HOST_VM_DIRECTORY_H
#define FERRY_HOST_VM_DIRECTORY_H

#include "host/vms.h"

/* STATE_DIR/vms/NAME; refused when a socket in it would have too long a path for Linux (108 bytes). */
int vm_directory_path(struct host *host, const char *name, char path[static PATH_MAX],
                      struct ferry_error *err);
/* Makes the directory with definition.json in it; leaves nothing on failure. */
int vm_directory_make(const struct vm *vm, struct ferry_error *err);
int vm_directory_make_path(const char *path, const json_t *definition, struct ferry_error *err);
/* Puts a definition.json into the directory, in place of the one that is there. */
int vm_directory_write_definition(const char *path, const json_t *definition, struct ferry_error *err);
/* Takes away what the last life left (exit.json, process.json, sockets) before the next one. Refused while
 * the VM may run elsewhere (incoming.json is there). */
int vm_directory_clean(const struct vm *vm, struct ferry_error *err);
int vm_directory_remove(const struct vm *vm, struct ferry_error *err);
int vm_directory_remove_path(const char *path, struct ferry_error *err); /* the same, wherever it is */
/* Takes away what the last life left, and incoming.json: the VM stays as one that is not runnable. */
void vm_directory_retire(const struct vm *vm);
/* Puts the last lines of vm.log into ferryd's own log, for a VM that could not start and is being dropped. */
void vm_directory_log_tail(struct host *host, const struct vm *vm);
/* exit.json, or NULL when there is none (or it is no JSON). */
json_t *vm_directory_exit(const struct vm *vm);
/* Writes exit.json for a VM whose process left none: it has ended, for this reason, and can be started. */
int vm_directory_leave_exit(const struct vm *vm, const char *why, struct ferry_error *err);

/* incoming.json: {"id", "source"}. */
int vm_directory_mark_incoming(const struct vm *vm, const char *id, const char *source,
                               struct ferry_error *err);
/* The same with `disks`, which arrive with it: [{"partial", "path", "device", "inode"}], the last two when
 * files may have got their names. Whatever takes incoming.json away but vm_directory_arrived removes them. */
int vm_directory_mark_disks(const struct vm *vm, const char *id, const char *source, json_t *disks,
                            struct ferry_error *err);
json_t *vm_directory_incoming(const struct vm *vm); /* NULL when it is not arriving */
void vm_directory_arrived(const struct vm *vm);
/* The same, and no loss of power undoes it. */
int vm_directory_arrived_for_good(const struct vm *vm, struct ferry_error *err);
/* Files of such `disks` that are ours, with their locks. */
void vm_directory_drop_disks_of(const json_t *disks);

/* saving.json: {"id", "kind", "file", "started"}. */
int vm_directory_mark_saving(const struct vm *vm, const char *id, const char *kind, const char *file,
                             struct ferry_error *err);
json_t *vm_directory_saving(const struct vm *vm); /* NULL when it is not being saved */
void vm_directory_saved(const struct vm *vm);

/* suspended.json (vm_suspended.h); NULL: there is none, and takes it away. A failure to write is logged. */
json_t *vm_directory_suspended(const struct vm *vm);
void vm_directory_write_suspended(struct host *host, const struct vm *vm, const json_t *suspended);

/* A process was started in it once. */
bool vm_directory_has_process(const struct vm *vm);
/* There is what a VM leaves that has ended, so that it was started once. */
bool vm_directory_has_ended(const struct vm *vm);

/* The process that is gone had come so far in a migration that the VM may be the other host's (or, arriving,
 * have run here): it left its file `handover`, or the machine was started anew since, and what was not
 * synchronised is lost. */
bool vm_directory_handed_over(struct host *host, const struct vm *vm);

/* not-runnable.json: what vm->ban says. A failure to write is logged: the ban then lasts as long as this
 * ferryd. */
void vm_directory_write_ban(struct host *host, const struct vm *vm);
void vm_directory_read_ban(const struct vm *vm, struct vm_ban *ban);
void vm_directory_lift_ban(const struct vm *vm);

#endif
