#include "cli/host.h"

#include "cli/fields.h"
#include "cli/object.h"
#include "cli/units.h"

#include <string.h>

#define CERTIFICATE_WARN_DAYS 30

static void print_machines(struct fields *fields, const json_t *machines)
{
    const json_t *machine;
    size_t index;

    json_array_foreach(machines, index, machine)
    {
        const char *why = object_text(machine, "why");
        bool available = object_flag(machine, "available");

        fields_format(fields, index == 0 ? "machines" : "", "%s by %s: %s%s%s",
                      object_text(machine, "machine"), object_text(machine, "accel"),
                      available ? "available" : "not available", *why ? ", " : "", why);
    }
}

/* Until when, and what to do about it. */
static void print_certificate(struct fields *fields, const json_t *certificate)
{
    char until[UNITS_TEXT_SIZE];
    json_int_t days = json_integer_value(object_get(certificate, "days_left"));

    if (!json_is_object(certificate)) {
        fields_text(fields, "certificate",
                    "none: nothing moves encrypted; see: ferry host certs init --help");
        return;
    }
    fields_format(fields, "certificate", "%s, from %s", object_text(certificate, "names"),
                  object_text(certificate, "authority"));
    units_format_time(object_text(certificate, "until"), false, until);
    if (days < 0)
        fields_format(fields, "", "EXPIRED since %s: issue a new one (ferry host certs issue) and install it",
                      until);
    else if (days < CERTIFICATE_WARN_DAYS)
        fields_format(fields, "",
                      "ends in %lld %s, %s: issue a new one (ferry host certs issue) and install it",
                      (long long)days, days == 1 ? "day" : "days", until);
    else
        fields_format(fields, "", "valid until %s", until);
}

static void print_kvm(struct fields *fields, const json_t *kvm)
{
    const char *kind = object_text(kvm, "kind"), *why = object_text(kvm, "why");

    if (strcmp(kind, "para-virtualised") == 0)
        fields_text(fields, "kvm", "para-virtualised (bare-metal guests only)");
    else if (*kind)
        fields_format(fields, "kvm", *why ? "%s (%s)" : "%s", kind, why);
}

static void print_cpu(struct fields *fields, const json_t *host)
{
    const json_t *cpu = object_get(host, "cpu");
    const char *generation = object_text(cpu, "generation");
    const char *baseline = object_text(object_get(host, "cpu_baseline"), "name");

    if (!json_is_object(cpu))
        return;
    fields_format(fields, "CPU", "%s%s%s",
                  *object_text(cpu, "model") ? object_text(cpu, "model") : object_text(cpu, "vendor"),
                  *generation ? ", can be " : "", generation);
    fields_text(fields, "CPU baseline", *baseline ? baseline : "none");
}

static void print_limits(struct fields *fields, const json_t *host)
{
    unsigned long long most = object_number(host, "migrate_max");
    uint64_t bandwidth = object_number(host, "migrate_bandwidth");
    char rate[UNITS_TEXT_SIZE];

    if (most)
        fields_format(fields, "leaving at once", "%llu VMs at most, others wait", most);
    if (bandwidth)
        fields_format(fields, "", "%s together at most", units_format_rate(bandwidth, rate));
}

/* Sizes of which none were set aside are left out. */
static void print_hugepages(struct fields *fields, const json_t *list)
{
    const json_t *pages;
    size_t index;

    json_array_foreach(list, index, pages)
    {
        unsigned long long total = object_number(pages, "total");
        unsigned long long available = object_number(pages, "available");
        char size[UNITS_TEXT_SIZE];

        if (total || available)
            fields_format(fields, "huge pages", "%llu of %s, %llu of them available", total,
                          units_format_size(object_number(pages, "size"), size), available);
    }
}

void host_print(struct cli *cli, const json_t *host)
{
    char total[UNITS_TEXT_SIZE], available[UNITS_TEXT_SIZE];
    struct fields fields;

    if (cli->json) {
        cli_print_json(cli, host);
        return;
    }
    fields_begin(&fields, cli);
    fields_text(&fields, "name", object_text(host, "name"));
    fields_format(&fields, "version", "%s (protocol %llu)", object_text(host, "version"),
                  (unsigned long long)object_number(host, "protocol"));
    fields_text(&fields, "address", object_text(host, "address"));
    fields_text(&fields, "migrate address", object_text(host, "migrate_address"));
    print_limits(&fields, host);
    fields_format(&fields, "memory", "%s, %s of it available",
                  units_format_size(object_number(host, "memory_total"), total),
                  units_format_size(object_number(host, "memory_available"), available));
    print_hugepages(&fields, object_get(host, "hugepages"));
    print_machines(&fields, object_get(host, "machines"));
    print_kvm(&fields, object_get(host, "kvm"));
    print_cpu(&fields, host);
    fields_text(&fields, "system call filters", object_text(host, "seccomp"));
    fields_format(&fields, "VMs", "%llu", (unsigned long long)object_number(host, "vms"));
    fields_text(&fields, "migration", object_text(host, "migration"));
    fields_text(&fields, "migration status", object_text(host, "migration_status"));
    print_certificate(&fields, object_get(host, "certificate"));
    fields_time(&fields, "started", object_text(host, "started"));
    fields_format(&fields, "process", "%llu", (unsigned long long)object_number(host, "pid"));
    fields_text(&fields, "state directory", object_text(host, "state_dir"));
    fields_end(&fields);
}

int host_set_migration(struct cli *cli, bool enabled, struct ferry_error *err)
{
    json_t *body = cli_pack("{s:b}", "enabled", enabled);
    json_t *host = NULL;
    int result = client_request(&cli->client, "POST", "/v1/host/migration", body, &host, err);

    if (result == 0 && cli->json)
        cli_print_json(cli, host);
    else if (result == 0)
        fprintf(cli->out, "migration is %s on %s\n", object_text(host, "migration"),
                object_text(host, "name"));
    json_decref(host);
    json_decref(body);
    return result;
}
