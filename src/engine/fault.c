#include "engine/fault.h"

#include "base/error.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

static const char *const point_names[FAULT_COUNT] = {
#define FAULT_NAME(point, name) [point] = name,
    FAULT_POINTS(FAULT_NAME)
#undef FAULT_NAME
};

static const char *const action_names[] = {
    [FAULT_ACTION_CRASH] = "crash",
    [FAULT_ACTION_HANG] = "hang",
    [FAULT_ACTION_ERROR] = "error",
    [FAULT_ACTION_DROP] = "drop",
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
    while (text && *text) {
        size_t size = strcspn(text, ",");
        size_t colon = strcspn(text, ":,");
        size_t point = find_name(point_names, FAULT_COUNT, text, colon);
        size_t action = colon < size ? find_name(action_names, sizeof(action_names) / sizeof(action_names[0]),
                                                 text + colon + 1, size - colon - 1)
                                     : 0;

        if (point == 0 || action == 0)
            return error_set(err, -EINVAL,
                             "FERRY_FAULT: '%.*s' is not POINT:ACTION with action crash, hang, error or drop",
                             (int)size, text);
        plan->action[point] = (enum fault_action)action;
        text += size + (text[size] == ',');
    }
    return 0;
}

#ifdef FERRY_FAULT_POINTS
int fault_hit(const struct fault_plan *plan, enum fault_point point, struct ferry_error *err)
{
    switch (plan->action[point]) {
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
    case FAULT_ACTION_NONE:
        break;
    }
    return 0;
}
#endif
