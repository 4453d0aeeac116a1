#include "host/cluster.h"

#include "base/error.h"
#include "host/cpu_baseline.h"
#include "host/fields.h"
#include "host/peers.h"

#include <string.h>

#define NAMES_SIZE 200

/* All hosts as [{name, address}]; this one is first and has no address. */
static json_t *list_hosts(struct host *host)
{
    json_t *list = json_array();

    json_array_append_new(list, json_pack("{s:s}", "name", host->config->name));
    host_lock(host);
    for (struct peer *peer = host->peers; peer; peer = peer->next)
        json_array_append_new(list, json_pack("{s:s, s:s}", "name", peer->name, "address", peer->address));
    host_unlock(host);
    return list;
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

/* What a host of the list says of itself. */
static int ask_host(struct host *host, const json_t *row, json_t **object, struct ferry_error *err)
{
    const char *address = json_string_value(json_object_get(row, "address"));

    *object = NULL;
    if (!address) {
        *object = host_object(host);
        return 0;
    }
    return peer_call(host, address, "GET", "/v1/host", NULL, PEER_PROMPT, object, err);
}

/* --- what is common --- */

struct common {
    char vendor[CPU_VENDOR_SIZE]; /* empty: no host has a CPU for x86_64 VMs */
    struct cpu_features features;
    char first[HOST_NAME_SIZE]; /* the host that the vendor is of */
    json_t *hosts;
};

static int common_add(struct common *common, const char *name, const json_t *object, struct ferry_error *err)
{
    const json_t *json = json_object_get(object, "cpu");
    struct cpu cpu;

    if (!json_is_object(json)) /* it runs no x86_64 VMs: nothing depends on it */
        return 0;
    if (cpu_baseline_read_cpu(&cpu, json, err) < 0)
        return error_prefix(err, HOST_UNREACHABLE, "host %s makes no sense", name);
    if (common->vendor[0] && strcmp(common->vendor, cpu.vendor) != 0)
        return error_set(
            err, HOST_REFUSED,
            "there is no common baseline: the CPU of host %s is by %s, that of host %s by %s; VMs cannot "
            "move between them",
            common->first, common->vendor, name, cpu.vendor);
    common->features = common->vendor[0] ? cpu_features_and(&common->features, &cpu.features) : cpu.features;
    snprintf(common->first, sizeof(common->first), "%s", name);
    memcpy(common->vendor, cpu.vendor, sizeof(common->vendor));
    json_array_append_new(common->hosts, json_pack("{s:s, s:s, s:O?, s:O?, s:O?}", "name", name, "vendor",
                                                   cpu.vendor, "model", json_object_get(json, "model"),
                                                   "generation", json_object_get(json, "generation"),
                                                   "features", json_object_get(json, "features")));
    return 0;
}

/* Asks all hosts. COMMON->hosts is a new reference, on failure too. */
static int find_common(struct host *host, struct common *common, struct ferry_error *err)
{
    json_t *list = list_hosts(host);
    json_t *row;
    size_t i;
    int result = 0;

    memset(common, 0, sizeof(*common));
    common->hosts = json_array();
    json_array_foreach(list, i, row)
    {
        json_t *object = NULL;

        if (result == 0)
            result = ask_host(host, row, &object, err);
        if (result == 0)
            result = common_add(common, text_of(row, "name"), object, err);
        json_decref(object);
    }
    json_decref(list);
    if (result == 0 && !common->vendor[0])
        result = error_set(err, HOST_REFUSED,
                           "no host here runs x86_64 VMs, which are the only ones with a baseline");
    return result;
}

int cluster_baseline_compute(struct host *host, json_t **answer, struct ferry_error *err)
{
    struct common common;
    const struct cpu_generation *best;
    json_t *row;
    size_t i;
    int result = find_common(host, &common, err);

    if (result < 0) {
        json_decref(common.hosts);
        return result;
    }
    json_array_foreach(common.hosts, i, row)
    {
        struct cpu_features features, beyond;

        cpu_features_from_json(&features, json_object_get(row, "features"), "a host", NULL);
        beyond = cpu_features_without(&features, &common.features);
        json_object_set_new(row, "beyond", cpu_features_json(&beyond));
        json_object_del(row, "features");
    }
    best = cpu_generation_best(host->generations, common.vendor, &common.features);
    *answer = json_pack("{s:s, s:s, s:o, s:o}", "generation", best ? best->name : "", "vendor", common.vendor,
                        "features", cpu_features_json(&common.features), "hosts", common.hosts);
    return 0;
}

/* --- setting it --- */

/* Has the host of ROW take BASELINE (a JSON null: none). */
static int have_host_take(struct host *host, const json_t *row, json_t *baseline, bool check_only,
                          struct ferry_error *err)
{
    const char *address = json_string_value(json_object_get(row, "address"));

    if (!address)
        return cpu_baseline_take(host, json_is_null(baseline) ? NULL : baseline, check_only, err);
    json_t *body = json_pack("{s:O, s:b}", "baseline", baseline, "check_only", check_only);
    int result = peer_call(host, address, "POST", "/v1/host/baseline", body, PEER_LONG, NULL, err);

    json_decref(body);
    return result;
}

/* All check first; what then fails has changed some hosts, which the sentence says. */
static int have_all_take(struct host *host, json_t *baseline, struct ferry_error *err)
{
    json_t *list = list_hosts(host);
    json_t *row;
    size_t i;
    int result = 0;

    json_array_foreach(list, i, row)
    {
        if (result == 0)
            result = have_host_take(host, row, baseline, true, err);
    }
    for (i = json_array_size(list); result == 0 && i-- > 0;) { /* this host last */
        row = json_array_get(list, i);
        result = have_host_take(host, row, baseline, false, err);
        if (result < 0 && i + 1 < json_array_size(list))
            error_prefix(err, result,
                         "hosts have different baselines now (ferry cluster baseline show), set it again");
    }
    json_decref(list);
    return result;
}

int cluster_baseline_set(struct host *host, const char *name, json_t **answer, struct ferry_error *err)
{
    const struct cpu_generation *generation = NULL;
    struct cpu_features always, features;
    struct common common = {0};
    json_t *baseline = NULL;
    int result;

    if (!name) {
        result = have_all_take(host, json_null(), err);
        return result < 0 ? result : cluster_baseline_show(host, answer, err);
    }
    generation = cpu_generation_find(host->generations, name, err);
    if (!generation)
        return HOST_USAGE;
    result = find_common(host, &common, err);
    if (result == 0) {
        always = cpu_features_and(&host->generations->always, &common.features);
        features = cpu_features_or(&generation->features, &always);
        baseline = json_pack("{s:s, s:s, s:o}", "name", generation->name, "vendor", common.vendor, "features",
                             cpu_features_json(&features));
        if (generation->vendor[0] && strcmp(generation->vendor, common.vendor) != 0)
            result =
                error_set(err, HOST_REFUSED, "the baseline cannot be %s: the CPUs of these hosts are by %s",
                          name, common.vendor);
    }
    if (result == 0)
        result = have_all_take(host, baseline, err);
    json_decref(common.hosts);
    json_decref(baseline);
    return result < 0 ? result : cluster_baseline_show(host, answer, err);
}

int cluster_baseline_show(struct host *host, json_t **answer, struct ferry_error *err)
{
    json_t *baseline = cpu_baseline_get(host);
    json_t *list = list_hosts(host);
    json_t *hosts = json_array();
    json_t *features = json_object_get(baseline, "features");
    json_t *row;
    size_t i;

    json_array_foreach(list, i, row)
    {
        struct ferry_error why = {0};
        json_t *object = NULL;

        ask_host(host, row, &object, &why);
        json_array_append_new(
            hosts, json_pack("{s:s, s:O?, s:O?, s:o}", "name", text_of(row, "name"), "baseline",
                             json_object_get(json_object_get(object, "cpu_baseline"), "name"), "generation",
                             json_object_get(json_object_get(object, "cpu"), "generation"), "why",
                             fields_text(why.text)));
        json_decref(object);
    }
    json_decref(list);
    *answer = json_pack("{s:s?, s:o, s:o}", "name", json_string_value(json_object_get(baseline, "name")),
                        "features", features ? json_incref(features) : json_array(), "hosts", hosts);
    json_decref(baseline);
    return 0;
}

/* --- joining --- */

/* A host with THERE for its CPU must have all of the generation that BASELINE is. */
static int check_joining(struct host *host, const char *name, const json_t *json, const struct cpu *there,
                         struct ferry_error *err)
{
    const char *baseline = text_of(json, "name"), *vendor = text_of(json, "vendor");
    const struct cpu_generation *generation = cpu_generation_find(host->generations, baseline, err);
    struct cpu_features lacking;
    char names[NAMES_SIZE];

    if (!generation)
        return HOST_REFUSED;
    if (strcmp(vendor, there->vendor) != 0)
        return error_set(err, HOST_REFUSED,
                         "host %s cannot join: its CPU is by %s, those of the others by %s", name,
                         there->vendor, vendor);
    lacking = cpu_features_without(&generation->features, &there->features);
    if (cpu_features_empty(&lacking))
        return 0;
    cpu_features_text(&lacking, names, sizeof(names));
    return error_set(
        err, HOST_REFUSED,
        "host %s cannot join: its CPU is below the baseline %s: it lacks %s; lower the baseline (ferry "
        "cluster baseline set) while no running VM was given more, or leave the host out",
        name, baseline, names);
}

/* What BASELINE is with a host that has THERE for its CPU: of what is not the generation's, less, perhaps. */
static int with_joining(const json_t *baseline, const struct cpu *there, json_t **with,
                        struct ferry_error *err)
{
    struct cpu cpu;
    int result = cpu_baseline_read_cpu(&cpu, baseline, err);

    if (result < 0)
        return result;
    cpu.features = cpu_features_and(&cpu.features, &there->features);
    *with = json_pack("{s:s, s:s, s:o}", "name", text_of(baseline, "name"), "vendor", there->vendor,
                      "features", cpu_features_json(&cpu.features));
    return 0;
}

/* The host of ROW, which has CPU (a JSON object), gets this cluster's baseline, if it can. */
static int admit_below(struct host *host, const json_t *row, const json_t *json, json_t *baseline,
                       struct ferry_error *err)
{
    const char *name = text_of(row, "name");
    json_t *with = NULL;
    struct cpu cpu;
    int result = cpu_baseline_read_cpu(&cpu, json, err);

    if (result == 0)
        result = check_joining(host, name, baseline, &cpu, err);
    if (result == 0)
        result = with_joining(baseline, &cpu, &with, err);
    if (result == 0)
        result = have_host_take(host, row, with, true, err);
    if (result == 0 && !json_equal(with, baseline))
        result = have_all_take(host, with, err);
    if (result == 0)
        result = have_host_take(host, row, with, false, err);
    json_decref(with);
    return result;
}

int cluster_admit(struct host *host, const char *name, const char *address, const json_t *there,
                  struct ferry_error *err)
{
    const json_t *theirs = json_object_get(there, "cpu_baseline");
    const json_t *json = json_object_get(there, "cpu");
    json_t *baseline = cpu_baseline_get(host);
    json_t *row = json_pack("{s:s, s:s}", "name", name, "address", address);
    int result = 0;

    if (json_is_object(theirs) && !json_equal(theirs, baseline)) {
        result =
            json_is_null(baseline)
                ? cpu_baseline_take(host, theirs, false, err) /* this host joins that cluster */
                : error_set(err, HOST_REFUSED,
                            "host %s cannot join: its baseline is %.40s, the one here is %s; set one of them "
                            "first (ferry cluster baseline set)",
                            name, text_of(theirs, "name"), text_of(baseline, "name"));
    } else if (json_is_object(baseline) && json_is_object(json) && !json_is_object(theirs)) {
        result = admit_below(host, row, json, baseline, err);
    }
    json_decref(row);
    json_decref(baseline);
    return result;
}
