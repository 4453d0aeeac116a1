#include "engine/fault.h"

#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char *const point_names[FAULT_COUNT] = {
#define FAULT_NAME(point, name) [point] = name,
    FAULT_POINTS(FAULT_NAME)
#undef FAULT_NAME
};

static const char *const action_names[] = {
    [FAULT_ACTION_CRASH] = "crash", [FAULT_ACTION_HANG] = "hang", [FAULT_ACTION_ERROR] = "error",
    [FAULT_ACTION_DROP] = "drop",   [FAULT_ACTION_WAIT] = "wait",
};

const char *fault_point_name(enum fault_point point)
{
    return point > FAULT_NONE && point < FAULT_COUNT ? point_names[point] : NULL;
}

static size_t find_name(const char *const *names, size_t count, const char *text, size_t length)
{
    for (size_t i = 1; i < count; i++) {
        if (strlen(names[i]) == length && strncmp(names[i], text, length) == 0)
            return i;
    }
    return 0;
}

int fault_plan_parse(struct fault_plan *plan, const char *text, struct ferry_error *err)
{
    if (text && text[0] == '@') {
        if (strlen(text + 1) >= sizeof(plan->file))
            return error_set(err, -EINVAL, "FERRY_FAULT: the file's name is too long");
        memcpy(plan->file, text + 1, strlen(text));
        return 0;
    }
    while (text && *text) {
        size_t size = strcspn(text, ",");
        size_t colon = strcspn(text, ":,");
        size_t point = find_name(point_names, FAULT_COUNT, text, colon);
        size_t action = colon < size ? find_name(action_names, sizeof(action_names) / sizeof(action_names[0]),
                                                 text + colon + 1, size - colon - 1)
                                     : 0;

        if (point == 0 || action == 0)
            return error_set(
                err, -EINVAL,
                "FERRY_FAULT: '%.*s' is not POINT:ACTION with action crash, hang, error, drop or wait",
                (int)size, text);
        plan->action[point] = (enum fault_action)action;
        text += size + (text[size] == ',');
    }
    return 0;
}

#ifdef FERRY_FAULT_POINTS
static enum fault_action read_action(const char *path, enum fault_point point)
{
    struct fault_plan plan = {0};
    char text[512] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size;

    if (fd < 0)
        return FAULT_ACTION_NONE;
    size = read(fd, text, sizeof(text) - 1);
    close(fd);
    text[size < 0 ? 0 : strcspn(text, "\n")] = '\0';
    return text[0] != '@' && fault_plan_parse(&plan, text, NULL) == 0 ? plan.action[point]
                                                                      : FAULT_ACTION_NONE;
}

static void note_reached(const char *path, enum fault_point point)
{
    char reached[FAULT_FILE_SIZE + 16];
    int fd;

    snprintf(reached, sizeof(reached), "%s.reached", path);
    fd = open(reached, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
    if (fd < 0)
        return;
    dprintf(fd, "%s\n", point_names[point]);
    close(fd);
}

static void wait_for_release(const char *path, enum fault_point point)
{
    while (read_action(path, point) == FAULT_ACTION_WAIT)
        poll(NULL, 0, 5);
}

int fault_hit(const struct fault_plan *plan, enum fault_point point, struct ferry_error *err)
{
    enum fault_action action = plan->file[0] ? read_action(plan->file, point) : plan->action[point];

    if (plan->file[0] && action != FAULT_ACTION_NONE)
        note_reached(plan->file, point);
    switch (action) {
    case FAULT_ACTION_CRASH:
        kill(getpid(), SIGKILL);
        break;
    case FAULT_ACTION_HANG:
        for (;;)
            poll(NULL, 0, -1);
    case FAULT_ACTION_ERROR:
        return error_set(err, -EIO, "fault point %s", point_names[point]);
    case FAULT_ACTION_DROP:
        if (plan->drop)
            plan->drop(plan->opaque);
        break;
    case FAULT_ACTION_WAIT:
        if (plan->file[0])
            wait_for_release(plan->file, point);
        break;
    case FAULT_ACTION_NONE:
        break;
    }
    return 0;
}
#endif
