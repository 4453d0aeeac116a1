/*
 * What the instruction tests share: operands that tend to go wrong, and the form of the output.
 *
 * Every line is a case: what was done, a colon, and the results in hexadecimal. The output is a function of
 * the program alone, so two machines that agree print the same bytes; the test compares them line by line.
 */
#ifndef BARE_ISA_H
#define BARE_ISA_H

#include <stdbool.h>
#include <stdint.h>

#define ISA_WORD_COUNT 20
extern const uint64_t isa_words[ISA_WORD_COUNT];

void isa_begin(const char *name);

/* Starts a line: "NAME OPERAND:". */
void isa_case(const char *name, uint64_t operand);

/* Adds a result to the line. */
void isa_result(uint64_t value);

/* The same for a floating-point result and its flags. */
void isa_result_flags(uint64_t value, uint64_t flags);

void isa_end(void);

/* The last line; then the machine goes off. */
void isa_finish(void);

/* 64 random bits from *STATE (splitmix64); the same sequence everywhere. */
uint64_t isa_random(uint64_t *state);

#endif
