/*
 * A thread that holds values in all floating-point and vector registers, across computing and sleeping, and
 * checks them. registers_ARCH.c has what is the CPU's own.
 */
#ifndef FERRY_GUEST_REGISTERS_H
#define FERRY_GUEST_REGISTERS_H

#include <stdint.h>
#include <time.h>

#define REGISTERS_WORDS_MAX 64 /* of all registers */

/* What this CPU has. */
struct register_set {
    const char *name;         /* Before a register's number: "f". */
    const char *control_name; /* "fcsr" */
    unsigned count;           /* Of registers. */
    unsigned words;           /* Of 64 bits, in each. */
    /* What the control and status register is to hold in round number ROUND. */
    uint64_t (*control)(uint64_t round);
};

const struct register_set *register_set_of_this_cpu(void);

/*
 * Loads all registers of SET from IN and the control register with CONTROL, computes, sleeps for PAUSE,
 * computes, stores the registers to OUT and returns the control register.
 */
uint64_t registers_hold(const struct register_set *set, const uint64_t *in, uint64_t *out, uint64_t control,
                        const struct timespec *pause);

/* Thread body; never returns. The argument is a struct work_counters. */
void *registers_main(void *argument);

#endif
