/*
 * The workload: writers that fill memory with a self-checking pattern and verify it, floating-point registers
 * that are held and checked, a TCP connection to itself, and a ticker that measures how long the machine
 * stood still.
 *
 * What is counted lives in one struct work_counters in memory that all its processes share; every field has
 * one writer, or is atomic. One line a 100 ms goes to standard output; guests/README.md gives its form.
 */
#ifndef FERRY_GUEST_WORK_H
#define FERRY_GUEST_WORK_H

#include <stdatomic.h>
#include <stdint.h>

#define WORK_WRITERS_MAX 64

struct work_options {
    uint64_t processes, threads; /* Writers: threads in each process. */
    uint64_t memory;             /* Bytes, over all writers. */
    uint64_t rate;               /* Bytes a second written, over all writers; 0: as fast as possible. */
    uint64_t registers;          /* 1: hold floating-point registers, in each process. */
    uint64_t spins;              /* How long they compute meanwhile (registers.h). */
    uint64_t tcp_rate;           /* Bytes a second over the connection to itself; 0: none. */
    uint64_t tick_us;            /* The ticker's period; 0: no ticker. */
    uint64_t interval_ms;        /* Between two lines. */
    uint64_t seconds;            /* Ends after so many; 0: never. */
    uint64_t once;               /* 1: fill, verify everything once, say so and end. */
};

/* One writer's share; a cache line of its own. */
struct writer_counters {
    _Alignas(64) _Atomic uint64_t verified; /* Bytes. */
    _Atomic uint64_t passes;                /* How often all its pages were verified and written anew. */
};

struct work_counters {
    struct writer_counters writers[WORK_WRITERS_MAX];
    _Atomic uint64_t errors; /* Of every kind. */
    _Atomic uint64_t register_checks;
    _Atomic uint64_t tcp_blocks, tcp_errors;
    _Atomic uint64_t gap, gap_max; /* Largest time between two ticks: since the last line, and ever; ns. */
    _Atomic uint32_t fault_kinds;  /* Bit n: a fault of enum pattern_fault n was printed. */
};

/* Runs the workload that TEXT describes. Returns a process exit status: 0, 1 after errors were found, 2 for
 * bad options. */
int work_run(const char *text);

#endif
