#include "vm/sections.h"

#include "device/tables.h"
#include "machine/tables.h"
#include "vm/console.h"
#include "vm/vm_log.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *kind;
    const struct state_table *table;
} kinds[] = {
    {"cmos", &mc146818_table},
    {"rtc", &goldfish_rtc_table},
    {"uart", &uart16550_table},
    {"virtio-blk", &virtio_blk_table},
    {"virtio-console", &virtio_console_table},
    {"virtio-net", &virtio_net_table},
    {"virtio-rng", &virtio_rng_table},
    {"vmgenid", &vmgenid_table},
    {CONSOLE_SECTION, &console_state},
    {VM_LOG_SECTION, &vm_log_state},
};

const struct state_table *section_table(const char *machine, const char *section)
{
    char kind[64];
    size_t length = strlen(section);

    while (length > 0 && section[length - 1] >= '0' && section[length - 1] <= '9')
        length--;
    if (length == 0 || length >= sizeof(kind))
        return NULL;
    snprintf(kind, sizeof(kind), "%.*s", (int)length, section);
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        if (strcmp(kinds[i].kind, kind) == 0)
            return kinds[i].table;
    }
    if (strcmp(machine, "riscv64") == 0)
        return soft_state_table(kind);
#ifdef __x86_64__
    if (strcmp(machine, "x86_64") == 0)
        return kvm_state_table(kind);
#endif
    return NULL;
}
