/*
 * A guest for tests and benches: plain memory and one "vCPU", a thread that counts and writes pages as it is
 * told. It fills in the whole guest seam, so that libferry can be exercised without a CPU.
 *
 * The vCPU's state (its count and its random numbers) is a section; so are `extra_sections` of filler. Every
 * write sets the page's dirty bit afterwards, as real ones do.
 *
 * Ownership is an object that a source and a destination guest of one test share. It behaves as a lock file
 * does, and remembers whether two ever ran at once.
 *
 * Threads: settings are changed while the guest is paused or not made yet; fake_guest_count and
 * fake_guest_running are for any thread.
 */
#ifndef FERRY_ENGINE_TESTING_FAKE_GUEST_H
#define FERRY_ENGINE_TESTING_FAKE_GUEST_H

#include "base/thread.h"

#include <ferry/ferry.h>

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* Who has the guest: what a lock file would say. */
struct fake_owner {
    pthread_mutex_t lock; /* guards all of it */
    const void *holder;   /* the guest that holds it; NULL: free */
    enum fake_owner_state {
        FAKE_OWNER_HELD = 1,
        FAKE_OWNER_HANDOVER,
        FAKE_OWNER_ACQUIRED,
        FAKE_OWNER_STARTED, /* by the destination */
    } state;
    bool arbiter;         /* false: nobody can say who has it */
    unsigned running;     /* guests with this owner that run now */
    unsigned running_max; /* and ever did at once */
};

void fake_owner_init(struct fake_owner *owner);
void fake_owner_destroy(struct fake_owner *owner);

enum fake_pattern {
    FAKE_PATTERN_NONE = 0, /* counts, writes nothing */
    FAKE_PATTERN_SWEEP,    /* one page after the other, round the window */
    FAKE_PATTERN_RANDOM,   /* anywhere in the window */
    FAKE_PATTERN_ZERO,     /* anywhere; half of them are cleared */
    FAKE_PATTERN_SAME,     /* anywhere; what is there already */
    FAKE_PATTERN_FLIP,     /* anywhere; a bit that goes back and forth */
    FAKE_PATTERN_MIXED,    /* all of these, most of it in few pages */
};

/* Steps of the seam that can be told to fail. */
enum fake_step {
    FAKE_STEP_NONE = 0,
    FAKE_STEP_DIRTY_START,
    FAKE_STEP_PAUSE,
    FAKE_STEP_QUIESCE,
    FAKE_STEP_SAVE,
    FAKE_STEP_ADOPT,
    FAKE_STEP_LOAD,
    FAKE_STEP_LOAD_FINISH,
    FAKE_STEP_RELEASE,
    FAKE_STEP_ACQUIRE,
    FAKE_STEP_RESUME, /* at the destination */
};

struct fake_guest {
    /* Settings; the first three may change while it runs. */
    enum fake_pattern pattern;
    uint64_t pages_per_s; /* 0: as fast as it can */
    uint64_t window;      /* pages, from the start of region 0; 0: all of it */
    enum fake_step fail;
    unsigned extra_sections; /* of extra_size bytes */
    size_t extra_size;
    bool arriving;                                   /* is a destination */
    void (*on_step)(void *opaque, const char *step); /* before each step of the seam; may be NULL */
    void *opaque;

    struct ferry_ram_region regions[FERRY_REGIONS_MAX];
    size_t region_count;
    uint64_t *dirty[FERRY_REGIONS_MAX]; /* set by the vCPU, taken by dirty_fetch */
    bool tracking;                      /* atomic */
    struct fake_owner *owner;
    struct thread thread;

    pthread_mutex_t lock; /* guards the rest */
    pthread_cond_t changed;
    bool run;    /* what is wanted */
    bool parked; /* what is */
    bool quit;
    bool stop_soon; /* atomic: leave the write loop and look at `run` */
    uint64_t count; /* atomic */
    uint64_t random;
    uint64_t position;
    bool loaded; /* load_finish was called */
    uint64_t advanced_ns;
    unsigned announced;
    unsigned throttle; /* atomic; per cent */
    unsigned throttle_most;
    unsigned vcpus; /* setting: that can be told apart; the first one does all the writing. 0: none can */
    unsigned throttle_others; /* per cent the others were slowed by at most */
    bool quiesced;
    bool ran_at_dirty_stop; /* when tracking was last switched off */
    bool held;              /* quick resume: the connection is lost */
    unsigned holds;
    char held_why[FERRY_ERROR_TEXT_SIZE];
};

extern const struct ferry_guest_ops fake_guest_ops;

/* SIZES of region_count regions named ram0, ram1, ...; MEMFD: false for memory without a descriptor. Paused.
 */
int fake_guest_init(struct fake_guest *guest, struct fake_owner *owner, const uint64_t *sizes,
                    size_t region_count, bool memfd, struct ferry_error *err);
void fake_guest_destroy(struct fake_guest *guest);

/* As an operator would. */
void fake_guest_run(struct fake_guest *guest, bool run);
bool fake_guest_running(struct fake_guest *guest);
uint64_t fake_guest_count(const struct fake_guest *guest);
/* What the vCPU does in COUNT turns, done here and now. Paused only. */
void fake_guest_step(struct fake_guest *guest, uint64_t count);
/* Pseudo-random content, the same for the same seed; never zero pages. Not recorded as dirty. */
void fake_guest_fill(struct fake_guest *guest, size_t region, uint64_t first, uint64_t pages, uint64_t seed);

#endif
