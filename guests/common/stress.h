/*
 * The bare-metal stress guest: CPUs that fill memory with the pattern of pattern.h at a settable rate, verify
 * it, and print a line of the same form as the Linux workload's every 100 ms:
 *
 *     work 12 verified=24M errors=0 gap_max=1.2ms gap=1.0ms t=1.200 pass=0
 *
 * It looks at the clock after every page, and waits at most 1 ms when nothing is due; the gap is the largest
 * time between two looks, on the first CPU. Where the machine can check registers that nothing else uses, a
 * field fp counts how often they were found as they were left.
 *
 * Boot arguments: mem=BYTES (default: all there is), rate=BYTES/s over all CPUs (0: as fast as possible;
 * default 20M), harts=N or cpus=N, order=seq|random|hot (hot: nine writes of ten go to the first tenth of the
 * pages), interval=MS, seconds=S (default 0: for ever), once=1 (fill, verify everything once, print a line
 * and go off).
 *
 * Looks at the console with every line and does what one typed character says: o goes off, r reboots, c
 * reports a failure, t takes the last CPU's trap handler away and has it trap. From then on that CPU does
 * nothing but fault; the first CPU does its work, too. (Where a fault without a handler ends the machine, as
 * on x86-64, so does t.)
 */
#ifndef GUEST_STRESS_H
#define GUEST_STRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STRESS_CPUS_MAX 8

enum stress_end { STRESS_END_OFF, STRESS_END_REBOOT, STRESS_END_FAILURE };

/* What the program needs of the machine it runs on. Functions may be called on every CPU. */
struct stress_machine {
    const char *args;
    uint8_t *memory; /* to be worked on, page-aligned */
    uint64_t memory_size;
    uint64_t hz; /* of now() */

    uint64_t (*now)(void);
    /* Returns at UNTIL, or somewhat earlier. */
    void (*rest)(uint64_t until);
    /* Has another CPU call FUNCTION(ARGUMENT), which does not return; false when there is none left. */
    bool (*start_cpu)(void (*function)(void *), void *argument);
    /* Called first on every CPU that works. */
    void (*begin)(void);
    /* Checks registers that the compiler leaves alone, as begin() set them, on the calling CPU. NULL: none.
     */
    bool (*registers_hold)(void);
    /* Takes the trap handler away and traps. Does not return. */
    void (*lose)(void);
    /* Does not return. The console was flushed. */
    void (*end)(enum stress_end how);
};

/* Does not return. */
void stress_main(const struct stress_machine *machine);

#endif
