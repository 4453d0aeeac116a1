/*
 * The options of a migration, which ferry migrate carries out and ferry check foretells.
 */
#ifndef FERRY_CLI_MIGRATION_OPTIONS_H
#define FERRY_CLI_MIGRATION_OPTIONS_H

#include "cli/command.h"

/* For a command's table of options. */
/* clang-format off */
#define MIGRATION_OPTIONS \
    {.name = "downtime", \
     .kind = VALUE_DURATION, \
     .value_name = "TIME", \
     .help = "how long the VM may stand still, like 50ms (the default) or 0.3s"}, \
    {.name = "bandwidth", \
     .kind = VALUE_RATE, \
     .value_name = "RATE", \
     .help = "while it runs send no faster: bytes a second like 500M or 1G (powers of 1024), or bits " \
             "a second like 10Gbit (powers of 1000); no limit unless given"}, \
    {.name = "throttle-max", \
     .kind = VALUE_NUMBER, \
     .value_name = "PERCENT", \
     .help = "when the VM changes its memory faster than it can be sent, slow its CPUs by at most so " \
             "much, 0 to 99 %, 99 unless given"}, \
    {.name = "no-throttle", .help = "never slow its CPUs"}, \
    {.name = "copy-time-limit", \
     .kind = VALUE_DURATION, \
     .value_name = "TIME", \
     .help = "when that does not help either: give up if sending what is left takes longer, 100s " \
             "unless given; else stop the VM and finish"}, \
    {.name = "quick-resume", \
     .kind = VALUE_CHOICE, \
     .value_name = "now", \
     .choices = migration_quick_resume_words, \
     .bare = "allowed", \
     .help = "instead of stopping it for long then, let it run at the destination before all of its " \
             "memory is there, which comes when it is needed, and in the background; =now does so " \
             "at once. Should one of the two hosts die meanwhile, the VM is lost"}, \
    {.name = "streams", \
     .kind = VALUE_NUMBER, \
     .value_name = "N", \
     .help = "connections to send memory on, 1 to 16; one a CPU of the host, 2 to 8, unless given"}, \
    {.name = "cold", \
     .help = "move it while it does not run: one that is powered off or suspended as it is, one that " \
             "runs by suspending it here and resuming it there"}, \
    {.name = "storage", \
     .kind = VALUE_TEXT, \
     .value_name = "DIR", \
     .bare = "", \
     .help = "with --cold: copy its disks to the destination, too, where they get the same paths, or " \
             "with =DIR their names in that directory; what is there is never overwritten, and what is " \
             "here is kept"}, \
    {.name = "tls", \
     .help = "encrypted, or not at all; else it is encrypted when both hosts have certificates"}, \
    {.name = "compress", \
     .kind = VALUE_CHOICE, \
     .value_name = "WAY", \
     .choices = (const char *const[]){"auto", "off", "lz4", "zstd", NULL}, \
     .help = "send memory compressed: auto (unless given) as far as that is faster on this link, off " \
             "never, lz4 or zstd always"}
/* clang-format on */

extern const char *const migration_quick_resume_words[];

/* The body of the request, from operand 1 (the destination) and the options above. *body: a new reference. */
int migration_request(const struct args *args, json_t **body, struct ferry_error *err);

#endif
