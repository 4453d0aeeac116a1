/*
 * The ownership lock of a VM: which process, on which host, may run it.
 *
 * It is a small file on storage that every host of the VM reaches: beside its first writable disk, or in a
 * lock directory. Exclusion is an open-file-description write lock on the file (fcntl F_OFD_SETLK; it works
 * on local file systems and on NFSv4, and the kernel drops it when the holder dies). What the file says is a
 * record of 512 bytes, one sector, written synchronously (O_DSYNC) and only by the holder:
 *
 *     state        written by      means
 *     held         source          runs here, cold start or after a failed move
 *     handover     source          given to `destination` for `migration`; nobody else may take it
 *     acquired     destination     taken; not one instruction executed yet
 *     started      destination     runs, or ran, there: every other copy of the VM is stale for ever
 *
 * The generation grows with every owner: +1 when the destination acquires, +2 when the source takes back, so
 * that a late destination can tell. The record carries a checksum: a torn or foreign file is refused, never
 * guessed at.
 *
 * The names are those of the model, tests/model/switchover.pml. One owner thread; the struct may move between
 * threads.
 */
#ifndef FERRY_DISK_VM_LOCK_H
#define FERRY_DISK_VM_LOCK_H

#include <ferry/error.h>

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#define VM_LOCK_NAME_SIZE      64
#define VM_LOCK_MIGRATION_SIZE 37
#define VM_LOCK_SUFFIX         ".ferry-lock"

enum vm_lock_state {
    VM_LOCK_NEW = 0, /* the file is empty: never owned */
    VM_LOCK_HELD = 1,
    VM_LOCK_HANDOVER = 2,
    VM_LOCK_ACQUIRED = 3,
    VM_LOCK_STARTED = 4,
};

struct vm_lock_record {
    enum vm_lock_state state;
    uint64_t generation; /* 1 or more; 0 in a new file */
    int64_t pid;         /* of the holder, on its host */
    char vm[VM_LOCK_NAME_SIZE];
    char holder[VM_LOCK_NAME_SIZE];      /* host */
    char destination[VM_LOCK_NAME_SIZE]; /* host; handover, acquired and started by a migration, else empty */
    char migration[VM_LOCK_MIGRATION_SIZE]; /* as destination */
    char source[VM_LOCK_NAME_SIZE];         /* host; as destination */
    bool copied; /* handover, with copies of the disks: the destination has a lock of its own, beside them */
};

struct vm_lock;

const char *vm_lock_state_name(enum vm_lock_state state); /* "held", … */

/*
 * Where the lock file of VM is: beside DISK, its first writable disk (NULL: it has none), else in LOCK_DIR
 * (NULL or empty: there is none). A block device has no place beside it that other hosts see. Returns 1 with
 * PATH filled in, 0 when there is no place, or a negative errno.
 */
int vm_lock_place(char path[static PATH_MAX], const char *disk, const char *lock_dir, const char *vm,
                  struct ferry_error *err);

/* Opens or creates (mode 0660) the lock file; takes nothing. */
int vm_lock_open(struct vm_lock **out, const char *path, struct ferry_error *err);
/* The same of one that only processes of this host look at. Its record need not outlive them, so writing it
 * does not wait for storage. */
int vm_lock_open_local(struct vm_lock **out, const char *path, struct ferry_error *err);
/* Drops the lock if it is held; the record stays. NULL allowed. */
void vm_lock_close(struct vm_lock *lock);
const char *vm_lock_path(const struct vm_lock *lock);
bool vm_lock_is_taken(const struct vm_lock *lock);

/* Takes the lock now. -EBUSY, naming the holder as the record has it, when another process has it. A file
 * that was put in the place of the one that was opened is opened instead. Idempotent. */
int vm_lock_take(struct vm_lock *lock, struct ferry_error *err);
void vm_lock_drop(struct vm_lock *lock);

/* Whether another process has it just now; takes nothing. Negative errno when that cannot be found out. */
int vm_lock_is_held_elsewhere(const struct vm_lock *lock, bool *held, struct ferry_error *err);

/* What the file says; need not hold the lock, but then it may change at any moment. -EBADMSG: not a lock
 * record. */
int vm_lock_read(struct vm_lock *lock, struct vm_lock_record *record, struct ferry_error *err);
/* Words for who may not start from the disks because RECORD, of the lock at PATH, says that the VM is being
 * moved, or went away with copies of them. -EBUSY. */
int vm_lock_refuse_moving(const struct vm_lock_record *record, const char *path, struct ferry_error *err);
/* On storage when it returns, unless it is a local one. The lock must be taken. */
int vm_lock_write(struct vm_lock *lock, const struct vm_lock_record *record, struct ferry_error *err);

#endif
