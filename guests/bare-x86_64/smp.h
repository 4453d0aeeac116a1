/*
 * Starting the other processors (Intel SDM volume 3, §9.4: INIT, then STARTUP with the page to begin at),
 * from ring 3: the local APIC is mapped for it. One after the other; their APIC numbers are taken to be 1, 2,
 * ...
 */
#ifndef BARE_SMP_H
#define BARE_SMP_H

#include <stdbool.h>
#include <stdint.h>

#define SMP_CPUS_MAX 8

/* Has the next processor call FUNCTION(ARGUMENT), which does not return, in ring 3. False: there is none that
 * answers within WAIT ticks of the TSC. */
bool smp_start_cpu(void (*function)(void *), void *argument, uint64_t wait);

#endif
