/*
 * Runs a fuzz target on the inputs that are kept of it: a short run without libFuzzer, for the tests.
 *
 *     replay_TARGET FILE              FILE has an input a line, in hexadecimal digits
 *     replay_TARGET FILE DIRECTORY    writes them there instead, to begin a run of libFuzzer's with
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INPUT_MAX 65536

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Bytes of a line; -1 when it is not one of digits. */
static long decode(const char *line, uint8_t *out)
{
    long size = 0;
    unsigned byte;

    for (; line[0] && line[0] != '\n'; line += 2) {
        if (!line[1] || size == INPUT_MAX || sscanf(line, "%2x", &byte) != 1)
            return -1;
        out[size++] = (uint8_t)byte;
    }
    return size;
}

static int write_input(const char *directory, unsigned number, const uint8_t *data, size_t size)
{
    char path[4096];
    FILE *file;
    size_t done;

    snprintf(path, sizeof(path), "%s/%u", directory, number);
    file = fopen(path, "wb");
    if (!file)
        return -1;
    done = fwrite(data, 1, size, file);
    return fclose(file) == 0 && done == size ? 0 : -1;
}

int main(int argc, char **argv)
{
    static char line[2 * INPUT_MAX + 2];
    static uint8_t input[INPUT_MAX];
    unsigned number = 0;
    FILE *file = argc == 2 || argc == 3 ? fopen(argv[1], "r") : NULL;

    if (!file) {
        fprintf(stderr, "usage: %s FILE [DIRECTORY]\n", argv[0]);
        return 2;
    }
    LLVMFuzzerInitialize(&argc, &argv);
    for (; fgets(line, sizeof(line), file); number++) {
        long size = decode(line, input);

        if (size < 0 || (argc == 3 && write_input(argv[2], number, input, (size_t)size) < 0)) {
            fprintf(stderr, "line %u of %s cannot be used\n", number + 1, argv[1]);
            return 1;
        }
        if (argc == 2)
            LLVMFuzzerTestOneInput(input, (size_t)size);
    }
    fclose(file);
    printf("%u inputs\n", number);
    return number == 0;
}
