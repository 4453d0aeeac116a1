#include "cli/causes.h"

#include <stddef.h>
#include <string.h>

static const struct cause {
    const char *name, *words, *advice;
} causes[] = {
    {"network", "the network between the hosts was slow or gone, or somebody else answered",
     "look at the link and at both hosts' addresses (ferry host list); ferry check measures the way there"},
    {"storage", "the VM's disk was slow or gone, or is not the same on both hosts",
     "look at the storage on both hosts, and whether the disk's path leads to the same file there"},
    {"version", "the other host's Ferry, or one of its devices, is of another version",
     "bring both hosts to the same version; ferry host list shows them"},
    {"cpu", "the other host's CPU lacks what the VM was given",
     "move it to a like host, or set a baseline for all (ferry cluster baseline) and start the VM anew"},
    {"memory", "the other host has not the memory for it",
     "move or stop something there; ferry host show tells what is free"},
    {"lock", "the lock that says which host may run the VM could not be passed on",
     "look at the storage that holds the lock (beside the disk, or --lock-dir), and who else has the VM"},
    {"convergence", "the VM changes its memory faster than the link carries it",
     "allow more slowing (--throttle-max), a longer downtime (--downtime), or --quick-resume"},
    {"guest", "the guest rebooted, powered off or crashed meanwhile", "ferry logs has its console"},
    {"cancelled", "somebody cancelled it", NULL},
    {"internal", "something in Ferry itself, or in this machine", "the log lines say what; please report it"},
};

static const struct cause *find(const char *name)
{
    for (size_t i = 0; i < sizeof(causes) / sizeof(causes[0]); i++) {
        if (strcmp(causes[i].name, name) == 0)
            return &causes[i];
    }
    return NULL;
}

const char *cause_words(const char *cause)
{
    const struct cause *row = find(cause);

    return row ? row->words : NULL;
}

const char *cause_advice(const char *cause)
{
    const struct cause *row = find(cause);

    return row ? row->advice : NULL;
}
