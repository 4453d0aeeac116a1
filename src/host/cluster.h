/*
 * The baseline of a cluster: this host and those that it knows (`ferry host add`). It is recorded by every
 * host for itself; whoever is asked to change it asks all of them whether they can, and only then has them do
 * it. A host that does not answer is a refusal: what it has, and what runs there, is not known.
 *
 * Calls to other hosts: API threads only, not under the lock.
 */
#ifndef FERRY_HOST_CLUSTER_H
#define FERRY_HOST_CLUSTER_H

#include "host/host.h"

/*
 * What is common to all hosts, changing nothing: *answer {generation, vendor, features, hosts: [{name,
 * vendor, model, generation, beyond: [features that others lack]}]}. "generation" is the highest that all
 * hosts have, "" when there is none.
 */
int cluster_baseline_compute(struct host *host, json_t **answer, struct ferry_error *err);

/* The generation NAME becomes the baseline of all; NULL: there is none any more. *answer as of show. */
int cluster_baseline_set(struct host *host, const char *name, json_t **answer, struct ferry_error *err);

/* *answer {name (or null), features, hosts: [{name, baseline (or null), generation, why}]}; a host that does
 * not answer has a "why". */
int cluster_baseline_show(struct host *host, json_t **answer, struct ferry_error *err);

/*
 * The host NAME at ADDRESS, which says of itself what is in THERE, wants to join: refused when it is below
 * the baseline; else it gets it. A host that has a baseline joins none that has another one.
 */
int cluster_admit(struct host *host, const char *name, const char *address, const json_t *there,
                  struct ferry_error *err);

#endif
