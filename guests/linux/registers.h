/*
 * A thread that holds values in all floating-point and vector registers, across computing and sleeping, and
 * checks them. registers_ARCH.c has what is the CPU's own.
 */
#ifndef FERRY_GUEST_REGISTERS_H
#define FERRY_GUEST_REGISTERS_H

#include <stdint.h>
#include <time.h>

struct work_counters;

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
 * Loads all registers of SET from IN and the control register with CONTROL, counts SPINS down, sleeps for
 * PAUSE, counts again, stores the registers to OUT and returns the control register.
 */
uint64_t registers_hold(const struct register_set *set, const uint64_t *in, uint64_t *out, uint64_t control,
                        uint64_t spins, const struct timespec *pause);

struct registers {
    uint64_t spins; /* Counted down before and after sleeping, with all registers held. */
    struct work_counters *counters;
};

/* Thread body; never returns. The argument is a struct registers. */
void *registers_main(void *argument);

#endif
