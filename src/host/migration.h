/*
 * Migrations of this host's VMs, leaving and arriving: their records, log lines, and the jobs that see them
 * through. The moving itself is done by the two ferry-vm processes; ferryd checks, starts, watches, records
 * and clears up. When a ferryd dies meanwhile, they finish by themselves, and the restarted ferryd reads how
 * it went from them (`migrate.status`, exit.json) and completes the record.
 *
 *     migration_start (synchronous)                     destination's ferryd
 *       checks here
 *       GET /v1/host, POST /v1/incoming check_only  ->    checks there
 *       migrate.prepare to ferry-vm
 *       POST /v1/incoming                           ->    ferry-vm --incoming, memory reserved, listens
 *     job (its own thread)                              job (its own thread)
 *       migrate.send to ferry-vm                          waits for the end
 *       waits for the end
 *       completed: the VM is taken off the inventory      completed: the VM is listed as running
 *       failed:    DELETE /v1/incoming/ID           ->    failed: VM, process and directory are gone
 *
 * One id on both sides, in every record and log line. A record is written when the migration has passed all
 * checks, and again when it has ended; both hosts' records then come to say the same (agreement.h).
 */
#ifndef FERRY_HOST_MIGRATION_H
#define FERRY_HOST_MIGRATION_H

#include "base/thread.h"
#include "host/host.h"
#include "host/peers.h"

#define MIGRATION_ID_SIZE    37
#define MIGRATION_LINES_MAX  4096
#define MIGRATION_TOKEN_SIZE (2 * 32 + 1)

struct vm;
struct vm_process;

/* How far a cold migration that takes its disks along is (storage_copy.h). */
enum storage_stage {
    STORAGE_NONE = 0,
    STORAGE_COPYING,
    STORAGE_COPIED, /* all is at the destination */
    STORAGE_TAKEN,  /* too late to cancel */
};

struct migration {
    /* constant once registered */
    struct host *host;
    char id[MIGRATION_ID_SIZE];
    char vm_name[HOST_NAME_SIZE];
    char machine[16];
    char source[HOST_NAME_SIZE];
    char destination[HOST_NAME_SIZE];
    bool outgoing;
    bool stays;                           /* from one process to another of this host: upgrade.h */
    bool fresh;                           /* begun in this ferryd's life, not taken up from a former one */
    char peer_address[SOCK_ADDRESS_SIZE]; /* the other host's API; empty when not known */
    uint64_t started_ns;                  /* real time */
    struct vm *vm;                        /* a reference; NULL when it is gone */
    json_t *upgrade;                      /* stays: {old_pid, old_version, new_pid, new_version} */
    json_t *send;                         /* source: parameters for migrate.send; NULL: it was sent already */
    json_t *options;                      /* source: of them, what the caller asked for; NULL: not known */
    uint64_t own_limit;                   /* source: of these, bytes/s; 0: none */
    bool must_encrypt;                    /* source: the caller asked for it */
    json_t *cold;                   /* {state: "stopped", "suspended", "running", …} (migration_cold.h);
                                       NULL: it moves while it runs */
    char saving[MIGRATION_ID_SIZE]; /* cold, of one that ran: the save before */
    char *storage;  /* source, cold: its disks move, too, into this directory of the destination, or to their
                       own paths (""); NULL: they do not */
    bool encrypted; /* as the checks found; constant from then on */

    /* host lock; source only: migration_queue.h */
    bool queued;         /* waits for a place */
    bool unsent;         /* was queued, and migrate.send has not been called */
    bool cancelled;      /* meanwhile */
    bool sending;        /* ferry-vm was told to send; cold: something was asked for */
    uint64_t share;      /* bytes/s; 0: no limit; written atomically, too, for struct pace */
    uint64_t share_told; /* to ferry-vm; cold: it counts at once */

    /* host lock */
    struct migration *next;
    unsigned refs;
    unsigned version;    /* counts changes, for watchers */
    json_t *progress;    /* the migration object ferry-vm told last, or NULL; immutable */
    bool told_final;     /* ferry-vm said that it has ended */
    bool recorded;       /* its record exists; its lines go there too */
    bool ended;          /* all is done: the record is final */
    bool final_recorded; /* the final record was written */
    const char *outcome; /* "none" until ended */
    const char *cause;
    char error[FERRY_ERROR_TEXT_SIZE];
    uint64_t ended_ns;
    json_t *forecast; /* made before it began, or NULL */
    json_t *lines;    /* [{time_ns, level, host, text}], at most MIGRATION_LINES_MAX */

    /* host lock; of an upgrade's new process */
    json_t *arrival;      /* its last word, or NULL; immutable */
    json_t *arrival_exit; /* what it left when it ended, or NULL */
    char arrival_why[FERRY_ERROR_TEXT_SIZE];

    /* host lock; quick resume: migration_fetch.h */
    bool fetched;        /* the guest has begun to run at the destination with memory still here, or there */
    bool fetch_recorded; /* the record says so, and so do events */
    bool cut_told;       /* that it stands still, without a connection */
    bool end_told;       /* ferry-vm: what the other host says of the end */

    /* host lock; agreement.c's */
    const char *their_outcome; /* how it ended, as the other host says; NULL: it has not said */
    const char *their_cause;
    char their_error[FERRY_ERROR_TEXT_SIZE];
    bool in_doubt;          /* the VM is kept here until it is known how it ended */
    bool agreed;            /* the other host's record says the same, or it has none */
    bool contradicted;      /* by the other host, which knows as well as this one */
    uint64_t agree_at;      /* when it is tried again (clock_now_ns) */
    uint64_t agree_wait_ns; /* how long after that, when it fails again */

    /* host lock; cold, with disks: storage_copy.h */
    enum storage_stage stage;
    json_t *disk_files;     /* that are copied: [{source, destination}]; immutable; NULL: none */
    uint64_t disk_total;    /* bytes */
    uint64_t disk_bytes;    /* of them, copied so far */
    uint64_t disk_wire;     /* bytes for that on the link: zeros are not sent */
    uint64_t disk_begin_ns; /* when copying began (clock_now_ns), */
    uint64_t disk_end_ns;   /* and ended; 0: not yet */
    uint64_t heard_ns;      /* source: when the destination last took some */
    char disk_error[FERRY_ERROR_TEXT_SIZE]; /* source: why a disk could not be read */
    uint64_t generation;                    /* destination: of the VM's lock; 0: it has none */

    /* the job's own */
    struct thread thread;
    uint64_t silent_ns;   /* when the other host kept us waiting in vain, last; then the agreement's own */
    uint64_t events_ours; /* up to which event numbers were exchanged with the other host */
    uint64_t events_theirs;
};

/* --- verbs of the API --- */

struct migration_options {
    const char *destination;
    uint64_t downtime_limit;  /* ns; 0: default */
    uint64_t bandwidth_limit; /* bytes/s; 0: none */
    uint64_t copy_time_limit; /* ns; 0: default */
    uint64_t throttle_max;    /* per cent, 0: never; MIGRATION_DEFAULT: as libferry has it */
    uint64_t streams;         /* 0: default */
    bool tls;                 /* encrypted, or not at all */
    const char *quick_resume; /* "allowed" or "now"; NULL: not */
    const char *compress;     /* "auto", …; NULL: default */
    bool cold;                /* it does not run meanwhile */
    const char *storage;      /* cold: as in struct migration */
};

#define MIGRATION_DEFAULT UINT64_MAX

/* Both sides' checks, then the job. Returns when it is under way, or queued. */
int migration_start(struct host *host, const char *vm, const struct migration_options *options,
                    char id[static MIGRATION_ID_SIZE], struct ferry_error *err);

/*
 * POST /v1/vms/NAME/check: the same checks, all of them, and nothing else. *answer: {vm, source, destination,
 * possible, checks: [{check, severity, message}]}, and with FORECAST `forecast` (forecast.h; null when the VM
 * cannot move, or cannot be foretold: then there is a warning). The next migration to that host has it in its
 * record. An error only when VM or destination are not known.
 */
int migration_check_vm(struct host *host, const char *vm, const struct migration_options *options,
                       bool forecast, json_t **answer, struct ferry_error *err);

struct migration_offer {
    const char *id;
    const json_t *definition; /* as it came, not yet checked */
    const char *source;
    uint64_t protocol;
    uint64_t patience_ns;     /* how long the source waits for the answer; 0: it does not say */
    const char *quick_resume; /* as in struct migration_options */
    bool check_only;
    bool tls;           /* it will be encrypted */
    const json_t *cold; /* as of the migration */
};

/* POST /v1/incoming. *answer: {address, token, pid, checks, disks, lock, boot_id}, or with check_only the
 * last four, even when a check says no. */
int migration_receive(struct host *host, const struct migration_offer *offer, json_t **answer,
                      struct ferry_error *err);
/* DELETE /v1/incoming/ID: returns when the VM that was arriving is gone. FORCE: the source has it, so a
 * process that does not end by itself is killed. */
int migration_withdraw(struct host *host, const char *id, bool force, struct ferry_error *err);

int migration_cancel(struct host *host, const char *id, json_t **answer, struct ferry_error *err);
json_t *migrations_list(struct host *host, enum store_view view);
/* With LOCAL_ONLY the log has this host's lines; otherwise the other host is asked for its own. */
int migration_show(struct host *host, const char *prefix, bool local_only, json_t **answer,
                   struct ferry_error *err);

/*
 * For GET .../watch. *seen (start with 0) tells which change the caller knows; waits for a newer one until
 * the deadline. *answer: the object, or NULL when nothing changed; *ended: that object is final.
 */
int migration_watch(struct host *host, const char *id, unsigned *seen, uint64_t deadline, json_t **answer,
                    bool *ended, struct ferry_error *err);
/* The whole id of the migration whose id begins with PREFIX. */
int migration_resolve(struct host *host, const char *prefix, char id[static MIGRATION_ID_SIZE],
                      struct ferry_error *err);

/* --- for the other modules --- */

const char *migration_id(const struct migration *migration);
/* A ferry-vm's notification `migration.*`; on a reader thread. */
void migration_told(struct vm_process *process, const char *method, const json_t *params);
/* At start, after the VMs were adopted: takes up what was in progress, closes what has ended meanwhile. */
void migrations_adopt(struct host *host);
/* Joins ended jobs and forgets what is on record; with ALL (the host stops) waits for every job. */
void migrations_reap(struct host *host, bool all);

/* --- between migration.c and its sides' and views' files --- */

struct migration *migration_find(struct host *host, const char *id); /* under the lock: borrowed, or NULL */
/* Under the lock. The object without its log, with `machine` for the record. New reference. */
json_t *migration_object(const struct migration *migration);
/* Nanoseconds of real time as RFC 3339 (null for 0), and back (0 when TEXT is no such time). */
void migration_set_time(json_t *object, const char *key, uint64_t realtime_ns);
uint64_t migration_parse_time(const char *text);

struct migration *migration_new(struct host *host, const char *id, const char *vm, const char *machine,
                                const char *source, const char *destination);
void migration_unref(struct migration *migration);
/* On the list, and `vm->migration`: the VM (whose reference is taken over) is moving from now on. */
void migration_register(struct migration *migration, struct vm *vm);
/* Off the list again, as if it had never been: a check failed. */
void migration_unregister(struct migration *migration);
void migration_record(struct migration *migration); /* writes the record and the lines so far */
void migration_log(struct migration *migration, enum log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* When this host's process entered STATE (its name, "MIGRATE_TO_VMX_CHECKPT"), the last time it did; 0 when
 * that is not known: a former ferryd was told. */
uint64_t migration_state_time(struct migration *migration, const char *state);
/* Counts a change, for who waits for one. Under the lock. */
void migration_touch(struct migration *migration);
/* Asks the VM's process how its migration is, as if it had told. For when its words were lost. */
void migration_ask(struct migration *migration);
/* Waits until ferry-vm said the last word, its process is gone, or the host stops (false). */
bool migration_wait(struct migration *migration);
/* What is known of the end: told by ferry-vm, or left in exit.json. NULL: nothing final. New reference. */
json_t *migration_final_word(struct migration *migration);
/* Lets go of the VM: it is no longer moving. */
void migration_release_vm(struct migration *migration);
/* The record becomes final, with what the other host knows better (agreement.h). */
void migration_end(struct migration *migration, const char *outcome, const char *cause, const char *error);
/* CAUSE as one of libferry's names for it, a constant; "" when it is none. */
const char *migration_known_cause(const char *cause);
int migration_start_job(struct migration *migration, struct ferry_error *err);
/*
 * peer_call and peer_lines to the other host of MIGRATION. When it has just kept us waiting in vain it is not
 * asked again for as long: HOST_UNREACHABLE at once. For who does the migration's work, and after its end the
 * agreement.
 */
int migration_call_peer(struct migration *migration, const char *method, const char *path, json_t *body,
                        enum peer_patience patience, json_t **answer, struct ferry_error *err);
int migration_lines_of_peer(struct migration *migration, const char *path, enum peer_patience patience,
                            json_t **answer);
/* Tells the other host this one's events of the migration, and takes over its. */
void migration_exchange_events(struct migration *migration);
bool migration_id_valid(const char *id);
int migration_make_id(char id[static MIGRATION_ID_SIZE], struct ferry_error *err);         /* a new UUID */
int migration_make_token(char text[static MIGRATION_TOKEN_SIZE], struct ferry_error *err); /* hexadecimal */
/* migration_check.c: everything that can be found out before anything is changed, on both sides. With RESULTS
 * all checks are made and their rows put there; without, the first error ends it. */
int migration_check(struct migration *migration, const json_t *definition, json_t *results,
                    struct ferry_error *err);
/* What the caller asked for, as parameters of migrate.send. New reference. */
json_t *migration_make_options(const struct migration_options *options);
json_t *migration_offer_body(const struct migration *migration, const json_t *definition, bool check_only);
const char *migration_peer_name(const struct migration *migration);

/* What the last moves of VM to DESTINATION, else of VM, else to DESTINATION, tell about the next one; of
 * several the middle value, "wire" without what the last pages needed on a link that carries PATH bytes a
 * second (0: with it). */
struct migration_known {
    json_t *costs;       /* {downtime_parts, state_bytes}; a reference; NULL: nothing is known */
    bool same_way;       /* they went to DESTINATION */
    uint64_t setup_ns;   /* of VM; 0: not known */
    uint64_t used_bytes; /* of its memory then; 0: not known */
    uint64_t bandwidth;  /* bytes/s that their first rounds sent, to DESTINATION; 0: not known */
};
void migration_known_costs(struct host *host, const char *vm, const char *destination, uint64_t path,
                           struct migration_known *known);
/* What a destination that died while it took over has left here is dropped: the source has the VM. True when
 * there was something. */
bool migration_drop_remains(struct host *host, const char *id);

void migration_run_upgrade(struct migration *migration); /* the job's thread; upgrade.c */
void migration_run_source(struct migration *migration);  /* the job's thread */

/* migration_source.c: the end, as it is known: of the VM, both records, events. */
void migration_finish_completed(struct migration *migration);
/* OUTCOME "failed" or "cancelled": the VM is known to be here, or to be nowhere. */
void migration_finish_failed(struct migration *migration, const char *outcome, const char *cause,
                             const char *error);
/* OUTCOME "lost" or "unknown": the VM must not be started here, until more is known. */
void migration_finish_doubted(struct migration *migration, const char *outcome, const char *cause,
                              const char *error);
void migration_run_destination(struct migration *migration); /* the job's thread */

#endif
