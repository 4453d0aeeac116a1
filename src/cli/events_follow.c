#include "cli/events_follow.h"

#include "base/error.h"
#include "base/thread.h"
#include "cli/memory.h"
#include "cli/object.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define RETRY_PAUSE_MS 1000
#define KNOWN_MAX      1024 /* events that may still come from another host */
#define PATH_SIZE      96

struct follower {
    struct cli *cli;
    events_show *show;
    int stop_fd; /* readable: it is over */

    pthread_mutex_t lock; /* guards the rest, and whoever shows */
    bool over;
    struct known {
        char *key;
        const struct source *from;
    } known[KNOWN_MAX]; /* the last ones shown */
    size_t known_count;
};

/* One host's stream. */
struct source {
    struct follower *follower;
    struct client *client;
    struct client own; /* client, if it is not cli's */
    struct thread thread;
    const char *name; /* borrowed: of others only their own events are shown; NULL: all of cli's host */
    uint64_t last;    /* number of its last event */
    bool heard;       /* it has answered at least once */
    bool away;        /* and that it is not there has been said */
};

/* --- what was shown already --- */

static char *key_of(const json_t *event)
{
    return memory_format("%s %s %s %s %s", object_text(event, "host"), object_text(event, "time"),
                         object_text(event, "code"), object_text(event, "migration"),
                         object_text(event, "text"));
}

/* Under the lock. Whether it is new, and not shown because another host had told it; noted from now on. */
static bool take_note(struct follower *follower, const struct source *from, const json_t *event)
{
    char *key = key_of(event);
    size_t count = follower->known_count < KNOWN_MAX ? follower->known_count : KNOWN_MAX;
    struct known *place;

    for (size_t i = 0; i < count; i++) {
        if (follower->known[i].from != from && strcmp(follower->known[i].key, key) == 0) {
            free(key);
            return false;
        }
    }
    place = &follower->known[follower->known_count++ % KNOWN_MAX];
    free(place->key);
    *place = (struct known){.key = key, .from = from};
    return true;
}

/* --- one host --- */

static int take_event(void *opaque, json_t *event, struct ferry_error *err)
{
    struct source *source = opaque;
    struct follower *follower = source->follower;
    bool over;

    (void)err;
    source->last = object_number(event, "number");
    source->heard = true;
    if (source->name && strcmp(object_text(event, "host"), source->name) != 0)
        return 0;
    pthread_mutex_lock(&follower->lock);
    if (!follower->over && take_note(follower, source, event))
        follower->over = follower->show(follower->cli, event) != 0;
    over = follower->over;
    pthread_mutex_unlock(&follower->lock);
    return over ? 1 : 0;
}

static bool is_over(struct source *source, int wait_ms)
{
    struct pollfd stop = {.fd = source->follower->stop_fd, .events = POLLIN};

    return poll(&stop, 1, wait_ms) > 0;
}

static int look(void *opaque, struct ferry_error *err)
{
    struct source *source = opaque;

    (void)err;
    if (source->away)
        fprintf(stderr, "ferry: %s answers again\n", source->name ? source->name : source->client->target);
    source->away = false;
    source->heard = true;
    return is_over(source, 0) ? 1 : 0;
}

/* Until it is over. A negative errno: it has never answered. */
static int follow_source(struct source *source, struct ferry_error *err)
{
    struct client_stream stream = {
        .opaque = source, .object = take_event, .step = look, .wake_fd = source->follower->stop_fd};
    char path[PATH_SIZE];
    int result;

    for (;;) {
        bool from_now = source->name && !source->heard;

        snprintf(path, sizeof(path), "/v1/events?follow=1&since=%llu%s", (unsigned long long)source->last,
                 from_now ? "&new=1" : "");
        result = client_follow(source->client, path, &stream, err);
        if (result == 1 || (result < 0 && !source->name && !source->heard))
            return result;
        if (!source->away)
            fprintf(stderr, "ferry: %s is away (%s); its events follow when it is back\n",
                    source->name ? source->name : source->client->target,
                    result < 0 ? err->text : "it ended the connection");
        source->away = true;
        if (is_over(source, RETRY_PAUSE_MS))
            return 1;
    }
}

static void *source_main(void *opaque)
{
    struct ferry_error err = {0};

    follow_source(opaque, &err);
    return NULL;
}

/* --- all hosts --- */

/* HOSTS begins with cli's own, which is followed already (docs/API.md). */
static void start_others(struct follower *follower, struct source *sources, const json_t *hosts)
{
    struct client *by = &follower->cli->client;
    struct ferry_error err;
    const json_t *host;
    size_t index;

    json_array_foreach(hosts, index, host)
    {
        struct source *source = &sources[index];
        int result;

        *source = (struct source){0};
        if (index == 0)
            continue;
        *source =
            (struct source){.follower = follower, .client = &source->own, .name = object_text(host, "name")};
        result = client_open_host(&source->own, by, source->name, object_text(host, "address"), &err);
        if (result == 0)
            result = thread_start(&source->thread, THREAD_GENERAL, "events", source_main, source, &err);
        if (result < 0)
            fprintf(stderr, "ferry: no events of %s: %s\n", source->name, err.text);
    }
}

int events_follow(struct cli *cli, bool alone, events_show *show, struct ferry_error *err)
{
    struct follower follower = {.cli = cli, .show = show, .stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    struct source here = {.follower = &follower, .client = &cli->client};
    struct source *others = NULL;
    json_t *hosts = NULL;
    uint64_t one = 1;
    int result = 0;

    if (follower.stop_fd < 0)
        return error_set_errno(err, -errno, "cannot follow events");
    pthread_mutex_init(&follower.lock, NULL);
    if (!alone)
        result = client_get(&cli->client, "/v1/hosts", &hosts, err);
    if (result == 0) {
        others = memory_resize(NULL, (json_array_size(hosts) + 1) * sizeof(*others));
        start_others(&follower, others, hosts);
        result = follow_source(&here, err);
    }
    if (write(follower.stop_fd, &one, sizeof(one)) < 0)
        exit(EXIT_STATUS_FAILED); /* they would never be told */
    for (size_t i = 0; others && i < json_array_size(hosts); i++) {
        thread_join(&others[i].thread);
        client_close(&others[i].own);
    }
    for (size_t i = 0; i < KNOWN_MAX; i++)
        free(follower.known[i].key);
    free(others);
    json_decref(hosts);
    close(follower.stop_fd);
    pthread_mutex_destroy(&follower.lock);
    return result < 0 ? result : 0;
}
