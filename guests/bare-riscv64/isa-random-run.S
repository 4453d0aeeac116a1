/*
 * void block_run(struct block_state *state): loads every register from STATE, jumps to the block whose address is in its x1,
 * and puts every register back when it arrives at block_end. x2 points to the middle of the scratch area meanwhile. See
 * isa-random.c.
 */
    .text
    .globl block_run
block_run:
    addi sp, sp, -128
    sd ra, 0(sp)
    sd gp, 8(sp)
    sd tp, 16(sp)
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11
    sd s\n, (24 + \n * 8)(sp)
    .endr
    la t0, saved
    sd sp, 0(t0)
    sd a0, 8(t0)
    ld t1, 512(a0)
    fscsr t1
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    fld f\n, (256 + \n * 8)(a0)
    .endr
    mv x2, a0
    .irp n, 1,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    ld x\n, (\n * 8)(x2)
    .endr
    ld x2, (2 * 8)(x2)
    jr x1 /* Loaded with the block's own address: no other register is free to hold it. */

    .globl block_end
block_end:
    /* x2 still points to the middle of the scratch area, which is followed by room for two registers. */
    sd x1, 1024(x2)
    sd x3, 1032(x2)
    .option push
    .option norelax
    la x1, saved
    ld x3, 8(x1)
    .option pop
    .irp n, 4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    sd x\n, (\n * 8)(x3)
    .endr
    ld x4, 1024(x2)
    sd x4, 8(x3)
    ld x4, 1032(x2)
    sd x4, 24(x3)
    sd x2, 16(x3)
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    fsd f\n, (256 + \n * 8)(x3)
    .endr
    frcsr x4
    sd x4, 512(x3)
    ld sp, 0(x1)
    ld ra, 0(sp)
    ld gp, 8(sp)
    ld tp, 16(sp)
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11
    ld s\n, (24 + \n * 8)(sp)
    .endr
    addi sp, sp, 128
    ret

    .bss
    .balign 8
saved:
    .space 16
