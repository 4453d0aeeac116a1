#include "vm/ownership.h"

#include "base/error.h"

#include <errno.h>

int ownership_take(struct machine *machine, struct ferry_error *err)
{
    return machine_acquire(machine, err);
}

int ownership_release(struct machine *machine, const struct ferry_handover *handover, struct ferry_error *err)
{
    machine_release(machine);
    return 0;
}

int ownership_acquire(struct machine *machine, const struct ferry_handover *handover, struct ferry_error *err)
{
    return machine_acquire(machine, err);
}

void ownership_give_back(struct machine *machine, const struct ferry_handover *handover)
{
    machine_release(machine);
}

static bool has_writable_disk(const struct machine_config *config)
{
    for (unsigned i = 0; i < config->disk_count; i++)
        if (!config->disks[i].readonly)
            return true;
    return false;
}

enum ferry_retake ownership_retake(struct machine *machine, const struct ferry_handover *handover,
                                   struct ferry_error *err)
{
    if (!handover->destination_never_ran && !has_writable_disk(machine_config(machine))) {
        error_set(err, -ENOLCK, "no writable disk's lock can tell whether the VM runs on %s",
                  handover->destination);
        return FERRY_RETAKE_UNKNOWN;
    }
    if (machine_acquire(machine, err) == 0)
        return FERRY_RETAKE_RESUME;
    return FERRY_RETAKE_UNKNOWN;
}
