/*
 * A checkpoint in memory: the named, versioned sections of a guest's state, in the order they were saved.
 *
 * Filled by ferry_sink_section on the source (struct ferry_sink is one of these being filled) and from
 * SECTION frames on the destination. Names are unique; sizes, their number and their sum are bounded. The
 * data is copied. Not thread-safe.
 */
#ifndef FERRY_ENGINE_CHECKPOINT_H
#define FERRY_ENGINE_CHECKPOINT_H

#include <ferry/ferry.h>

#include <stddef.h>

#define CHECKPOINT_SIZE_MAX ((size_t)256 << 20) /* all sections together */

struct checkpoint {
    struct ferry_section *sections; /* data of each owned */
    size_t count;
    size_t size; /* bytes of data in all */
};

void checkpoint_init(struct checkpoint *checkpoint);
void checkpoint_free(struct checkpoint *checkpoint);

/* -EINVAL, -EEXIST, -E2BIG, -ENOMEM, naming the section. */
int checkpoint_add(struct checkpoint *checkpoint, const struct ferry_section *section,
                   struct ferry_error *err);
/* NULL when there is no section of that name. */
const struct ferry_section *checkpoint_find(const struct checkpoint *checkpoint, const char *name);

/* The sink through which a guest fills CHECKPOINT. */
struct ferry_sink {
    struct checkpoint *checkpoint;
};

#endif
