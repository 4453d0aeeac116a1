/* One thread that keeps its pages filled with the pattern of common/pattern.h. */
#ifndef FERRY_GUEST_WRITER_H
#define FERRY_GUEST_WRITER_H

#include "work.h"

struct writer {
    uint32_t index;       /* Among all writers of all processes. */
    uint32_t count;       /* How many there are. */
    uint32_t pages;       /* This one's. */
    uint64_t rate;        /* Bytes a second. */
    _Bool once;           /* Verify everything once and return. */
    uint64_t *memory;     /* pages * PATTERN_PAGE_SIZE. */
    uint32_t *generation; /* Of each page, kept apart from it. */
    struct work_counters *counters;
};

/* Allocates memory for a writer whose other fields are set and fills it. Returns 0 or -1. */
int writer_prepare(struct writer *writer);

/* Thread body: verifies and rewrites page after page, for ever unless once is set. The argument is a struct
 * writer. */
void *writer_main(void *argument);

#endif
