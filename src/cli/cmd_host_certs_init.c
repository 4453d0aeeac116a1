#include "cli/command.h"

#include "cli/certs.h"
#include "tls/authority.h"

#include <errno.h>
#include <stdlib.h>

static int host_certs_init(struct cli *cli, struct ferry_error *err)
{
    char *directory = certs_authority(cli, err);
    char day[CERTS_DAY_SIZE];
    int64_t until = 0;
    unsigned days = 0;
    int result = directory ? certs_days(cli, AUTHORITY_DAYS, &days, err) : -EINVAL;

    if (result == 0)
        result = authority_init(directory, days, &until, err);
    if (result == 0 && cli->json) {
        json_t *object = cli_pack("{s:s, s:o}", "directory", directory, "until", certs_time(until));

        cli_print_json(cli, object);
        json_decref(object);
    } else if (result == 0) {
        fprintf(cli->out,
                "Made a certificate authority in %s, valid until %s.\n"
                "Keep authority.key to yourself: who has it can make himself a host.\n",
                directory, certs_day(until, day));
    }
    free(directory);
    return result;
}

const struct command command_host_certs_init = {
    .name = "host certs init",
    .group = "Hosts",
    .summary = "Make a certificate authority, which says who is one of your hosts",
    .text = "Once for all hosts, at a place of which nobody else has the files; it need not be a host. Its "
            "key (authority.key, readable by you only) never has to leave the directory. Certificates for "
            "hosts come from ferry host certs issue.",
    .options =
        (const struct option[]){
            CERTS_OPTION_CA,
            {.name = "days",
             .kind = VALUE_NUMBER,
             .value_name = "N",
             .help = "how long the authority is valid; 3650 unless given. No certificate outlives it"},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry host certs init", "makes it in ~/.config/ferry/ca"},
            {"ferry host certs init --ca /media/stick/ca", "makes it on a stick that is then locked away"},
            {NULL, NULL},
        },
    .run = host_certs_init,
};
