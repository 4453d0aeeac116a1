#include "isa.h"

#include "console.h"
#include "sbi.h"

const uint64_t isa_words[ISA_WORD_COUNT] = {
    0,
    1,
    2,
    3,
    31,
    63,
    0x7fffffff,
    0x80000000,
    0xffffffff,
    0x100000000,
    0x123456789abcdef0,
    0x5555555555555555,
    0xaaaaaaaaaaaaaaaa,
    0x7fffffffffffffff,
    0x8000000000000000,
    0x8000000000000001,
    0xffffffff7fffffff,
    0xffffffff80000000,
    0xfffffffffffffffe,
    0xffffffffffffffff,
};

void isa_begin(const char *name)
{
    console_text("isa ");
    console_text(name);
    console_text(" begins\n");
}

void isa_case(const char *name, uint64_t operand)
{
    console_text(name);
    console_char(' ');
    console_hex(operand, 16);
    console_char(':');
}

void isa_result(uint64_t value)
{
    console_char(' ');
    console_hex(value, 16);
}

void isa_result_flags(uint64_t value, uint64_t flags)
{
    isa_result(value);
    console_char('/');
    console_hex(flags, 2);
}

void isa_end(void)
{
    console_char('\n');
}

void isa_finish(void)
{
    console_text("isa ends\n");
    machine_off();
}

uint64_t isa_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}
