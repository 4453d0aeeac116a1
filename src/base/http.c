#include "base/http.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/sock.h"

#include <errno.h>
#include <limits.h>

/* The silence that is allowed has so many parts: after one without a word a question is put. */
#define PARTS 4

static int tune(void *opaque, curl_socket_t fd, curlsocktype purpose)
{
    const unsigned *timeout_ms = opaque;

    (void)purpose;
    sock_tune(fd, *timeout_ms, NULL); /* without it, it works as well */
    return CURL_SOCKOPT_OK;
}

void http_tune(CURL *curl, const unsigned *timeout_ms)
{
    curl_easy_setopt(curl, CURLOPT_SOCKOPTFUNCTION, tune);
    curl_easy_setopt(curl, CURLOPT_SOCKOPTDATA, timeout_ms);
}

int http_begin(struct http_talk *talk, CURL *curl, const struct http_patience *patience,
               struct ferry_error *err)
{
    int running;

    *talk = (struct http_talk){
        .patience = *patience,
        .multi = curl_multi_init(),
        .curl = curl,
        .tcp_timeout_ms = (unsigned)patience->silence_ms,
        .limit_at = clock_deadline(patience->limit_ms > 0 ? patience->limit_ms : -1),
        .code = CURLE_FAILED_INIT,
    };
    if (talk->multi)
        http_tune(curl, &talk->tcp_timeout_ms);
    if (!talk->multi || curl_multi_add_handle(talk->multi, curl) != CURLM_OK) {
        http_end(talk);
        return error_set(err, -ENOMEM, "out of memory for a connection");
    }
    curl_multi_perform(talk->multi, &running);
    return 0;
}

static void drop_question(struct http_talk *talk)
{
    if (!talk->question)
        return;
    curl_multi_remove_handle(talk->multi, talk->question);
    curl_easy_cleanup(talk->question);
    talk->question = NULL;
}

static void hear(struct http_talk *talk)
{
    talk->quiet_ns = 0;
    talk->question_ns = 0;
    talk->heard = true;
}

static size_t discard(char *data, size_t size, size_t count, void *opaque)
{
    (void)data;
    (void)opaque;
    return size * count;
}

static void put_question(struct http_talk *talk)
{
    talk->question_ns = talk->quiet_ns;
    talk->question = curl_easy_init();
    if (!talk->question)
        return;
    talk->patience.set_up_question(talk->patience.opaque, talk->question);
    http_tune(talk->question, &talk->tcp_timeout_ms);
    curl_easy_setopt(talk->question, CURLOPT_WRITEFUNCTION, discard);
    if (curl_multi_add_handle(talk->multi, talk->question) != CURLM_OK) {
        curl_easy_cleanup(talk->question);
        talk->question = NULL;
    }
}

/* What has ended: 1 when the request has. */
static int look_at_ends(struct http_talk *talk)
{
    CURLMsg *message;
    bool answered = false;
    int left;
    int result = 0;

    while ((message = curl_multi_info_read(talk->multi, &left))) {
        if (message->msg != CURLMSG_DONE)
            continue;
        if (message->easy_handle == talk->curl) {
            talk->code = message->data.result;
            result = 1;
        } else {
            long status = 0;

            curl_easy_getinfo(message->easy_handle, CURLINFO_RESPONSE_CODE, &status);
            answered = status != 0;
            drop_question(talk);
        }
    }
    if (answered)
        hear(talk);
    return result;
}

static void look_at_bytes(struct http_talk *talk)
{
    curl_off_t body = 0;
    long head = 0;

    curl_easy_getinfo(talk->curl, CURLINFO_SIZE_DOWNLOAD_T, &body);
    curl_easy_getinfo(talk->curl, CURLINFO_HEADER_SIZE, &head);
    if (body + head != talk->heard_bytes)
        hear(talk);
    talk->heard_bytes = body + head;
}

static uint64_t silence_ns(const struct http_talk *talk)
{
    return (uint64_t)talk->patience.silence_ms * NS_PER_MS;
}

/* For as long as nothing need be looked at. */
static int wait_ms(const struct http_talk *talk, int max_ms)
{
    uint64_t silence = silence_ns(talk);
    uint64_t left = talk->quiet_ns < silence ? silence - talk->quiet_ns : 0;
    int64_t wait = (int64_t)((left < silence / PARTS ? left : silence / PARTS) / NS_PER_MS) + 1;
    int limit = clock_left_ms(talk->limit_at);

    if (limit >= 0 && wait > limit)
        wait = limit;
    if (max_ms >= 0 && wait > max_ms)
        wait = max_ms;
    return wait < INT_MAX ? (int)wait : INT_MAX;
}

static int wait_for_news(struct http_talk *talk, int wake_fd, int max_ms)
{
    struct curl_waitfd extra[2];
    unsigned count = 0;
    int cancel = -1;
    int timeout_ms = wait_ms(talk, max_ms);
    uint64_t begin = clock_now_ns();
    uint64_t waited;

    if (wake_fd >= 0)
        extra[count++] = (struct curl_waitfd){.fd = wake_fd, .events = CURL_WAIT_POLLIN};
    if (talk->patience.cancel_fd >= 0) {
        cancel = (int)count;
        extra[count++] = (struct curl_waitfd){.fd = talk->patience.cancel_fd, .events = CURL_WAIT_POLLIN};
    }
    curl_multi_poll(talk->multi, extra, count, timeout_ms, NULL);
    if (cancel >= 0 && extra[cancel].revents)
        return -ECANCELED;
    /* More than was asked for is our own doing: this process did not run. */
    waited = clock_now_ns() - begin;
    if (waited > ((uint64_t)timeout_ms + 1) * NS_PER_MS)
        waited = ((uint64_t)timeout_ms + 1) * NS_PER_MS;
    talk->quiet_ns += waited;
    return 0;
}

/* How it stands with what has come. */
static int judge(struct http_talk *talk)
{
    look_at_bytes(talk);
    if (look_at_ends(talk))
        return 1;
    if (talk->quiet_ns >= silence_ns(talk))
        return HTTP_SILENT;
    if (clock_left_ms(talk->limit_at) == 0)
        return talk->heard ? HTTP_SLOW : HTTP_SILENT;
    if (!talk->question && talk->quiet_ns - talk->question_ns >= silence_ns(talk) / PARTS)
        put_question(talk);
    return 0;
}

int http_turn(struct http_talk *talk, int wake_fd, int max_ms)
{
    int running;
    int result = judge(talk);

    if (result == 0)
        result = wait_for_news(talk, wake_fd, max_ms);
    if (result < 0 || result == 1)
        return result;
    if (curl_multi_perform(talk->multi, &running) != CURLM_OK)
        return 1;
    return judge(talk);
}

void http_end(struct http_talk *talk)
{
    if (!talk->multi)
        return;
    drop_question(talk);
    curl_multi_remove_handle(talk->multi, talk->curl);
    /* CURL may outlive the number it was tuned by. */
    curl_easy_setopt(talk->curl, CURLOPT_SOCKOPTFUNCTION, NULL);
    curl_multi_cleanup(talk->multi);
    talk->multi = NULL;
}

int http_perform(CURL *curl, const struct http_patience *patience, CURLcode *code, struct ferry_error *err)
{
    struct http_talk talk;
    int result = http_begin(&talk, curl, patience, err);

    *code = CURLE_FAILED_INIT;
    if (result < 0)
        return result;
    do
        result = http_turn(&talk, -1, -1);
    while (result == 0);
    *code = talk.code;
    http_end(&talk);
    return result == 1 ? 0 : result;
}
