#include "machine/board.h"

#include "bus/state.h"

#include <string.h>

static const struct board *const boards[] = {
    &board_riscv64,
#ifdef __x86_64__
    &board_x86_64,
#endif
};

const struct board *board_find(const char *machine)
{
    for (size_t i = 0; i < ARRAY_SIZE(boards); i++)
        if (strcmp(boards[i]->machine, machine) == 0)
            return boards[i];
    return NULL;
}
