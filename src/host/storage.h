/*
 * The disks that move along with a cold migration (`storage`): which they are, where they go, and what must
 * hold before. The copying itself is storage_source.c's and storage_destination.c's.
 *
 * The source makes the plan, a member `storage` of the migration's `cold` (migration_cold.h), and offers the
 * definition as it will be at the destination:
 *
 *     {boot_id, disks: [{path, size, bytes, mode, changed_ns, device, inode}]}    of the source's
 *
 * in the order of the definition's disks. One of them stays where it is: a read-only disk that keeps its
 * path, and that both hosts reach under it as the same file. Who is to look whether there is one is the
 * destination.
 */
#ifndef FERRY_HOST_STORAGE_H
#define FERRY_HOST_STORAGE_H

#include "disk/copy.h"
#include "host/checks.h"
#include "host/definition.h"

#include <limits.h>

struct storage_disk {
    const char *from; /* its path at the source; borrowed from the plan */
    const char *to;   /* at the destination; borrowed from the definition */
    struct disk_shape shape;
    bool readonly;
    bool stays;
};

/* Not to be copied: it points into itself. */
struct storage_disks {
    struct storage_disk disk[DEFINITION_DISKS_MAX + 1];
    size_t count;        /* the definition's, if disks move */
    size_t parts;        /* after them a suspended guest's file (storage_file.h), if it is to be copied */
    char file[PATH_MAX]; /* of a suspended guest, where it is here, or will be; empty: there is none */
};

/* At the source: DEFINITION's disks go into DIRECTORY, or keep their paths ("" or NULL). What cannot be read
 * is in the plan, too: storage_check_source says so. New reference, NULL without memory. */
json_t *storage_plan(const struct host *host, const json_t *definition);
/* DEFINITION as it is at the destination. New reference. */
json_t *storage_definition(const json_t *definition, const char *directory);
/* At the destination: the plan of COLD (-ENOENT: it has none) for DEFINITION, which came with it. HOST_USAGE
 * when they make no sense. */
int storage_read(struct storage_disks *disks, const struct host *host, const json_t *cold,
                 const json_t *definition, struct ferry_error *err);
/* The same, with a suspended guest's file (-ENOENT: there is neither). */
int storage_read_all(struct storage_disks *disks, const struct host *host, const json_t *cold,
                     const json_t *definition, struct ferry_error *err);
/* Bytes to be copied. */
uint64_t storage_bytes(const struct storage_disks *disks);
/* The first disk that is written to, beside which the VM's lock is; NULL: there is none. */
const struct storage_disk *storage_lock_disk(const struct storage_disks *disks);

/* Whether the disks of a migration's COLD move along. */
bool storage_moves(const json_t *cold);
/* Whether their lock does: it is beside one of them. */
bool storage_moves_lock(const json_t *cold, const json_t *definition);

/* Rows of checks.c. */
int storage_check_source(const struct check_context *context, struct ferry_error *err);
int storage_check_known(const struct check_context *context, struct ferry_error *err);
int storage_check_place(const struct check_context *context, struct ferry_error *err);
int storage_check_room(const struct check_context *context, struct ferry_error *err);
int storage_check_shared(const struct check_context *context, struct ferry_error *err); /* a warning */

#endif
