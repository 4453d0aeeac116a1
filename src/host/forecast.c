#include "host/forecast.h"

#include "base/clock.h"
#include "base/error.h"
#include "host/fields.h"
#include "host/migration.h"
#include "host/probe.h"
#include "host/vm_process.h"

#include <ferry/ferry.h>

#define SAMPLE_MS 1000 /* ferry-vm's window */
#define PAGE      FERRY_PAGE_SIZE
#define LOOKS_MAX 16
/* As engine/destination.c: how long the first page waits for memory to be ready. */
#define PREPARE_MOST_NS NS_PER_S

/* What a VM adds to a switchover of nothing, on a quiet machine: stopping and saving it, loading and starting
 * it. */
static const uint64_t guest_part_ns[FERRY_DOWNTIME_PARTS] = {
    [FERRY_DOWNTIME_PAUSE] = NS_PER_MS / 50,      [FERRY_DOWNTIME_QUIESCE] = NS_PER_MS / 50,
    [FERRY_DOWNTIME_STATE_SAVE] = NS_PER_MS / 10, [FERRY_DOWNTIME_STATE_LOAD] = NS_PER_MS / 20,
    [FERRY_DOWNTIME_LOCK] = NS_PER_MS / 50,       [FERRY_DOWNTIME_RESUME] = NS_PER_MS / 20,
};

/* How a guest writes: the pages it had written once after so long. */
struct looks {
    unsigned count;
    double seconds[LOOKS_MAX];
    double bytes[LOOKS_MAX];
    uint64_t used_bytes;
    uint64_t zero_permille;
    struct ferry_compressibility compressibility;
};

/* Of a ferry-vm that does not say, nothing is known. */
static int read_compressibility(const json_t *answer, struct ferry_compressibility *result,
                                struct ferry_error *err)
{
    for (int i = FERRY_ENCODING_LZ4; i <= FERRY_ENCODING_ZSTD; i++) {
        const struct field fields[] = {
            {"page_bytes", FIELD_UINT, true, &result->page_bytes[i]},
            {"page_ns", FIELD_UINT, true, &result->page_ns[i]},
        };
        const json_t *row = json_object_get(answer, ferry_encoding_name((enum ferry_encoding)i));

        if (row && fields_read(row, fields, 2, FIELDS_LOOSE, "the answer of ferry-vm", err) < 0)
            return -EBADMSG;
    }
    return 0;
}

static int read_looks(const json_t *answer, struct looks *looks, struct ferry_error *err)
{
    json_t *list = NULL;
    json_t *row;
    size_t i;
    const struct field fields[] = {
        {"looks", FIELD_ARRAY, true, &list},
        {"used_bytes", FIELD_UINT, true, &looks->used_bytes},
        {"zero_permille", FIELD_UINT, true, &looks->zero_permille},
    };
    int result = fields_read(answer, fields, 3, FIELDS_LOOSE, "the answer of ferry-vm", err);

    json_array_foreach(list, i, row)
    {
        double seconds = (double)json_integer_value(json_object_get(row, "elapsed_ns")) / NS_PER_S;
        double bytes = (double)json_integer_value(json_object_get(row, "pages")) * PAGE;

        if (result == 0 && i < LOOKS_MAX && seconds > 0 && bytes >= 0) {
            looks->seconds[looks->count] = seconds;
            looks->bytes[looks->count++] = bytes;
        }
    }
    if (result == 0)
        result = read_compressibility(answer, &looks->compressibility, err);
    if (result == 0 && (looks->count == 0 || looks->zero_permille > 1000))
        result = error_set(err, -EBADMSG, "the answer of ferry-vm makes no sense");
    return result;
}

static int sample(struct host *host, struct vm *vm, struct looks *looks, struct ferry_error *err)
{
    struct vm_process *process = vm_process_get(host, vm);
    json_t *answer = NULL;
    int result;

    if (!process)
        return error_set(err, HOST_CONFLICT, "VM %s does not run any more", vm->name);
    result = vm_process_call(process, "memory.sample", NULL, SAMPLE_MS + host_vm_ms(host), &answer, err);
    if (result == 0)
        result = read_looks(answer, looks, err);
    json_decref(answer);
    vm_process_unref(process);
    return result;
}

/*
 * At first new pages come at the rate of the first look. Over a round as long as FIRST_S the guest will have
 * written what the looks say, and beyond them what the last half of them goes on to.
 */
static void model(const struct looks *looks, double first_s, struct ferry_forecast_input *input)
{
    unsigned last = looks->count - 1;
    double most = looks->bytes[last];

    input->dirty_bytes_per_s = (uint64_t)(looks->bytes[0] / looks->seconds[0]);
    if (last > 0 && first_s > looks->seconds[last]) {
        double slope =
            (looks->bytes[last] - looks->bytes[last - 1]) / (looks->seconds[last] - looks->seconds[last - 1]);

        if (slope > 0)
            most += slope * (first_s - looks->seconds[last]);
    }
    if (most > (double)looks->used_bytes)
        most = (double)looks->used_bytes;
    input->working_set_bytes = (uint64_t)most;
}

static uint64_t bandwidth_of(const struct ferry_progress *report)
{
    const struct ferry_round *round = &report->rounds[0];

    if (report->round == 0 || round->duration_ns == 0)
        return 0;
    return (uint64_t)((double)(round->pages * PAGE) * NS_PER_S / (double)round->duration_ns);
}

/* Connecting, and until the other host has all memory ready that is in use: as long as in the VM's last moves
 * to it, else as the probe's took, for as much more or less. Copying does not wait for it without end. */
static uint64_t setup_of(const struct ferry_progress *report, const struct migration_known *known,
                         uint64_t used_bytes)
{
    uint64_t connecting = report->setup_ns - report->prepare_ns;
    double ready = (double)report->prepare_ns * (double)used_bytes / PROBE_SIZE;

    if (known->same_way && known->setup_ns && known->used_bytes)
        ready = known->setup_ns > connecting
                    ? (double)(known->setup_ns - connecting) * (double)used_bytes / (double)known->used_bytes
                    : 0;
    if (ready > (double)PREPARE_MOST_NS)
        ready = (double)PREPARE_MOST_NS;
    return connecting + (uint64_t)ready;
}

/* The middle of some moves is better than the one time the probe took, which may have met a busy moment;
 * unless the way has become much longer since. */
static uint64_t wire_of(uint64_t probed_ns, const json_t *parts)
{
    json_int_t known =
        json_integer_value(json_object_get(parts, ferry_downtime_part_name(FERRY_DOWNTIME_WIRE)));

    return known > 0 && (uint64_t)known >= probed_ns / 4 ? (uint64_t)known : probed_ns;
}

/* Likewise of the bandwidth, unless the way carries much more or less than then. */
static uint64_t path_of(uint64_t probed, uint64_t known)
{
    return known >= probed / 2 && known / 2 <= probed ? known : probed;
}

/* As they were in the last moves of the VM, or to that host; before there is one, the probe's and a guess. */
static void fixed_parts(const struct migration_known *known, const struct ferry_progress *report,
                        struct ferry_forecast_input *input)
{
    const json_t *parts = json_object_get(known->costs, "downtime_parts");

    for (size_t i = 0; i < FERRY_DOWNTIME_PARTS; i++) {
        const json_t *part = json_object_get(parts, ferry_downtime_part_name((enum ferry_downtime_part)i));

        input->part_ns[i] = report->downtime_part_ns[i] + guest_part_ns[i];
        if (json_is_integer(part) && i != FERRY_DOWNTIME_WIRE)
            input->part_ns[i] = (uint64_t)json_integer_value(part);
    }
    input->part_ns[FERRY_DOWNTIME_WIRE] =
        wire_of(report->downtime_part_ns[FERRY_DOWNTIME_WIRE], known->same_way ? parts : NULL);
}

static const char *const end_words[] = {
    [FERRY_FORECAST_NONE] = "none",
    [FERRY_FORECAST_STOP] = "stop",
    [FERRY_FORECAST_QUICK_RESUME] = "quick resume",
    [FERRY_FORECAST_ABORT] = "abort",
};

static json_t *describe(const struct ferry_forecast_input *input, const struct ferry_forecast *forecast)
{
    char now[CLOCK_TEXT_SIZE];

    clock_format(clock_realtime_ns(), now);
    return json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:s, s:b, s:i, s:I, s:I, s:I, s:i, s:s}", "time", now, "memory_bytes",
        (json_int_t)input->memory_bytes, "dirty_bytes_per_s", (json_int_t)input->dirty_bytes_per_s,
        "working_set_bytes", (json_int_t)input->working_set_bytes, "bandwidth_bytes_per_s",
        (json_int_t)input->bandwidth_bytes_per_s, "end", end_words[forecast->end], "converges",
        forecast->converges, "rounds", (int)forecast->rounds, "total_ns", (json_int_t)forecast->total_ns,
        "downtime_ns", (json_int_t)forecast->downtime_ns, "bytes", (json_int_t)forecast->bytes, "throttle",
        (int)forecast->throttle, "compress", ferry_compress_name(forecast->compress));
}

int forecast_make(struct host *host, struct vm *vm, const char *destination, const char *address,
                  const struct migration_options *options, json_t **answer, struct ferry_error *err)
{
    struct ferry_forecast_input input = {
        .bandwidth_limit = options->bandwidth_limit,
        .downtime_limit_ns = options->downtime_limit,
        .copy_time_limit_ns = options->copy_time_limit,
        .no_throttle = options->throttle_max == 0,
        .throttle_max = options->throttle_max == MIGRATION_DEFAULT ? 0 : (unsigned)options->throttle_max,
        .quick_resume = options->quick_resume != NULL,
        .streams = (unsigned)options->streams,
    };
    struct ferry_forecast forecast;
    struct ferry_progress report;
    struct migration_known known;
    struct looks looks = {0};
    double rate;
    int result = options->compress ? ferry_compress_parse(options->compress, &input.compress, err) : 0;

    if (result == 0)
        result = sample(host, vm, &looks, err);
    if (result == 0)
        result = probe_send(host, destination, address, (unsigned)options->streams, &report, err);
    if (result < 0)
        return result;
    input.memory_bytes = looks.used_bytes / 1000 * (1000 - looks.zero_permille);
    input.bandwidth_bytes_per_s = bandwidth_of(&report);
    migration_known_costs(host, vm->name, destination, input.bandwidth_bytes_per_s, &known);
    input.bandwidth_bytes_per_s = path_of(input.bandwidth_bytes_per_s, known.bandwidth);
    input.setup_ns = setup_of(&report, &known, looks.used_bytes);
    input.compressibility = looks.compressibility;
    fixed_parts(&known, &report, &input);
    json_decref(known.costs);
    rate = (double)input.bandwidth_bytes_per_s;
    if (input.bandwidth_limit && (double)input.bandwidth_limit < rate)
        rate = (double)input.bandwidth_limit;
    model(&looks, rate > 0 ? (double)input.memory_bytes / rate : 0, &input);
    ferry_forecast(&input, &forecast);
    *answer = describe(&input, &forecast);
    return *answer ? 0 : error_set(err, -ENOMEM, "out of memory");
}
