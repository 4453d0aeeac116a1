#include "cli/certs.h"

#include "base/clock.h"
#include "base/error.h"
#include "cli/memory.h"
#include "tls/authority.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

char *certs_user_path(const char *name, struct ferry_error *err)
{
    const char *config = getenv("XDG_CONFIG_HOME");
    const char *home = getenv("HOME");

    if (config && config[0] == '/')
        return memory_format("%s/ferry/%s", config, name);
    if (home && home[0] == '/')
        return memory_format("%s/.config/ferry/%s", home, name);
    error_set(err, -EINVAL, "$HOME is not set");
    return NULL;
}

char *certs_authority(struct cli *cli, struct ferry_error *err)
{
    const char *directory = args_text(&cli->args, "ca", NULL);

    if (directory && !*directory) {
        error_set(err, -EINVAL, "--ca is empty");
        return NULL;
    }
    return directory ? memory_copy_text(directory) : certs_user_path("ca", err);
}

int certs_days(struct cli *cli, unsigned otherwise, unsigned *days, struct ferry_error *err)
{
    uint64_t number = args_number(&cli->args, "days", otherwise);

    if (number < 1 || number > AUTHORITY_DAYS_MAX)
        return error_set(err, -EINVAL, "--days is 1 to %d", AUTHORITY_DAYS_MAX);
    *days = (unsigned)number;
    return 0;
}

json_t *certs_time(int64_t seconds)
{
    char text[CLOCK_TEXT_SIZE];

    return json_string(clock_format((uint64_t)seconds * NS_PER_S, text));
}

char *certs_day(int64_t seconds, char text[static CERTS_DAY_SIZE])
{
    time_t time = (time_t)seconds;
    struct tm parts;

    if (!localtime_r(&time, &parts) || strftime(text, CERTS_DAY_SIZE, "%Y-%m-%d", &parts) == 0)
        text[0] = '\0';
    return text;
}
