/*
 * An event loop: descriptors and timers, one thread runs it (epoll, timerfd, eventfd).
 *
 * All functions except loop_stop and loop_post must be called on the thread that runs the loop, or before it
 * runs. A callback may remove any watch or timer, its own included. Watches are level-triggered; remove one
 * before closing its descriptor. A watch that reports LOOP_HANGUP does so again and again until it is
 * removed.
 */
#ifndef FERRY_BASE_LOOP_H
#define FERRY_BASE_LOOP_H

#include <ferry/error.h>

#include <stdbool.h>
#include <stdint.h>

struct loop;
struct loop_watch;
struct loop_timer;

enum loop_events {
    LOOP_READ = 1,
    LOOP_WRITE = 2,
    LOOP_HANGUP = 4, /* always reported, never asked for */
};

typedef void loop_watch_function(void *opaque, unsigned events);
typedef void loop_function(void *opaque);

int loop_new(struct loop **out, struct ferry_error *err);
void loop_free(
    struct loop *loop); /* watches and timers still there are removed; descriptors are not closed */

int loop_watch_add(struct loop *loop, int fd, unsigned events, loop_watch_function *function, void *opaque,
                   struct loop_watch **out, struct ferry_error *err);
int loop_watch_set(struct loop_watch *watch, unsigned events, struct ferry_error *err);
void loop_watch_remove(struct loop_watch *watch); /* NULL allowed */

/* One-shot timer, idle until armed. */
int loop_timer_add(struct loop *loop, loop_function *function, void *opaque, struct loop_timer **out,
                   struct ferry_error *err);
void loop_timer_arm(struct loop_timer *timer, uint64_t delay_ns);
void loop_timer_disarm(struct loop_timer *timer);
void loop_timer_remove(struct loop_timer *timer); /* NULL allowed */

/* Runs function(opaque) on the loop's thread soon, in the order of posting. Any thread. -ENOMEM or 0. What is
 * still waiting when the loop is freed does not run. */
int loop_post(struct loop *loop, loop_function *function, void *opaque);

/* Until loop_stop; one that came before counts. May be called again afterwards. */
int loop_run(struct loop *loop, struct ferry_error *err);
void loop_stop(struct loop *loop); /* any thread, and signal handlers */

#endif
