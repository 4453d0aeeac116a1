#include "vm/migrate_internal.h"

#include "base/error.h"
#include "vm/params.h"

#include <errno.h>
#include <string.h>

/* What ferryd remembers of earlier moves. */
static int source_known(struct ferry_source_options *options, const json_t *known, struct ferry_error *err)
{
    static const char *const names[] = {"downtime_parts", "state_bytes", NULL};
    const json_t *parts = json_object_get(known, "downtime_parts");
    int result;

    if (!known)
        return 0;
    result = params_only(known, names, err);
    if (!result)
        result = params_number(known, "state_bytes", INT64_MAX, &options->known_state_bytes, err);
    for (unsigned i = 0; i < FERRY_DOWNTIME_PARTS && parts && !result; i++)
        result = params_number(parts, ferry_downtime_part_name(i), 3600 * NS_PER_S,
                               &options->known_part_ns[i], err);
    return result;
}

/* Absent: the default; 0: never. */
static int source_throttle_max(struct ferry_source_options *options, const json_t *params,
                               struct ferry_error *err)
{
    uint64_t percent = UINT64_MAX;
    int result = params_number(params, "throttle_max", 99, &percent, err);

    options->no_throttle = percent == 0;
    options->throttle_max = percent == UINT64_MAX ? 0 : (unsigned)percent;
    return result;
}

/* How pages are sent; absent: as libferry has it. */
static int source_encoding(struct ferry_source_options *options, const json_t *params,
                           struct ferry_error *err)
{
    const json_t *compress = json_object_get(params, "compress");
    uint64_t cache = UINT64_MAX;
    int result = params_number(params, "delta_cache", INT64_MAX, &cache, err);

    options->no_delta_cache = cache == 0;
    options->delta_cache = cache == UINT64_MAX ? 0 : cache;
    if (result || !compress)
        return result;
    if (!json_is_string(compress))
        return error_set(err, -EINVAL, "parameter \"compress\" must be a text");
    return ferry_compress_parse(json_string_value(compress), &options->compress, err);
}

int migration_load_credentials(struct ferry_credentials **out, const json_t *params, struct ferry_error *err)
{
    const json_t *path = json_object_get(params, "certificate");

    *out = NULL;
    if (!path)
        return 0;
    if (!json_is_string(path))
        return error_set(err, -EINVAL, "parameter \"certificate\" must be a path");
    return ferry_credentials_load(out, json_string_value(path), err);
}

static int source_quick_resume(struct ferry_source_options *options, const json_t *params,
                               struct ferry_error *err)
{
    const json_t *value = json_object_get(params, "quick_resume");
    const char *text = json_string_value(value);
    uint64_t rounds = 0;
    int result = params_number(params, "quick_resume_rounds", FERRY_ROUNDS_MAX, &rounds, err);

    if (!result)
        result = params_number(params, "reconnect", INT64_MAX, &options->reconnect_ns, err);
    if (result)
        return result;
    options->quick_resume_rounds = (unsigned)rounds;
    if (text && strcmp(text, "allowed") == 0)
        options->quick_resume = FERRY_QUICK_RESUME_ALLOWED;
    else if (text && strcmp(text, "now") == 0)
        options->quick_resume = FERRY_QUICK_RESUME_NOW;
    else if (value && !json_is_null(value))
        return error_set(err, -EINVAL, "parameter \"quick_resume\" must be \"allowed\" or \"now\"");
    return 0;
}

int migration_source_options(struct ferry_source_options *options, const struct migration *migration,
                             json_t *params, struct ferry_error *err)
{
    static const char *const names[] = {"id",
                                        "token",
                                        "address",
                                        "destination_pid",
                                        "streams",
                                        "compress",
                                        "delta_cache",
                                        "downtime_limit",
                                        "bandwidth_limit",
                                        "copy_time_limit",
                                        "throttle_max",
                                        "known",
                                        "verify_memory",
                                        "peer_timeout",
                                        "pass_memory",
                                        "certificate",
                                        "quick_resume",
                                        "quick_resume_rounds",
                                        "reconnect",
                                        NULL};
    uint64_t pid = 0, streams = 0;
    int result = params_only(params, names, err);

    *options = (struct ferry_source_options){
        .verify_memory = json_is_true(json_object_get(params, "verify_memory")),
        .pass_memory = json_is_true(json_object_get(params, "pass_memory")),
    };
    memcpy(options->migration_id, migration->id, sizeof(options->migration_id));
    memcpy(options->source, migration->source, sizeof(options->source));
    memcpy(options->destination, migration->destination, sizeof(options->destination));
    if (!result)
        result = params_hex(params, "token", options->token, sizeof(options->token), err);
    if (!result)
        result = params_text(params, "address", options->address, sizeof(options->address), err);
    if (!result)
        result = params_number(params, "destination_pid", INT32_MAX, &pid, err);
    if (!result)
        result = params_number(params, "streams", FERRY_STREAMS_MAX, &streams, err);
    if (!result)
        result = source_encoding(options, params, err);
    if (!result)
        result = params_number(params, "downtime_limit", INT64_MAX, &options->downtime_limit_ns, err);
    if (!result)
        result = params_number(params, "bandwidth_limit", INT64_MAX, &options->bandwidth_limit, err);
    if (!result)
        result = params_number(params, "copy_time_limit", INT64_MAX, &options->copy_time_limit_ns, err);
    if (!result)
        result = source_throttle_max(options, params, err);
    if (!result)
        result = source_known(options, json_object_get(params, "known"), err);
    if (!result)
        result = source_quick_resume(options, params, err);
    if (!result)
        result = params_number(params, "peer_timeout", INT64_MAX, &options->peer_timeout_ns, err);
    if (!result)
        result = migration_load_credentials(&options->credentials, params, err);
    options->destination_pid = (int64_t)pid;
    options->streams = (unsigned)streams;
    return result;
}
