/* The command line and the file are read by one table; what cannot be meant is refused before anything
 * starts. */
#include "unit.h"

#include "base/clock.h"
#include "host/config.h"

#include <errno.h>

#define READ(config, err, ...)                                                                               \
    read_options((config), (err), (char *[]){"ferryd", "--ferry-vm", "/bin/true", __VA_ARGS__, NULL})

static int read_options(struct config *config, struct ferry_error *err, char **argv)
{
    enum config_action action;
    int argc = 0;

    while (argv[argc])
        argc++;
    return config_read(config, argc, argv, &action, err);
}

static struct config config;

static void relative_paths_become_absolute(void **state)
{
    struct ferry_error err;

    assert_ok(READ(&config, &err, "--state-dir", "somewhere", "--name", "a"), err);
    assert_int_equal(config.state_dir[0], '/');
    assert_contains(config.state_dir, "/somewhere");
    assert_string_equal(config.name, "a");
    assert_string_equal(config.migrate_address, "127.0.0.1");
}

static void file_is_read_and_command_line_wins(void **state)
{
    struct unit_dir dir;
    struct ferry_error err;
    char path[128];
    FILE *file;

    unit_dir_make(&dir);
    file = fopen(unit_path(&dir, "ferryd.conf", path), "w");
    fputs("# a host\n\nname = filename\n  state-dir=/tmp/x  \nmemory-limit = 2G\n", file);
    fclose(file);
    assert_ok(READ(&config, &err, "--config", path, "--name", "mine"), err);
    assert_string_equal(config.name, "mine");
    assert_string_equal(config.state_dir, "/tmp/x");
    assert_int_equal(config.memory_limit, 2ull << 30);

    file = fopen(path, "w");
    fputs("name = a\ncolour = red\n", file);
    fclose(file);
    assert_int_equal(READ(&config, &err, "--config", path), -EINVAL);
    assert_contains(err.text, "line 2");
    assert_contains(err.text, "colour");
    unit_dir_remove(&dir);
}

static void bad_usage_is_refused_naming_it(void **state)
{
    struct ferry_error err;

    assert_int_equal(READ(&config, &err, "--name", "a"), -EINVAL);
    assert_contains(err.text, "--state-dir");
    assert_int_equal(READ(&config, &err, "--state-dir", "/x", "--colour"), -EINVAL);
    assert_contains(err.text, "--colour");
    assert_int_equal(READ(&config, &err, "--state-dir", "/x", "--name"), -EINVAL);
    assert_contains(err.text, "--name");
    assert_int_equal(READ(&config, &err, "--state-dir", "/x", "extra"), -EINVAL);
    assert_contains(err.text, "extra");
    assert_int_equal(READ(&config, &err, "--state-dir", "/x", "--name", "a/b"), -EINVAL);
    assert_contains(err.text, "a/b");
    assert_int_equal(READ(&config, &err, "--state-dir", "/x", "--memory-limit", "lots"), -EINVAL);
    assert_contains(err.text, "lots");
}

static void timeouts_are_seconds_with_defaults(void **state)
{
    static char *const names[] = {"--peer-timeout", "--vm-timeout", "--start-timeout"};
    static char *const wrong[] = {"0", "3601", "-1", "1.5", "10s", "", "99999999999999999999"};
    struct ferry_error err;

    assert_ok(READ(&config, &err, "--state-dir", "/x"), err);
    assert_int_equal(config.peer_timeout_ns, 10 * NS_PER_S);
    assert_int_equal(config.vm_timeout_ns, 5 * NS_PER_S);
    assert_int_equal(config.start_timeout_ns, 60 * NS_PER_S);
    assert_ok(READ(&config, &err, "--state-dir", "/x", "--peer-timeout", "1", "--vm-timeout", "2",
                   "--start-timeout", "3600"),
              err);
    assert_int_equal(config.peer_timeout_ns, NS_PER_S);
    assert_int_equal(config.vm_timeout_ns, 2 * NS_PER_S);
    assert_int_equal(config.start_timeout_ns, 3600 * NS_PER_S);
    assert_int_equal(config.reconnect_ns, 300 * NS_PER_S);
    assert_ok(READ(&config, &err, "--state-dir", "/x", "--reconnect-time", "86400"), err);
    assert_int_equal(config.reconnect_ns, 86400 * NS_PER_S);
    assert_int_equal(READ(&config, &err, "--state-dir", "/x", "--reconnect-time", "0"), -EINVAL);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        for (size_t j = 0; j < sizeof(wrong) / sizeof(wrong[0]); j++) {
            if (READ(&config, &err, "--state-dir", "/x", names[i], wrong[j]) != -EINVAL)
                fail_msg("%s %s was taken", names[i], wrong[j]);
            assert_contains(err.text, names[i] + 2);
        }
    }
}

static void malformed_address_is_refused(void **state)
{
    static char *const addresses[] = {"127.0.0.1",   "localhost:80", ":80",     "127.0.0.1:99999",
                                      "127.0.0.1:x", "300.1.1.1:80", "[::1:80", "[fe80]:1"};
    struct ferry_error err;

    for (size_t i = 0; i < sizeof(addresses) / sizeof(addresses[0]); i++) {
        if (READ(&config, &err, "--state-dir", "/x", "--listen", addresses[i]) != -EINVAL)
            fail_msg("%s was taken", addresses[i]);
        assert_contains(err.text, addresses[i]);
    }
    assert_int_equal(READ(&config, &err, "--state-dir", "/x", "--migrate-address", "127.0.0.1:80"), -EINVAL);
}

static void other_than_loopback_needs_insecure(void **state)
{
    struct ferry_error err;

    assert_int_equal(READ(&config, &err, "--state-dir", "/x", "--listen", "10.0.0.1:7411"), -EINVAL);
    assert_contains(err.text, "--insecure");
    assert_int_equal(READ(&config, &err, "--state-dir", "/x", "--migrate-address", "10.0.0.1"), -EINVAL);
    assert_contains(err.text, "--insecure");
    assert_ok(READ(&config, &err, "--state-dir", "/x", "--listen", "10.0.0.1:7411", "--insecure"), err);
    assert_string_equal(config.migrate_address, "10.0.0.1");
    assert_int_equal(READ(&config, &err, "--state-dir", "/x", "--listen", "0.0.0.0:7411", "--insecure"),
                     -EINVAL);
    assert_contains(err.text, "--migrate-address");
    assert_ok(READ(&config, &err, "--state-dir", "/x", "--listen", "[::1]:7411"), err);
    assert_string_equal(config.migrate_address, "::1");
}

static void sizes_are_read_with_units(void **state)
{
    struct ferry_error err;
    uint64_t bytes;

    assert_ok(config_parse_size("512M", &bytes, &err), err);
    assert_int_equal(bytes, 512ull << 20);
    assert_ok(config_parse_size("1048576", &bytes, &err), err);
    assert_int_equal(bytes, 1048576);
    assert_ok(config_parse_size("3gib", &bytes, &err), err);
    assert_int_equal(bytes, 3ull << 30);
    assert_int_equal(config_parse_size("-1", &bytes, &err), -EINVAL);
    assert_int_equal(config_parse_size("M", &bytes, &err), -EINVAL);
    assert_int_equal(config_parse_size("18446744073709551615G", &bytes, &err), -EINVAL);
    assert_int_equal(config_parse_size("1X", &bytes, &err), -EINVAL);
}

static void rates_are_read_in_bytes_and_bits(void **state)
{
    struct ferry_error err;
    uint64_t rate;

    assert_ok(config_parse_rate("125M", &rate, &err), err);
    assert_int_equal(rate, 125ull << 20);
    assert_ok(config_parse_rate("10Gbit", &rate, &err), err);
    assert_int_equal(rate, 1250000000);
    assert_ok(config_parse_rate("100mbit", &rate, &err), err);
    assert_int_equal(rate, 12500000);
    assert_int_equal(config_parse_rate("fast", &rate, &err), -EINVAL);
    assert_int_equal(config_parse_rate("18446744073709551615Gbit", &rate, &err), -EINVAL);
    assert_int_equal(config_parse_rate("1Tbit", &rate, &err), -EINVAL);
    assert_contains(err.text, "10Gbit");
}

static void limits_on_leaving_are_read(void **state)
{
    struct ferry_error err;

    assert_ok(READ(&config, &err, "--state-dir", "/x"), err);
    assert_int_equal(config.migrate_max, 2);
    assert_int_equal(config.migrate_bandwidth, 0);
    assert_ok(READ(&config, &err, "--state-dir", "/x", "--migrate-max", "0", "--migrate-bandwidth", "1Gbit"),
              err);
    assert_int_equal(config.migrate_max, 0);
    assert_int_equal(config.migrate_bandwidth, 125000000);
    assert_int_equal(READ(&config, &err, "--state-dir", "/x", "--migrate-max", "-1"), -EINVAL);
    assert_contains(err.text, "migrate-max");
    assert_int_equal(READ(&config, &err, "--state-dir", "/x", "--migrate-bandwidth", "much"), -EINVAL);
    assert_contains(err.text, "migrate-bandwidth");
}

static void cache_of_what_was_sent_is_read(void **state)
{
    struct ferry_error err;

    assert_ok(READ(&config, &err, "--state-dir", "/x"), err);
    assert_int_equal(config.delta_cache, 64u << 20);
    assert_ok(READ(&config, &err, "--state-dir", "/x", "--delta-cache", "0"), err);
    assert_int_equal(config.delta_cache, 0);
    assert_ok(READ(&config, &err, "--state-dir", "/x", "--delta-cache", "1G"), err);
    assert_int_equal(config.delta_cache, 1u << 30);
    assert_int_equal(READ(&config, &err, "--state-dir", "/x", "--delta-cache", "some"), -EINVAL);
    assert_contains(err.text, "delta-cache");
}

static void limits_of_logs_are_read(void **state)
{
    struct ferry_error err;

    assert_ok(READ(&config, &err, "--state-dir", "/x"), err);
    assert_true(config.log_size == 10u << 20 && config.vm_log_size == 1u << 20 && config.log_files == 5);
    assert_ok(READ(&config, &err, "--state-dir", "/x", "--log-size", "4K", "--vm-log-size", "1G",
                   "--log-files", "0"),
              err);
    assert_true(config.log_size == 4096 && config.vm_log_size == 1u << 30 && config.log_files == 0);
    assert_int_equal(READ(&config, &err, "--state-dir", "/x", "--log-size", "1K"), -EINVAL);
    assert_contains(err.text, "log-size");
    assert_int_equal(READ(&config, &err, "--state-dir", "/x", "--vm-log-size", "2T"), -EINVAL);
    assert_contains(err.text, "vm-log-size");
    assert_int_equal(READ(&config, &err, "--state-dir", "/x", "--log-files", "100"), -EINVAL);
    assert_contains(err.text, "log-files");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(relative_paths_become_absolute),
        cmocka_unit_test(file_is_read_and_command_line_wins),
        cmocka_unit_test(bad_usage_is_refused_naming_it),
        cmocka_unit_test(timeouts_are_seconds_with_defaults),
        cmocka_unit_test(malformed_address_is_refused),
        cmocka_unit_test(other_than_loopback_needs_insecure),
        cmocka_unit_test(sizes_are_read_with_units),
        cmocka_unit_test(rates_are_read_in_bytes_and_bits),
        cmocka_unit_test(limits_on_leaving_are_read),
        cmocka_unit_test(limits_of_logs_are_read),
        cmocka_unit_test(cache_of_what_was_sent_is_read),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
