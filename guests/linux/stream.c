#include "stream.h"

#include "clock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <signal.h>
#include <unistd.h>

#define BLOCK_WORDS 512

static bool send_all(int fd, const void *data, size_t size)
{
    const char *p = data;

    while (size > 0) {
        ssize_t sent = send(fd, p, size, MSG_NOSIGNAL);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return false;
        p += sent;
        size -= (size_t)sent;
    }
    return true;
}

static bool receive_all(int fd, void *data, size_t size)
{
    char *p = data;

    while (size > 0) {
        ssize_t got = recv(fd, p, size, 0);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        p += got;
        size -= (size_t)got;
    }
    return true;
}

static void stream_fault(struct work_counters *counters, const char *what, uint64_t expected, uint64_t got)
{
    if (atomic_fetch_add(&counters->tcp_errors, 1) == 0)
        printf("WORK ERROR tcp=%s expected=%" PRIu64 " got=%" PRIu64 "\n", what, expected, got);
    atomic_fetch_add(&counters->errors, 1);
}

static void sender(int fd, struct work_counters *counters, uint64_t rate)
{
    struct pace pace = {.rate = rate};
    uint64_t block[BLOCK_WORDS], word = 0, answer;

    for (uint64_t number = 1;; number++) {
        for (unsigned i = 0; i < BLOCK_WORDS; i++)
            block[i] = word++;
        if (!send_all(fd, block, sizeof(block)) || !receive_all(fd, &answer, sizeof(answer))) {
            stream_fault(counters, "closed", number, 0);
            return;
        }
        if (answer != number)
            stream_fault(counters, "answer", number, answer);
        atomic_store(&counters->tcp_blocks, number);
        pace_take(&pace, sizeof(block));
    }
}

static void receiver(int fd, struct work_counters *counters)
{
    uint64_t block[BLOCK_WORDS], word = 0;

    for (uint64_t number = 1;; number++) {
        if (!receive_all(fd, block, sizeof(block))) {
            stream_fault(counters, "ended", number, 0);
            return;
        }
        for (unsigned i = 0; i < BLOCK_WORDS; i++, word++) {
            if (block[i] != word)
                stream_fault(counters, "word", word, block[i]);
        }
        if (!send_all(fd, &number, sizeof(number))) {
            stream_fault(counters, "refused", number, 0);
            return;
        }
    }
}

int stream_start(struct work_counters *counters, uint64_t rate)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    int listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (listening < 0 || bind(listening, (struct sockaddr *)&address, size) < 0 || listen(listening, 1) < 0 ||
        getsockname(listening, (struct sockaddr *)&address, &size) < 0) {
        perror("ferry-work: loopback connection");
        return -1;
    }
    for (int end = 0; end < 2; end++) {
        pid_t child = fork();
        int fd;

        if (child < 0) {
            perror("ferry-work: fork");
            return -1;
        }
        if (child > 0)
            continue;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        fd = end == 0 ? accept(listening, NULL, NULL) : socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (end == 1 && connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
            stream_fault(counters, "connect", 0, (uint64_t)errno);
        else if (end == 0)
            receiver(fd, counters);
        else
            sender(fd, counters, rate);
        _exit(1);
    }
    close(listening);
    return 0;
}
