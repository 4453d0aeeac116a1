/*
 * What the commands about certificates share: where things are by default, and how they are printed.
 */
#ifndef FERRY_CLI_CERTS_H
#define FERRY_CLI_CERTS_H

#include "cli/command.h"

/* The user's own: ~/.config/ferry/NAME. NULL, with err filled in, when the user has no home. Freed by the
 * caller. */
char *certs_user_path(const char *name, struct ferry_error *err);
/* --ca DIR, else ~/.config/ferry/ca. Freed by the caller. */
char *certs_authority(struct cli *cli, struct ferry_error *err);

/* The option --days, within what makes sense. */
int certs_days(struct cli *cli, unsigned otherwise, unsigned *days, struct ferry_error *err);

/* Seconds since 1970 as the API writes times. New reference. */
json_t *certs_time(int64_t seconds);
/* As a person reads it: the day. */
#define CERTS_DAY_SIZE 16
char *certs_day(int64_t seconds, char text[static CERTS_DAY_SIZE]);

#define CERTS_OPTION_CA                                                                                      \
    {                                                                                                        \
        .name = "ca", .kind = VALUE_FILE, .value_name = "DIR",                                               \
        .help = "the certificate authority's directory (else ~/.config/ferry/ca)"                            \
    }

#define CERTS_USER_FILE "certificate.pem"

#endif
