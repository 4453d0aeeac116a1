/*
 * Calls to the supervisor binary interface (RISC-V SBI 1.0 and 2.0) and what is built on them: other harts,
 * the end of the machine. Works on Ferry, which answers these calls itself, and on OpenSBI.
 */
#ifndef BARE_SBI_H
#define BARE_SBI_H

#include <stdbool.h>
#include <stdint.h>

struct sbi_result {
    int64_t error; /* 0, or one of the negative codes of the specification. */
    uint64_t value;
};

#define SBI_EXT_LEGACY_PUTCHAR 0x01
#define SBI_EXT_BASE           0x10
#define SBI_EXT_TIME           0x54494d45
#define SBI_EXT_IPI            0x735049
#define SBI_EXT_RFENCE         0x52464e43
#define SBI_EXT_HSM            0x48534d
#define SBI_EXT_SRST           0x53525354
#define SBI_EXT_DBCN           0x4442434e

struct sbi_result sbi_call(uint64_t extension, uint64_t function, uint64_t a, uint64_t b, uint64_t c);

bool sbi_has(uint64_t extension);

/* Raises the timer interrupt when rdtime reaches AT. */
void timer_set(uint64_t at);

/*
 * Starts hart HART, which calls FUNCTION(ARGUMENT) on the stack that ends at STACK_TOP (16-byte aligned) and
 * stops when that returns. Returns the SBI error.
 */
int64_t hart_start(uint64_t hart, void *stack_top, void (*function)(void *), void *argument);

/* True when hart HART is stopped (or does not exist). */
bool hart_is_stopped(uint64_t hart);

__attribute__((noreturn)) void hart_stop(void);

enum reset_type { RESET_OFF = 0, RESET_REBOOT = 1 };
enum reset_reason { RESET_REASON_NONE = 0, RESET_REASON_FAILURE = 1 };

/* Writes out what the console still holds and has the machine switched off or started again. */
__attribute__((noreturn)) void machine_reset(enum reset_type type, enum reset_reason reason);
__attribute__((noreturn)) void machine_off(void);

#endif
