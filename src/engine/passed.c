#include "engine/passed.h"

#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

int passed_check_peer(struct ferry_session *session, int fd, struct ferry_error *err)
{
    struct ucred peer;
    socklen_t size = sizeof(peer);
    int result = 0;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || peer.pid == 0)
        result = error_set(err, -EPROTOTYPE, "memory can be passed to a process of this machine only");
    else if (peer.uid != geteuid())
        result = error_set(err, -EPERM, "process %d, on the other side, is another user's", (int)peer.pid);
    return result < 0 ? session_fail(session, FERRY_CAUSE_NETWORK, result, err) : 0;
}

/* ---- source ---- */

static int source_descriptors(const struct source *source, int fds[static FERRY_REGIONS_MAX],
                              struct ferry_error *err)
{
    const struct page_map *map = &source->map;

    for (size_t i = 0; i < map->count; i++) {
        fds[i] = map->regions[i].memfd;
        if (fds[i] < 0)
            return error_set(err, -EOPNOTSUPP, "memory region %s has no descriptor to be passed",
                             map->regions[i].name);
    }
    return 0;
}

static int send_memory(struct source *source, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    struct buffer body = BUFFER_INIT;
    int fds[FERRY_REGIONS_MAX];
    struct ferry_error why = {0};
    int result = source_descriptors(source, fds, err);

    if (result < 0)
        return session_fail(session, FERRY_CAUSE_MEMORY, result, err);
    wire_memory_encode(&body, source->map.count);
    result = link_pass(&source->control.link, WIRE_MEMORY, &body, fds, source->map.count, &why);
    buffer_free(&body);
    if (result < 0) {
        result = control_refuse(&source->control, result, &why);
        error_set(err, result, "%s", why.text);
    }
    return result;
}

int passed_send(struct source *source, struct ferry_error *err)
{
    struct ferry_session *session = source->session;
    struct frame frame;
    int result = session_fault(session, FAULT_SOURCE_BEFORE_MEMORY, err);

    if (result == 0)
        result = send_memory(source, err);
    if (result == 0)
        result = control_expect(&source->control, WIRE_MEMORY_TAKEN, &frame, err);
    return result < 0 ? result : session_fault(session, FAULT_SOURCE_AFTER_MEMORY, err);
}

int passed_run(struct source *source, struct ferry_error *err)
{
    struct ferry_session *session = source->session;

    session_enter_state(session, MIGRATE_TO_VMX_PRECOPY);
    session_enter_phase(session, FERRY_PHASE_COPY);
    pthread_mutex_lock(&session->lock);
    session->progress.memory_bytes = source->map.total * FERRY_PAGE_SIZE;
    session->progress.setup_ns = clock_now_ns() - session->start_ns;
    pthread_mutex_unlock(&session->lock);
    session_set_percent(session, 1, 1);
    session_log(session, FERRY_LOG_INFO, "Memory is passed, not copied: %llu MiB",
                (unsigned long long)(source->map.total * FERRY_PAGE_SIZE >> 20));
    return session_check(session, err);
}

/* ---- destination ---- */

/* Shared memory only, which has seals: a file on a disk or at a server can fail at any access. */
static int check_descriptor(const struct ferry_ram_region *region, int fd, struct ferry_error *err)
{
    struct stat status;

    if (fstat(fd, &status) < 0 || fcntl(fd, F_GET_SEALS) < 0)
        return error_set(err, -EBADMSG, "what was passed as memory region %s is no memory", region->name);
    if (status.st_size < 0 || (uint64_t)status.st_size != region->size)
        return error_set(err, -EBADMSG, "memory region %s was passed with %lld bytes, must be %llu",
                         region->name, (long long)status.st_size, (unsigned long long)region->size);
    return 0;
}

/* Uses FDS up. */
static int adopt_all(struct destination *destination, const int *fds, size_t count, struct ferry_error *err)
{
    struct ferry_session *session = destination->session;
    int result = 0;

    for (size_t i = 0; i < count; i++) {
        size_t region = destination->place.region_of[i];

        if (result == 0)
            result = check_descriptor(&destination->map.regions[region], fds[i], err);
        if (result == 0) {
            result = session->ops->adopt_memory(session->guest, region, fds[i], err);
            if (result == 0)
                continue; /* the guest's now */
        }
        close(fds[i]);
    }
    if (result == 0)
        result = page_map_init(&destination->map, session->ops, session->guest, err);
    return result;
}

static int take_memory(struct destination *destination, struct frame *frame, struct ferry_error *err)
{
    int fds[CHANNEL_DESCRIPTORS_MAX];
    size_t count = channel_take_descriptors(&destination->control.link.channel, fds);
    size_t said = 0;
    struct ferry_error why = {0};
    int result = wire_memory_decode(&frame->body, &said, &why);

    if (result == 0 && (count != said || count != destination->place.region_count))
        result = error_set(&why, -EBADMSG, "MEMORY frame of %zu regions came with %zu descriptors, %zu must",
                           said, count, destination->place.region_count);
    if (result == 0)
        result = adopt_all(destination, fds, count, &why);
    else
        for (size_t i = 0; i < count; i++)
            close(fds[i]);
    if (result < 0) {
        result = result == -EBADMSG ? control_refuse(&destination->control, result, &why)
                                    : session_fail(destination->session, FERRY_CAUSE_MEMORY, result, &why);
        error_set(err, result, "%s", why.text);
    }
    return result;
}

int passed_take(struct destination *destination, struct ferry_error *err)
{
    struct ferry_session *session = destination->session;
    struct frame frame;
    int result = session_fault(session, FAULT_DESTINATION_BEFORE_MEMORY, err);

    if (result == 0)
        result = control_expect(&destination->control, WIRE_MEMORY, &frame, err);
    if (result == 0)
        result = take_memory(destination, &frame, err);
    if (result == 0)
        result = session_fault(session, FAULT_DESTINATION_AFTER_MEMORY, err);
    return result < 0 ? result : control_send(&destination->control, WIRE_MEMORY_TAKEN, 0, NULL, err);
}
