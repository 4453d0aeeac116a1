/*
 * How the guest writes memory: dirty tracking is switched on for a moment and looked at a few times, so that
 * a migration can be foretold. What it costs the guest is the first store to each page in that time.
 *
 * One at a time; a migration that begins ends it. All functions: the loop's thread.
 */
#ifndef FERRY_VM_SAMPLE_H
#define FERRY_VM_SAMPLE_H

#include "base/jsonrpc.h"

struct vm;
struct sample;

/*
 * Method "memory.sample", {window_ns}: answers REQUEST when the window (10 ms to 10 s) is over, with
 * {looks: [{elapsed_ns, pages}], used_bytes, zero_permille, lz4: {page_bytes, page_ns}, zstd: {…}}: the pages
 * written at least once since the beginning, memory that was ever touched, how much of that holds zeros, and
 * what compressing a page of the rest comes to, in bytes and time of one core (0: not known). An error: the
 * request is still the caller's.
 */
int sample_begin(struct vm *vm, const json_t *params, struct jsonrpc_request *request,
                 struct ferry_error *err);
/* Fails its request with WHY and switches tracking off. NULL allowed. */
void sample_abort(struct vm *vm, const char *why);

#endif
