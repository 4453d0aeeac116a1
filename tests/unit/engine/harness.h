/*
 * One whole migration in this process: a source and a destination session with fake guests, over loopback
 * TCP (or a Unix socket), optionally through a proxy that cuts all connections after so many bytes.
 *
 *     struct migration m;
 *     migration_init(&m, sizes, 1, true);     guests exist, the source's runs
 *     m.source_options.streams = 2;           settings, before
 *     migration_run(&m);                      both sessions, to their ends
 *     migration_free(&m);
 *
 * With UNIT_TLS in the environment every migration is encrypted, so that all tests can be run that way, too.
 */
#ifndef TESTS_UNIT_ENGINE_HARNESS_H
#define TESTS_UNIT_ENGINE_HARNESS_H

#include "base/thread.h"
#include "engine/testing/fake_guest.h"

#include "certificates.h"

#include <ferry/ferry.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#define MIB (UINT64_C(1) << 20)

/* What one session told its observer. */
struct witness {
    pthread_mutex_t lock;
    char log[65536];
    enum ferry_state states[32];
    size_t state_count;
    enum ferry_phase phases[16];
    size_t phase_count;
    struct ferry_session *session; /* to look at while it runs */
    unsigned percent;
    enum ferry_phase percent_phase;
    bool percent_fell;
};

#define NEEDLE_SIZE 32

/* Forwards connections to a port and back, and looks whether some bytes pass. */
struct proxy {
    struct thread thread;
    int listen_fd;
    int stop_fd;
    uint64_t cut_after; /* bytes in both directions; UINT64_MAX: never */
    unsigned mends;     /* so often connections are let through again after a cut; then never cut */
    bool blocked;       /* atomic: nothing gets through, and what is there is cut */
    int wake_fd;
    char target[128];
    uint64_t forwarded;
    uint8_t needle[NEEDLE_SIZE]; /* all zero: nothing is looked for */
    unsigned found;              /* in reads of whole 16 KiB blocks: it may be cut in two, and missed */
};

struct migration {
    struct fake_owner owner;
    struct fake_guest source;
    struct fake_guest destination;
    struct ferry_guest_ops source_ops; /* fake_guest_ops unless changed before */
    struct ferry_source_options source_options;
    struct ferry_destination_options destination_options;
    struct witness source_witness;
    struct witness destination_witness;
    struct ferry_session *from;
    struct ferry_session *to;
    struct proxy proxy;
    bool proxied;
    char socket_path[64];              /* empty: TCP */
    struct certificates *certificates; /* NULL: in the clear */
    struct thread destination_thread;
    bool destination_exits; /* when its session ends, its listening socket goes, as with a process */

    /* Results. */
    int source_result;
    int destination_result;
    struct ferry_error source_error;
    struct ferry_error destination_error;
    struct ferry_progress source_progress;
    struct ferry_progress destination_progress;
};

void migration_init(struct migration *m, const uint64_t *sizes, size_t count, bool memfd);
/* As if a link were between source and destination: else both ends of the connection are 127.0.0.1. Before
 * migration_create. */
void migration_use_two_addresses(struct migration *m);
/* Nothing tells then how fast the path is beyond a bandwidth limit. Before migration_create. */
void migration_use_unix_socket(struct migration *m);
/* Memory is passed by a Unix socket, not copied. Before migration_create. */
void migration_pass_memory(struct migration *m);
/* Gives both sides certificates of their names. Before migration_create. */
void migration_encrypt(struct migration *m);
/* All connections go through a proxy that cuts them after BYTES. Before migration_create. */
void migration_cut_after(struct migration *m, uint64_t bytes);
/* As migration_cut_after, but new connections are let through, and cut again after as many bytes, CUTS times
 * in all. */
void migration_cut_often(struct migration *m, uint64_t bytes, unsigned cuts);
/* Of proxied connections, at any time: cuts them and lets no new ones through, or lets them through again. */
void migration_block(struct migration *m, bool blocked);
/* The sessions exist afterwards; migration_run does it when it was not done. */
void migration_create(struct migration *m);
void migration_start_destination(struct migration *m);
/* Waits for the destination started before. */
void migration_join_destination(struct migration *m);
void migration_run(struct migration *m);
void migration_free(struct migration *m);

/* Both completed; the destination has the source's memory and state, and runs if the source did. */
void migration_assert_completed(struct migration *m);
/* Exactly one side has the guest and, if RUNNING, runs it; two never did. A source that was told that nobody
 * can say stays stopped. */
void migration_assert_one(struct migration *m, bool running);
/* As cmocka_run_group_tests, but each test is a process of its own, in a directory of its own: one that fails
 * leaves threads that use its variables, and one that hangs never ends; neither may harm the next.
 * GROUP_SETUP and GROUP_TEARDOWN (or NULL) are called in each. Returns how many failed. */
#define run_tests_apart(tests, group_setup, group_teardown)                                                  \
    run_each_apart(tests, sizeof(tests) / sizeof((tests)[0]), group_setup, group_teardown)
int run_each_apart(const struct CMUnitTest *tests, size_t count, CMFixtureFunction group_setup,
                   CMFixtureFunction group_teardown);
/* The vCPU counts on: it really runs. */
void assert_counts(struct fake_guest *guest);

#endif
