/*
 * Fault points: named places where a test can make a session fail, by
 * FERRY_FAULT=name:action[,name:action...] in the environment when the session is created. Every step of the
 * switchover has one before and one after. Built in only with the meson option fault_points; otherwise
 * fault_hit is nothing.
 *
 * FERRY_FAULT=@FILE: the file says so, and is read whenever a point is reached, so that a process that lives
 * long can be made to fail in many ways, one after the other. A file that is missing or makes no sense is no
 * fault. The name of a point that has an action is added to FILE.reached, a line each time, before it is
 * carried out.
 *
 * Actions: crash (SIGKILL to the own process), hang (this thread never goes on), error (the step fails with
 * -EIO), drop (all connections of the session are lost, the step goes on), wait (only with FILE: this thread
 * goes on when FILE does not say wait any more).
 */
#ifndef FERRY_ENGINE_FAULT_H
#define FERRY_ENGINE_FAULT_H

#include <ferry/error.h>

#include <stdbool.h>

/* X(name of the enum, name in the environment) */
#define FAULT_SESSION_POINTS(X)                                                                              \
    X(FAULT_SOURCE_BEFORE_CONNECT, "source-before-connect")                                                  \
    X(FAULT_SOURCE_AFTER_CONNECT, "source-after-connect")                                                    \
    X(FAULT_SOURCE_BEFORE_ROUND, "source-before-round")                                                      \
    X(FAULT_SOURCE_AFTER_ROUND, "source-after-round")                                                        \
    X(FAULT_SOURCE_BEFORE_PAUSE, "source-before-pause")                                                      \
    X(FAULT_SOURCE_AFTER_PAUSE, "source-after-pause")                                                        \
    X(FAULT_SOURCE_BEFORE_QUIESCE, "source-before-quiesce")                                                  \
    X(FAULT_SOURCE_AFTER_QUIESCE, "source-after-quiesce")                                                    \
    X(FAULT_SOURCE_BEFORE_LAST_PAGES, "source-before-last-pages")                                            \
    X(FAULT_SOURCE_AFTER_LAST_PAGES, "source-after-last-pages")                                              \
    X(FAULT_SOURCE_BEFORE_STATE_SAVE, "source-before-state-save")                                            \
    X(FAULT_SOURCE_AFTER_STATE_SAVE, "source-after-state-save")                                              \
    X(FAULT_SOURCE_BEFORE_VERDICT, "source-before-verdict")                                                  \
    X(FAULT_SOURCE_AFTER_VERDICT, "source-after-verdict")                                                    \
    X(FAULT_SOURCE_BEFORE_RELEASE, "source-before-release")                                                  \
    X(FAULT_SOURCE_AFTER_RELEASE, "source-after-release")                                                    \
    X(FAULT_SOURCE_BEFORE_GO, "source-before-go")                                                            \
    X(FAULT_SOURCE_AFTER_GO, "source-after-go")                                                              \
    X(FAULT_SOURCE_BEFORE_RUNNING, "source-before-running")                                                  \
    X(FAULT_SOURCE_AFTER_RUNNING, "source-after-running")                                                    \
    X(FAULT_DESTINATION_BEFORE_WELCOME, "destination-before-welcome")                                        \
    X(FAULT_DESTINATION_AFTER_WELCOME, "destination-after-welcome")                                          \
    X(FAULT_DESTINATION_BEFORE_LOAD, "destination-before-load")                                              \
    X(FAULT_DESTINATION_AFTER_LOAD, "destination-after-load")                                                \
    X(FAULT_DESTINATION_BEFORE_VERDICT, "destination-before-verdict")                                        \
    X(FAULT_DESTINATION_AFTER_VERDICT, "destination-after-verdict")                                          \
    X(FAULT_DESTINATION_BEFORE_ACQUIRE, "destination-before-acquire")                                        \
    X(FAULT_DESTINATION_AFTER_ACQUIRE, "destination-after-acquire")                                          \
    X(FAULT_DESTINATION_BEFORE_RESUME, "destination-before-resume")                                          \
    X(FAULT_DESTINATION_AFTER_RESUME, "destination-after-resume")                                            \
    X(FAULT_DESTINATION_BEFORE_ANNOUNCE, "destination-before-announce")                                      \
    X(FAULT_DESTINATION_AFTER_ANNOUNCE, "destination-after-announce")                                        \
    X(FAULT_DESTINATION_BEFORE_RUNNING, "destination-before-running")                                        \
    X(FAULT_DESTINATION_AFTER_RUNNING, "destination-after-running")

/* Within the guest's ownership functions, for those that a VMM has (src/vm/ownership.c). */
#define FAULT_OWNERSHIP_POINTS(X)                                                                            \
    X(FAULT_SOURCE_BEFORE_HANDOVER, "source-before-handover")                                                \
    X(FAULT_SOURCE_AFTER_HANDOVER, "source-after-handover")                                                  \
    X(FAULT_SOURCE_BEFORE_RETAKE, "source-before-retake")                                                    \
    X(FAULT_SOURCE_AFTER_RETAKE, "source-after-retake")                                                      \
    X(FAULT_DESTINATION_BEFORE_ACQUIRED, "destination-before-acquired")                                      \
    X(FAULT_DESTINATION_AFTER_ACQUIRED, "destination-after-acquired")                                        \
    X(FAULT_DESTINATION_BEFORE_STARTED, "destination-before-started")                                        \
    X(FAULT_DESTINATION_AFTER_STARTED, "destination-after-started")

/* Only where memory is passed instead of copied; there the points of rounds and last pages are not reached.
 */
#define FAULT_MEMORY_POINTS(X)                                                                               \
    X(FAULT_SOURCE_BEFORE_MEMORY, "source-before-memory")                                                    \
    X(FAULT_SOURCE_AFTER_MEMORY, "source-after-memory")                                                      \
    X(FAULT_DESTINATION_BEFORE_MEMORY, "destination-before-memory")                                          \
    X(FAULT_DESTINATION_AFTER_MEMORY, "destination-after-memory")

#define FAULT_POINTS(X)                                                                                      \
    FAULT_SESSION_POINTS(X)                                                                                  \
    FAULT_OWNERSHIP_POINTS(X)                                                                                \
    FAULT_MEMORY_POINTS(X)

enum fault_point {
    FAULT_NONE = 0,
#define FAULT_ENUM(point, name) point,
    FAULT_POINTS(FAULT_ENUM)
#undef FAULT_ENUM
        FAULT_COUNT,
    FAULT_SESSION_END = FAULT_SOURCE_BEFORE_HANDOVER, /* the session's own points are below it */
};

enum fault_action {
    FAULT_ACTION_NONE = 0,
    FAULT_ACTION_CRASH,
    FAULT_ACTION_HANG,
    FAULT_ACTION_ERROR,
    FAULT_ACTION_DROP,
    FAULT_ACTION_WAIT,
};

#define FAULT_FILE_SIZE 256

struct fault_plan {
    enum fault_action action[FAULT_COUNT];
    char file[FAULT_FILE_SIZE]; /* empty: none */
    void (*drop)(void *opaque); /* loses the session's connections */
    void *opaque;
};

/* "source-before-pause"; NULL for no point. For listings. */
const char *fault_point_name(enum fault_point point);

/* Fills in the actions from TEXT (may be NULL). -EINVAL names the part that is not understood. */
int fault_plan_parse(struct fault_plan *plan, const char *text, struct ferry_error *err);

struct ferry_session;

/* What drop does, for the plan of one whose fault points lie outside the session. Any thread. */
void fault_drop_connections(struct ferry_session *session);

#ifdef FERRY_FAULT_POINTS
int fault_hit(const struct fault_plan *plan, enum fault_point point, struct ferry_error *err);
#else
static inline int fault_hit(const struct fault_plan *plan, enum fault_point point, struct ferry_error *err)
{
    return 0;
}
#endif

#endif
