/*
 * The vCPU threads of a machine ("vcpu0", ...): one thread each, made once, then parked or running guest code
 * until vcpus_free.
 *
 *     controlling thread          vCPU threads
 *     vcpus_run        ───▶       accel->vcpu_run, again and again
 *     vcpus_stop       ──kick─▶   vcpu_run returns, the thread parks; the last one wakes the controller
 *
 * When an accelerator reports an event, all vCPUs are stopped just so, and the last one to park delivers the
 * event: when it is delivered no guest instruction runs, and none will until vcpus_run.
 */
#ifndef FERRY_MACHINE_VCPUS_H
#define FERRY_MACHINE_VCPUS_H

#include "machine/accel.h"
#include "machine/machine.h"

#include <ferry/error.h>

struct vcpus;

/* All borrowed. Threads are parked. The event callback is called on a vCPU thread, without a lock held. */
int vcpus_new(struct vcpus **out, struct accel *accel, unsigned count,
              void (*event)(void *opaque, enum machine_event event, const char *why), void *opaque,
              struct ferry_error *err);
/* Ends the threads; stops them first. NULL allowed. */
void vcpus_free(struct vcpus *vcpus);

/* One controlling thread. Idempotent. */
void vcpus_run(struct vcpus *vcpus);
/* Returns when no vCPU executes guest code and every event it reported was delivered. Idempotent. */
void vcpus_stop(struct vcpus *vcpus);

/* As vcpus_stop, but only until the deadline: false, and they run on as before, when some do not come out of
 * vcpu_run by then (they may wait for memory). */
bool vcpus_stop_until(struct vcpus *vcpus, uint64_t deadline_ns);
/* While it is on, vCPUs that come out of vcpu_run stay out, and all are asked to. Waits for nobody. Any
 * thread. */
void vcpus_suspend(struct vcpus *vcpus, bool on);

/* From within vcpu_run: the guest is to stop because of EVENT. Of several at once the first one counts. */
void vcpus_report(struct vcpus *vcpus, enum machine_event event, const char *why);

#endif
