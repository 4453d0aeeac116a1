/*
 * Events as they happen, of a host and of those that it knows: one stream a host, each on a thread of its
 * own, and whoever is away is tried again until it is back; what it told meanwhile is told then. A host's own
 * events come from itself; what another one has passed on of them is not shown twice.
 */
#ifndef FERRY_CLI_EVENTS_FOLLOW_H
#define FERRY_CLI_EVENTS_FOLLOW_H

#include "cli/command.h"

/* Shows an event; called by one thread at a time. Not 0: that was enough. */
typedef int events_show(struct cli *cli, const json_t *event);

/* Of cli's host all that is recorded, of others (unless ALONE) what happens from now on. Returns 0 when SHOW
 * ended it, or a negative errno when cli's host did not answer at all. */
int events_follow(struct cli *cli, bool alone, events_show *show, struct ferry_error *err);

#endif
