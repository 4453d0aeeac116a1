/* A thread that holds values in all floating-point registers, across computing and sleeping, and checks them.
 */
#ifndef FERRY_GUEST_REGISTERS_H
#define FERRY_GUEST_REGISTERS_H

/* Thread body; never returns. The argument is a struct work_counters. */
void *registers_main(void *argument);

#endif
