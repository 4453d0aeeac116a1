/*
 * A bare guest on the built-in CPU for unit tests: RAM, harts, nothing else. The program is a few words of
 * machine code (soft_programs.c) at the start of RAM.
 */
#ifndef FERRY_TESTS_UNIT_MACHINE_SOFT_GUEST_H
#define FERRY_TESTS_UNIT_MACHINE_SOFT_GUEST_H

#include "unit.h"

#include "base/thread.h"
#include "bus/memory.h"
#include "bus/mmio.h"
#include "machine/accel.h"
#include "machine/riscv64/layout.h"

#include <pthread.h>

#define SOFT_GUEST_MEMORY (UINT64_C(16) << 20)

struct soft_guest {
    struct memory *memory;
    struct mmio_bus *bus;
    struct accel *accel;
    unsigned harts;
    pthread_mutex_t lock; /* guards event and parked */
    pthread_cond_t changed;
    enum accel_event event;
    bool parking;
    unsigned next_index;
    struct thread threads[RISCV64_HARTS_MAX];
};

/* Assembled from the comments above them. */
extern const uint32_t guest_compute[], guest_writers[], guest_fences[], guest_patch[], guest_sleep[],
    guest_stopping[], guest_idle[];
extern const size_t guest_compute_size, guest_writers_size, guest_fences_size, guest_patch_size,
    guest_sleep_size, guest_stopping_size, guest_idle_size;

void soft_guest_new(struct soft_guest *guest, unsigned harts);
void soft_guest_free(struct soft_guest *guest);
/* Puts the program into memory and sets hart 0 to its start with A0 and A1. */
void soft_guest_boot(struct soft_guest *guest, const uint32_t *program, size_t size, uint64_t a0,
                     uint64_t a1);
void soft_guest_start(struct soft_guest *guest); /* the harts' threads */
void soft_guest_stop(struct soft_guest *guest);  /* kicks and joins them */
/* The event the guest ends with. Fails the test when there is none in time. */
enum accel_event soft_guest_wait(struct soft_guest *guest);
uint64_t soft_guest_read(struct soft_guest *guest, uint64_t addr);
/* Saves all sections, and loads them elsewhere, with memory. Both stopped. */
void soft_guest_move(struct soft_guest *from, struct soft_guest *to);

#endif
