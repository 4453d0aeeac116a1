/*
 * Reads the few things the programs want to know from a flattened device tree (Devicetree Specification 0.4,
 * ch. 5).
 */
#ifndef BARE_FDT_H
#define BARE_FDT_H

#include "../common/args.h"

#include <stdint.h>

struct fdt_info {
    const char *bootargs; /* "" when there are none. */
    uint64_t memory_start,
        memory_size;      /* The first range of the first memory node; 0, 0 when there is none. */
    uint64_t timebase_hz; /* Frequency of rdtime; 10 MHz when not said. */
    unsigned harts;       /* Number of cpu nodes. */
};

/* Fills INFO from the tree at FDT; what cannot be read keeps its default. */
void fdt_read(const void *fdt, struct fdt_info *info);

#endif
