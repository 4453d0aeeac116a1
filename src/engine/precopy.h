/*
 * Pre-copy: all of memory, then round after round what was written meanwhile, until the policy says to stop.
 *
 * Each round ends when the destination has placed all of it (ROUND_DONE), so that the measured bandwidth is
 * that of the whole path and nothing is left on its way when the guest is paused.
 *
 * At the end source->set holds the pages that the last, frozen round must send. A policy that gives up is a
 * failure with cause convergence.
 */
#ifndef FERRY_ENGINE_PRECOPY_H
#define FERRY_ENGINE_PRECOPY_H

#include "engine/source.h"

int precopy_run(struct source *source, struct ferry_error *err);

#endif
