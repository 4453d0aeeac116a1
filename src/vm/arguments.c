#include "vm/arguments.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXIT_USAGE 2

static const char usage[] =
    "usage: ferry-vm --dir DIR [--incoming | --upgrade DIR | --resume FILE [--lazy | --eager]] [--paused] "
    "[--ready-fd N] [--insecure] [--host "
    "NAME]\n"
    "                [--lock-dir DIR] [--lock-wait SECONDS] [--lock-generation N] [--new-identity]\n"
    "                [--new-generation] [--cpu-features NAMES] [--dirty-tracking HOW]\n"
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
    "  --new-generation\n"
    "                  with --resume: tell the guest that it has gone on from there before, or may have\n"
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

static int parse_generation(const char *text, uint64_t *generation)
{
    if (text[0] < '1' || text[0] > '9' || strspn(text, "0123456789") != strlen(text))
        return -1;
    *generation = strtoull(text, NULL, 10);
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

/* The options without a value, and those whose value is taken as it is. False: OPTION is none of them. */
static bool take_plain(int option, struct vm_options *options, const char **former)
{
    const char **text = option == 'd'   ? &options->dir
                        : option == 'u' ? former
                        : option == 'R' ? &options->resume
                        : option == 'H' ? &options->host
                        : option == 'l' ? &options->lock_dir
                        : option == 'c' ? &options->cpu_features
                                        : NULL;

    if (text)
        *text = optarg;
    switch (option) {
    case 'u':
    case 'i':
        options->incoming = true;
        return true;
    case 'L':
    case 'E':
        options->eager = option == 'E';
        return true;
    case 'p':
        options->paused = true;
        return true;
    case 'I':
        options->insecure = true;
        return true;
    case 'N':
        options->new_identity = true;
        return true;
    case 'G':
        options->new_generation = true;
        return true;
    default:
        return text;
    }
}

/* All others, WORD as it was given. Returns -1 to go on, else the exit status. */
static int take_checked(int option, const char *word, struct vm_options *options)
{
    switch (option) {
    case 'r':
        options->ready_fd = parse_descriptor(optarg);
        return options->ready_fd >= 0 ? -1 : bad_usage("--ready-fd %s is not an open descriptor", optarg);
    case 'w':
        return parse_seconds(optarg, &options->lock_wait_ns) == 0
                   ? -1
                   : bad_usage("--lock-wait %s is not a number of seconds, at most 86400", optarg);
    case 'g':
        return parse_generation(optarg, &options->lock_generation) == 0
                   ? -1
                   : bad_usage("--lock-generation %s is not a number from 1", optarg);
    case 't':
        return parse_tracking(optarg, &options->tracking) == 0
                   ? -1
                   : bad_usage("--dirty-tracking %s is none of auto, ring and log", optarg);
    case 'K':
        return vm_log_limit_parse(optarg, &options->log_limit, NULL) == 0
                   ? -1
                   : bad_usage("--log-limit %s is not BYTES,FILES: at least 4096, and 0 to 99", optarg);
    case 's':
        options->confine_mode = confine_mode_named(optarg);
        return options->confine_mode ? -1 : bad_usage("--seccomp %s is none of on, log and off", optarg);
    case 'h':
        fputs(usage, stdout);
        return EXIT_SUCCESS;
    case 'v':
        puts("ferry-vm " FERRY_VERSION);
        return EXIT_SUCCESS;
    case ':':
        return bad_usage("%s needs a value", word);
    default:
        return bad_usage("%s is not an option of ferry-vm", word);
    }
}

/* Whether they go together. Returns -1 to go on, else the exit status. */
static int check(const struct vm_options *options)
{
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

int arguments_parse(int argc, char **argv, struct vm_options *options, const char **former)
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
        {"new-generation", no_argument, NULL, 'G'},
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
        int status =
            take_plain(option, options, former) ? -1 : take_checked(option, argv[optind - 1], options);

        if (status >= 0)
            return status;
    }
    if (optind < argc)
        return bad_usage("unexpected argument %s", argv[optind]);
    return check(options);
}
