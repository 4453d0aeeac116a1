#include "sbi.h"

#include "console.h"

struct sbi_result sbi_call(uint64_t extension, uint64_t function, uint64_t a, uint64_t b, uint64_t c)
{
    register uint64_t a0 __asm__("a0") = a;
    register uint64_t a1 __asm__("a1") = b;
    register uint64_t a2 __asm__("a2") = c;
    register uint64_t a6 __asm__("a6") = function;
    register uint64_t a7 __asm__("a7") = extension;

    __asm__ volatile("ecall" : "+r"(a0), "+r"(a1) : "r"(a2), "r"(a6), "r"(a7) : "memory");
    return (struct sbi_result){.error = (int64_t)a0, .value = a1};
}

bool sbi_has(uint64_t extension)
{
    struct sbi_result result = sbi_call(SBI_EXT_BASE, 3, extension, 0, 0);

    return result.error == 0 && result.value != 0;
}

void timer_set(uint64_t at)
{
    sbi_call(SBI_EXT_TIME, 0, at, 0, 0);
}

extern char secondary_start[];

int64_t hart_start(uint64_t hart, void *stack_top, void (*function)(void *), void *argument)
{
    uint64_t *top = stack_top;

    top[-2] = (uint64_t)function;
    top[-1] = (uint64_t)argument;
    __asm__ volatile("fence rw, rw" ::: "memory");
    return sbi_call(SBI_EXT_HSM, 0, hart, (uint64_t)secondary_start, (uint64_t)top).error;
}

bool hart_is_stopped(uint64_t hart)
{
    struct sbi_result result = sbi_call(SBI_EXT_HSM, 2, hart, 0, 0);

    return result.error != 0 || result.value == 1;
}

void hart_stop(void)
{
    for (;;)
        sbi_call(SBI_EXT_HSM, 1, 0, 0, 0);
}

void machine_reset(enum reset_type type, enum reset_reason reason)
{
    console_flush();
    sbi_call(SBI_EXT_SRST, 0, type, reason, 0);
    for (;;)
        __asm__ volatile("wfi");
}

void machine_off(void)
{
    machine_reset(RESET_OFF, RESET_REASON_NONE);
}
