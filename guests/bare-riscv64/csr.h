/* Access to control and status registers, and the bits of them that the programs use. RISC-V privileged
 * spec 1.12. */
#ifndef BARE_CSR_H
#define BARE_CSR_H

#include <stdint.h>

#define csr_read(name)                                                                                       \
    ({                                                                                                       \
        uint64_t csr_value_;                                                                                 \
        __asm__ volatile("csrr %0, " #name : "=r"(csr_value_)::"memory");                                    \
        csr_value_;                                                                                          \
    })
#define csr_write(name, value) __asm__ volatile("csrw " #name ", %0" ::"r"((uint64_t)(value)) : "memory")
#define csr_set(name, value)   __asm__ volatile("csrs " #name ", %0" ::"r"((uint64_t)(value)) : "memory")
#define csr_clear(name, value) __asm__ volatile("csrc " #name ", %0" ::"r"((uint64_t)(value)) : "memory")

#define SSTATUS_SIE  (UINT64_C(1) << 1)
#define SSTATUS_SPIE (UINT64_C(1) << 5)
#define SSTATUS_SPP  (UINT64_C(1) << 8)
#define SSTATUS_FS   (UINT64_C(3) << 13)
#define SSTATUS_SUM  (UINT64_C(1) << 18)
#define SSTATUS_MXR  (UINT64_C(1) << 19)
#define SSTATUS_SD   (UINT64_C(1) << 63)

#define INTERRUPT_SOFTWARE (UINT64_C(1) << 1)
#define INTERRUPT_TIMER    (UINT64_C(1) << 5)

static inline uint64_t time_read(void)
{
    uint64_t value;

    __asm__ volatile("rdtime %0" : "=r"(value));
    return value;
}

#endif
