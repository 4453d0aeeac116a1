/*
 * What a migration of a VM would be like: its memory is watched for a second, the way to the other host
 * measured, and libferry asked what decisions it would take.
 */
#ifndef FERRY_HOST_FORECAST_H
#define FERRY_HOST_FORECAST_H

#include "host/migration.h"
#include "host/vms.h"

/*
 * *answer: {memory_bytes, dirty_bytes_per_s, working_set_bytes, bandwidth_bytes_per_s, round_trip_ns, end,
 * converges, rounds, total_ns, downtime_ns, bytes, throttle, time}. Takes about a second. VM is claimed and
 * runs here.
 */
int forecast_make(struct host *host, struct vm *vm, const char *destination, const char *address,
                  const struct migration_options *options, json_t **answer, struct ferry_error *err);

#endif
