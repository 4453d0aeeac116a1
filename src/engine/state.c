#include "engine/state.h"

#include "base/error.h"

#include <errno.h>
#include <string.h>

#define NAME_OF(table, value)                                                                                \
    ((size_t)(value) < sizeof(table) / sizeof((table)[0]) && (table)[value] ? (table)[value] : "unknown")

static const char *const state_names[] = {
    [MIGRATE_VMX_NONE] = "MIGRATE_VMX_NONE",
    [MIGRATE_TO_VMX_READY] = "MIGRATE_TO_VMX_READY",
    [MIGRATE_TO_VMX_PRECOPY] = "MIGRATE_TO_VMX_PRECOPY",
    [MIGRATE_TO_VMX_CHECKPT] = "MIGRATE_TO_VMX_CHECKPT",
    [MIGRATE_TO_VMX_WAIT_HANDSHAKE] = "MIGRATE_TO_VMX_WAIT_HANDSHAKE",
    [MIGRATE_TO_VMX_FINISHED] = "MIGRATE_TO_VMX_FINISHED",
    [MIGRATE_FROM_VMX_INIT] = "MIGRATE_FROM_VMX_INIT",
    [MIGRATE_FROM_VMX_WAITING] = "MIGRATE_FROM_VMX_WAITING",
    [MIGRATE_FROM_VMX_PRECOPY] = "MIGRATE_FROM_VMX_PRECOPY",
    [MIGRATE_FROM_VMX_CHECKPT] = "MIGRATE_FROM_VMX_CHECKPT",
    [MIGRATE_FROM_VMX_FINISHED] = "MIGRATE_FROM_VMX_FINISHED",
};

static const char *const phase_names[] = {
    [FERRY_PHASE_INIT] = "Init",     [FERRY_PHASE_COPY] = "Copy",   [FERRY_PHASE_QUIESCE] = "I/O Quiesce",
    [FERRY_PHASE_FROZEN] = "Frozen", [FERRY_PHASE_FETCH] = "Fetch",
};

static const char *const downtime_part_names[] = {
    [FERRY_DOWNTIME_PAUSE] = "pause",
    [FERRY_DOWNTIME_QUIESCE] = "quiesce",
    [FERRY_DOWNTIME_LAST_PAGES] = "last pages",
    [FERRY_DOWNTIME_STATE_SAVE] = "state save",
    [FERRY_DOWNTIME_WIRE] = "wire",
    [FERRY_DOWNTIME_STATE_LOAD] = "state load",
    [FERRY_DOWNTIME_LOCK] = "lock",
    [FERRY_DOWNTIME_RESUME] = "resume",
    [FERRY_DOWNTIME_ANNOUNCE] = "announce",
};

static const char *const outcome_names[] = {
    [FERRY_OUTCOME_NONE] = "none",       [FERRY_OUTCOME_COMPLETED] = "completed",
    [FERRY_OUTCOME_FAILED] = "failed",   [FERRY_OUTCOME_CANCELLED] = "cancelled",
    [FERRY_OUTCOME_UNKNOWN] = "unknown", [FERRY_OUTCOME_LOST] = "lost",
};

static const char *const cause_names[] = {
    [FERRY_CAUSE_NONE] = "none",
    [FERRY_CAUSE_NETWORK] = "network",
    [FERRY_CAUSE_STORAGE] = "storage",
    [FERRY_CAUSE_VERSION] = "version",
    [FERRY_CAUSE_CPU] = "cpu",
    [FERRY_CAUSE_MEMORY] = "memory",
    [FERRY_CAUSE_LOCK] = "lock",
    [FERRY_CAUSE_CONVERGENCE] = "convergence",
    [FERRY_CAUSE_CANCELLED] = "cancelled",
    [FERRY_CAUSE_GUEST] = "guest",
    [FERRY_CAUSE_INTERNAL] = "internal",
};

static const char *const encoding_names[] = {
    [FERRY_ENCODING_UNCHANGED] = "unchanged",
    [FERRY_ENCODING_DELTA] = "delta",
    [FERRY_ENCODING_LZ4] = "lz4",
    [FERRY_ENCODING_ZSTD] = "zstd",
};

static const char *const compress_names[] = {
    [FERRY_COMPRESS_AUTO] = "auto",
    [FERRY_COMPRESS_OFF] = "off",
    [FERRY_COMPRESS_LZ4] = "lz4",
    [FERRY_COMPRESS_ZSTD] = "zstd",
};

const char *ferry_state_name(enum ferry_state state)
{
    return NAME_OF(state_names, state);
}

const char *ferry_phase_name(enum ferry_phase phase)
{
    return NAME_OF(phase_names, phase);
}

const char *ferry_downtime_part_name(enum ferry_downtime_part part)
{
    return NAME_OF(downtime_part_names, part);
}

const char *ferry_outcome_name(enum ferry_outcome outcome)
{
    return NAME_OF(outcome_names, outcome);
}

const char *ferry_cause_name(enum ferry_cause cause)
{
    return NAME_OF(cause_names, cause);
}

const char *ferry_encoding_name(enum ferry_encoding encoding)
{
    return NAME_OF(encoding_names, encoding);
}

const char *ferry_compress_name(enum ferry_compress compress)
{
    return NAME_OF(compress_names, compress);
}

int ferry_compress_parse(const char *name, enum ferry_compress *compress, struct ferry_error *err)
{
    for (int i = FERRY_COMPRESS_AUTO; i <= FERRY_COMPRESS_ZSTD; i++) {
        if (strcmp(name, compress_names[i]) == 0) {
            *compress = (enum ferry_compress)i;
            return 0;
        }
    }
    return error_set(err, -EINVAL, "compression is auto, off, lz4 or zstd, not \"%.32s\"", name);
}

bool state_may_follow(enum session_role role, enum ferry_state from, enum ferry_state to)
{
    enum ferry_state first = role == SESSION_SOURCE ? MIGRATE_TO_VMX_READY : MIGRATE_FROM_VMX_INIT;
    enum ferry_state last = role == SESSION_SOURCE ? MIGRATE_TO_VMX_FINISHED : MIGRATE_FROM_VMX_FINISHED;

    if (from == MIGRATE_VMX_NONE)
        return to == first;
    if (from < first || from > last)
        return false;
    if (from == last)
        return to == MIGRATE_VMX_NONE;
    return to == from + 1 || to == last;
}

unsigned state_percent(unsigned shown, uint64_t done, uint64_t total)
{
    unsigned now = total == 0 || done >= total ? 100 : (unsigned)(100.0 * (double)done / (double)total);

    return now > shown ? now : shown;
}
