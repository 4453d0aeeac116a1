#include "host/store.h"

#include "base/error.h"

#include <errno.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define EVENTS_KEPT     100000
#define EVENTS_PRUNE    1000 /* how often old ones are looked for, in events */
#define BUSY_TIMEOUT_MS 2000

struct store_sqlite {
    struct store store;
    char *path;
    pthread_mutex_t lock; /* guards db: one statement at a time */
    sqlite3 *db;
};

static const char schema[] =
    "CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);"
    "CREATE TABLE hosts (name TEXT PRIMARY KEY, address TEXT NOT NULL);"
    "CREATE TABLE migrations (id TEXT PRIMARY KEY, vm TEXT NOT NULL, outcome TEXT NOT NULL,"
    "  started_ns INTEGER NOT NULL, ended_ns INTEGER NOT NULL, object TEXT NOT NULL);"
    "CREATE INDEX migrations_started ON migrations (started_ns);"
    "CREATE TABLE migration_lines (number INTEGER PRIMARY KEY, migration TEXT NOT NULL,"
    "  time_ns INTEGER NOT NULL, level TEXT NOT NULL, host TEXT NOT NULL, text TEXT NOT NULL);"
    "CREATE INDEX migration_lines_migration ON migration_lines (migration);"
    "CREATE TABLE events (number INTEGER PRIMARY KEY, time TEXT NOT NULL, host TEXT NOT NULL,"
    "  code TEXT NOT NULL, level TEXT NOT NULL, vm TEXT NOT NULL, migration TEXT NOT NULL,"
    "  text TEXT NOT NULL);";

static struct store_sqlite *sqlite_of(struct store *store)
{
    return (struct store_sqlite *)store;
}

static int code_of(int rc)
{
    switch (rc & 0xff) {
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
        return -EBADMSG;
    case SQLITE_FULL:
        return -ENOSPC;
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_CANTOPEN:
        return -EACCES;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return -EAGAIN;
    case SQLITE_NOMEM:
        return -ENOMEM;
    default:
        return -EIO;
    }
}

/* The sentence for what SQLite just said about this store. */
static int fail(struct store_sqlite *store, int rc, struct ferry_error *err)
{
    int code = code_of(rc);

    if (code == -EBADMSG)
        return error_set(err, code,
                         "the record database %s is damaged (%s); move it away and start again: running VMs "
                         "are not affected, only history is lost",
                         store->path, sqlite3_errstr(rc));
    return error_set(err, code, "record database %s: %s", store->path,
                     store->db ? sqlite3_errmsg(store->db) : sqlite3_errstr(rc));
}

typedef void row_function(void *opaque, sqlite3_stmt *row);

/* Binds as TYPES says: 's' text (NULL allowed), 'i' int64_t. */
static int bind_values(sqlite3_stmt *statement, const char *types, va_list args)
{
    int rc = SQLITE_OK;

    for (int i = 0; types[i] && rc == SQLITE_OK; i++) {
        if (types[i] == 's')
            rc = sqlite3_bind_text(statement, i + 1, va_arg(args, const char *), -1, SQLITE_TRANSIENT);
        else
            rc = sqlite3_bind_int64(statement, i + 1, va_arg(args, int64_t));
    }
    return rc;
}

/* Runs one statement; EACH is called for every row. */
static int run(struct store_sqlite *store, struct ferry_error *err, row_function *each, void *opaque,
               const char *sql, const char *types, ...)
{
    sqlite3_stmt *statement = NULL;
    va_list args;
    int result = 0;
    int rc;

    pthread_mutex_lock(&store->lock);
    rc = sqlite3_prepare_v2(store->db, sql, -1, &statement, NULL);
    if (rc == SQLITE_OK) {
        va_start(args, types);
        rc = bind_values(statement, types, args);
        va_end(args);
    }
    while (rc == SQLITE_OK || rc == SQLITE_ROW) {
        rc = sqlite3_step(statement);
        if (rc == SQLITE_ROW && each)
            each(opaque, statement);
    }
    if (rc != SQLITE_DONE)
        result = fail(store, rc, err);
    sqlite3_finalize(statement);
    pthread_mutex_unlock(&store->lock);
    return result;
}

static const char *text_column(sqlite3_stmt *row, int column)
{
    const char *text = (const char *)sqlite3_column_text(row, column);

    return text ? text : "";
}

static void sqlite_close(struct store *base)
{
    struct store_sqlite *store = sqlite_of(base);

    sqlite3_close(store->db);
    pthread_mutex_destroy(&store->lock);
    free(store->path);
    free(store);
}

static void take_text(void *opaque, sqlite3_stmt *row)
{
    char **value = opaque;

    free(*value);
    *value = strdup(text_column(row, 0));
}

static int setting_get(struct store *store, const char *key, char **value, struct ferry_error *err)
{
    *value = NULL;
    return run(sqlite_of(store), err, take_text, value, "SELECT value FROM settings WHERE key = ?", "s", key);
}

static int setting_put(struct store *store, const char *key, const char *value, struct ferry_error *err)
{
    return run(sqlite_of(store), err, NULL, NULL, "INSERT OR REPLACE INTO settings VALUES (?, ?)", "ss", key,
               value);
}

static int host_put(struct store *store, const char *name, const char *address, struct ferry_error *err)
{
    return run(sqlite_of(store), err, NULL, NULL, "INSERT OR REPLACE INTO hosts VALUES (?, ?)", "ss", name,
               address);
}

static int host_delete(struct store *store, const char *name, struct ferry_error *err)
{
    return run(sqlite_of(store), err, NULL, NULL, "DELETE FROM hosts WHERE name = ?", "s", name);
}

static void take_host(void *opaque, sqlite3_stmt *row)
{
    json_array_append_new(
        opaque, json_pack("{s:s, s:s}", "name", text_column(row, 0), "address", text_column(row, 1)));
}

static int host_list(struct store *store, json_t **out, struct ferry_error *err)
{
    *out = json_array();
    return run(sqlite_of(store), err, take_host, *out, "SELECT name, address FROM hosts ORDER BY name", "");
}

static int migration_put(struct store *store, const struct store_migration *row, struct ferry_error *err)
{
    char *object = json_dumps(row->object, JSON_COMPACT);
    int result;

    if (!object)
        return error_set(err, -ENOMEM, "out of memory while recording migration %s", row->id);
    result = run(sqlite_of(store), err, NULL, NULL,
                 "INSERT OR REPLACE INTO migrations (id, vm, outcome, started_ns, ended_ns, object)"
                 " VALUES (?, ?, ?, ?, ?, ?)",
                 "sssiis", row->id, row->vm, row->outcome, (int64_t)row->started_ns, (int64_t)row->ended_ns,
                 object);
    free(object);
    return result;
}

static void take_object(void *opaque, sqlite3_stmt *row)
{
    json_t *object = json_loads(text_column(row, 0), 0, NULL);

    if (json_is_object(object))
        json_array_append(opaque, object);
    json_decref(object);
}

static int migration_list(struct store *store, enum store_view view, unsigned limit, json_t **out,
                          struct ferry_error *err)
{
    static const char *const queries[] = {
        [STORE_VIEW_ALL] = "SELECT object FROM migrations ORDER BY started_ns DESC, rowid DESC LIMIT ?",
        [STORE_VIEW_ACTIVE] = "SELECT object FROM migrations WHERE ended_ns = 0"
                              " ORDER BY started_ns DESC, rowid DESC LIMIT ?",
        [STORE_VIEW_HISTORY] = "SELECT object FROM migrations WHERE ended_ns != 0"
                               " ORDER BY started_ns DESC, rowid DESC LIMIT ?",
        [STORE_VIEW_FAILED] = "SELECT object FROM migrations WHERE ended_ns != 0 AND outcome != 'completed'"
                              " ORDER BY started_ns DESC, rowid DESC LIMIT ?",
        [STORE_VIEW_OPEN] = "SELECT object FROM migrations WHERE ended_ns != 0"
                            " AND json_valid(object) AND json_extract(object, '$.agreed') = 0"
                            " ORDER BY started_ns DESC, rowid DESC LIMIT ?",
    };

    *out = json_array();
    return run(sqlite_of(store), err, take_object, *out, queries[view], "i", (int64_t)limit);
}

static json_t *text_or_null(sqlite3_stmt *row, int column)
{
    json_t *text = json_string((const char *)sqlite3_column_text(row, column));

    return text ? text : json_null();
}

static json_t *number_or_null(sqlite3_stmt *row, int column)
{
    return sqlite3_column_type(row, column) == SQLITE_INTEGER
               ? json_integer(sqlite3_column_int64(row, column))
               : json_null();
}

static void take_numbers(void *opaque, sqlite3_stmt *row)
{
    json_array_append_new(opaque, json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "kind", text_or_null(row, 0),
                                            "outcome", text_or_null(row, 1), "cause", text_or_null(row, 2),
                                            "total_ns", number_or_null(row, 3), "downtime_ns",
                                            number_or_null(row, 4), "wire_bytes", number_or_null(row, 5)));
}

static int migration_numbers(struct store *store, unsigned limit, json_t **out, struct ferry_error *err)
{
    *out = json_array();
    return run(sqlite_of(store), err, take_numbers, *out,
               "SELECT json_extract(object, '$.kind'), outcome, json_extract(object, '$.cause'),"
               " json_extract(object, '$.total_ns'), json_extract(object, '$.downtime_ns'),"
               " json_extract(object, '$.wire_bytes') FROM migrations"
               " WHERE ended_ns != 0 AND json_valid(object) ORDER BY started_ns DESC, rowid DESC LIMIT ?",
               "i", (int64_t)limit);
}

static int migration_find(struct store *store, const char *prefix, json_t **out, struct ferry_error *err)
{
    *out = json_array();
    return run(sqlite_of(store), err, take_object, *out,
               "SELECT object FROM migrations WHERE substr(id, 1, length(?1)) = ?1 LIMIT 2", "s", prefix);
}

static int line_put(struct store *store, const struct store_line *line, struct ferry_error *err)
{
    return run(sqlite_of(store), err, NULL, NULL,
               "INSERT INTO migration_lines (migration, time_ns, level, host, text) VALUES (?, ?, ?, ?, ?)",
               "sisss", line->migration, (int64_t)line->time_ns, line->level, line->host, line->text);
}

static void take_line(void *opaque, sqlite3_stmt *row)
{
    json_array_append_new(opaque,
                          json_pack("{s:I, s:s, s:s, s:s}", "time_ns",
                                    (json_int_t)sqlite3_column_int64(row, 0), "level", text_column(row, 1),
                                    "host", text_column(row, 2), "text", text_column(row, 3)));
}

static int line_list(struct store *store, const char *migration, json_t **out, struct ferry_error *err)
{
    *out = json_array();
    return run(sqlite_of(store), err, take_line, *out,
               "SELECT time_ns, level, host, text FROM migration_lines WHERE migration = ? ORDER BY number",
               "s", migration);
}

static const char *event_text(const json_t *event, const char *key)
{
    const char *text = json_string_value(json_object_get(event, key));

    return text ? text : "";
}

static int event_put(struct store *store, const json_t *event, struct ferry_error *err)
{
    int64_t number = json_integer_value(json_object_get(event, "number"));
    int result = run(sqlite_of(store), err, NULL, NULL,
                     "INSERT OR REPLACE INTO events (number, time, host, code, level, vm, migration, text)"
                     " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                     "isssssss", number, event_text(event, "time"), event_text(event, "host"),
                     event_text(event, "code"), event_text(event, "level"), event_text(event, "vm"),
                     event_text(event, "migration"), event_text(event, "text"));

    if (result == 0 && number % EVENTS_PRUNE == 0)
        result = run(sqlite_of(store), err, NULL, NULL, "DELETE FROM events WHERE number <= ?", "i",
                     number - EVENTS_KEPT);
    return result;
}

static void take_event(void *opaque, sqlite3_stmt *row)
{
    const char *migration = text_column(row, 6);
    const char *vm = text_column(row, 5);

    json_array_append_new(opaque,
                          json_pack("{s:I, s:s, s:s, s:s, s:s, s:s?, s:s?, s:s}", "number",
                                    (json_int_t)sqlite3_column_int64(row, 0), "time", text_column(row, 1),
                                    "host", text_column(row, 2), "code", text_column(row, 3), "level",
                                    text_column(row, 4), "vm", vm[0] ? vm : NULL, "migration",
                                    migration[0] ? migration : NULL, "text", text_column(row, 7)));
}

static int event_list(struct store *store, uint64_t since, unsigned limit, json_t **out,
                      struct ferry_error *err)
{
    *out = json_array();
    return run(sqlite_of(store), err, take_event, *out,
               "SELECT number, time, host, code, level, vm, migration, text FROM events"
               " WHERE number > ? ORDER BY number LIMIT ?",
               "ii", since > INT64_MAX ? INT64_MAX : (int64_t)since, (int64_t)limit);
}

static int event_list_of(struct store *store, const char *migration, unsigned limit, json_t **out,
                         struct ferry_error *err)
{
    *out = json_array();
    return run(sqlite_of(store), err, take_event, *out,
               "SELECT number, time, host, code, level, vm, migration, text FROM events"
               " WHERE migration = ? ORDER BY number LIMIT ?",
               "si", migration, (int64_t)limit);
}

static void take_number(void *opaque, sqlite3_stmt *row)
{
    *(uint64_t *)opaque = (uint64_t)sqlite3_column_int64(row, 0);
}

static int event_last(struct store *store, uint64_t *number, struct ferry_error *err)
{
    *number = 0;
    return run(sqlite_of(store), err, take_number, number, "SELECT coalesce(max(number), 0) FROM events", "");
}

static const struct store_ops sqlite_ops = {
    .name = "sqlite",
    .close = sqlite_close,
    .setting_get = setting_get,
    .setting_put = setting_put,
    .host_put = host_put,
    .host_delete = host_delete,
    .host_list = host_list,
    .migration_put = migration_put,
    .migration_list = migration_list,
    .migration_numbers = migration_numbers,
    .migration_find = migration_find,
    .line_put = line_put,
    .line_list = line_list,
    .event_put = event_put,
    .event_list = event_list,
    .event_list_of = event_list_of,
    .event_last = event_last,
};

static int execute(struct store_sqlite *store, const char *sql, struct ferry_error *err)
{
    int rc = sqlite3_exec(store->db, sql, NULL, NULL, NULL);

    return rc == SQLITE_OK ? 0 : fail(store, rc, err);
}

static int create_schema(struct store_sqlite *store, struct ferry_error *err)
{
    int result = execute(store, "BEGIN IMMEDIATE", err);

    if (result == 0)
        result = execute(store, schema, err);
    if (result == 0)
        result = execute(store, "PRAGMA user_version = 1", err);
    if (result == 0)
        return execute(store, "COMMIT", err);
    sqlite3_exec(store->db, "ROLLBACK", NULL, NULL, NULL);
    return result;
}

/* Makes the schema of a new file; refuses what a newer Ferry wrote; checks that it can be written. */
static int prepare(struct store_sqlite *store, struct ferry_error *err)
{
    uint64_t version = 0;
    uint64_t tables = 0;
    int result = run(store, err, take_number, &version, "PRAGMA user_version", "");

    if (result == 0)
        result = run(store, err, take_number, &tables, "SELECT count(*) FROM sqlite_master", "");
    if (result < 0)
        return result;
    if (version > STORE_SCHEMA_VERSION)
        return error_set(err, -EPROTONOSUPPORT,
                         "the record database %s was written by a newer Ferry (version %llu of its layout, "
                         "this one knows %d); start that Ferry, or move the file away",
                         store->path, (unsigned long long)version, STORE_SCHEMA_VERSION);
    if (version == 0 && tables != 0)
        return error_set(err, -EBADMSG, "%s is a database, but not one of Ferry's; move it away",
                         store->path);
    result = execute(store, "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL", err);
    if (result == 0 && version == 0)
        return create_schema(store, err);
    if (result == 0)
        result = execute(store, "BEGIN IMMEDIATE; ROLLBACK", err);
    return result;
}

int store_open_sqlite(struct store **out, const char *path, struct ferry_error *err)
{
    struct store_sqlite *store = calloc(1, sizeof(*store));
    int result;
    int rc;

    *out = NULL;
    if (!store)
        return error_set(err, -ENOMEM, "out of memory");
    store->store.ops = &sqlite_ops;
    store->path = strdup(path);
    pthread_mutex_init(&store->lock, NULL);
    if (!store->path) {
        sqlite_close(&store->store);
        return error_set(err, -ENOMEM, "out of memory");
    }
    rc = sqlite3_open_v2(path, &store->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX,
                         NULL);
    if (rc == SQLITE_OK) {
        sqlite3_busy_timeout(store->db, BUSY_TIMEOUT_MS);
        result = prepare(store, err);
    } else {
        result = fail(store, rc, err);
    }
    if (result < 0) {
        sqlite_close(&store->store);
        return result;
    }
    *out = &store->store;
    return 0;
}
