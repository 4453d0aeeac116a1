/*
 * What the engine alone costs: a fake guest in this process moves to one in a child process over loopback
 * TCP.
 *
 *   engine_bench [-m MIB] [-u USED_MIB] [-s STREAMS] [-w PAGES_PER_S] [-p WINDOW_PAGES] [-n RUNS]
 *                [-b BYTES_PER_S] [-c COMPRESSION] [-r RANDOM_BYTES] [-v] [-t] [-e] [-a]
 *
 * Prints one line a run: total time, downtime and its parts, throughput (from the first page on, the
 * destination's memory being there), bytes, rounds, CPU seconds of both sides per GiB moved. -t touches the
 * destination's memory beforehand, -e encrypts, -a compares all memory in the end, -v prints the session's
 * log. Of each page so many bytes are random with -r (all unless given), the others are text.
 */
#include "base/clock.h"
#include "base/sock.h"
#include "engine/testing/fake_guest.h"
#include "tls/authority.h"
#include "tls/credentials.h"

#include <ferry/ferry.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct settings {
    uint64_t memory;
    uint64_t used;
    uint64_t pages_per_s;
    uint64_t window;
    uint64_t noise; /* bytes of a page that are random; the others are text */
    uint64_t bandwidth;
    unsigned streams;
    enum ferry_compress compress;
    unsigned runs;
    bool verbose;
    bool touched;
    bool compared;
    struct ferry_credentials *source; /* NULL: in the clear */
    struct ferry_credentials *destination;
};

static void print_log(void *opaque, enum ferry_log_level level, const char *text)
{
    fprintf(stderr, "%s %s\n", (const char *)opaque, text);
}

static void fail(const char *what, const struct ferry_error *err)
{
    fprintf(stderr, "engine_bench: %s: %s\n", what, err->text);
    exit(1);
}

static double cpu_seconds(int who)
{
    struct rusage usage;

    getrusage(who, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void run_destination(const struct settings *settings, int listen_fd, int ready_fd)
{
    struct ferry_observer observer = {.opaque = "destination:", .log = settings->verbose ? print_log : NULL};
    struct ferry_destination_options options = {.migration_id = "bench",
                                                .source = "a",
                                                .destination = "b",
                                                .listen_fd = listen_fd,
                                                .credentials = settings->destination};
    struct ferry_session *session;
    struct ferry_error err;
    struct fake_guest guest;

    if (fake_guest_init(&guest, NULL, &settings->memory, 1, true, &err) < 0)
        fail("destination", &err);
    guest.arriving = true;
    /* As ferry-vm does: allocated before anything is sent. */
    if (fallocate(guest.regions[0].memfd, 0, 0, (off_t)settings->memory) < 0)
        perror("fallocate");
    if (settings->touched)
        memset(guest.regions[0].host_ptr, 0, settings->memory);
    if (write(ready_fd, "r", 1) != 1)
        exit(1);

    double before = cpu_seconds(RUSAGE_SELF);

    if (ferry_destination_new(&session, &options, &fake_guest_ops, &guest, &observer, &err) < 0 ||
        ferry_session_run(session, &err) < 0)
        fail("destination", &err);
    ferry_session_free(session);

    double cpu = cpu_seconds(RUSAGE_SELF) - before;

    fake_guest_run(&guest, false);
    if (write(ready_fd, &cpu, sizeof(cpu)) != sizeof(cpu))
        exit(1);
    _exit(0);
}

static void write_text(uint8_t *out, uint64_t size)
{
    for (uint64_t i = 0; i < size; i++)
        out[i] = (uint8_t) "all work and no play makes a page compressible\n"[i % 47];
}

static void run_once(const struct settings *settings)
{
    struct ferry_observer observer = {.opaque = "source:", .log = settings->verbose ? print_log : NULL};
    struct ferry_source_options options = {.migration_id = "bench",
                                           .source = "a",
                                           .destination = "b",
                                           .streams = settings->streams,
                                           .credentials = settings->source,
                                           .compress = settings->compress,
                                           .bandwidth_limit = settings->bandwidth,
                                           .verify_memory = settings->compared};
    static struct ferry_progress progress;
    struct ferry_session *session;
    struct ferry_error err;
    struct fake_guest guest;
    double destination_cpu = 0;
    char byte;
    int pipes[2];
    int listen_fd = sock_listen("127.0.0.1:0", &err);

    if (listen_fd < 0 || pipe(pipes) < 0 || sock_local_address(listen_fd, options.address, &err) < 0)
        fail("set-up", &err);

    pid_t child = fork();

    if (child == 0)
        run_destination(settings, listen_fd, pipes[1]);
    close(listen_fd);
    if (fake_guest_init(&guest, NULL, &settings->memory, 1, true, &err) < 0)
        fail("source", &err);
    fake_guest_fill(&guest, 0, 0, settings->used / FERRY_PAGE_SIZE, 42);
    for (uint64_t i = 0; i < settings->used / FERRY_PAGE_SIZE; i++)
        write_text(guest.regions[0].host_ptr + i * FERRY_PAGE_SIZE + settings->noise,
                   FERRY_PAGE_SIZE - settings->noise);
    guest.pattern = settings->pages_per_s ? FAKE_PATTERN_RANDOM : FAKE_PATTERN_NONE;
    guest.pages_per_s = settings->pages_per_s;
    guest.window = settings->window;
    fake_guest_run(&guest, true);
    if (read(pipes[0], &byte, 1) != 1)
        exit(1);

    double before = cpu_seconds(RUSAGE_SELF);

    if (ferry_source_new(&session, &options, &fake_guest_ops, &guest, &observer, &err) < 0 ||
        ferry_session_run(session, &err) < 0)
        fail("source", &err);

    double cpu = cpu_seconds(RUSAGE_SELF) - before;

    ferry_session_progress(session, &progress);
    ferry_session_free(session);
    if (read(pipes[0], &destination_cpu, sizeof(destination_cpu)) != sizeof(destination_cpu))
        exit(1);
    waitpid(child, NULL, 0);
    close(pipes[0]);
    close(pipes[1]);
    fake_guest_destroy(&guest);

    double gib = (double)progress.wire_bytes / (1 << 30);
    double seconds = (double)progress.total_ns / 1e9;
    double copying = (double)(progress.total_ns - progress.setup_ns) / 1e9;

    printf(
        "total %.1f ms, set-up %.2f ms, downtime %.3f ms, %.3f GB/s, %llu bytes, %u rounds, CPU s/GiB source "
        "%.3f destination %.3f |",
        seconds * 1e3, (double)progress.setup_ns / 1e6, (double)progress.downtime_ns / 1e6,
        (double)progress.wire_bytes / copying / 1e9, (unsigned long long)progress.wire_bytes, progress.round,
        cpu / gib, destination_cpu / gib);
    printf(" pages: raw %llu zero %llu postponed %llu", (unsigned long long)progress.pages_raw,
           (unsigned long long)progress.pages_zero, (unsigned long long)progress.pages_postponed);
    for (int i = 0; i < FERRY_ENCODINGS; i++)
        printf(" %s %llu", ferry_encoding_name((enum ferry_encoding)i),
               (unsigned long long)progress.encoded[i].pages);
    printf(" |");
    for (int i = 0; i < FERRY_DOWNTIME_PARTS; i++)
        printf(" %s %.0f", ferry_downtime_part_name((enum ferry_downtime_part)i),
               (double)progress.downtime_part_ns[i] / 1e3);
    printf(" us\n");
    fflush(stdout);
}

/* Of an authority that is gone before anything is sent. */
static struct ferry_credentials *issue(const char *directory, const char *host)
{
    struct certificate_request request = {
        .name = host, .not_before = time(NULL) - 60, .not_after = time(NULL) + 86400};
    struct ferry_credentials *credentials = NULL;
    struct ferry_error err;
    char *bundle = NULL;

    if (authority_issue(directory, &request, &bundle, NULL, &err) < 0 ||
        credentials_parse(&credentials, bundle, "a bundle", &err) < 0)
        fail("certificates", &err);
    free(bundle);
    return credentials;
}

static void encrypt(struct settings *settings)
{
    static const char *const files[] = {"authority.key", "authority.pem", "issued"};
    char directory[] = "/tmp/engine-bench-XXXXXX";
    char path[64];
    struct ferry_error err;

    if (!mkdtemp(directory) || authority_init(directory, 1, NULL, &err) < 0)
        fail("certificates", &err);
    settings->source = issue(directory, "a");
    settings->destination = issue(directory, "b");
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof(path), "%s/%s", directory, files[i]);
        unlink(path);
    }
    rmdir(directory);
}

static enum ferry_compress compress_named(const char *name)
{
    enum ferry_compress compress;
    struct ferry_error err;

    if (ferry_compress_parse(name, &compress, &err) < 0)
        fail("-c", &err);
    return compress;
}

int main(int argc, char **argv)
{
    struct settings settings = {.memory = 512u << 20, .noise = FERRY_PAGE_SIZE, .runs = 1};
    int option;

    while ((option = getopt(argc, argv, "m:u:s:w:p:n:b:c:r:vtea")) != -1) {
        uint64_t value = optarg ? strtoull(optarg, NULL, 0) : 0;

        switch (option) {
        case 'm':
            settings.memory = value << 20;
            break;
        case 'u':
            settings.used = value << 20;
            break;
        case 's':
            settings.streams = (unsigned)value;
            break;
        case 'w':
            settings.pages_per_s = value;
            break;
        case 'p':
            settings.window = value;
            break;
        case 'n':
            settings.runs = (unsigned)value;
            break;
        case 'b':
            settings.bandwidth = value;
            break;
        case 'c':
            settings.compress = compress_named(optarg);
            break;
        case 'r':
            settings.noise = value;
            break;
        case 'v':
            settings.verbose = true;
            break;
        case 't':
            settings.touched = true;
            break;
        case 'a':
            settings.compared = true;
            break;
        case 'e':
            encrypt(&settings);
            break;
        default:
            return 2;
        }
    }
    if (settings.used == 0 || settings.used > settings.memory)
        settings.used = settings.memory;
    for (unsigned i = 0; i < settings.runs; i++)
        run_once(&settings);
    return 0;
}
