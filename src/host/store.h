/*
 * Where ferryd's records are kept: other hosts, settings, migrations with their log lines, events.
 *
 * One small table of functions, so that records can live elsewhere (a cluster's store) without the rest
 * noticing. Records never decide whether a VM runs: a store that fails (disk full) costs history, nothing
 * else; callers log the error and go on. What a VM is (its definition) is kept in the VM's own directory.
 *
 * All functions may be called from any thread; a store serialises them itself. They write to disk, so no
 * caller holds the inventory lock meanwhile. int functions return 0 or a negative errno with err filled in.
 */
#ifndef FERRY_HOST_STORE_H
#define FERRY_HOST_STORE_H

#include <ferry/error.h>

#include <jansson.h>
#include <stdint.h>

#define STORE_SCHEMA_VERSION 1

struct store;

enum store_view {
    STORE_VIEW_ALL = 1,
    STORE_VIEW_ACTIVE,  /* not ended */
    STORE_VIEW_HISTORY, /* ended */
    STORE_VIEW_FAILED,  /* ended, and not as completed */
    STORE_VIEW_OPEN,    /* ended, and "agreed" in the object is false: the other host may tell otherwise */
};

struct store_migration {
    const char *id;
    const char *vm;
    const char *outcome; /* "none" until it has ended */
    uint64_t started_ns; /* real time */
    uint64_t ended_ns;   /* 0 until it has ended */
    json_t *object;      /* the migration object without its log; borrowed */
};

struct store_line {
    const char *migration;
    uint64_t time_ns; /* real time */
    const char *level;
    const char *host;
    const char *text;
};

struct store_ops {
    const char *name;
    void (*close)(struct store *store);

    /* *value: a copy to free(), or NULL when it was never set. */
    int (*setting_get)(struct store *store, const char *key, char **value, struct ferry_error *err);
    int (*setting_put)(struct store *store, const char *key, const char *value, struct ferry_error *err);

    int (*host_put)(struct store *store, const char *name, const char *address, struct ferry_error *err);
    int (*host_delete)(struct store *store, const char *name, struct ferry_error *err);
    /* *out: new array of {name, address}, by name. */
    int (*host_list)(struct store *store, json_t **out, struct ferry_error *err);

    int (*migration_put)(struct store *store, const struct store_migration *row, struct ferry_error *err);
    /* *out: new array of migration objects, newest first, at most LIMIT. */
    int (*migration_list)(struct store *store, enum store_view view, unsigned limit, json_t **out,
                          struct ferry_error *err);
    /* *out: new array of {kind, outcome, cause, total_ns, downtime_ns, wire_bytes} of those that have ended,
     * newest first, at most LIMIT; what a record does not have is null. */
    int (*migration_numbers)(struct store *store, unsigned limit, json_t **out, struct ferry_error *err);
    /* *out: new array of the objects whose id begins with PREFIX, at most 2: enough to tell "not unique". */
    int (*migration_find)(struct store *store, const char *prefix, json_t **out, struct ferry_error *err);

    int (*line_put)(struct store *store, const struct store_line *line, struct ferry_error *err);
    /* *out: new array of {time_ns, level, host, text} in order of arrival. */
    int (*line_list)(struct store *store, const char *migration, json_t **out, struct ferry_error *err);

    /* EVENT as in docs/API.md; its number is its key. */
    int (*event_put)(struct store *store, const json_t *event, struct ferry_error *err);
    /* *out: new array of events with a number above SINCE, oldest first, at most LIMIT. */
    int (*event_list)(struct store *store, uint64_t since, unsigned limit, json_t **out,
                      struct ferry_error *err);
    /* *out: new array of MIGRATION's events, oldest first, at most LIMIT. */
    int (*event_list_of)(struct store *store, const char *migration, unsigned limit, json_t **out,
                         struct ferry_error *err);
    int (*event_last)(struct store *store, uint64_t *number, struct ferry_error *err);
};

struct store {
    const struct store_ops *ops;
};

/*
 * Opens (and creates) the SQLite database PATH. Refused with one sentence: a file that is no database, a
 * database written by a newer Ferry, a path that cannot be written.
 */
int store_open_sqlite(struct store **out, const char *path, struct ferry_error *err);
void store_close(struct store *store); /* NULL allowed */

#endif
