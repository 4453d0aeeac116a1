#include "host/config.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#ifndef FERRY_LIBEXECDIR
#define FERRY_LIBEXECDIR "/usr/libexec"
#endif
#ifndef FERRY_BINDIR
#define FERRY_BINDIR "/usr/bin"
#endif

/* More at once only make each other longer, and so what changes meanwhile. */
#define MIGRATE_MAX 2

#define LOG_SIZE     (10u << 20)
#define VM_LOG_SIZE  (1u << 20)
#define LOG_FILES    5
#define LOG_SIZE_MIN (4u << 10)
#define LOG_SIZE_MAX (UINT64_C(1) << 40)

bool config_name_valid(const char *name)
{
    size_t length = strlen(name);

    if (length == 0 || length >= HOST_NAME_SIZE || !isalnum((unsigned char)name[0]) || (name[0] & 0x80))
        return false;
    return strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == length;
}

int config_parse_size(const char *text, uint64_t *bytes, struct ferry_error *err)
{
    static const struct {
        const char *suffix;
        unsigned shift;
    } units[] = {{"", 0},     {"B", 0},  {"K", 10},   {"KiB", 10}, {"M", 20},
                 {"MiB", 20}, {"G", 30}, {"GiB", 30}, {"T", 40},   {"TiB", 40}};
    unsigned long long value;
    char *end;

    errno = 0;
    value = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)text[0]) || errno)
        return error_set(err, -EINVAL, "\"%s\" is not a size; write for example 512M or 4G", text);
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        if (strcasecmp(end, units[i].suffix) != 0)
            continue;
        if (value > UINT64_MAX >> units[i].shift)
            break;
        *bytes = (uint64_t)value << units[i].shift;
        return 0;
    }
    return error_set(err, -EINVAL, "\"%s\" is not a size; write for example 512M or 4G", text);
}

int config_parse_rate(const char *text, uint64_t *bytes_per_s, struct ferry_error *err)
{
    static const struct {
        const char *suffix;
        uint64_t bits;
    } units[] = {{"bit", 1}, {"Kbit", 1000}, {"Mbit", 1000000}, {"Gbit", 1000000000}};
    unsigned long long value;
    char *end;

    errno = 0;
    value = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)text[0]) || errno)
        return error_set(err, -EINVAL, "\"%s\" is not a rate; write for example 125M or 10Gbit", text);
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        if (strcasecmp(end, units[i].suffix) != 0)
            continue;
        if (value > UINT64_MAX / units[i].bits)
            break;
        *bytes_per_s = (uint64_t)value * units[i].bits / 8;
        return 0;
    }
    if (config_parse_size(text, bytes_per_s, NULL) < 0)
        return error_set(err, -EINVAL, "\"%s\" is not a rate; write for example 125M or 10Gbit", text);
    return 0;
}

static int set_text(char *out, size_t size, const char *key, const char *value, struct ferry_error *err)
{
    if (!value[0])
        return error_set(err, -EINVAL, "%s needs a value", key);
    if (strlen(value) >= size)
        return error_set(err, -EINVAL, "the value of %s is too long", key);
    memcpy(out, value, strlen(value) + 1);
    return 0;
}

static int set_path(char out[static PATH_MAX], const char *key, const char *value, struct ferry_error *err)
{
    CLEANUP_FREE char *here = NULL;

    if (value[0] == '/')
        return set_text(out, PATH_MAX, key, value, err);
    if (!value[0])
        return error_set(err, -EINVAL, "%s needs a value", key);
    here = getcwd(NULL, 0);
    if (!here)
        return error_set_errno(err, -errno, "cannot tell the current directory");
    if (snprintf(out, PATH_MAX, "%s/%s", here, value) >= PATH_MAX)
        return error_set(err, -EINVAL, "the value of %s is too long", key);
    return 0;
}

static int set_state_dir(struct config *config, const char *value, struct ferry_error *err)
{
    return set_path(config->state_dir, "state-dir", value, err);
}

static int set_cpu_table(struct config *config, const char *value, struct ferry_error *err)
{
    return set_path(config->cpu_table, "cpu-table", value, err);
}

static int set_lock_dir(struct config *config, const char *value, struct ferry_error *err)
{
    return set_path(config->lock_dir, "lock-dir", value, err);
}

/* A number of seconds, digits only, MIN to MAX. */
static int parse_seconds(const char *name, const char *value, unsigned long min, unsigned long max,
                         unsigned long *seconds, struct ferry_error *err)
{
    size_t digits = strspn(value, "0123456789");

    *seconds = strtoul(value, NULL, 10);
    if (digits == 0 || value[digits] || digits > 9 || *seconds < min || *seconds > max)
        return error_set(err, -EINVAL, "%s is a number of seconds, %lu to %lu, not \"%s\"", name, min, max,
                         value);
    return 0;
}

static int set_lock_wait(struct config *config, const char *value, struct ferry_error *err)
{
    unsigned long seconds;
    int result = parse_seconds("lock-wait", value, 0, 86400, &seconds, err);

    return result < 0 ? result
                      : set_text(config->lock_wait, sizeof(config->lock_wait), "lock-wait", value, err);
}

static int set_seccomp(struct config *config, const char *value, struct ferry_error *err)
{
    if (strcmp(value, "on") != 0 && strcmp(value, "log") != 0 && strcmp(value, "off") != 0)
        return error_set(err, -EINVAL, "seccomp is on, log or off, not \"%s\"", value);
    return set_text(config->seccomp, sizeof(config->seccomp), "seccomp", value, err);
}

static int set_timeout(const char *name, const char *value, uint64_t *ns, struct ferry_error *err)
{
    unsigned long seconds;
    int result = parse_seconds(name, value, 1, 3600, &seconds, err);

    if (result == 0)
        *ns = seconds * NS_PER_S;
    return result;
}

static int set_peer_timeout(struct config *config, const char *value, struct ferry_error *err)
{
    return set_timeout("peer-timeout", value, &config->peer_timeout_ns, err);
}

static int set_vm_timeout(struct config *config, const char *value, struct ferry_error *err)
{
    return set_timeout("vm-timeout", value, &config->vm_timeout_ns, err);
}

static int set_start_timeout(struct config *config, const char *value, struct ferry_error *err)
{
    return set_timeout("start-timeout", value, &config->start_timeout_ns, err);
}

static int set_reconnect_time(struct config *config, const char *value, struct ferry_error *err)
{
    unsigned long seconds;
    int result = parse_seconds("reconnect-time", value, 1, 86400, &seconds, err);

    if (result == 0)
        config->reconnect_ns = seconds * NS_PER_S;
    return result;
}

static int set_migrate_bandwidth(struct config *config, const char *value, struct ferry_error *err)
{
    int result = config_parse_rate(value, &config->migrate_bandwidth, err);

    return result < 0 ? error_prefix(err, result, "migrate-bandwidth") : 0;
}

static int set_migrate_max(struct config *config, const char *value, struct ferry_error *err)
{
    size_t digits = strspn(value, "0123456789");

    if (digits == 0 || value[digits] || digits > 4)
        return error_set(err, -EINVAL, "migrate-max is a number of VMs, 0 (no limit) to 9999, not \"%s\"",
                         value);
    config->migrate_max = (unsigned)strtoul(value, NULL, 10);
    return 0;
}

static int set_delta_cache(struct config *config, const char *value, struct ferry_error *err)
{
    int result = config_parse_size(value, &config->delta_cache, err);

    return result < 0 ? error_prefix(err, result, "delta-cache") : 0;
}

static int set_size_of_log(const char *name, const char *value, uint64_t *size, struct ferry_error *err)
{
    int result = config_parse_size(value, size, err);

    if (result < 0)
        return error_prefix(err, result, "%s", name);
    if (*size < LOG_SIZE_MIN || *size > LOG_SIZE_MAX)
        return error_set(err, -EINVAL, "%s is 4K to 1T, not \"%s\"", name, value);
    return 0;
}

static int set_log_size(struct config *config, const char *value, struct ferry_error *err)
{
    return set_size_of_log("log-size", value, &config->log_size, err);
}

static int set_vm_log_size(struct config *config, const char *value, struct ferry_error *err)
{
    return set_size_of_log("vm-log-size", value, &config->vm_log_size, err);
}

static int set_log_files(struct config *config, const char *value, struct ferry_error *err)
{
    size_t digits = strspn(value, "0123456789");

    if (digits == 0 || value[digits] || digits > 2)
        return error_set(err, -EINVAL, "log-files is a number of older files, 0 to 99, not \"%s\"", value);
    config->log_files = (unsigned)strtoul(value, NULL, 10);
    return 0;
}

static int set_vm_program(struct config *config, const char *value, struct ferry_error *err)
{
    return set_path(config->vm_program, "ferry-vm", value, err);
}

static int set_name(struct config *config, const char *value, struct ferry_error *err)
{
    if (!config_name_valid(value))
        return error_set(err, -EINVAL,
                         "\"%s\" is not a host name: 1 to 63 of letters, digits, '.', '_' and '-', "
                         "beginning with a letter or a digit",
                         value);
    return set_text(config->name, sizeof(config->name), "name", value, err);
}

static int set_listen(struct config *config, const char *value, struct ferry_error *err)
{
    return set_text(config->listen, sizeof(config->listen), "listen", value, err);
}

static int set_migrate_address(struct config *config, const char *value, struct ferry_error *err)
{
    return set_text(config->migrate_address, sizeof(config->migrate_address), "migrate-address", value, err);
}

static int set_memory_limit(struct config *config, const char *value, struct ferry_error *err)
{
    int result = config_parse_size(value, &config->memory_limit, err);

    return result < 0 ? error_prefix(err, result, "memory-limit") : 0;
}

/* An option without a value, or a key with one. */
static int set_switch(const char *name, const char *value, bool *on, struct ferry_error *err)
{
    if (value && strcmp(value, "yes") != 0 && strcmp(value, "no") != 0)
        return error_set(err, -EINVAL, "%s is \"yes\" or \"no\", not \"%s\"", name, value);
    *on = !value || strcmp(value, "yes") == 0;
    return 0;
}

static int set_insecure(struct config *config, const char *value, struct ferry_error *err)
{
    return set_switch("insecure", value, &config->insecure, err);
}

static int set_require_tls(struct config *config, const char *value, struct ferry_error *err)
{
    return set_switch("require-tls", value, &config->require_tls, err);
}

/* Every key, as option and in the file. */
static const struct config_key {
    const char *name;
    const char *argument; /* NULL: the option takes none */
    const char *help;
    int (*set)(struct config *config, const char *value, struct ferry_error *err);
} config_keys[] = {
    {"state-dir", "DIR", "where everything of this host is kept", set_state_dir},
    {"name", "NAME", "the host's name (default: the machine's)", set_name},
    {"listen", "ADDR:PORT", "serve the API on TCP too", set_listen},
    {"migrate-address", "ADDR", "where arriving VMs listen (default: that of --listen)", set_migrate_address},
    {"lock-dir", "DIR", "directory for locks, shared with the other hosts", set_lock_dir},
    {"lock-wait", "SECONDS", "how long to try for a VM's lock when a destination is silent (120)",
     set_lock_wait},
    {"peer-timeout", "SECONDS", "how long another host may be silent before it is taken for dead (10)",
     set_peer_timeout},
    {"vm-timeout", "SECONDS", "how long a VM's process may take to answer or to end (5)", set_vm_timeout},
    {"start-timeout", "SECONDS", "how long it may take to get a VM's memory, or to give it back (60)",
     set_start_timeout},
    {"reconnect-time", "SECONDS", "how long a connection lost in quick resume is tried again by itself (300)",
     set_reconnect_time},
    {"migrate-max", "N", "VMs that leave at once, others wait; 0: no limit (2)", set_migrate_max},
    {"migrate-bandwidth", "RATE", "what all that leave may take together, like 1G or 10Gbit",
     set_migrate_bandwidth},
    {"delta-cache", "SIZE", "what each may keep of the memory sent, to send only changes; 0: nothing (64M)",
     set_delta_cache},
    {"ferry-vm", "FILE", "the program to run a VM with", set_vm_program},
    {"log-size", "SIZE", "how large ferryd.log may be before it is rotated (10M)", set_log_size},
    {"vm-log-size", "SIZE", "how large a VM's log may be before it is rotated (1M)", set_vm_log_size},
    {"log-files", "N", "older files that are kept of each log (5)", set_log_files},
    {"seccomp", "MODE",
     "what of a VM's process may make only the system calls it needs: on, log (forbidden ones pass), off",
     set_seccomp},
    {"memory-limit", "SIZE", "memory all VMs together may have", set_memory_limit},
    {"cpu-table", "FILE",
     "take this host's CPU for the one that FILE is a CPUID table of, to try baselines out", set_cpu_table},
    {"require-tls", NULL, "refuse what is not encrypted", set_require_tls},
    {"insecure", NULL, "allow what is not encrypted, on any address", set_insecure},
};

#define CONFIG_KEYS (sizeof(config_keys) / sizeof(config_keys[0]))

enum {
    OPTION_CONFIG = 256,
    OPTION_HELP,
    OPTION_VERSION,
};

void config_usage(FILE *stream)
{
    fprintf(stream, "usage: ferryd --state-dir DIR [OPTION]...\n\n");
    for (size_t i = 0; i < CONFIG_KEYS; i++)
        fprintf(stream, "  --%-16s %-10s %s\n", config_keys[i].name,
                config_keys[i].argument ? config_keys[i].argument : "", config_keys[i].help);
    fprintf(stream, "  --%-16s %-10s %s\n  --%-16s %-10s %s\n  --%-16s %-10s %s\n\nSee ferryd(8).\n",
            "config", "FILE", "read options from FILE (\"key = value\" lines)", "version", "",
            "print the version", "help", "", "print this");
}

static char *trim(char *text)
{
    size_t length;

    text += strspn(text, " \t\r\n");
    length = strlen(text);
    while (length > 0 && isspace((unsigned char)text[length - 1]))
        text[--length] = '\0';
    return text;
}

static int read_line(struct config *config, char *line, struct ferry_error *err)
{
    char *key = trim(line);
    char *value;

    if (key[0] == '\0' || key[0] == '#')
        return 0;
    value = strchr(key, '=');
    if (!value)
        return error_set(err, -EINVAL, "\"%s\" is not \"key = value\"", key);
    *value++ = '\0';
    key = trim(key);
    value = trim(value);
    for (size_t i = 0; i < CONFIG_KEYS; i++) {
        if (strcmp(key, config_keys[i].name) == 0)
            return config_keys[i].set(config, value, err);
    }
    return error_set(err, -EINVAL, "there is no key \"%s\"", key);
}

static int read_file(struct config *config, const char *path, struct ferry_error *err)
{
    FILE *file = fopen(path, "re");
    char *line = NULL;
    size_t size = 0;
    int result = 0;

    if (!file)
        return error_set_errno(err, -EINVAL, "cannot read configuration file %s (%s)", path, strerror(errno));
    for (unsigned number = 1; result == 0 && getline(&line, &size, file) >= 0; number++) {
        result = read_line(config, line, err);
        if (result < 0)
            error_prefix(err, result, "%s line %u", path, number);
    }
    free(line);
    fclose(file);
    return result;
}

static void default_name(struct config *config)
{
    char name[HOST_NAME_SIZE + 1] = "";

    if (config->name[0])
        return;
    if (gethostname(name, sizeof(name) - 1) == 0)
        name[strcspn(name, ".")] = '\0';
    snprintf(config->name, sizeof(config->name), "%s", config_name_valid(name) ? name : "localhost");
}

/* What ferry-vm does by itself. */
static void default_seccomp(struct config *config)
{
#ifdef FERRY_SECCOMP
    static const char mode[] = "on";
#else
    static const char mode[] = "off";
#endif

    if (!config->seccomp[0])
        snprintf(config->seccomp, sizeof(config->seccomp), "%s", mode);
}

/* Told, else $FERRY_VM, else beside this program, else where `make install` puts it. */
static int default_vm_program(struct config *config, struct ferry_error *err)
{
    const char *environment = getenv("FERRY_VM");
    const char *installed[] = {FERRY_LIBEXECDIR "/ferry-vm", FERRY_BINDIR "/ferry-vm"};
    char self[PATH_MAX];
    ssize_t length;

    if (config->vm_program[0])
        return 0;
    if (environment && environment[0])
        return set_vm_program(config, environment, err);
    length = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (length > 0) {
        self[length] = '\0';
        *strrchr(self, '/') = '\0';
        if (snprintf(config->vm_program, sizeof(config->vm_program), "%s/ferry-vm", self) < PATH_MAX &&
            access(config->vm_program, X_OK) == 0)
            return 0;
    }
    for (size_t i = 0; i < 2; i++) {
        snprintf(config->vm_program, sizeof(config->vm_program), "%s", installed[i]);
        if (access(config->vm_program, X_OK) == 0)
            return 0;
    }
    return error_set(err, -ENOENT,
                     "there is no ferry-vm beside ferryd nor in %s or %s; name it with --ferry-vm FILE",
                     FERRY_LIBEXECDIR, FERRY_BINDIR);
}

/* Splits "ADDR:PORT" or "[v6]:PORT" into its address; false when it is neither. */
static bool split_address(const char *listen, char address[static SOCK_ADDRESS_SIZE])
{
    const char *colon = strrchr(listen, ':');
    unsigned char binary[16];
    size_t length;
    char *end;
    unsigned long port;

    if (!colon || !isdigit((unsigned char)colon[1]))
        return false;
    port = strtoul(colon + 1, &end, 10);
    if (*end || port > 65535)
        return false;
    length = (size_t)(colon - listen);
    if (length > 2 && listen[0] == '[' && listen[length - 1] == ']') {
        snprintf(address, SOCK_ADDRESS_SIZE, "%.*s", (int)length - 2, listen + 1);
        return inet_pton(AF_INET6, address, binary) == 1;
    }
    snprintf(address, SOCK_ADDRESS_SIZE, "%.*s", (int)length, listen);
    return inet_pton(AF_INET, address, binary) == 1;
}

static bool loopback(const char *address)
{
    char with_port[SOCK_ADDRESS_SIZE + 8];

    snprintf(with_port, sizeof(with_port), strchr(address, ':') ? "[%s]:0" : "%s:0", address);
    return sock_address_is_loopback(with_port);
}

/* Whether there is a certificate to speak TLS with; that it is a good one is seen when it is read. */
static bool is_licensed(const struct config *config)
{
    char path[PATH_MAX];

    return snprintf(path, sizeof(path), "%s/" CONFIG_CERTIFICATE, config->state_dir) < PATH_MAX &&
           access(path, F_OK) == 0;
}

static int check_addresses(struct config *config, struct ferry_error *err)
{
    bool clear_only = !config->insecure && !is_licensed(config);
    unsigned char binary[16];
    char address[SOCK_ADDRESS_SIZE] = "127.0.0.1";

    if (config->listen[0] && !split_address(config->listen, address))
        return error_set(err, -EINVAL,
                         "\"%s\" is not an address to listen on; write ADDR:PORT with a numeric address, for "
                         "example 127.0.0.1:7411",
                         config->listen);
    if (config->listen[0] && !loopback(address) && clear_only)
        return error_set(err, -EINVAL,
                         "%s is not a loopback address: without a certificate everybody who reaches it could "
                         "command this host; install one (ferry host certs), or --insecure allows that",
                         config->listen);
    if (!config->migrate_address[0]) {
        if (strcmp(address, "0.0.0.0") == 0 || strcmp(address, "::") == 0)
            return error_set(
                err, -EINVAL,
                "with --listen %s give --migrate-address ADDR too: the address other hosts reach "
                "this one at",
                config->listen);
        snprintf(config->migrate_address, sizeof(config->migrate_address), "%s", address);
        return 0;
    }
    if (inet_pton(AF_INET, config->migrate_address, binary) != 1 &&
        inet_pton(AF_INET6, config->migrate_address, binary) != 1)
        return error_set(err, -EINVAL, "\"%s\" is not a numeric address for --migrate-address (no port)",
                         config->migrate_address);
    if (!loopback(config->migrate_address) && clear_only)
        return error_set(err, -EINVAL,
                         "%s is not a loopback address: without a certificate guest memory would cross the "
                         "network in the clear; install one (ferry host certs), or --insecure allows that",
                         config->migrate_address);
    return 0;
}

/* The option with number VALUE as getopt returned it. */
static int take_option(struct config *config, int value, struct ferry_error *err)
{
    const struct config_key *key = &config_keys[value];

    return key->set(config, optarg, err);
}

static int read_options(struct config *config, int argc, char **argv, bool file_only,
                        enum config_action *action, struct ferry_error *err)
{
    struct option options[CONFIG_KEYS + 4] = {0};
    int value;
    int result = 0;

    for (size_t i = 0; i < CONFIG_KEYS; i++)
        options[i] = (struct option){config_keys[i].name,
                                     config_keys[i].argument ? required_argument : no_argument, NULL, (int)i};
    options[CONFIG_KEYS] = (struct option){"config", required_argument, NULL, OPTION_CONFIG};
    options[CONFIG_KEYS + 1] = (struct option){"help", no_argument, NULL, OPTION_HELP};
    options[CONFIG_KEYS + 2] = (struct option){"version", no_argument, NULL, OPTION_VERSION};

    optind = 0; /* glibc: start over */
    opterr = 0;
    while (result == 0 && (value = getopt_long(argc, argv, ":", options, NULL)) != -1) {
        if (value == '?' || value == ':')
            return error_set(err, -EINVAL, value == ':' ? "%s needs a value" : "there is no option %s",
                             argv[optind - 1]);
        if (value == OPTION_HELP || value == OPTION_VERSION)
            *action = value == OPTION_HELP ? CONFIG_HELP : CONFIG_VERSION;
        else if (value == OPTION_CONFIG)
            result = file_only ? read_file(config, optarg, err) : 0;
        else
            result = file_only ? 0 : take_option(config, value, err);
    }
    if (result == 0 && optind < argc)
        return error_set(err, -EINVAL, "\"%s\" is not an option", argv[optind]);
    return result;
}

int config_read(struct config *config, int argc, char **argv, enum config_action *action,
                struct ferry_error *err)
{
    int result;

    *config = (struct config){
        .peer_timeout_ns = 10 * NS_PER_S,
        .vm_timeout_ns = 5 * NS_PER_S,
        .start_timeout_ns = 60 * NS_PER_S,
        .reconnect_ns = 300 * NS_PER_S,
        .migrate_max = MIGRATE_MAX,
        .delta_cache = CONFIG_DELTA_CACHE,
        .log_size = LOG_SIZE,
        .vm_log_size = VM_LOG_SIZE,
        .log_files = LOG_FILES,
    };
    *action = CONFIG_RUN;
    result = read_options(config, argc, argv, true, action, err);
    if (result == 0)
        result = read_options(config, argc, argv, false, action, err);
    if (result < 0 || *action != CONFIG_RUN)
        return result;
    if (!config->state_dir[0])
        return error_set(err, -EINVAL, "--state-dir DIR is needed");
    default_name(config);
    default_seccomp(config);
    result = check_addresses(config, err);
    if (result < 0)
        return result;
    return default_vm_program(config, err);
}
