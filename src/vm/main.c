/*
 * ferry-vm: making the process independent of whoever started it.
 */
#include "base/error.h"
#include "vm/arguments.h"
#include "vm/capabilities.h"
#include "vm/confine.h"
#include "vm/files.h"
#include "vm/ownership.h"
#include "vm/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Its own session, no descriptors but the standard ones and ready_fd, no signals but SIGTERM and deadly ones,
 * and no program that it could start would have more rights than it has. */
static int become_independent(struct vm_options *options)
{
    sigset_t set;

    if (options->ready_fd >= 0) {
        /* Above the standard ones, which are replaced later; the rest is closed around it. */
        int fd = fcntl(options->ready_fd, F_DUPFD_CLOEXEC, 3);

        if (fd < 0)
            return -1;
        options->ready_fd = fd;
        if (fd > 3)
            close_range(3, (unsigned)fd - 1, 0);
        close_range((unsigned)fd + 1, UINT_MAX, 0);
    } else {
        close_range(3, UINT_MAX, 0);
    }
    /* Fails for the leader of a process group (started by an interactive shell): then it has a group of its
     * own, and the terminal's signals are ignored below. */
    (void)setsid();
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -1;
    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGQUIT, SIG_IGN);
    /* Blocked in every thread: read from a signalfd. */
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    return sigprocmask(SIG_BLOCK, &set, NULL);
}

/* Called before anything of the VM is there: only who waits for it is told. */
static int bad_start(const struct vm_options *options, const struct ferry_error *err)
{
    fprintf(stderr, "ferry-vm: %s\n", err->text);
    files_tell_ready(options->ready_fd, err);
    return EXIT_FAILURE;
}

static int bad_directory(const struct vm_options *options, const char *directory)
{
    struct ferry_error err;

    error_set_errno(&err, -errno, "cannot use the VM directory %.300s", directory);
    return bad_start(options, &err);
}

int main(int argc, char **argv)
{
    struct vm_options options = {.ready_fd = -1,
                                 .former_fd = -1,
                                 .lock_wait_ns = OWNERSHIP_LOCK_WAIT_S * NS_PER_S,
                                 .log_limit = {.size = VM_LOG_SIZE, .kept = VM_LOG_KEPT},
                                 .confine_mode = confine_mode_default()};
    struct confine *confine = NULL;
    struct ferry_error err;
    const char *former = NULL;
    int status = arguments_parse(argc, argv, &options, &former);

    if (status >= 0)
        return status;
    /* A heap for each thread would cost more than it brings. */
    mallopt(M_ARENA_MAX, 2);
    umask(0027);
    if (become_independent(&options) < 0) {
        fprintf(stderr, "ferry-vm: cannot detach from its starter: %s\n", strerror(errno));
        return EXIT_FAILURE;
    }
    if (former)
        options.former_fd = open(former, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (former && options.former_fd < 0)
        return bad_directory(&options, former);
    if (chdir(options.dir) < 0)
        return bad_directory(&options, options.dir);
    if (capabilities_keep_for_setup(&err) < 0 || confine_new(&confine, options.confine_mode, &err) < 0)
        return bad_start(&options, &err);
    options.confine = confine;
    status = vm_main(&options);
    confine_free(confine);
    return status;
}
