/*
 * What the files of a VM's migration share; for migrate*.c only.
 *
 *     migrate.c           its life, requests, what libferry tells of it
 *     migrate_json.c      the object that records it
 *     migrate_options.c   the parameters of migrate.send as libferry's options
 */
#ifndef FERRY_VM_MIGRATE_INTERNAL_H
#define FERRY_VM_MIGRATE_INTERNAL_H

#include "base/sock.h"
#include "base/thread.h"
#include "vm/migrate.h"

enum migration_step {
    MIGRATION_PREPARED = 1, /* source: no session yet */
    MIGRATION_RUNNING,
    MIGRATION_ENDED,
};

struct migration {
    struct vm *vm;
    enum migration_step step;
    bool is_source;
    char id[FERRY_ID_SIZE];
    char source[FERRY_NAME_SIZE];
    char destination[FERRY_NAME_SIZE];
    char started[CLOCK_TEXT_SIZE];
    char ended[CLOCK_TEXT_SIZE]; /* empty: not yet */
    struct log *log;             /* lines carry the id */
    struct loop_timer *timer;    /* prepared: patience; running: the next progress notification */
    /* How it is found out what the guest writes, at the source of a migration with rounds; else empty. Said
     * here: the migration is described when the machine is gone, too. */
    char tracking[64];
    int listen_fd;
    char listen_path[SOCK_ADDRESS_SIZE]; /* a Unix socket's, removed with it; empty: none */
    struct ferry_session *session;
    struct thread thread;
    unsigned changes; /* atomic: changes noted on the session's thread that the loop has not seen */
    bool untold;      /* atomic: the session has ended and the loop could not be told */
    struct ferry_progress progress;
    json_t *lines;
};

/* From the parameters of migrate.send, all of them checked. The caller frees the credentials. */
int migration_source_options(struct ferry_source_options *options, const struct migration *migration,
                             json_t *params, struct ferry_error *err);

/* The credentials in the file that the parameter "certificate" names; without one there are none, and the
 * migration is not encrypted. */
int migration_load_credentials(struct ferry_credentials **out, const json_t *params, struct ferry_error *err);

#endif
