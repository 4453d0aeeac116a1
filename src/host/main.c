/* ferryd: reads the command line, makes the host, runs the loop until a signal says stop. */
#include "base/error.h"
#include "base/loop.h"
#include "host/api.h"
#include "host/config.h"
#include "host/host.h"

#include <curl/curl.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

struct signals {
    struct loop *loop;
    int fd;
};

static void got_signal(void *opaque, unsigned events)
{
    struct signals *signals = opaque;
    struct signalfd_siginfo info;

    (void)events;
    if (read(signals->fd, &info, sizeof(info)) == sizeof(info))
        loop_stop(signals->loop);
}

/* Descriptors 0 to 2 must be something, or a socket would become somebody's standard error. */
static void fill_standard_descriptors(void)
{
    int fd;

    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= 2);
    if (fd > 2)
        close(fd);
}

static int run(const struct config *config, struct loop *loop, struct ferry_error *err)
{
    struct signals signals = {.loop = loop, .fd = -1};
    struct loop_watch *watch = NULL;
    struct host *host = NULL;
    sigset_t set;
    int result;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL); /* before any thread: all inherit it */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signals.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals.fd < 0)
        return error_set_errno(err, -errno, "cannot watch for signals");
    result = loop_watch_add(loop, signals.fd, LOOP_READ, got_signal, &signals, &watch, err);
    if (result == 0)
        result = host_new(&host, config, loop, err);
    if (result == 0) {
        const char *address = api_address(host);

        fprintf(stderr, "ferryd: host %s is ready%s%s\n", config->name, address[0] ? " at " : "", address);
        result = loop_run(loop, err);
    }
    host_free(host);
    loop_watch_remove(watch);
    close(signals.fd);
    return result;
}

int main(int argc, char **argv)
{
    static struct config config; /* large; the one instance there is */
    enum config_action action;
    struct ferry_error err = {0};
    struct loop *loop = NULL;
    int result = config_read(&config, argc, argv, &action, &err);

    if (result < 0) {
        fprintf(stderr, "ferryd: %s\n", err.text);
        if (result == -EINVAL)
            fprintf(stderr, "ferryd --help tells how it is used\n");
        return result == -EINVAL ? 2 : 1;
    }
    if (action == CONFIG_HELP) {
        config_usage(stdout);
        return 0;
    }
    if (action == CONFIG_VERSION) {
        printf("ferryd %s\n", FERRY_VERSION);
        return 0;
    }
    umask(027);
    fill_standard_descriptors();
    curl_global_init(CURL_GLOBAL_DEFAULT);
    result = loop_new(&loop, &err);
    if (result == 0)
        result = run(&config, loop, &err);
    loop_free(loop);
    curl_global_cleanup();
    if (result < 0)
        fprintf(stderr, "ferryd: %s\n", err.text);
    return result < 0 ? 1 : 0;
}
