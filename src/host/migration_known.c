/* What records of earlier migrations tell about the next one. */
#include "host/migration.h"

#include "base/clock.h"

#include <ferry/ferry.h>

#include <string.h>

#define LOOK_BACK 100 /* records */
/* Of so many the middle one counts: one may have met a busy moment. */
#define LIKE_MOST 5
/* A round of less tells more about its beginning and end than about the way. */
#define TELLING_BYTES (32 << 20)

static bool text_is(const json_t *object, const char *key, const char *value)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text && strcmp(text, value) == 0;
}

struct values {
    json_int_t of[LIKE_MOST]; /* in order */
    size_t count;
};

static void values_add(struct values *values, json_int_t value)
{
    size_t at = values->count++;

    for (; at > 0 && values->of[at - 1] > value; at--)
        values->of[at] = values->of[at - 1];
    values->of[at] = value;
}

static json_int_t values_middle(const struct values *values)
{
    return values->count ? values->of[values->count / 2] : 0;
}

static json_int_t number_of(const json_t *row, const char *key)
{
    return json_integer_value(json_object_get(row, key));
}

/* What the last pages needed on a link of PATH bytes a second after they had been given to it: it is in
 * "wire", but is no part of what a switchover takes whatever remains. */
static json_int_t draining(const json_t *row, uint64_t path)
{
    const json_t *rounds = json_object_get(row, "rounds");
    const json_t *last = json_array_get(rounds, json_array_size(rounds) - 1);
    double ns;

    if (!last || path == 0)
        return 0;
    ns = (double)number_of(last, "bytes") * NS_PER_S / (double)path - (double)number_of(last, "duration_ns");
    return ns <= 0 ? 0 : ns < 1e15 ? (json_int_t)ns : (json_int_t)1e15;
}

/* What giving the last pages to that link took: likewise of "last pages". The rest, looking for them and
 * waking who sends them, is there without any. */
static json_int_t giving(const json_t *row, uint64_t path)
{
    const json_t *rounds = json_object_get(row, "rounds");
    const json_t *last = json_array_get(rounds, json_array_size(rounds) - 1);
    double took = (double)number_of(last, "duration_ns");
    double needed = path ? (double)number_of(last, "bytes") * NS_PER_S / (double)path : took;

    return (json_int_t)(needed < took ? needed : took);
}

/* Of a part of a move's downtime, what did not come of its last pages. */
static json_int_t fixed_of(const json_t *row, enum ferry_downtime_part part, json_int_t value, uint64_t path)
{
    json_int_t pages = part == FERRY_DOWNTIME_WIRE         ? draining(row, path)
                       : part == FERRY_DOWNTIME_LAST_PAGES ? giving(row, path)
                                                           : 0;

    return value > pages ? value - pages : 0;
}

/* What the first round sent a second, of pages as they are and without a limit; 0: it does not tell. */
static json_int_t bandwidth_of(const json_t *row)
{
    const json_t *round = json_array_get(json_object_get(row, "rounds"), 0);
    json_int_t bytes = number_of(round, "bytes");
    json_int_t ns = number_of(round, "duration_ns");
    json_int_t limit = number_of(row, "bandwidth_limit");
    json_int_t compressed = 0;
    static const char *const slow[] = {"lz4", "zstd"};

    for (size_t i = 0; i < sizeof(slow) / sizeof(slow[0]); i++)
        compressed += number_of(json_object_get(json_object_get(row, "encodings"), slow[i]), "pages");
    if (!json_is_integer(json_object_get(row, "bandwidth_limit")) || limit != 0 || bytes < TELLING_BYTES ||
        ns <= 0 || compressed > number_of(row, "pages_raw") / 8)
        return 0;
    return (json_int_t)((double)bytes * NS_PER_S / (double)ns);
}

/* Each part's middle value, all of them stretched to what the middle move took: most moves meet a busy moment
 * in some part, which the parts' middle values alone leave out. */
static json_t *middle_parts(json_t *const *rows, size_t count, uint64_t path)
{
    struct values parts[FERRY_DOWNTIME_PARTS] = {0}, totals = {.count = 0};
    json_t *result = json_object();
    double sum = 0;

    for (size_t j = 0; j < count; j++) {
        json_int_t total = 0;

        for (int i = 0; i < FERRY_DOWNTIME_PARTS; i++) {
            const json_t *part = json_object_get(json_object_get(rows[j], "downtime_parts"),
                                                 ferry_downtime_part_name((enum ferry_downtime_part)i));
            json_int_t value = fixed_of(rows[j], (enum ferry_downtime_part)i, json_integer_value(part), path);

            if (json_is_integer(part))
                values_add(&parts[i], value);
            total += value;
        }
        values_add(&totals, total);
    }
    for (int i = 0; i < FERRY_DOWNTIME_PARTS; i++)
        sum += (double)values_middle(&parts[i]);
    for (int i = 0; i < FERRY_DOWNTIME_PARTS; i++) {
        double value = (double)values_middle(&parts[i]);

        if (sum > 0)
            value *= (double)values_middle(&totals) / sum;
        if (parts[i].count > 0)
            json_object_set_new(result, ferry_downtime_part_name((enum ferry_downtime_part)i),
                                json_integer((json_int_t)value));
    }
    return result;
}

/* ROWS are COUNT of one kind, newest first. */
static void costs_of(json_t *const *rows, size_t count, const char *vm, uint64_t path,
                     struct migration_known *known)
{
    struct values setup = {.count = 0}, used = {.count = 0}, bandwidth = {.count = 0};

    for (size_t i = 0; i < count; i++) {
        if (bandwidth_of(rows[i]) > 0)
            values_add(&bandwidth, bandwidth_of(rows[i]));
        values_add(&setup, number_of(rows[i], "setup_ns"));
        values_add(&used, number_of(rows[i], "memory_bytes") -
                              number_of(rows[i], "pages_skipped") * FERRY_PAGE_SIZE);
    }
    known->costs = json_pack("{s:o}", "downtime_parts", middle_parts(rows, count, path));
    known->bandwidth = (uint64_t)values_middle(&bandwidth);
    /* Another VM's devices, console and memory are not this one's. */
    if (!text_is(rows[0], "vm", vm))
        return;
    if (json_is_integer(json_object_get(rows[0], "state_bytes")))
        json_object_set(known->costs, "state_bytes", json_object_get(rows[0], "state_bytes"));
    known->setup_ns = values_middle(&setup) > 0 ? (uint64_t)values_middle(&setup) : 0;
    known->used_bytes = values_middle(&used) > 0 ? (uint64_t)values_middle(&used) : 0;
}

static bool is_like(const json_t *row)
{
    return text_is(row, "outcome", "completed") && text_is(row, "side", "source") &&
           !text_is(row, "kind", "upgrade") && json_is_object(json_object_get(row, "downtime_parts"));
}

void migration_known_costs(struct host *host, const char *vm, const char *destination, uint64_t path,
                           struct migration_known *known)
{
    /* Of the VM and to that host, of the VM, and to that host. */
    json_t *like[3][LIKE_MOST];
    size_t count[3] = {0};
    json_t *rows = NULL;
    json_t *row;
    size_t i;
    struct ferry_error err;

    *known = (struct migration_known){.costs = NULL};
    if (host->store->ops->migration_list(host->store, STORE_VIEW_HISTORY, LOOK_BACK, &rows, &err) < 0)
        host_record_failed(host, &err);
    json_array_foreach(rows, i, row)
    {
        bool same_vm = text_is(row, "vm", vm);
        bool same_host = text_is(row, "destination", destination);
        int kind = same_vm ? (same_host ? 0 : 1) : 2;

        if (is_like(row) && (same_vm || same_host) && count[kind] < LIKE_MOST)
            like[kind][count[kind]++] = row;
    }
    for (int kind = 0; kind < 3 && !known->costs; kind++) {
        if (count[kind] > 0) {
            costs_of(like[kind], count[kind], vm, path, known);
            known->same_way = kind != 1;
            if (!known->same_way)
                known->bandwidth = 0;
        }
    }
    json_decref(rows);
}
