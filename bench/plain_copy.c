/*
 * What the engine is measured against: the same bytes, copied by threads over loopback TCP from one process's
 * memory into another's that was faulted in beforehand. No pages looked at, nothing checked, no rounds.
 *
 *   plain_copy [-m MIB] [-s STREAMS] [-n RUNS]
 *
 * Prints one line a run: throughput, and CPU seconds of both sides per GiB.
 */
#include "base/clock.h"
#include "base/sock.h"
#include "base/thread.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define STREAMS_MAX 16
#define BLOCK       (UINT64_C(1) << 20)

struct copy {
    uint8_t *memory;
    uint64_t size;
    unsigned streams;
    uint64_t next; /* atomic: the next block to send */
};

struct stream {
    struct copy *copy;
    struct thread thread;
    int fd;
};

static void fail(const char *what)
{
    fprintf(stderr, "plain_copy: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double cpu_seconds(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static uint8_t *memory_map(uint64_t size)
{
    int fd = memfd_create("plain-copy", MFD_CLOEXEC);
    uint8_t *memory = MAP_FAILED;

    if (fd >= 0 && ftruncate(fd, (off_t)size) == 0)
        memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        fail("memory");
    close(fd);
    return memory;
}

static void move_all(int fd, void *data, size_t size, bool out)
{
    uint8_t *at = data;

    while (size > 0) {
        ssize_t n = out ? send(fd, at, size, MSG_NOSIGNAL) : recv(fd, at, size, MSG_WAITALL);

        if (n <= 0)
            fail(out ? "send" : "receive");
        at += n;
        size -= (size_t)n;
    }
}

static void *send_main(void *opaque)
{
    struct stream *stream = opaque;
    struct copy *copy = stream->copy;
    uint64_t block;

    do {
        block = __atomic_fetch_add(&copy->next, 1, __ATOMIC_RELAXED);
        move_all(stream->fd, &block, sizeof(block), true);
        if (block < copy->size / BLOCK)
            move_all(stream->fd, copy->memory + block * BLOCK, BLOCK, true);
    } while (block < copy->size / BLOCK);
    return NULL;
}

static void *receive_main(void *opaque)
{
    struct stream *stream = opaque;
    struct copy *copy = stream->copy;

    for (;;) {
        uint64_t block;

        move_all(stream->fd, &block, sizeof(block), false);
        if (block >= copy->size / BLOCK)
            return NULL;
        move_all(stream->fd, copy->memory + block * BLOCK, BLOCK, false);
    }
}

static void run_streams(struct copy *copy, const int *fds, void *(*function)(void *))
{
    struct stream streams[STREAMS_MAX];

    for (unsigned i = 0; i < copy->streams; i++) {
        streams[i] = (struct stream){.copy = copy, .fd = fds[i]};
        if (thread_start(&streams[i].thread, THREAD_GENERAL, "copy", function, &streams[i], NULL) < 0)
            fail("thread");
    }
    for (unsigned i = 0; i < copy->streams; i++)
        thread_join(&streams[i].thread);
}

/* Tells by REPORT_FD when it is ready, and then the CPU seconds it took. */
static void run_receiver(struct copy *copy, int listen_fd, int report_fd)
{
    int fds[STREAMS_MAX];

    memset(copy->memory, 1, copy->size);
    if (write(report_fd, "r", 1) != 1)
        fail("pipe");
    for (unsigned i = 0; i < copy->streams; i++) {
        fds[i] = sock_accept(listen_fd, clock_deadline(10000), -1, NULL);
        if (fds[i] < 0)
            fail("accept");
        sock_tune(fds[i], 10000, NULL);
    }

    double before = cpu_seconds();

    run_streams(copy, fds, receive_main);

    double cpu = cpu_seconds() - before;

    if (write(report_fd, &cpu, sizeof(cpu)) != sizeof(cpu))
        fail("pipe");
    _exit(0);
}

static void run_once(uint64_t size, unsigned streams)
{
    struct copy copy = {.memory = memory_map(size), .size = size, .streams = streams};
    char address[SOCK_ADDRESS_SIZE];
    int fds[STREAMS_MAX];
    int report[2];
    int listen_fd = sock_listen("127.0.0.1:0", NULL);
    uint64_t value = 88172645463325252u;
    double receiver_cpu;
    char byte;

    if (listen_fd < 0 || sock_local_address(listen_fd, address, NULL) < 0 || pipe(report) < 0)
        fail("set-up");

    pid_t child = fork();

    if (child == 0) {
        copy.memory = memory_map(size);
        run_receiver(&copy, listen_fd, report[1]);
    }
    close(listen_fd);
    for (uint64_t i = 0; i < size / 8; i++) {
        value ^= value << 13;
        value ^= value >> 7;
        value ^= value << 17;
        ((uint64_t *)copy.memory)[i] = value;
    }
    if (read(report[0], &byte, 1) != 1)
        fail("pipe");
    for (unsigned i = 0; i < streams; i++) {
        fds[i] = sock_connect(address, clock_deadline(10000), -1, NULL);
        if (fds[i] < 0)
            fail("connect");
        sock_tune(fds[i], 10000, NULL);
    }

    uint64_t begin = clock_now_ns();
    double before = cpu_seconds();

    run_streams(&copy, fds, send_main);
    if (read(report[0], &receiver_cpu, sizeof(receiver_cpu)) != sizeof(receiver_cpu))
        fail("pipe");

    double seconds = (double)(clock_now_ns() - begin) / 1e9;
    double cpu = cpu_seconds() - before;
    double gib = (double)size / (1 << 30);

    waitpid(child, NULL, 0);
    for (unsigned i = 0; i < streams; i++)
        close(fds[i]);
    close(report[0]);
    close(report[1]);
    munmap(copy.memory, size);
    printf("total %.1f ms, %.3f GB/s, CPU s/GiB source %.3f destination %.3f\n", seconds * 1e3,
           (double)size / seconds / 1e9, cpu / gib, receiver_cpu / gib);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    uint64_t size = 512u << 20;
    unsigned streams = 2;
    unsigned runs = 1;
    int option;

    while ((option = getopt(argc, argv, "m:s:n:")) != -1) {
        unsigned long value = strtoul(optarg ? optarg : "0", NULL, 0);

        if (option == 'm')
            size = (uint64_t)value << 20;
        else if (option == 's')
            streams = (unsigned)value;
        else if (option == 'n')
            runs = (unsigned)value;
        else
            return 2;
    }
    if (streams == 0 || streams > STREAMS_MAX || size == 0)
        return 2;
    while (runs-- > 0)
        run_once(size, streams);
    return 0;
}
