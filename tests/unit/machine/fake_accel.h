/*
 * An accelerator for tests: its vCPUs execute nothing but "count one up in guest memory". The board that goes
 * with it is the riscv64 one otherwise.
 */
#ifndef FERRY_TESTS_UNIT_MACHINE_FAKE_ACCEL_H
#define FERRY_TESTS_UNIT_MACHINE_FAKE_ACCEL_H

#include "machine/board.h"

extern const struct board board_fake;

/* What a test looks at and asks for; of the machine made last. */
struct fake_control {
    uint64_t steps[ACCEL_VCPUS_MAX]; /* atomic: done by each vCPU */
    unsigned inside;                 /* atomic: vCPUs in vcpu_run */
    int event; /* atomic: an enum accel_event that vCPU 0 reports next, -1: it fails, 0: nothing */
    unsigned event_vcpu;
    bool clock_running;
    uint64_t clock_ns;
    unsigned resets;
    struct accel_boot boot;
};

extern struct fake_control fake;

#endif
