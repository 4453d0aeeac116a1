/*
 * Entry of every bare-metal program, in S mode as an SBI payload: a0 is the hart's number, a1 the device tree.
 * All other harts are stopped until hart_start() (sbi.h) brings them to secondary_start.
 */
#include "trap.h"

    .section .text.start, "ax"
    .globl _start
_start:
    .option push
    .option norelax
    la gp, __global_pointer$
    .option pop
    csrw sie, zero
    csrw satp, zero
    la t0, __bss_start
    la t1, __bss_end
1:  bgeu t0, t1, 2f
    sd zero, 0(t0)
    addi t0, t0, 8
    j 1b
2:  la sp, boot_stack_top
    la t0, trap_frame_boot
    csrw sscratch, t0
    la t0, trap_entry
    csrw stvec, t0
    li t0, 1 << 13                  /* sstatus.FS = Initial */
    csrs sstatus, t0
    csrw fcsr, zero
    call bare_main
    tail machine_off

/* a0 is the hart's number, a1 the top of its stack, with the function to call and its argument just below. */
    .globl secondary_start
secondary_start:
    .option push
    .option norelax
    la gp, __global_pointer$
    .option pop
    li t0, 1 << 13
    csrs sstatus, t0
    csrw fcsr, zero
    addi sp, a1, -16
    ld t0, 0(sp)
    ld a0, 8(sp)
    jalr t0
    tail hart_stop

/*
 * The one trap handler. sscratch points to a struct trap_frame whose first words are the registers x1..x31.
 * Traps do not nest: the C part runs on a stack of its own and takes none.
 */
    .text
    .balign 4
    .globl trap_entry
trap_entry:
    csrrw sp, sscratch, sp
    .irp n, 1,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    sd x\n, (\n * 8)(sp)
    .endr
    csrrw t0, sscratch, sp
    sd t0, (2 * 8)(sp)
    csrr t0, sepc
    sd t0, TRAP_FRAME_SEPC(sp)
    csrr t0, sstatus
    sd t0, TRAP_FRAME_SSTATUS(sp)
    csrr t0, scause
    sd t0, TRAP_FRAME_SCAUSE(sp)
    csrr t0, stval
    sd t0, TRAP_FRAME_STVAL(sp)
    .option push
    .option norelax
    la gp, __global_pointer$
    .option pop
    mv a0, sp
    la sp, trap_stack_top
    call trap_handle
    csrr sp, sscratch
    ld t0, TRAP_FRAME_SEPC(sp)
    csrw sepc, t0
    ld t0, TRAP_FRAME_SSTATUS(sp)
    csrw sstatus, t0
    .irp n, 1,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    ld x\n, (\n * 8)(sp)
    .endr
    ld sp, (2 * 8)(sp)
    sret

/* int trap_try(function, a, b): see trap.h. */
    .globl trap_try
trap_try:
    addi sp, sp, -112
    sd ra, 0(sp)
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11
    sd s\n, (8 + \n * 8)(sp)
    .endr
    la t0, trap_try_sp
    sd sp, 0(t0)
    mv t0, a0
    mv a0, a1
    mv a1, a2
    jalr t0
    li a0, 0
    j 1f
    .globl trap_try_abort
trap_try_abort:
    la t0, trap_try_sp
    ld sp, 0(t0)
    li a0, 1
1:  la t0, trap_try_sp
    sd zero, 0(t0)
    ld ra, 0(sp)
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11
    ld s\n, (8 + \n * 8)(sp)
    .endr
    addi sp, sp, 112
    ret

/* void trap_enter_user(pc, argument): see trap.h. */
    .globl trap_enter_user
trap_enter_user:
    csrw sepc, a0
    li t0, 1 << 8                   /* sstatus.SPP = U */
    csrc sstatus, t0
    mv a0, a1
    sret

    .bss
    .balign 16
    .space 16384
boot_stack_top:
    .space 16384
trap_stack_top:
    .balign 8
trap_frame_boot:
    .space TRAP_FRAME_SIZE
