#include "cli/command.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "cli/certs.h"
#include "cli/memory.h"
#include "cli/object.h"
#include "tls/credentials.h"
#include "tls/private_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void print_installed(struct cli *cli, const struct ferry_credentials *credentials, const char *where,
                            const char *note)
{
    char day[CERTS_DAY_SIZE];
    json_t *object;

    if (cli->json) {
        object = cli_pack("{s:s, s:s, s:s, s:o}", "name", credentials_name(credentials), "authority",
                          credentials_authority(credentials), "file", where, "until",
                          certs_time(credentials_end(credentials)));
        cli_print_json(cli, object);
        json_decref(object);
    } else {
        fprintf(cli->out, "Installed the certificate of %s (from %s), valid until %s, in %s.\n%s",
                credentials_name(credentials), credentials_authority(credentials),
                certs_day(credentials_end(credentials), day), where, note);
    }
}

/* For `ferry --host ADDR:PORT` of this user. */
static int install_for_user(struct cli *cli, const struct ferry_credentials *credentials, const char *pem,
                            struct ferry_error *err)
{
    char *path = certs_user_path(CERTS_USER_FILE, err);
    char *slash = path ? strrchr(path, '/') : NULL;
    int result = path ? credentials_check(credentials, NULL, err) : -EINVAL;

    if (result == 0) {
        *slash = '\0';
        result = private_directory_make(path, err);
        *slash = '/';
    }
    if (result == 0)
        result = private_file_write(path, pem, false, true, err);
    if (result == 0)
        print_installed(cli, credentials, path, "");
    free(path);
    return result;
}

/* NAME in the host's state directory; freed by the caller. */
static char *state_path(struct cli *cli, const char *name)
{
    const char *socket_path = cli->client.socket_path;
    const char *slash = strrchr(socket_path, '/');

    return memory_format("%.*s/%s", slash ? (int)(slash - socket_path) : 1, slash ? socket_path : ".", name);
}

/* It locks its pid file for as long as it lives. */
static bool ferryd_runs(struct cli *cli)
{
    CLEANUP_FREE char *path = state_path(cli, "ferryd.pid");
    CLEANUP_CLOSE int fd = open(path, O_RDWR | O_CLOEXEC);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    return fd >= 0 ? fcntl(fd, F_OFD_GETLK, &lock) < 0 || lock.l_type != F_UNLCK : errno != ENOENT;
}

static int install_directly(struct cli *cli, const struct ferry_credentials *credentials, const char *pem,
                            struct ferry_error *err)
{
    char *file = state_path(cli, CERTS_USER_FILE);
    int result = credentials_check(credentials, credentials_name(credentials), err);

    if (result == 0)
        result = private_file_write(file, pem, false, true, err);
    if (result == 0)
        print_installed(cli, credentials, file, "ferryd does not run; it takes it when it starts.\n");
    free(file);
    return result;
}

static int install_for_host(struct cli *cli, const struct ferry_credentials *credentials, const char *pem,
                            struct ferry_error *err)
{
    json_t *body = NULL;
    json_t *host = NULL;
    int result = cli_connect(cli, err);

    if (result < 0)
        return result;
    if (!client_is_local(&cli->client))
        return error_set(err, -EINVAL,
                         "a host's certificate is installed on the host itself: run this there, with its "
                         "state directory as --host");
    if (!ferryd_runs(cli))
        return install_directly(cli, credentials, pem, err);
    body = cli_pack("{s:s}", "bundle", pem);
    result = client_request(&cli->client, "POST", "/v1/host/certificate", body, &host, err);
    json_decref(body);
    if (result == 0)
        print_installed(cli, credentials, object_text(host, "certificate.file"), "");
    json_decref(host);
    return result;
}

static int host_certs_install(struct cli *cli, struct ferry_error *err)
{
    const char *file = args_operand(&cli->args, 0);
    struct ferry_credentials *credentials = NULL;
    char *pem = NULL;
    int result = private_file_read(file, false, &pem, err);

    if (result == 0)
        result = credentials_parse(&credentials, pem, file, err);
    if (result == 0 && args_has(&cli->args, "user"))
        result = install_for_user(cli, credentials, pem, err);
    else if (result == 0)
        result = install_for_host(cli, credentials, pem, err);
    credentials_unref(credentials);
    private_file_free(pem);
    return result;
}

const struct command command_host_certs_install = {
    .name = "host certs install",
    .group = "Hosts",
    .summary = "Give this host the key and certificate in a file",
    .text = "FILE is what ferry host certs issue wrote. The ferryd that runs here takes it at once, checks "
            "that it is this host's, and keeps it in its state directory; VMs do not notice. When ferryd "
            "does not run, the file is put into the state directory that --host "
            "names, and ferryd checks it when it starts. FILE itself is not needed any more.",
    .options =
        (const struct option[]){
            {.name = "user",
             .help = "for this user's own ferry --host ADDR:PORT, instead of for this host; kept in "
                     "~/.config/ferry"},
            {.name = NULL},
        },
    .operands =
        (const struct operand[]){
            {.name = "FILE", .kind = VALUE_FILE},
            {.name = NULL},
        },
    .examples =
        (const struct example[]){
            {"ferry host certs install b.pem", "on host b"},
            {"ferry --host /var/lib/ferry host certs install b.pem", "when its state directory is there"},
            {"ferry host certs install --user alice.pem", "as alice, on her own machine"},
            {NULL, NULL},
        },
    .run = host_certs_install,
};
