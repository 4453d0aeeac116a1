/*
 * ferry-vm: arguments, and making the process independent of whoever started it.
 */
#include "base/error.h"
#include "vm/capabilities.h"
#include "vm/confine.h"
#include "vm/files.h"
#include "vm/ownership.h"
#include "vm/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXIT_USAGE 2

static const char usage[] =
    "usage: ferry-vm --dir DIR [--incoming | --upgrade DIR | --resume FILE [--lazy | --eager]] [--paused] "
    "[--ready-fd N] [--insecure] [--host "
    "NAME]\n"
    "                [--lock-dir DIR] [--lock-wait SECONDS] [--lock-generation N] [--cpu-features NAMES]\n"
    "                [--dirty-tracking HOW]\n"
    "                [--log-limit BYTES,FILES]\n"
    "                [--seccomp on|log|off]\n"
    "\n"
    "Runs one virtual machine, described by DIR/definition.json, and answers JSON-RPC on DIR/control.sock.\n"
    "\n"
    "  --dir DIR       the VM's directory\n"
    "  --incoming      do not start the VM but wait for it to arrive from another host\n"
    "  --upgrade DIR   wait for the VM to come, with its memory, from the process of this host that runs in "
    "DIR\n"
    "  --resume FILE   go on with the guest that is in a checkpoint file\n"
    "  --lazy          at once; its memory comes when it is needed (the default, where it can be)\n"
    "  --eager         when all of its memory is there\n"
    "  --paused        do not let it run until it is resumed\n"
    "  --ready-fd N    write one line of JSON to descriptor N when the VM runs or cannot\n"
    "  --insecure      a migration may arrive on addresses other than loopback unencrypted, too\n"
    "  --host NAME     this host's name, as the other hosts know it\n"
    "  --lock-dir DIR  where the lock of a VM without a writable disk file is, shared with the other hosts\n"
    "  --lock-wait SECONDS\n"
    "                  how long to try for the lock when a destination does not answer any more (120)\n"
    "  --new-identity  with --resume: as another VM, with other MAC addresses\n"
    "  --lock-generation N\n"
    "                  start only if the lock says this generation: nobody has had the VM since\n"
    "  --cpu-features NAMES\n"
    "                  of the host's CPU features give the guest only these (x86_64), with commas between\n"
    "  --dirty-tracking HOW\n"
    "                  how KVM is asked what the guest writes: auto, ring or log (x86_64)\n"
    "  --log-limit BYTES,FILES\n"
    "                  how large vm.log may be, and how many older ones are kept (1048576,5)\n"
    "  --seccomp on|log|off\n"
    "                  let each thread make only the system calls that it needs (on), have the kernel log "
    "the\n"
    "                  others (log), or let everything pass (off)\n"
    "  --help          this text\n"
    "  --version       the version\n";

static int bad_usage(const char *format, const char *argument)
{
    fprintf(stderr, "ferry-vm: ");
    fprintf(stderr, format, argument);
    fprintf(stderr, "; see ferry-vm --help\n");
    return EXIT_USAGE;
}

/* An open descriptor's number, or -1. */
static int parse_descriptor(const char *text)
{
    char *end;
    long number;

    errno = 0;
    number = strtol(text, &end, 10);
    if (errno || end == text || *end || number < 0 || number > INT_MAX || fcntl((int)number, F_GETFD) < 0)
        return -1;
    return (int)number;
}

static int parse_seconds(const char *text, uint64_t *ns)
{
    char *end;
    unsigned long number = strtoul(text, &end, 10);

    if (text[0] < '0' || text[0] > '9' || *end || number > 86400)
        return -1;
    *ns = number * NS_PER_S;
    return 0;
}

static int parse_tracking(const char *text, enum memory_tracking *tracking)
{
    static const char *const words[] = {
        [MEMORY_TRACKING_AUTO] = "auto", [MEMORY_TRACKING_RING] = "ring", [MEMORY_TRACKING_LOG] = "log"};

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (strcmp(text, words[i]) != 0)
            continue;
        *tracking = (enum memory_tracking)i;
        return 0;
    }
    return -1;
}

/* Returns -1 to go on, else the exit status. */
static int parse_arguments(int argc, char **argv, struct vm_options *options, const char **former)
{
    static const struct option longs[] = {
        {"dir", required_argument, NULL, 'd'},
        {"incoming", no_argument, NULL, 'i'},
        {"upgrade", required_argument, NULL, 'u'},
        {"resume", required_argument, NULL, 'R'},
        {"lazy", no_argument, NULL, 'L'},
        {"eager", no_argument, NULL, 'E'},
        {"paused", no_argument, NULL, 'p'},
        {"ready-fd", required_argument, NULL, 'r'},
        {"insecure", no_argument, NULL, 'I'},
        {"host", required_argument, NULL, 'H'},
        {"lock-dir", required_argument, NULL, 'l'},
        {"lock-wait", required_argument, NULL, 'w'},
        {"lock-generation", required_argument, NULL, 'g'},
        {"new-identity", no_argument, NULL, 'N'},
        {"log-limit", required_argument, NULL, 'K'},
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'v'},
        {"cpu-features", required_argument, NULL, 'c'},
        {"dirty-tracking", required_argument, NULL, 't'},
        {"seccomp", required_argument, NULL, 's'},
        {0},
    };
    int option;

    opterr = 0;
    while ((option = getopt_long(argc, argv, ":", longs, NULL)) != -1) {
        switch (option) {
        case 'd':
            options->dir = optarg;
            break;
        case 'i':
            options->incoming = true;
            break;
        case 'u':
            options->incoming = true;
            *former = optarg;
            break;
        case 'R':
            options->resume = optarg;
            break;
        case 'L':
            options->eager = false;
            break;
        case 'E':
            options->eager = true;
            break;
        case 'p':
            options->paused = true;
            break;
        case 'I':
            options->insecure = true;
            break;
        case 'r':
            options->ready_fd = parse_descriptor(optarg);
            if (options->ready_fd < 0)
                return bad_usage("--ready-fd %s is not an open descriptor", optarg);
            break;
        case 'H':
            options->host = optarg;
            break;
        case 'l':
            options->lock_dir = optarg;
            break;
        case 'w':
            if (parse_seconds(optarg, &options->lock_wait_ns) < 0)
                return bad_usage("--lock-wait %s is not a number of seconds, at most 86400", optarg);
            break;
        case 'N':
            options->new_identity = true;
            break;
        case 'g':
            options->lock_generation = strtoull(optarg, NULL, 10);
            if (optarg[0] < '1' || optarg[0] > '9' || strspn(optarg, "0123456789") != strlen(optarg))
                return bad_usage("--lock-generation %s is not a number from 1", optarg);
            break;
        case 'c':
            options->cpu_features = optarg;
            break;
        case 't':
            if (parse_tracking(optarg, &options->tracking) < 0)
                return bad_usage("--dirty-tracking %s is none of auto, ring and log", optarg);
            break;
        case 'K':
            if (vm_log_limit_parse(optarg, &options->log_limit, NULL) < 0)
                return bad_usage("--log-limit %s is not BYTES,FILES: at least 4096, and 0 to 99", optarg);
            break;
        case 's':
            options->confine_mode = confine_mode_named(optarg);
            if (!options->confine_mode)
                return bad_usage("--seccomp %s is none of on, log and off", optarg);
            break;
        case 'h':
            fputs(usage, stdout);
            return 0;
        case 'v':
            puts("ferry-vm " FERRY_VERSION);
            return 0;
        case ':':
            return bad_usage("%s needs a value", argv[optind - 1]);
        default:
            return bad_usage("%s is not an option of ferry-vm", argv[optind - 1]);
        }
    }
    if (optind < argc)
        return bad_usage("unexpected argument %s", argv[optind]);
    if (!options->dir)
        return bad_usage("%s is missing", "--dir");
    if (options->host && strlen(options->host) >= FERRY_NAME_SIZE)
        return bad_usage("--host %s is too long", options->host);
    if (options->resume && options->incoming)
        return bad_usage("%s has no meaning with --incoming or --upgrade", "--resume");
    if (options->resume && options->resume[0] != '/')
        return bad_usage("--resume %s is not an absolute name", options->resume);
    if (options->incoming && options->paused)
        return bad_usage("%s has no meaning with --incoming or --upgrade: the VM arrives running or paused",
                         "--paused");
    return -1;
}

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
    int status = parse_arguments(argc, argv, &options, &former);

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
