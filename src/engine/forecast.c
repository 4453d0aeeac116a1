/* ferry_forecast: the policy, run ahead of time on numbers instead of a guest. */
#include "engine/policy.h"

#include "base/clock.h"

#include <ferry/ferry.h>

#include <string.h>

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

void ferry_forecast(const struct ferry_forecast_input *input, struct ferry_forecast *forecast)
{
    const struct policy_settings settings = {
        .downtime_limit_ns = input->downtime_limit_ns ? input->downtime_limit_ns : DOWNTIME_DEFAULT_NS,
        .copy_time_limit_ns = input->copy_time_limit_ns ? input->copy_time_limit_ns : COPY_TIME_DEFAULT_NS,
        .throttle_max = throttle_of(input),
        .quick_resume = input->quick_resume,
    };
    /* The limit does not count once the guest is stopped. */
    const struct policy_model model = {.dirty_rate = input->dirty_bytes_per_s,
                                       .working_set = input->working_set_bytes,
                                       .frozen_bandwidth = input->bandwidth_bytes_per_s};
    uint64_t bandwidth = input->bandwidth_bytes_per_s;
    struct policy_costs costs = {.state_bytes = input->state_bytes};
    struct policy_forecast ahead;
    struct policy policy;

    memcpy(costs.part_ns, input->part_ns, sizeof(costs.part_ns));
    if (input->bandwidth_limit && input->bandwidth_limit < bandwidth)
        bandwidth = input->bandwidth_limit;
    policy_init(&policy, &settings);
    ahead = policy_forecast(&policy, input->memory_bytes, bandwidth, &model, &costs);
    *forecast = (struct ferry_forecast){
        .end = end_of(ahead.verdict),
        .converges = ahead.converges,
        .rounds = ahead.rounds,
        .bytes = ahead.bytes,
        .total_ns = ahead.total_ns + input->setup_ns,
        .downtime_ns = ahead.downtime_ns,
        .throttle = ahead.throttle,
    };
}
