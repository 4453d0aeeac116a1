#include "soft_guest.h"

/*
 * # a0 iterations, a1 seed; results at 0x80200000, memory at 0x80100000
 *     li s0, 0x80100000
 *     mv s1, a0
 *     mv s2, a1
 *     li t0, 0x6000
 *     csrs sstatus, t0
 *     fcvt.d.l fa0, s2
 * loop:
 *     slli t0, s2, 13
 *     xor s2, s2, t0
 *     srli t0, s2, 7
 *     xor s2, s2, t0
 *     slli t0, s2, 17
 *     xor s2, s2, t0
 *     srli t1, s2, 47
 *     slli t1, t1, 3
 *     add t1, t1, s0
 *     ld t2, 0(t1)
 *     add t2, t2, s2
 *     sd t2, 0(t1)
 *     fcvt.d.l fa1, t2
 *     fadd.d fa0, fa0, fa1
 *     fmul.d fa0, fa0, fa0
 *     fsqrt.d fa0, fa0
 *     amoadd.d t3, s2, (s0)
 *     andi t4, s2, 63
 *     bnez t4, next
 *     fence.i
 * next:
 *     addi s1, s1, -1
 *     bnez s1, loop
 *     csrr t4, instret
 *     csrr t5, fcsr
 *     li s0, 0x80200000
 *     sd s2, 0(s0)
 *     fsd fa0, 8(s0)
 *     sd t4, 16(s0)
 *     sd t5, 24(s0)
 * off:
 *     li a7, 0x53525354
 *     li a6, 0
 *     li a0, 0
 *     li a1, 0
 *     ecall
 *     j off
 */
const uint32_t guest_compute[] = {
    0x041b6405, 0x04528014, 0x892e84aa, 0xa0736299, 0x75531002, 0x1293d229, 0x493300d9, 0x52930059,
    0x49330079, 0x12930059, 0x49330119, 0x53130059, 0x030e02f9, 0x33839322, 0x93ca0003, 0x00733023,
    0xd223f5d3, 0x02b57553, 0x12a57553, 0x5a057553, 0x01243e2f, 0x03f97e93, 0x000e9463, 0x0000100f,
    0xf8d514fd, 0xc0202ef3, 0x00302f73, 0x4010041b, 0x30230456, 0xa4080124, 0x01d43823, 0x01e43c23,
    0x535258b7, 0x3548889b, 0x45014801, 0x00734581, 0xb7fd0000,
};
const size_t guest_compute_size = sizeof(guest_compute);

/*
 * # every hart writes at random into 0x80100000..0x80900000, for ever; hart 0 starts the others, a1 of them
 *     mv s0, a0
 *     mv s1, a1
 *     bnez s0, work
 * start:
 *     beqz s1, work
 *     mv a0, s1
 *     lla a1, _start
 *     li a2, 0
 *     li a6, 0
 *     li a7, 0x48534d
 *     ecall
 *     addi s1, s1, -1
 *     j start
 * work:
 *     li s3, 0x9e3779b97f4a7c15
 *     addi s2, s0, 1
 *     mul s2, s2, s3
 *     li s4, 0x80100000
 * again:
 *     slli t0, s2, 13
 *     xor s2, s2, t0
 *     srli t0, s2, 7
 *     xor s2, s2, t0
 *     slli t0, s2, 17
 *     xor s2, s2, t0
 *     srli t1, s2, 41
 *     andi t1, t1, -8
 *     add t1, t1, s4
 *     sd s2, 0(t1)
 *     amoadd.w t2, s2, (t1)
 *     j again
 */
const uint32_t guest_writers[] = {
    0x84ae842a, 0xc085e00d, 0x05978526, 0x85930000, 0x4601ff65, 0x58b74801, 0x889b0048, 0x007334d8,
    0x14fd0000, 0xc9b7b7cd, 0x899bfff3, 0x09b26ef9, 0x37398993, 0x899309c2, 0x09bee959, 0xc1598993,
    0x00140913, 0x03390933, 0x0a1b6a05, 0x0a52801a, 0x00d91293, 0x00594933, 0x00795293, 0x00594933,
    0x01191293, 0x00594933, 0x02995313, 0xff837313, 0x30239352, 0x23af0123, 0xbfd90123,
};
const size_t guest_writers_size = sizeof(guest_writers);

/*
 * # two harts ask each other for remote fences, 20000 times each; then hart 0 ends
 *     lla s2, flag
 *     bnez a0, storm
 *     li a0, 1
 *     lla a1, _start
 *     li a2, 0
 *     li a6, 0
 *     li a7, 0x48534d
 *     ecall
 *     li a0, 0
 * storm:
 *     mv s0, a0
 *     li s1, 20000
 * more:
 *     li a0, 3
 *     li a1, 0
 *     li a2, 0
 *     li a3, -1
 *     andi a6, s1, 1
 *     li a7, 0x52464e43
 *     ecall
 *     bnez a0, bad
 *     addi s1, s1, -1
 *     bnez s1, more
 *     bnez s0, second
 * wait:
 *     ld t0, 0(s2)
 *     beqz t0, wait
 *     li a1, 0
 * end:
 *     li a7, 0x53525354
 *     li a6, 0
 *     li a0, 0
 *     ecall
 *     j end
 * second:
 *     li t0, 1
 *     sd t0, 0(s2)
 * idle:
 *     wfi
 *     j idle
 * bad:
 *     li a1, 1
 *     j end
 *     .balign 8
 * flag:
 *     .dword 0
 */
const uint32_t guest_fences[] = {
    0x00000917, 0x08090913, 0x4505ed19, 0x00000597, 0xff458593, 0x48014601, 0x004858b7,
    0x34d8889b, 0x00000073, 0x842a4501, 0x849b6495, 0x450de204, 0x46014581, 0xf81356fd,
    0x58b70014, 0x889b5246, 0x0073e438, 0xe9050000, 0xf0f514fd, 0x3283ec19, 0x8ee30009,
    0x4581fe02, 0x535258b7, 0x3548889b, 0x45014801, 0x00000073, 0x4285bfc5, 0x00593023,
    0x10500073, 0x4585bff5, 0x0001b7c5, 0x00000013, 0x00000000, 0x00000000,
};
const size_t guest_fences_size = sizeof(guest_fences);

/*
 * # writes its own code: hart 1 calls `code` for ever and stores what it gives; hart 0 changes it, with
 * remote fences lla s2, seen lla s3, code bnez a0, caller li a0, 1 lla a1, _start li a2, 0 li a6, 0 li a7,
 * 0x48534d ecall li s1, 1 li s4, 500 change: # li a0, N; a 32-bit addi whose immediate is N slli t0, s1, 20
 *     li t1, 0x513
 *     or t0, t0, t1
 *     sw t0, 0(s3)
 *     fence.i
 *     jalr s3
 *     bne a0, s1, bad
 *     li a0, 2
 *     li a1, 0
 *     li a6, 0
 *     li a7, 0x52464e43
 *     ecall
 *     sd zero, 0(s2)
 *     fence rw, rw
 * first:
 *     ld t0, 0(s2)
 *     beqz t0, first
 *     sd zero, 0(s2)
 *     fence rw, rw
 * again:
 *     ld t0, 0(s2)
 *     beqz t0, again
 *     bne t0, s1, bad
 *     addi s1, s1, 1
 *     bne s1, s4, change
 *     li a1, 0
 * end:
 *     li a7, 0x53525354
 *     li a6, 0
 *     li a0, 0
 *     ecall
 *     j end
 * caller:
 *     jalr s3
 *     sd a0, 0(s2)
 *     fence rw, rw
 *     j caller
 * bad:
 *     li a1, 1
 *     j end
 *     .balign 8
 *     .option norvc
 * code:
 *     li a0, 0
 *     ret
 *     .option rvc
 *     .balign 8
 * seen:
 *     .dword 0
 */
const uint32_t guest_patch[] = {
    0x00000917, 0x0b890913, 0x00000997, 0x0a898993, 0x4505e551, 0x00000597, 0xfec58593, 0x48014601,
    0x004858b7, 0x34d8889b, 0x00000073, 0x0a134485, 0x92931f40, 0x03130144, 0xe2b35130, 0xa0230062,
    0x100f0059, 0x99820000, 0x06951063, 0x45814509, 0x58b74801, 0x889b5246, 0x0073e438, 0x30230000,
    0x000f0009, 0x32830330, 0x8ee30009, 0x3023fe02, 0x000f0009, 0x32830330, 0x8ee30009, 0x9563fe02,
    0x04850292, 0xfb4497e3, 0x58b74581, 0x889b5352, 0x48013548, 0x00734501, 0xbfc50000, 0x30239982,
    0x000f00a9, 0xbfdd0330, 0xb7c54585, 0x00000013, 0x00000513, 0x00008067, 0x00000000, 0x00000000,
};
const size_t guest_patch_size = sizeof(guest_patch);

/*
 * # sleeps until a timer three times, then ends; results of rdtime differences are checked by itself
 *     li s1, 3
 *     li t0, 32
 *     csrw sie, t0
 * again:
 *     rdtime s0
 *     li t1, 50000
 *     add s0, s0, t1
 *     csrw 0x14d, s0
 * doze:
 *     wfi
 *     csrr t0, sip
 *     andi t0, t0, 32
 *     beqz t0, doze
 *     rdtime t1
 *     bltu t1, s0, bad
 *     addi s1, s1, -1
 *     bnez s1, again
 *     li a1, 0
 * end:
 *     li a7, 0x53525354
 *     li a6, 0
 *     li a0, 0
 *     ecall
 *     j end
 * bad:
 *     li a1, 1
 *     j end
 */
const uint32_t guest_sleep[] = {
    0x0293448d, 0x90730200, 0x24731042, 0x6331c010, 0x3503031b, 0x1073941a, 0x007314d4,
    0x22f31050, 0xf2931440, 0x8ae30202, 0x2373fe02, 0x6e63c010, 0x14fd0083, 0x4581f8f9,
    0x535258b7, 0x3548889b, 0x45014801, 0x00000073, 0x4585bfc5, 0x0000b7f5,
};
const size_t guest_sleep_size = sizeof(guest_sleep);

/*
 * # hart 0 starts hart 1, which counts and stops itself; five times
 *     lla s2, count
 *     bnez a0, second
 *     li s1, 5
 * again:
 *     li a0, 1
 *     lla a1, _start
 *     li a2, 77
 *     li a6, 0
 *     li a7, 0x48534d
 *     ecall
 *     bnez a0, bad
 * poll:
 *     li a0, 1
 *     li a6, 2
 *     li a7, 0x48534d
 *     ecall
 *     bnez a0, bad
 *     li t0, 1
 *     bne a1, t0, poll
 *     addi s1, s1, -1
 *     bnez s1, again
 *     ld t0, 0(s2)
 *     li t1, 5
 *     bne t0, t1, bad
 *     li a1, 0
 * end:
 *     li a7, 0x53525354
 *     li a6, 0
 *     li a0, 0
 *     ecall
 *     j end
 * second:
 *     li t0, 77
 *     bne a1, t0, bad
 *     li t0, 1
 *     amoadd.d x0, t0, (s2)
 *     li a6, 1
 *     li a7, 0x48534d
 *     ecall
 * bad:
 *     li a1, 1
 *     j end
 *     .balign 8
 * count:
 *     .dword 0
 */
const uint32_t guest_stopping[] = {
    0x00000917, 0x08890913, 0x4495ed31, 0x05974505, 0x85930000, 0x0613ff25, 0x480104d0, 0x004858b7,
    0x34d8889b, 0x00000073, 0x4505ed21, 0x58b74809, 0x889b0048, 0x007334d8, 0xe1390000, 0x96e34285,
    0x14fdfe55, 0x3283f4e1, 0x43150009, 0x02629a63, 0x58b74581, 0x889b5352, 0x48013548, 0x00734501,
    0xbfc50000, 0x04d00293, 0x00559c63, 0x302f4285, 0x48050059, 0x004858b7, 0x34d8889b, 0x00000073,
    0xbfc14585, 0x00000013, 0x00000000, 0x00000000,
};
const size_t guest_stopping_size = sizeof(guest_stopping);

/*
 * # sleeps until somebody interferes, then writes 7 to (a0) and switches off
 *     wfi
 *     li t0, 7
 *     sd t0, 0(a0)
 *     li a7, 0x53525354
 *     li a6, 0
 *     li a0, 0
 *     li a1, 0
 *     ecall
 *     j .
 */
const uint32_t guest_idle[] = {
    0x10500073, 0x00700293, 0x00553023, 0x535258b7, 0x3548889b,
    0x00000813, 0x00000513, 0x00000593, 0x00000073, 0x0000006f,
};
const size_t guest_idle_size = sizeof(guest_idle);
