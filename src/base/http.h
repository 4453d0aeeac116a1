/*
 * HTTP requests with libcurl that end when the other side falls silent, and not because it is slow.
 *
 * An answer may take long, or go on and have nothing to tell, for good reasons. So when nothing has come for
 * a while, a question is put to the same server on another connection; whatever it answers, it lives. When
 * nothing at all came for the whole of the silence that is allowed, it does not.
 *
 *     http_begin(&talk, curl, &patience);       CURL is set up by the caller, but for what follows
 *     while ((result = http_turn(&talk, …)) == 0)
 *         ...                                   look at what has come
 *     http_end(&talk);                          1: ended, talk.code says how
 *
 * Time counts only while it is waited for the other side: a process that was stopped meanwhile, or a callback
 * that blocked, is no silence. One thread a talk.
 */
#ifndef FERRY_BASE_HTTP_H
#define FERRY_BASE_HTTP_H

#include <ferry/error.h>

#include <curl/curl.h>
#include <stdbool.h>
#include <stdint.h>

#define HTTP_SILENT (-ETIMEDOUT) /* the other side lives no more, or cannot be reached */
#define HTTP_SLOW   (-ETIME)     /* it lives, and the limit has passed */

struct http_patience {
    int64_t silence_ms; /* at least 1 */
    int64_t limit_ms;   /* for the whole; 0: none */
    int cancel_fd;      /* readable: -ECANCELED; -1 for none */
    /* Gives CURL the URL of something small to GET there, and how to reach it. */
    void (*set_up_question)(const void *opaque, CURL *curl);
    const void *opaque;
};

struct http_talk {
    struct http_patience patience;
    CURLM *multi;   /* owned */
    CURL *curl;     /* borrowed */
    CURL *question; /* owned; NULL while none is asked */
    unsigned tcp_timeout_ms;
    uint64_t quiet_ns;    /* waited since something came */
    uint64_t question_ns; /* of it, when the last question was put */
    int64_t heard_bytes;
    bool heard; /* anything, ever */
    uint64_t limit_at;
    CURLcode code; /* how it ended */
};

/* Keep-alive and TCP_USER_TIMEOUT for CURL's connections; *TIMEOUT_MS is borrowed as long as CURL lives. */
void http_tune(CURL *curl, const unsigned *timeout_ms);

/* -ENOMEM. CURL's callbacks are called from here on. TALK does not move until http_end. */
int http_begin(struct http_talk *talk, CURL *curl, const struct http_patience *patience,
               struct ferry_error *err);
/* Waits until something comes, WAKE_FD (-1: none) is readable, or MAX_MS (-1: no limit) have passed. 0: it
 * goes on; 1: it has ended; HTTP_SILENT, HTTP_SLOW, -ECANCELED. */
int http_turn(struct http_talk *talk, int wake_fd, int max_ms);
void http_end(struct http_talk *talk); /* a zeroed talk is fine */

/* All of it: 0, and *code says how it ended, or what http_turn and http_begin say. */
int http_perform(CURL *curl, const struct http_patience *patience, CURLcode *code, struct ferry_error *err);

#endif
