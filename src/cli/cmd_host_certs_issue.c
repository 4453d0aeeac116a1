#include "cli/command.h"

#include "base/error.h"
#include "cli/certs.h"
#include "cli/memory.h"
#include "tls/authority.h"
#include "tls/private_file.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

/* Clocks of hosts differ a little. */
#define CLOCK_SKEW_S  3600
#define SECONDS_A_DAY 86400

static void print_issued(struct cli *cli, const struct certificate_request *request, const char *file,
                         int64_t until)
{
    char day[CERTS_DAY_SIZE];
    json_t *object;

    if (cli->json) {
        object = cli_pack("{s:s, s:s, s:s, s:o}", "name", request->name, "kind",
                          request->person ? "person" : "host", "file", file, "until", certs_time(until));
        cli_print_json(cli, object);
        json_decref(object);
        return;
    }
    fprintf(cli->out, "Wrote %s: key and certificate of %s %s, valid until %s%s.\n", file,
            request->person ? "the person" : "host", request->name, certs_day(until, day),
            until < request->not_after ? ", as its authority is" : "");
    if (request->person)
        fprintf(cli->out, "Bring it there safely, then, as that user: ferry host certs install --user %s\n",
                file);
    else
        fprintf(cli->out, "Bring it there safely, then, on host %s: ferry host certs install %s\n",
                request->name, file);
}

static int host_certs_issue(struct cli *cli, struct ferry_error *err)
{
    struct certificate_request request = {
        .name = args_operand(&cli->args, 0),
        .person = args_has(&cli->args, "person"),
        .addresses = cli->args.operands + 1,
        .address_count = cli->args.operand_count - 1,
        .not_before = time(NULL) - CLOCK_SKEW_S,
    };
    char *directory = certs_authority(cli, err);
    char *file = memory_format("%s.pem", request.name);
    const char *out = args_text(&cli->args, "out", file);
    char *bundle = NULL;
    int64_t until = 0;
    unsigned days = 0;
    int result = directory ? certs_days(cli, CERTIFICATE_DAYS, &days, err) : -EINVAL;

    request.not_after = time(NULL) + (int64_t)days * SECONDS_A_DAY;
    if (result == 0 && request.person && request.address_count > 0)
        result = error_set(err, -EINVAL, "a person's certificate has no addresses");
    if (result == 0)
        result = authority_issue(directory, &request, &bundle, &until, err);
    if (result == 0)
        result = private_file_write(out, bundle, false, args_has(&cli->args, "out"), err);
    if (result == -EEXIST)
        error_set(err, result, "there is a file %s already; name another with --out FILE", out);
    if (result == 0)
        print_issued(cli, &request, out, until);
    private_file_free(bundle);
    free(file);
    free(directory);
    return result;
}

const struct command command_host_certs_issue = {
    .name = "host certs issue",
    .group = "Hosts",
    .summary = "Make a key and a certificate for a host, by your certificate authority",
    .text = "NAME is what the host's ferryd is called. ADDRESS, any number of them, is how a remote ferry "
            "calls the host: numeric addresses and DNS names, without ports; hosts know each other by name. "
            "What is written (NAME.pem, readable by you only) is all that ferry host certs install needs. It "
            "holds the key: whoever gets it is that host.\n"
            "A certificate that ends soon is replaced in the same way, and VMs and migrations do not notice.",
    .options =
        (const struct option[]){
            CERTS_OPTION_CA,
            {.name = "days",
             .kind = VALUE_NUMBER,
             .value_name = "N",
             .help = "how long it is valid; 730 unless given"},
            {.name = "out",
             .kind = VALUE_FILE,
             .value_name = "FILE",
             .help = "write to FILE, replacing it; else to NAME.pem, which must not exist"},
            {.name = "person",
             .help = "for somebody who commands hosts with ferry --host ADDR:PORT, instead of for a host"},
            {.name = NULL},
        },
    .operands =
        (const struct operand[]){
            {.name = "NAME", .kind = VALUE_TEXT},
            {.name = "ADDRESS", .kind = VALUE_TEXT, .optional = true, .repeats = true},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry host certs issue b 10.0.0.2 b.example.org", "writes b.pem, for the host b"},
            {"ferry host certs issue alice --person", "writes alice.pem, for the administrator alice"},
            {NULL, NULL},
        },
    .run = host_certs_issue,
};
