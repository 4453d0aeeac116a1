#include "engine/choice.h"

#define NS_PER_MS 1e6

/* A window is over after so much; short enough to follow the link, long enough for its buffers. */
#define WINDOW_NS    (50 * NS_PER_MS)
#define WINDOW_PAGES 4096

/* Until something was measured: a byte into the socket (4 GB/s), and at most so much is ever taken for
 * copying alone (2 GB/s); copying and hashing a page. */
#define COPY_NS       0.25
#define COPY_NS_MOST  0.5
#define STAGE_PAGE_NS 1500
/* Sending is waiting when it takes so much longer than copying. */
#define WAITING 2.0
/* Staging costs CPU time and gains something only later: it must be small beside the link's time. */
#define STAGE_SHARE 0.25
/* A way must promise to be so much faster to be tried, and keep so much of the promise to be kept. */
#define PROMISE 0.85
#define KEPT    0.95
/* What staging may cost now for what it gains in later rounds. */
#define STAGE_COST 1.02
/* After so many pages a trial that is so much slower is over. */
#define TRIAL_PAGES 512
#define TRIAL_SLOW  1.5
/* Windows between samples, and how long a way that disappointed is left alone. */
#define SAMPLE_WINDOWS 16
#define BAN_LEAST      32
#define BAN_MOST       4096

void choice_init(struct choice *choice, enum ferry_compress wish, bool lz4, bool zstd)
{
    bool any = wish == FERRY_COMPRESS_AUTO;

    *choice = (struct choice){.adaptive = any, .copy_ns = COPY_NS, .sample_age = SAMPLE_WINDOWS};
    choice->allowed[CHOICE_PLAIN] = any || wish == FERRY_COMPRESS_OFF;
    choice->allowed[CHOICE_STAGED] = wish != FERRY_COMPRESS_OFF;
    choice->allowed[CHOICE_LZ4] = lz4 && (any || wish == FERRY_COMPRESS_LZ4);
    choice->allowed[CHOICE_ZSTD] = zstd && (any || wish == FERRY_COMPRESS_ZSTD);
    for (int way = CHOICE_ZSTD; way > CHOICE_PLAIN && !any && choice->way == CHOICE_PLAIN; way--) {
        if (choice->allowed[way])
            choice->way = (enum choice_way)way;
    }
}

const char *choice_way_name(enum choice_way way)
{
    static const char *const names[] = {"plain", "staged", "lz4", "zstd"};

    return names[way];
}

static double blend(double old, double new)
{
    return old == 0 ? new : (old + new) / 2;
}

static double more(double a, double b)
{
    return a > b ? a : b;
}

static double encode_ns(const struct choice *choice, enum choice_way way)
{
    if (way == CHOICE_STAGED && choice->encode_ns[way] == 0)
        return STAGE_PAGE_NS;
    return choice->encode_ns[way];
}

static double page_bytes(const struct choice *choice, enum choice_way way)
{
    return choice->page_bytes[way] == 0 ? FERRY_PAGE_SIZE : choice->page_bytes[way];
}

static bool may_try(const struct choice *choice, enum choice_way way)
{
    if (!choice->allowed[way] || choice->banned[way] > 0)
        return false;
    return way < CHOICE_LZ4 || choice->encode_ns[way] > 0;
}

/* Of one page, in the steady state. */
static double way_ns(const struct choice *choice, enum choice_way way)
{
    double bytes = page_bytes(choice, way);

    return more(encode_ns(choice, way) + bytes * choice->copy_ns, bytes * choice->link_ns);
}

static void window_measure(struct choice *choice, const struct choice_batch *window)
{
    double bytes = (double)window->bytes;
    double send_ns = (double)window->send_ns;
    double all_ns = send_ns + (double)window->encode_ns;

    choice->encode_ns[choice->way] =
        blend(choice->encode_ns[choice->way], (double)window->encode_ns / (double)window->pages);
    choice->page_bytes[choice->way] = blend(choice->page_bytes[choice->way], bytes / (double)window->pages);
    if (bytes == 0)
        return;
    if (send_ns / bytes < choice->copy_ns)
        choice->copy_ns = send_ns / bytes;
    else if (send_ns / bytes < COPY_NS_MOST)
        choice->copy_ns = blend(choice->copy_ns, send_ns / bytes);
    choice->waiting = send_ns > WAITING * choice->copy_ns * bytes && send_ns > all_ns / 4;
    if (choice->waiting)
        choice->link_ns = blend(choice->link_ns, all_ns / bytes);
    else if (choice->link_ns > all_ns / bytes)
        choice->link_ns = all_ns / bytes;
}

static void switch_to(struct choice *choice, enum choice_way way, double now_ns)
{
    choice->trial = true;
    choice->again = false;
    choice->before = choice->way;
    choice->before_ns = now_ns;
    choice->way = way;
}

/* The way on trial has sent a window of so many pages: was it worth it? In a window of few pages a thread
 * that had to wait for a core once makes all the difference: then it gets another. */
static void judge(struct choice *choice, double now_ns, uint64_t pages)
{
    enum choice_way way = choice->way;
    double limit = way == CHOICE_STAGED ? STAGE_COST : choice->before > way ? 1 : KEPT;

    if (now_ns <= choice->before_ns * limit) {
        choice->trial = false;
        choice->ban[way] = 0;
        return;
    }
    if (pages < WINDOW_PAGES && !choice->again) {
        choice->again = true;
        return;
    }
    choice->trial = false;
    choice->ban[way] = choice->ban[way] == 0             ? BAN_LEAST
                       : choice->ban[way] < BAN_MOST / 2 ? choice->ban[way] * 2
                                                         : BAN_MOST;
    choice->banned[way] = choice->ban[way];
    choice->way = choice->before;
}

static void choose(struct choice *choice, double now_ns)
{
    enum choice_way best = choice->way;
    double stage_ns = encode_ns(choice, CHOICE_STAGED);

    for (int way = CHOICE_PLAIN; way < CHOICE_WAYS; way++) {
        if (may_try(choice, (enum choice_way)way) &&
            way_ns(choice, (enum choice_way)way) < PROMISE * way_ns(choice, best))
            best = (enum choice_way)way;
    }
    if (best == CHOICE_PLAIN && choice->waiting && may_try(choice, CHOICE_STAGED) &&
        stage_ns < STAGE_SHARE * FERRY_PAGE_SIZE * choice->link_ns)
        best = CHOICE_STAGED;
    if (best == CHOICE_STAGED && stage_ns > FERRY_PAGE_SIZE * choice->link_ns &&
        choice->allowed[CHOICE_PLAIN])
        best = CHOICE_PLAIN;
    /* Nobody waits for the link any more: is it faster than it was? */
    if (best >= CHOICE_LZ4 && choice->idle >= SAMPLE_WINDOWS && may_try(choice, CHOICE_PLAIN)) {
        best = CHOICE_PLAIN;
        choice->idle = 0;
    }
    if (best != choice->way)
        switch_to(choice, best, now_ns);
}

/* Enough was sent to tell something. */
static bool window_over(const struct choice *choice)
{
    const struct choice_batch *window = &choice->window;
    double all_ns = (double)window->encode_ns + (double)window->send_ns;

    if (window->pages == 0)
        return false;
    if (choice->trial && window->pages >= TRIAL_PAGES &&
        all_ns > TRIAL_SLOW * choice->before_ns * (double)window->pages)
        return true;
    return all_ns >= WINDOW_NS || window->pages >= WINDOW_PAGES;
}

bool choice_note(struct choice *choice, const struct choice_batch *batch)
{
    struct choice_batch *window = &choice->window;
    enum choice_way before = choice->way;

    if (!choice->adaptive)
        return false;
    window->pages += batch->pages;
    window->bytes += batch->bytes;
    window->encode_ns += batch->encode_ns;
    window->send_ns += batch->send_ns;

    if (!window_over(choice))
        return false;

    uint64_t pages = window->pages;
    double all_ns = ((double)window->encode_ns + (double)window->send_ns) / (double)pages;

    window_measure(choice, window);
    *window = (struct choice_batch){0};
    choice->sample_age++;
    choice->idle = choice->waiting ? 0 : choice->idle + 1;
    for (int way = CHOICE_PLAIN; way < CHOICE_WAYS; way++)
        choice->banned[way] -= choice->banned[way] > 0;
    if (choice->trial)
        judge(choice, all_ns, pages);
    else
        choose(choice, all_ns);
    return choice->way != before;
}

bool choice_wants_sample(const struct choice *choice)
{
    return choice->adaptive && choice->waiting && choice->sample_age >= SAMPLE_WINDOWS &&
           (choice->allowed[CHOICE_LZ4] || choice->allowed[CHOICE_ZSTD]);
}

void choice_sample(struct choice *choice, enum choice_way way, const struct choice_batch *sample)
{
    double pages = (double)sample->pages;

    /* What batches in this way really took is better known. */
    if (way == choice->way || pages == 0)
        return;
    choice->encode_ns[way] =
        blend(choice->encode_ns[way], (double)sample->encode_ns / pages + encode_ns(choice, CHOICE_STAGED));
    choice->page_bytes[way] = blend(choice->page_bytes[way], (double)sample->bytes / pages);
}

void choice_sampled(struct choice *choice)
{
    choice->sample_age = 0;
}

enum choice_way choice_for(const struct choice *choice, double link_ns)
{
    enum choice_way best = choice->way;
    double best_ns = 0;

    if (!choice->adaptive)
        return best;
    if (link_ns == 0)
        return CHOICE_PLAIN;
    best = CHOICE_PLAIN;
    for (int way = CHOICE_PLAIN; way < CHOICE_WAYS; way++) {
        double ns =
            encode_ns(choice, (enum choice_way)way) + page_bytes(choice, (enum choice_way)way) * link_ns;

        if (choice->allowed[way] && (way < CHOICE_LZ4 || choice->encode_ns[way] > 0) &&
            (best_ns == 0 || ns < best_ns)) {
            best = (enum choice_way)way;
            best_ns = ns;
        }
    }
    return best;
}

uint64_t choice_page_bytes(const struct choice *choice, enum choice_way way)
{
    double bytes = way == CHOICE_PLAIN ? FERRY_PAGE_SIZE : page_bytes(choice, way);

    return bytes < 1 ? 1 : (uint64_t)bytes;
}

uint64_t choice_page_ns(const struct choice *choice, enum choice_way way)
{
    return way == CHOICE_PLAIN ? 0 : (uint64_t)encode_ns(choice, way);
}
