/*
 * What this host's migrations that have ended come to, by kind: how many, how they ended and why, how long
 * they and their downtimes took, how much they sent.
 */
#ifndef FERRY_HOST_STATISTICS_H
#define FERRY_HOST_STATISTICS_H

#include "host/host.h"

/*
 * ROWS: array of {kind, outcome, cause, total_ns, downtime_ns, wire_bytes}; what is missing or of another
 * type counts as nothing. New object, by kind in order of their names: {count, completed, failed, cancelled,
 * lost, unknown, success_permille (of those nobody cancelled; null without any), total_ns and downtime_ns
 * ({median, p99, most} of the completed ones where it is known; null without any), wire_bytes (of all),
 * causes: {cause: count} of those not completed and not cancelled}. NULL when out of memory.
 */
json_t *statistics_make(const json_t *rows);

/* For GET /v1/migrations/statistics: {active, kinds}. New object. */
json_t *statistics_of_host(struct host *host);

#endif
