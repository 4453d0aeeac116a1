/*
 * Measuring the way to another host by moving a guest over it that is only memory. It does what a migration
 * does, with its streams, frames and checksums, so that what the hosts' CPUs can do counts as well as what
 * the link can.
 */
#include "base/error.h"

#include <ferry/ferry.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define STATE_SIZE 4096

struct probe {
    struct ferry_ram_region region;
    uint8_t state[STATE_SIZE];
};

static int probe_list_regions(void *guest, struct ferry_ram_region *regions, size_t *count,
                              struct ferry_error *err)
{
    struct probe *probe = guest;

    (void)err;
    regions[0] = probe->region;
    *count = 1;
    return 0;
}

static int probe_dirty_start(void *guest, struct ferry_error *err)
{
    (void)guest;
    (void)err;
    return 0;
}

/* Nobody writes. */
static int probe_dirty_fetch(void *guest, size_t region, uint64_t *bitmap, struct ferry_error *err)
{
    (void)guest;
    (void)region;
    (void)bitmap;
    (void)err;
    return 0;
}

static void probe_dirty_stop(void *guest)
{
    (void)guest;
}

static int probe_pause(void *guest, bool *was_running, struct ferry_error *err)
{
    (void)guest;
    (void)err;
    *was_running = false;
    return 0;
}

static int probe_quiesce(void *guest, uint64_t timeout_ns, struct ferry_error *err)
{
    (void)guest;
    (void)timeout_ns;
    (void)err;
    return 0;
}

static int probe_resume(void *guest, bool run, struct ferry_error *err)
{
    (void)guest;
    (void)run;
    (void)err;
    return 0;
}

static int probe_save_state(void *guest, struct ferry_sink *sink, struct ferry_error *err)
{
    struct probe *probe = guest;

    return ferry_sink_section(sink, "probe", 1, probe->state, sizeof(probe->state), err);
}

static int probe_load_section(void *guest, const struct ferry_section *section, struct ferry_error *err)
{
    (void)guest;
    return strcmp(section->name, "probe") == 0
               ? 0
               : error_set(err, -EINVAL, "section %s is not a probe's", section->name);
}

static int probe_load_finish(void *guest, struct ferry_error *err)
{
    (void)guest;
    (void)err;
    return 0;
}

static int probe_hand_over(void *guest, const struct ferry_handover *handover, struct ferry_error *err)
{
    (void)guest;
    (void)handover;
    (void)err;
    return 0;
}

static enum ferry_retake probe_retake(void *guest, const struct ferry_handover *handover,
                                      struct ferry_error *err)
{
    (void)guest;
    (void)handover;
    (void)err;
    return FERRY_RETAKE_RESUME;
}

static const struct ferry_guest_ops probe_ops = {
    .list_regions = probe_list_regions,
    .dirty_start = probe_dirty_start,
    .dirty_fetch = probe_dirty_fetch,
    .dirty_stop = probe_dirty_stop,
    .pause = probe_pause,
    .quiesce = probe_quiesce,
    .resume = probe_resume,
    .save_state = probe_save_state,
    .load_section = probe_load_section,
    .load_finish = probe_load_finish,
    .release_ownership = probe_hand_over,
    .acquire_ownership = probe_hand_over,
    .retake_ownership = probe_retake,
};

/* Pages that neither are zero nor can be made smaller: xorshift64. */
static void fill(uint8_t *memory, uint64_t size)
{
    uint64_t random = UINT64_C(0x9e3779b97f4a7c15);

    for (uint64_t at = 0; at < size; at += sizeof(random)) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        memcpy(memory + at, &random, sizeof(random));
    }
}

/* Allocated now, as guests' memory is. */
static int probe_open(struct probe *probe, int memfd, uint64_t size, struct ferry_error *err)
{
    void *memory;
    int failure;

    *probe = (struct probe){.region = {.name = "probe", .size = size, .memfd = -1}};
    if (size == 0 || size % FERRY_PAGE_SIZE != 0 || size > FERRY_PROBE_SIZE_MAX)
        return error_set(err, -EINVAL, "a probe is 1 to %u whole pages",
                         FERRY_PROBE_SIZE_MAX / FERRY_PAGE_SIZE);
    probe->region.memfd =
        memfd >= 0 ? fcntl(memfd, F_DUPFD_CLOEXEC, 0) : memfd_create("ferry-probe", MFD_CLOEXEC);
    if (probe->region.memfd < 0)
        return error_set_errno(err, -errno, "cannot make memory for a probe");
    failure = posix_fallocate(probe->region.memfd, 0, (off_t)size);
    if (failure)
        return error_set_errno(err, -failure, "cannot make memory for a probe");
    memory = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, probe->region.memfd, 0);
    if (memory == MAP_FAILED)
        return error_set_errno(err, -errno, "cannot make memory for a probe");
    probe->region.host_ptr = memory;
    return 0;
}

static void probe_close(struct probe *probe)
{
    if (probe->region.host_ptr)
        munmap(probe->region.host_ptr, (size_t)probe->region.size);
    if (probe->region.memfd >= 0)
        close(probe->region.memfd);
}

int ferry_probe_send(const struct ferry_source_options *options, int memfd, uint64_t size,
                     struct ferry_progress *report, struct ferry_error *err)
{
    struct ferry_source_options plain = *options;
    struct ferry_session *session = NULL;
    struct probe probe;
    int result = probe_open(&probe, memfd, size, err);

    plain.compress = FERRY_COMPRESS_OFF; /* it is the link that is measured */
    if (result == 0) {
        fill(probe.region.host_ptr, size);
        result = ferry_source_new(&session, &plain, &probe_ops, &probe, NULL, err);
    }
    if (result == 0)
        result = ferry_session_run(session, err);
    if (result == 0)
        ferry_session_progress(session, report);
    ferry_session_free(session);
    probe_close(&probe);
    return result;
}

int ferry_probe_receive(const struct ferry_destination_options *options, int memfd, uint64_t size,
                        struct ferry_error *err)
{
    struct ferry_session *session = NULL;
    struct probe probe;
    int result = probe_open(&probe, memfd, size, err);

    if (result == 0)
        result = ferry_destination_new(&session, options, &probe_ops, &probe, NULL, err);
    if (result == 0)
        result = ferry_session_run(session, err);
    ferry_session_free(session);
    probe_close(&probe);
    return result;
}
