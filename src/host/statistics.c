#include "host/statistics.h"

#include "host/migration.h"

#include <stdlib.h>
#include <string.h>

/* The newest ones; a host that has had more is told about these. */
#define ROWS_MAX 100000

static const char *text_of(const json_t *row, const char *key, const char *otherwise)
{
    const char *text = json_string_value(json_object_get(row, key));

    return text && text[0] ? text : otherwise;
}

static uint64_t number_of(const json_t *row, const char *key)
{
    json_int_t value = json_integer_value(json_object_get(row, key));

    return value > 0 ? (uint64_t)value : 0;
}

static void count_up(json_t *object, const char *key)
{
    json_int_t count = json_integer_value(json_object_get(object, key));

    json_object_set_new(object, key, json_integer(count + 1));
}

static int compare_numbers(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left;
    uint64_t b = *(const uint64_t *)right;

    return a < b ? -1 : a > b;
}

/* The smallest value that PERMILLE of the COUNT sorted ones do not exceed (nearest rank). */
static uint64_t quantile(const uint64_t *sorted, size_t count, size_t permille)
{
    size_t rank = (count * permille + 999) / 1000;

    return sorted[rank > 0 ? rank - 1 : 0];
}

/* {median, p99, most} of KEY over the completed ones of KIND whose record has it; null when there are none.
 */
static json_t *spread(const json_t *rows, const char *kind, const char *key)
{
    uint64_t *values = calloc(json_array_size(rows) + 1, sizeof(*values));
    json_t *result = NULL;
    size_t count = 0;
    json_t *row;
    size_t i;

    if (!values)
        return json_null();
    json_array_foreach(rows, i, row)
    {
        if (strcmp(text_of(row, "kind", "hot"), kind) == 0 &&
            strcmp(text_of(row, "outcome", ""), "completed") == 0 && number_of(row, key) > 0)
            values[count++] = number_of(row, key);
    }
    if (count > 0) {
        qsort(values, count, sizeof(*values), compare_numbers);
        result = json_pack("{s:I, s:I, s:I}", "median", (json_int_t)quantile(values, count, 500), "p99",
                           (json_int_t)quantile(values, count, 990), "most", (json_int_t)values[count - 1]);
    }
    free(values);
    return result ? result : json_null();
}

static json_t *new_kind(void)
{
    return json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:I, s:{}}", "count", 0, "completed", 0, "failed", 0,
                     "cancelled", 0, "lost", 0, "unknown", 0, "wire_bytes", (json_int_t)0, "causes");
}

static void add_row(json_t *kinds, const json_t *row)
{
    const char *kind = text_of(row, "kind", "hot");
    const char *outcome = text_of(row, "outcome", "unknown");
    json_t *sums = json_object_get(kinds, kind);
    uint64_t bytes;

    if (!sums) {
        sums = new_kind();
        json_object_set_new(kinds, kind, sums);
    }
    count_up(sums, "count");
    if (json_object_get(sums, outcome))
        count_up(sums, outcome);
    bytes = number_of(sums, "wire_bytes") + number_of(row, "wire_bytes");
    json_object_set_new(sums, "wire_bytes", json_integer((json_int_t)bytes));
    if (strcmp(outcome, "completed") != 0 && strcmp(outcome, "cancelled") != 0)
        count_up(json_object_get(sums, "causes"), text_of(row, "cause", "internal"));
}

static json_t *success(const json_t *sums)
{
    uint64_t tried = number_of(sums, "count") - number_of(sums, "cancelled");

    return tried > 0 ? json_integer((json_int_t)(number_of(sums, "completed") * 1000 / tried)) : json_null();
}

json_t *statistics_make(const json_t *rows)
{
    json_t *kinds = json_object();
    const char *kind;
    json_t *sums;
    json_t *row;
    size_t i;

    json_array_foreach(rows, i, row) add_row(kinds, row);
    json_object_foreach(kinds, kind, sums)
    {
        json_object_set_new(sums, "success_permille", success(sums));
        json_object_set_new(sums, "total_ns", spread(rows, kind, "total_ns"));
        json_object_set_new(sums, "downtime_ns", spread(rows, kind, "downtime_ns"));
    }
    return kinds;
}

json_t *statistics_of_host(struct host *host)
{
    struct ferry_error err;
    json_int_t active = 0;
    json_t *rows = NULL;
    json_t *kinds;

    host_lock(host);
    for (struct migration *migration = host->migrations; migration; migration = migration->next)
        active += !migration->ended;
    host_unlock(host);
    if (host->store->ops->migration_numbers(host->store, ROWS_MAX, &rows, &err) < 0)
        host_record_failed(host, &err);
    kinds = statistics_make(rows);
    json_decref(rows);
    return json_pack("{s:I, s:o}", "active", active, "kinds", kinds);
}
