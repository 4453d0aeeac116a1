/*
 * The file that a suspended guest is in, on its way with a cold migration. The destination takes the VM with
 * the same file when it reaches it under its path, else it copies it into its state directory, as it copies
 * disks (storage_copy.h). In the migration's `cold` are {file (its path at the source), checkpoint (the id of
 * the save that wrote it), shape: {size, bytes, mode, changed_ns} (as of disks; size 0: the source cannot
 * read it)}.
 */
#ifndef FERRY_HOST_STORAGE_FILE_H
#define FERRY_HOST_STORAGE_FILE_H

#include "host/storage.h"

/* Whether a migration's COLD is that of a suspended VM. */
bool storage_file_moves(const json_t *cold);
/* At the source: the `shape` of the file at PATH. New reference. */
json_t *storage_file_shape(const char *path);
/* Whether what is at PATH is the file written by the save ID. */
bool storage_file_is(const char *path, const char *id);
/* At the destination, of the suspended VM: where its file is, or will be, goes into PATH, and FILE is to be
 * copied there unless it stays. HOST_USAGE when COLD makes no sense. */
int storage_file_read(struct storage_disk *file, char path[static PATH_MAX], const struct host *host,
                      const json_t *cold, const char *vm, struct ferry_error *err);

/* Rows of checks.c. */
int storage_file_check(const struct check_context *context, struct ferry_error *err);
int storage_file_check_copied(const struct check_context *context, struct ferry_error *err); /* a warning */

#endif
