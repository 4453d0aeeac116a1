#include "cli/migration_options.h"

#include "base/error.h"

#include <errno.h>

#define THROTTLE_MAX 99 /* per cent */

const char *const migration_quick_resume_words[] = {"allowed", "now", NULL};

static int check(const struct args *args, struct ferry_error *err)
{
    if (args_has(args, "no-throttle") && args_has(args, "throttle-max"))
        return error_set(err, -EINVAL, "--no-throttle and --throttle-max exclude each other");
    if (args_number(args, "throttle-max", 0) > THROTTLE_MAX)
        return error_set(err, -EINVAL, "--throttle-max is a percentage, 0 to %d", THROTTLE_MAX);
    if (args_has(args, "storage") && !args_has(args, "cold"))
        return error_set(err, -EINVAL,
                         "--storage needs --cold: the disks of a VM that runs on while it moves cannot move "
                         "along yet; with both it is suspended meanwhile");
    if (*args_text(args, "storage", "") && *args_text(args, "storage", "") != '/')
        return error_set(err, -EINVAL, "--storage=DIR: DIR is an absolute path on the destination");
    return 0;
}

int migration_request(const struct args *args, json_t **body, struct ferry_error *err)
{
    static const struct {
        const char *option, *member;
    } numbers[] = {
        {"downtime", "downtime_limit"},         {"bandwidth", "bandwidth_limit"},
        {"copy-time-limit", "copy_time_limit"}, {"throttle-max", "throttle_max"},
        {"no-throttle", "throttle_max"},        {"streams", "streams"},
    };
    int result = check(args, err);

    if (result < 0)
        return result;
    *body = cli_pack("{s:s}", "destination", args_operand(args, 1));
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        if (args_has(args, numbers[i].option))
            json_object_set_new(*body, numbers[i].member,
                                json_integer((json_int_t)args_number(args, numbers[i].option, 0)));
    }
    if (args_has(args, "cold"))
        json_object_set_new(*body, "cold", json_true());
    if (args_has(args, "storage"))
        json_object_set_new(*body, "storage", json_string(args_text(args, "storage", "")));
    if (args_has(args, "tls"))
        json_object_set_new(*body, "tls", json_true());
    if (args_has(args, "quick-resume"))
        json_object_set_new(*body, "quick_resume", json_string(args_text(args, "quick-resume", "")));
    if (args_has(args, "compress"))
        json_object_set_new(*body, "compress", json_string(args_text(args, "compress", NULL)));
    return 0;
}
