/*
 * A suspended VM's file on its way to a host that does not reach it: the destination of a cold migration
 * fetches it, data by data, from the source.
 */
#ifndef FERRY_HOST_CHECKPOINT_COPY_H
#define FERRY_HOST_CHECKPOINT_COPY_H

#include "host/host.h"

/*
 * The source: what there is of the file of VM, which is suspended and moving to host TO, from OFFSET on.
 * *answer: {offset (from which `data` is; zeros before it), data (base64; empty at the end), size (of the
 * file)}.
 */
int checkpoint_copy_read(struct host *host, const char *vm, const char *to, uint64_t offset, json_t **answer,
                         struct ferry_error *err);

/* The destination: into FILE, which is there when it is complete and is the one written by the save ID.
 * ADDRESS: of the source. */
int checkpoint_copy_fetch(struct host *host, const char *address, const char *vm, const char *id,
                          const char *file, struct ferry_error *err);

#endif
