/*
 * How long a vCPU waits for a page: a thread touches one missing page after the other,
 *
 *   local     of memory whose pages another thread of this process has: userfaultfd, a copy, no network
 *   exchange  no memory at all: so many bytes as a request and a page have, there and back over loopback TCP
 *   fetched   of a fake guest that has come over loopback TCP by quick resume, from another process
 *
 *   fault_bench [-m MIB] [-f FAULTS] [-n RUNS] [-p] [-v]
 *
 * Prints one line a run: the times from before the touch until after it. Nothing else is sent meanwhile,
 * unless -p: then all memory is pushed at once, and touches that found their page there do not count.
 */
#include "base/clock.h"
#include "base/sock.h"
#include "base/thread.h"
#include "engine/testing/fake_guest.h"
#include "engine/uffd.h"

#include <ferry/ferry.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* Apart by more than what comes along with a page. */
#define STRIDE 16
/* Shorter: it was there. */
#define FAULT_MIN_NS 3000

struct settings {
    uint64_t memory;
    unsigned faults;
    unsigned runs;
    bool push;
    bool verbose;
};

struct times {
    uint64_t median_ns;
    uint64_t p99_ns;
    uint64_t max_ns;
    uint64_t count;
};

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "fault_bench: %s: %s\n", what, why);
    exit(1);
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static void summarise(uint64_t *took, struct times *times)
{
    if (times->count == 0)
        return;
    qsort(took, times->count, sizeof(*took), by_size);
    times->median_ns = took[times->count / 2];
    times->p99_ns = took[times->count * 99 / 100];
    times->max_ns = took[times->count - 1];
}

/* In an order that no read-ahead guesses. */
static struct times touch_all(volatile uint8_t *memory, const struct settings *settings)
{
    uint64_t places = settings->memory / FERRY_PAGE_SIZE / STRIDE;
    uint64_t *took = calloc(settings->faults, sizeof(*took));
    struct times times = {0};

    for (uint64_t i = 0; took && i < settings->faults && i < places; i++) {
        uint64_t place = i * 2654435761u % places; /* a permutation: places is a power of two */
        uint64_t begin = clock_now_ns(), time;

        (void)memory[place * STRIDE * FERRY_PAGE_SIZE];
        time = clock_now_ns() - begin;
        if (time >= FAULT_MIN_NS)
            took[times.count++] = time;
    }
    summarise(took, &times);
    free(took);
    return times;
}

/* ---- local ---- */

struct local {
    int uffd;
    int quit_fd;
    uint8_t *page;
    struct thread thread;
};

static void *local_main(void *opaque)
{
    struct local *local = opaque;
    uint64_t addresses[16];

    for (;;) {
        struct pollfd polled[2] = {{.fd = local->uffd, .events = POLLIN},
                                   {.fd = local->quit_fd, .events = POLLIN}};
        size_t count;

        poll(polled, 2, -1);
        if (polled[1].revents)
            return NULL;
        count = uffd_faults(local->uffd, addresses, 16);
        for (size_t i = 0; i < count; i++) {
            struct uffdio_copy copy = {.dst = addresses[i] / FERRY_PAGE_SIZE * FERRY_PAGE_SIZE,
                                       .src = (uintptr_t)local->page,
                                       .len = FERRY_PAGE_SIZE};

            if (ioctl(local->uffd, UFFDIO_COPY, &copy) < 0)
                fail("UFFDIO_COPY", strerror(errno));
        }
    }
}

static struct times measure_local(const struct settings *settings)
{
    struct ferry_error err;
    struct local local = {.uffd = uffd_open(&err)};
    int fd = memfd_create("fault-bench", MFD_CLOEXEC);
    int pipes[2];
    uint8_t *memory;
    struct times times;

    if (local.uffd < 0)
        fail("userfaultfd", err.text);
    if (fd < 0 || ftruncate(fd, (off_t)settings->memory) < 0 || pipe(pipes) < 0)
        fail("memory", strerror(errno));
    memory = mmap(NULL, settings->memory, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    local.page = malloc(FERRY_PAGE_SIZE);
    local.quit_fd = pipes[0];
    if (memory == MAP_FAILED || !local.page)
        fail("memory", strerror(errno));
    memset(local.page, 1, FERRY_PAGE_SIZE);
    if (uffd_watch(local.uffd, memory, settings->memory, &err) < 0 ||
        thread_start(&local.thread, THREAD_GENERAL, "local", local_main, &local, &err) < 0)
        fail("userfaultfd", err.text);
    times = touch_all(memory, settings);
    close(pipes[1]);
    thread_join(&local.thread);
    close(pipes[0]);
    uffd_forget(local.uffd, memory, settings->memory);
    close(local.uffd);
    munmap(memory, settings->memory);
    close(fd);
    free(local.page);
    return times;
}

/* ---- exchange ---- */

#define REQUEST_SIZE 32
#define REPLY_SIZE   (FERRY_PAGE_SIZE + 56)

static void read_all(int fd, uint8_t *data, size_t size)
{
    while (size > 0) {
        ssize_t n = read(fd, data, size);

        if (n <= 0)
            exit(n < 0);
        data += n;
        size -= (size_t)n;
    }
}

static void answer(int fd)
{
    uint8_t data[REPLY_SIZE] = {0};

    for (;;) {
        read_all(fd, data, REQUEST_SIZE);
        if (write(fd, data, REPLY_SIZE) != REPLY_SIZE)
            exit(1);
    }
}

static struct times measure_exchange(const struct settings *settings)
{
    uint64_t *took = calloc(settings->faults, sizeof(*took));
    struct times times = {.count = settings->faults};
    uint8_t data[REPLY_SIZE] = {0};
    char address[SOCK_ADDRESS_SIZE];
    struct ferry_error err;
    int listen_fd = sock_listen("127.0.0.1:0", &err);
    int fd;
    pid_t child;

    if (listen_fd < 0 || sock_local_address(listen_fd, address, &err) < 0 || !took)
        fail("set-up", strerror(errno));
    child = fork();
    if (child == 0) {
        fd = sock_accept(listen_fd, clock_deadline(5000), -1, &err);
        if (fd < 0)
            exit(1);
        fcntl(fd, F_SETFL, 0);
        sock_tune(fd, 10000, NULL);
        answer(fd);
    }
    close(listen_fd);
    fd = sock_connect(address, clock_deadline(5000), -1, &err);
    if (fd < 0)
        fail("exchange", err.text);
    fcntl(fd, F_SETFL, 0);
    sock_tune(fd, 10000, NULL);
    for (unsigned i = 0; i < settings->faults; i++) {
        uint64_t begin = clock_now_ns();

        if (write(fd, data, REQUEST_SIZE) != REQUEST_SIZE)
            fail("exchange", strerror(errno));
        read_all(fd, data, REPLY_SIZE);
        took[i] = clock_now_ns() - begin;
    }
    close(fd);
    waitpid(child, NULL, 0);
    summarise(took, &times);
    free(took);
    return times;
}

/* ---- fetched ---- */

struct toucher {
    const struct settings *settings;
    struct ferry_session *session;
    volatile uint8_t *memory;
    int report_fd;
};

static void *toucher_main(void *opaque)
{
    struct toucher *toucher = opaque;
    static struct ferry_progress progress;
    struct times times;

    do {
        poll(NULL, 0, 1);
        ferry_session_progress(toucher->session, &progress);
    } while (!progress.fetch.running && progress.outcome == FERRY_OUTCOME_NONE);
    times = touch_all(toucher->memory, toucher->settings);
    if (write(toucher->report_fd, &times, sizeof(times)) != sizeof(times))
        exit(1);
    return NULL;
}

static void print_log(void *opaque, enum ferry_log_level level, const char *text)
{
    fprintf(stderr, "%s %s\n", (const char *)opaque, text);
}

/* Says 'r' when it is ready, then what it has measured. */
static void run_destination(const struct settings *settings, int listen_fd, int report_fd)
{
    struct ferry_observer observer = {.opaque = "destination:", .log = settings->verbose ? print_log : NULL};
    struct ferry_destination_options options = {
        .migration_id = "bench", .source = "a", .destination = "b", .listen_fd = listen_fd};
    struct toucher toucher = {.settings = settings, .report_fd = report_fd};
    struct ferry_error err;
    struct fake_guest guest;
    struct thread thread;

    if (fake_guest_init(&guest, NULL, &settings->memory, 1, true, &err) < 0)
        fail("destination", err.text);
    guest.arriving = true;
    toucher.memory = guest.regions[0].host_ptr;
    if (fallocate(guest.regions[0].memfd, 0, 0, (off_t)settings->memory) < 0)
        fail("memory", strerror(errno));
    if (ferry_destination_new(&toucher.session, &options, &fake_guest_ops, &guest, &observer, &err) < 0 ||
        thread_start(&thread, THREAD_GENERAL, "touch", toucher_main, &toucher, &err) < 0)
        fail("destination", err.text);
    if (write(report_fd, "r", 1) != 1)
        exit(1);
    if (ferry_session_run(toucher.session, &err) < 0)
        fail("destination", err.text);
    thread_join(&thread);
    _exit(0);
}

struct sender {
    struct ferry_session *session;
    struct thread thread;
};

static void *sender_main(void *opaque)
{
    struct sender *sender = opaque;
    struct ferry_error err;

    if (ferry_session_run(sender->session, &err) < 0)
        fail("source", err.text);
    return NULL;
}

static struct times measure_fetched(const struct settings *settings)
{
    struct ferry_observer observer = {.opaque = "source:", .log = settings->verbose ? print_log : NULL};
    struct ferry_source_options options = {.migration_id = "bench",
                                           .source = "a",
                                           .destination = "b",
                                           .quick_resume = FERRY_QUICK_RESUME_NOW,
                                           .bandwidth_limit = settings->push ? 0 : 1};
    struct sender sender;
    struct ferry_error err;
    struct fake_guest guest;
    struct times times;
    char byte;
    int pipes[2];
    int listen_fd = sock_listen("127.0.0.1:0", &err);
    pid_t child;

    if (listen_fd < 0 || pipe(pipes) < 0 || sock_local_address(listen_fd, options.address, &err) < 0)
        fail("set-up", strerror(errno));
    child = fork();
    if (child == 0)
        run_destination(settings, listen_fd, pipes[1]);
    close(listen_fd);
    if (fake_guest_init(&guest, NULL, &settings->memory, 1, true, &err) < 0)
        fail("source", err.text);
    fake_guest_fill(&guest, 0, 0, settings->memory / FERRY_PAGE_SIZE, 42);
    fake_guest_run(&guest, true);
    if (read(pipes[0], &byte, 1) != 1)
        exit(1);
    if (ferry_source_new(&sender.session, &options, &fake_guest_ops, &guest, &observer, &err) < 0 ||
        thread_start(&sender.thread, THREAD_GENERAL, "source", sender_main, &sender, &err) < 0)
        fail("source", err.text);
    if (read(pipes[0], &times, sizeof(times)) != sizeof(times))
        exit(1);
    ferry_session_set_bandwidth(sender.session, 0); /* the rest */
    thread_join(&sender.thread);
    ferry_session_free(sender.session);
    waitpid(child, NULL, 0);
    close(pipes[0]);
    close(pipes[1]);
    fake_guest_destroy(&guest);
    return times;
}

static void print_times(const char *name, const struct times *times)
{
    printf("%s median %.1f us, 99 %% %.1f us, at most %.1f us of %llu faults", name,
           (double)times->median_ns / 1e3, (double)times->p99_ns / 1e3, (double)times->max_ns / 1e3,
           (unsigned long long)times->count);
}

int main(int argc, char **argv)
{
    struct settings settings = {.memory = 256u << 20, .faults = 2000, .runs = 1};
    int option;

    while ((option = getopt(argc, argv, "m:f:n:pv")) != -1) {
        unsigned long value = optarg ? strtoul(optarg, NULL, 0) : 0;

        switch (option) {
        case 'm':
            settings.memory = (uint64_t)value << 20;
            break;
        case 'f':
            settings.faults = (unsigned)value;
            break;
        case 'n':
            settings.runs = (unsigned)value;
            break;
        case 'p':
            settings.push = true;
            break;
        case 'v':
            settings.verbose = true;
            break;
        default:
            return 2;
        }
    }
    for (unsigned i = 0; i < settings.runs; i++) {
        struct times local = measure_local(&settings);
        struct times exchange = measure_exchange(&settings);
        struct times fetched = measure_fetched(&settings);

        print_times("local", &local);
        print_times("; exchange", &exchange);
        print_times("; fetched", &fetched);
        printf("\n");
        fflush(stdout);
    }
    return 0;
}
