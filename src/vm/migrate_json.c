#include "vm/migrate_internal.h"

static json_t *migration_rounds_json(const struct ferry_progress *progress)
{
    unsigned count = progress->round < FERRY_ROUNDS_MAX ? progress->round : FERRY_ROUNDS_MAX;
    json_t *rounds = json_array();

    for (unsigned i = 0; i < count; i++) {
        const struct ferry_round *round = &progress->rounds[i];

        json_array_append_new(rounds, json_pack("{s:I, s:I, s:I, s:I}", "pages", (json_int_t)round->pages,
                                                "bytes", (json_int_t)round->bytes, "duration_ns",
                                                (json_int_t)round->duration_ns, "dirtied_pages",
                                                (json_int_t)round->dirtied_pages));
    }
    return rounds;
}

static json_t *migration_parts_json(const struct ferry_progress *progress)
{
    json_t *parts = json_object();

    for (unsigned i = 0; i < FERRY_DOWNTIME_PARTS; i++)
        json_object_set_new(parts, ferry_downtime_part_name(i),
                            json_integer((json_int_t)progress->downtime_part_ns[i]));
    return parts;
}

static void set_number(json_t *object, const char *name, uint64_t value)
{
    json_object_set_new(object, name, json_integer((json_int_t)value));
}

/* null when it was not used. */
static json_t *migration_fetch_json(const struct ferry_fetch_progress *fetch)
{
    json_t *json;

    if (!fetch->used)
        return json_null();
    json = json_pack("{s:b, s:b}", "fetching", fetch->running, "disconnected", fetch->disconnected);
    set_number(json, "missing_pages", fetch->missing_pages);
    set_number(json, "faults", fetch->faults);
    set_number(json, "fault_median_ns", fetch->fault_median_ns);
    set_number(json, "fault_p99_ns", fetch->fault_p99_ns);
    set_number(json, "fault_max_ns", fetch->fault_max_ns);
    set_number(json, "duration_ns", fetch->duration_ns);
    set_number(json, "reconnects", fetch->reconnects);
    set_number(json, "paused_ns", fetch->paused_ns);
    return json;
}

/* What each encoding did, and so much less went over the link. */
static json_t *migration_encodings_json(const struct ferry_progress *progress)
{
    uint64_t zero = progress->pages_zero;
    json_t *object = json_pack("{s:{s:I, s:I}}", "zero", "pages", (json_int_t)zero, "saved_bytes",
                               (json_int_t)zero * FERRY_PAGE_SIZE);

    for (int i = 0; i < FERRY_ENCODINGS; i++) {
        const struct ferry_encoded *encoded = &progress->encoded[i];

        json_object_set_new(object, ferry_encoding_name((enum ferry_encoding)i),
                            json_pack("{s:I, s:I}", "pages", (json_int_t)encoded->pages, "saved_bytes",
                                      (json_int_t)(encoded->pages * FERRY_PAGE_SIZE - encoded->bytes)));
    }
    return object;
}

json_t *migration_json(const struct migration *migration, bool with_log)
{
    const struct ferry_progress *progress;
    json_t *json;

    if (!migration)
        return json_null();
    progress = &migration->progress;
    json =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:s, s:i, s:s, s:s, s:s, s:s, s:s?}", "id",
                  migration->id, "vm", migration->vm->config.name, "source", migration->source, "destination",
                  migration->destination, "side", migration->is_source ? "source" : "destination", "kind",
                  migration_stays(migration) ? "upgrade" : "hot", "state", ferry_state_name(progress->state),
                  "state_number", (int)progress->state, "phase", ferry_phase_name(progress->phase), "percent",
                  (int)progress->percent, "outcome", ferry_outcome_name(progress->outcome), "cause",
                  ferry_cause_name(progress->cause), "error", progress->error, "started", migration->started,
                  "ended", migration->ended[0] ? migration->ended : NULL);
    if (!json)
        return json_null();
    /* READY is the state until the other side has answered, too. */
    json_object_set_new(json, "begun", json_boolean(migration->step != MIGRATION_PREPARED));
    json_object_set_new(json, "dirty_tracking", json_string(migration->tracking));
    json_object_set_new(json, "encryption", json_string(progress->encryption));
    set_number(json, "memory_bytes", progress->memory_bytes);
    set_number(json, "remaining_bytes", progress->remaining_bytes);
    set_number(json, "wire_bytes", progress->wire_bytes);
    set_number(json, "pages_raw", progress->pages_raw);
    set_number(json, "pages_zero", progress->pages_zero);
    set_number(json, "pages_skipped", progress->pages_skipped);
    set_number(json, "pages_postponed", progress->pages_postponed);
    json_object_set_new(json, "encodings", migration_encodings_json(progress));
    set_number(json, "bandwidth", progress->bandwidth_bytes_per_s);
    set_number(json, "copy_rate", progress->copy_bytes_per_s);
    set_number(json, "dirty_rate", progress->dirty_bytes_per_s);
    set_number(json, "throttle", progress->throttle_percent);
    set_number(json, "throttle_most", progress->throttle_percent_most);
    set_number(json, "state_bytes", progress->state_bytes);
    set_number(json, "total_ns", progress->total_ns);
    set_number(json, "setup_ns", progress->setup_ns);
    set_number(json, "downtime_ns", progress->downtime_ns);
    set_number(json, "round", progress->round);
    json_object_set_new(json, "quick_resume", migration_fetch_json(&progress->fetch));
    json_object_set_new(json, "downtime_parts", migration_parts_json(progress));
    json_object_set_new(json, "rounds", migration_rounds_json(progress));
    if (with_log)
        json_object_set(json, "log", migration->lines);
    return json;
}
