/*
 * What must hold before a VM may move: two const tables of checks, one for each side, each check a name, a
 * severity and a function. All of them change nothing. Every sentence names VM, host and feature, and what to
 * do. Results go into a JSON array of {check, severity, message}; the first error is also the caller's.
 */
#ifndef FERRY_HOST_CHECKS_H
#define FERRY_HOST_CHECKS_H

#include "host/host.h"

/* What the checks look at; filled by the caller, borrowed. */
struct check_context {
    struct host *host;
    const char *vm;
    const json_t *definition;
    const char *source; /* host names */
    const char *destination;
    uint64_t protocol;        /* destination: the source's */
    const char *quick_resume; /* destination: "allowed" or "now"; NULL: not wanted */
    bool must_encrypt;        /* or not at all */
    bool encrypted;           /* destination: it will be */
    bool resumes;             /* from a file here; nothing moves */
    const json_t *cold;       /* migration_cold.h; NULL: it moves while it runs */

    /* source */
    const char *storage;        /* where its disks are to be, as in struct migration; NULL: they stay */
    const json_t *there;        /* destination's host object */
    const json_t *there_answer; /* its answer to `incoming` with check_only: disks, boot_id */
};

enum check_stage {
    CHECK_SOURCE_LOCAL = 1, /* needs nothing of the other host */
    CHECK_SOURCE_PEER,      /* needs `there` */
    CHECK_SOURCE_ANSWER,    /* needs `there_answer` */
    CHECK_DESTINATION,
    CHECK_RESUME, /* of those, what a guest needs that goes on from a file here */
};

/* 0, or the code of the first check that found an error (HOST_REFUSED mostly). RESULTS may be NULL. */
int checks_run(enum check_stage stage, const struct check_context *context, json_t *results,
               struct ferry_error *err);

/* What this host sees at the paths of the definition's disks: [{path, size, device, inode}]. New reference.
 */
json_t *checks_describe_disks(const json_t *definition);

/* Where this host would have the VM's ownership lock: {place: "disk", "directory" or "none", and of a
 * directory inode, device}. New reference. */
json_t *checks_describe_lock(const struct host *host, const json_t *definition);

#endif
