/*
 * Entry of every bare-metal x86-64 program, by the PVH boot protocol (Xen docs/misc/pvh.pandoc): 32-bit
 * protected mode without paging, flat segments, EBX the physical address of struct hvm_start_info.
 *
 * Ring 0 does the least that can be done: page tables that are there already (identity for the first 4 GiB,
 * open to ring 3), long mode, a task state segment whose I/O bitmap opens all ports, and from there to ring
 * 3, where everything else runs. There is no interrupt table: any fault ends the machine.
 *
 * Other processors begin at second_start, in real mode, in a copy of it below 1 MiB (smp.c); they go the same
 * way to ring 3, where they call what smp_start says. They have no task state segment: their I/O privilege
 * level opens the ports.
 */
#define CR0_PE_PG        0x80000033 /* PG NE ET MP PE */
#define CR4_PAE_SSE      0x620      /* PAE OSFXSR OSXMMEXCPT */
#define MSR_EFER         0xc0000080
#define EFER_LME         0x100
#define PTE_TABLE        0x7        /* present, writable, user */
#define PTE_LARGE        0xe7       /* the same, accessed, dirty, large */

#define SELECTOR_CODE    0x08
#define SELECTOR_DATA    0x10
#define SELECTOR_USER_SS 0x1b
#define SELECTOR_USER_CS 0x23
#define SELECTOR_TSS     0x28
#define SELECTOR_CODE32  0x38

#define RFLAGS_NONE      0x2        /* interrupts off */
#define RFLAGS_IOPL3     0x3002
#define CR0_PE           0x1

#define TSS_IO_BITMAP    0x68
#define TSS_SIZE         (TSS_IO_BITMAP + 65536 / 8 + 1)

/* An ELF note: name "Xen", type XEN_ELFNOTE_PHYS32_ENTRY. */
    .section .note.pvh, "a"
    .long 4, 4, 18
    .asciz "Xen"
    .long _start

/* From 32-bit protected mode without paging; changes EAX, ECX, EDX. */
    .macro enter_long_mode target
    mov $CR4_PAE_SSE, %eax
    mov %eax, %cr4
    mov $page_root, %eax
    mov %eax, %cr3
    mov $MSR_EFER, %ecx
    rdmsr
    or $EFER_LME, %eax
    wrmsr
    mov $CR0_PE_PG, %eax
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $SELECTOR_CODE, $\target
    .endm

    .macro enter_ring3 stack, flags, target
    mov $SELECTOR_USER_SS, %eax
    mov %eax, %ds
    mov %eax, %es
    pushq $SELECTOR_USER_SS
    pushq \stack
    pushq $\flags
    pushq $SELECTOR_USER_CS
    pushq $\target
    iretq
    .endm

    .section .text.start, "ax"
    .code32
    .globl _start
_start:
    cld
    mov $boot_stack_top, %esp
    enter_long_mode long_mode

    .code64
long_mode:
    mov $SELECTOR_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    lidt no_idt
    mov $SELECTOR_TSS, %eax
    ltr %ax
    mov %ebx, %ebx
    enter_ring3 $boot_stack_top, RFLAGS_NONE, user_mode

user_mode:
    mov $__bss_start, %edi
    mov $__bss_end, %ecx
    sub %edi, %ecx
    xor %eax, %eax
    rep stosb
    mov %rbx, %rdi
    call bare_main
    ud2

/* Copied as a whole to a page below 1 MiB: CS is that page, and nothing else is known. */
    .code16
    .globl second_start, second_start_end
second_start:
    cli
    cld
    lgdtl %cs:(second_gdt_pointer - second_start)
    mov $CR0_PE, %eax
    mov %eax, %cr0
    ljmpl $SELECTOR_CODE32, $second_protected
second_gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt
second_start_end:

    .code32
second_protected:
    mov $SELECTOR_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov smp_start, %esp
    enter_long_mode second_long_mode

    .code64
second_long_mode:
    mov $SELECTOR_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    lidt no_idt
    mov smp_start, %rbx
    enter_ring3 %rbx, RFLAGS_IOPL3, second_user_mode

second_user_mode:
    mov smp_start + 16, %rdi
    mov smp_start + 8, %rax
    movl $1, smp_start + 24
    call *%rax
    ud2

    .section .data, "aw"
    .balign 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        /* ring 0 code, 64 bits */
    .quad 0x00cf93000000ffff        /* ring 0 data */
    .quad 0x00cff3000000ffff        /* ring 3 data */
    .quad 0x00affb000000ffff        /* ring 3 code, 64 bits */
    /* The image lies in the 16 MiB from 1 MiB on, so that the linker can put the address in its two parts. */
    .word TSS_SIZE - 1
    .word tss_low
    .byte tss_middle
    .byte 0x89                      /* present, 64-bit TSS */
    .byte 0, 0
    .quad 0
    .quad 0x00cf9b000000ffff        /* ring 0 code, 32 bits */
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .quad gdt
no_idt:
    .word 0
    .quad 0
    .balign 16
    .globl tss
tss:
    .fill TSS_IO_BITMAP - 2, 1, 0
    .word TSS_IO_BITMAP
    .fill 65536 / 8, 1, 0
    .byte 0xff

    .balign 4096
    .globl page_root
page_root:
    .quad page_directories + PTE_TABLE
    .fill 511, 8, 0
page_directories:
    .quad page_large + PTE_TABLE
    .quad page_large + 0x1000 + PTE_TABLE
    .quad page_large + 0x2000 + PTE_TABLE
    .quad page_large + 0x3000 + PTE_TABLE
    .fill 508, 8, 0
page_large:
    .set address, 0
    .rept 2048
    .quad address + PTE_LARGE
    .set address, address + 0x200000
    .endr

    .section .stack, "aw", @nobits
    .balign 16
    .space 32768
boot_stack_top:
    .section .note.GNU-stack, "", @progbits
