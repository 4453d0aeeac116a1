#include "vm/console_mark.h"

#include "vm/migrate.h"
#include "vm/vm.h"

#include <stdio.h>

/* On a line of its own, wherever the guest's output stopped. */
static void put_mark(struct vm *vm, const char *code, const char *what)
{
    char line[CLOCK_TEXT_SIZE + 256], time[CLOCK_TEXT_SIZE];
    const char *host = vm->options.host;
    int length = snprintf(line, sizeof(line), "\r\n%s %s VM %.63s %s%s%.63s\r\n", code,
                          clock_format(clock_realtime_ns(), time), vm->config.name, what,
                          host ? " on host " : "", host ? host : "");

    console_output(vm->console, line, (size_t)length);
}

static bool moves(const struct vm *vm)
{
    return migration_active(vm->migration) && !migration_stays(vm->migration);
}

void console_mark_stopped(struct vm *vm)
{
    if (!vm->config.console_marks || !vm->running || !moves(vm))
        return;
    vm->marked = true;
    put_mark(vm, "HAL0331", "stopped");
}

void console_mark_continues(struct vm *vm)
{
    if (!vm->config.console_marks || !(vm->marked || (vm->setup && moves(vm))))
        return;
    vm->marked = false;
    put_mark(vm, "HAL0332", "continued");
}
