/* ferry_forecast: the policy, run ahead of time on numbers instead of a guest. */
#include "engine/policy.h"

#include "base/clock.h"

#include <ferry/ferry.h>

#include <string.h>
#include <unistd.h>

/* As session.c has it for slow links, where compression may pay. */
#define STREAMS 2
/* As choice.c: a way must promise to be so much faster to be tried; what goes out before, into buffers and in
 * the first windows. */
#define PROMISE              0.85
#define LEAD_BYTES           (8u << 20)
#define DOWNTIME_DEFAULT_NS  (50 * NS_PER_MS)
#define COPY_TIME_DEFAULT_NS (100 * NS_PER_S)

static enum ferry_forecast_end end_of(enum policy_verdict verdict)
{
    switch (verdict) {
    case POLICY_STOP:
        return FERRY_FORECAST_STOP;
    case POLICY_QUICK_RESUME:
        return FERRY_FORECAST_QUICK_RESUME;
    case POLICY_ABORT:
        return FERRY_FORECAST_ABORT;
    case POLICY_CONTINUE:
        break;
    }
    return FERRY_FORECAST_NONE;
}

static unsigned throttle_of(const struct ferry_forecast_input *input)
{
    unsigned most = input->throttle_max ? input->throttle_max : POLICY_THROTTLE_DEFAULT;

    if (input->no_throttle)
        return 0;
    return most > POLICY_THROTTLE_MAX ? POLICY_THROTTLE_MAX : most;
}

/* What a page costs in one way: the link's time or the cores', whichever is more. */
struct way {
    double page_bytes;
    double page_ns;
};

static struct way way_of(const struct ferry_forecast_input *input, enum ferry_compress compress,
                         uint64_t bandwidth)
{
    enum ferry_encoding encoding = compress == FERRY_COMPRESS_LZ4 ? FERRY_ENCODING_LZ4 : FERRY_ENCODING_ZSTD;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    double threads = input->streams ? input->streams : STREAMS;
    struct way way = {.page_bytes = FERRY_PAGE_SIZE};

    if (compress != FERRY_COMPRESS_OFF && input->compressibility.page_bytes[encoding] > 0) {
        way.page_bytes = (double)input->compressibility.page_bytes[encoding];
        way.page_ns =
            (double)input->compressibility.page_ns[encoding] / (cpus > 0 && cpus < threads ? cpus : threads);
    }
    if (way.page_ns < way.page_bytes * (double)NS_PER_S / (double)bandwidth)
        way.page_ns = way.page_bytes * (double)NS_PER_S / (double)bandwidth;
    return way;
}

/* Which way most pages will go, as choice.c will find it out. */
static enum ferry_compress foresee(const struct ferry_forecast_input *input, uint64_t bandwidth)
{
    static const enum ferry_compress ways[] = {FERRY_COMPRESS_LZ4, FERRY_COMPRESS_ZSTD};
    enum ferry_compress best = FERRY_COMPRESS_OFF;

    if (input->compress != FERRY_COMPRESS_AUTO || bandwidth == 0)
        return input->compress == FERRY_COMPRESS_AUTO ? best : input->compress;
    for (size_t i = 0; i < 2; i++) {
        if (way_of(input, ways[i], bandwidth).page_ns < PROMISE * way_of(input, best, bandwidth).page_ns)
            best = ways[i];
    }
    return best;
}

/* Memory a second, on a way that carries BANDWIDTH; 0 stays 0. */
static uint64_t memory_rate(const struct ferry_forecast_input *input, enum ferry_compress compress,
                            uint64_t bandwidth)
{
    return bandwidth
               ? (uint64_t)(FERRY_PAGE_SIZE * (double)NS_PER_S / way_of(input, compress, bandwidth).page_ns)
               : 0;
}

/* From memory to what is on the wire. Until it was found out that compression pays, pages go as they are. */
static void count_wire(const struct ferry_forecast_input *input, uint64_t bandwidth,
                       struct ferry_forecast *forecast)
{
    struct way plain = way_of(input, FERRY_COMPRESS_OFF, bandwidth);
    struct way way = way_of(input, forecast->compress, bandwidth);
    double bytes = (double)forecast->bytes;
    double lead = input->compress == FERRY_COMPRESS_AUTO ? LEAD_BYTES : 0;

    if (forecast->compress == FERRY_COMPRESS_OFF)
        return;
    if (lead > bytes)
        lead = bytes;
    forecast->bytes = (uint64_t)(lead + (bytes - lead) * way.page_bytes / FERRY_PAGE_SIZE);
    if (plain.page_ns > way.page_ns)
        forecast->total_ns += (uint64_t)(lead / FERRY_PAGE_SIZE * (plain.page_ns - way.page_ns));
}

void ferry_forecast(const struct ferry_forecast_input *input, struct ferry_forecast *forecast)
{
    const struct policy_settings settings = {
        .downtime_limit_ns = input->downtime_limit_ns ? input->downtime_limit_ns : DOWNTIME_DEFAULT_NS,
        .copy_time_limit_ns = input->copy_time_limit_ns ? input->copy_time_limit_ns : COPY_TIME_DEFAULT_NS,
        .throttle_max = throttle_of(input),
        .quick_resume = input->quick_resume,
    };
    uint64_t path = input->bandwidth_bytes_per_s;
    uint64_t bandwidth =
        input->bandwidth_limit && input->bandwidth_limit < path ? input->bandwidth_limit : path;
    enum ferry_compress compress = foresee(input, bandwidth);
    /* The limit does not count once the guest is stopped. */
    const struct policy_model model = {.dirty_rate = input->dirty_bytes_per_s,
                                       .working_set = input->working_set_bytes,
                                       .frozen_bandwidth = memory_rate(input, foresee(input, path), path)};
    struct policy_costs costs = {.state_bytes = input->state_bytes};
    struct policy_forecast ahead;
    struct policy policy;

    memcpy(costs.part_ns, input->part_ns, sizeof(costs.part_ns));
    policy_init(&policy, &settings);
    ahead = policy_forecast(&policy, input->memory_bytes, memory_rate(input, compress, bandwidth), &model,
                            &costs);
    *forecast = (struct ferry_forecast){
        .end = end_of(ahead.verdict),
        .converges = ahead.converges,
        .rounds = ahead.rounds,
        .bytes = ahead.bytes,
        .compress = compress,
        .total_ns = ahead.total_ns + input->setup_ns,
        .downtime_ns = ahead.downtime_ns,
        .throttle = ahead.throttle,
    };
    if (bandwidth > 0)
        count_wire(input, bandwidth, forecast);
}
