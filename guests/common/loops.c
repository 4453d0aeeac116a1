#include "loops.h"

uint64_t loop_int(uint64_t iterations)
{
    uint64_t x = 0x243f6a8885a308d3, sum = 0;

    for (uint64_t i = 0; i < iterations; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        if (x & 4)
            sum += x * 25214903917;
        else
            sum = (sum << 9 | sum >> 55) ^ i;
        if ((uint32_t)sum > (uint32_t)x)
            sum -= x >> 3;
    }
    return sum;
}

uint64_t loop_mem(uint64_t iterations, uint64_t *buffer)
{
    uint64_t sum = 1;

    for (uint64_t i = 0; i < LOOP_MEM_WORDS; i++)
        buffer[i] = i * 0x9e3779b97f4a7c15;
    for (uint64_t i = 0; i < iterations; i++) {
        uint64_t *at = &buffer[i % LOOP_MEM_WORDS];

        sum += *at + buffer[sum >> 20 & (LOOP_MEM_WORDS - 1)];
        *at = sum ^ i;
    }
    return sum;
}

uint64_t loop_fp(uint64_t iterations)
{
    double x = 0.4, y = 1.0, z = 0.001;
    union {
        double value;
        uint64_t bits;
    } result;

    for (uint64_t i = 0; i < iterations; i++) {
        x = 3.7 * x * (1.0 - x);
        y = y * 0.999 + x;
        z += x * y - z * 0.25;
        if (i % 16 == 15)
            z = z / (y + 1.5);
    }
    result.value = x + y + z;
    return result.bits;
}
