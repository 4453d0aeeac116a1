/*
 * The three loops that CPU speed is measured with. The same source runs bare and under Linux; the checksum
 * depends on the number of iterations alone, so a wrong result shows.
 */
#ifndef GUEST_LOOPS_H
#define GUEST_LOOPS_H

#include <stdint.h>

/* Words of the buffer that loop_mem() works on: 1 MiB. A power of two. */
#define LOOP_MEM_WORDS 131072

/* Additions, shifts, multiplications and branches that depend on data. */
uint64_t loop_int(uint64_t iterations);

/* Reads and writes in order, and one read out of order, an iteration. Sets the buffer up first. */
uint64_t loop_mem(uint64_t iterations, uint64_t *buffer);

/* Double precision: fused and plain arithmetic, a division every 16 iterations. */
uint64_t loop_fp(uint64_t iterations);

#endif
