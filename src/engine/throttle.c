#include "engine/throttle.h"

#include "engine/policy.h"

static size_t read_writes(const struct ferry_session *session, uint64_t writes[static FERRY_VCPUS_MAX])
{
    const struct ferry_guest_ops *ops = session->ops;

    if (!ops->vcpu_writes || !ops->throttle_vcpus)
        return 0;
    return ops->vcpu_writes(session->guest, writes, FERRY_VCPUS_MAX);
}

void throttle_begin(struct throttle *throttle, struct ferry_session *session)
{
    throttle->session = session;
    throttle->count = read_writes(session, throttle->writes);
}

/* What each vCPU has written since the last time; a short round in which nobody did says nothing. False when
 * they cannot be told apart. */
static bool count_writes(struct throttle *throttle)
{
    uint64_t writes[FERRY_VCPUS_MAX] = {0};
    size_t count = read_writes(throttle->session, writes);
    bool any = false;

    if (count == 0 || count != throttle->count)
        return false;
    for (size_t i = 0; i < count; i++)
        any |= writes[i] != throttle->writes[i];
    for (size_t i = 0; i < count && any; i++) {
        throttle->written[i] = writes[i] - throttle->writes[i];
        throttle->writes[i] = writes[i];
    }
    return true;
}

static void report(struct throttle *throttle, unsigned percent)
{
    struct ferry_session *session = throttle->session;

    pthread_mutex_lock(&session->lock);
    session->progress.throttle_percent = percent;
    if (percent > session->progress.throttle_percent_most)
        session->progress.throttle_percent_most = percent;
    pthread_mutex_unlock(&session->lock);
}

void throttle_set(struct throttle *throttle, unsigned percent)
{
    struct ferry_session *session = throttle->session;
    unsigned percents[FERRY_VCPUS_MAX];
    bool apart = count_writes(throttle);
    size_t slowed = 0;

    if (percent == 0 && throttle->percent == 0)
        return;
    if (apart && percent > 0) {
        policy_spread(throttle->written, throttle->count, percent, percents);
        for (size_t i = 0; i < throttle->count; i++)
            slowed += percents[i] > 0;
        session->ops->throttle_vcpus(session->guest, percents, throttle->count);
        if (slowed != throttle->slowed)
            session_log(session, FERRY_LOG_INFO, "%zu of %zu vCPUs write and are slowed by %u %%", slowed,
                        throttle->count, percent);
    } else if (percent != throttle->percent) {
        session->ops->throttle(session->guest, percent);
    }
    throttle->percent = percent;
    throttle->slowed = slowed;
    report(throttle, percent);
}

void throttle_end(struct throttle *throttle)
{
    if (throttle->session)
        throttle_set(throttle, 0);
}
