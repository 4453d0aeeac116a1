#include "host/cpu_baseline.h"

#include "base/error.h"
#include "host/definition.h"
#include "host/events.h"
#include "host/fields.h"
#include "host/vms.h"

#include <stdlib.h>
#include <string.h>

#define SETTING    "cpu-baseline"
#define NAMES_SIZE 200

int cpu_baseline_open(struct host *host, struct ferry_error *err)
{
    char *text = NULL;
    struct ferry_error why;
    int result = cpu_generations_load(&host->generations, err);

    if (result < 0)
        return result;
    if (host->config->cpu_table[0])
        result = cpu_from_file(&host->cpu, host->config->cpu_table, err);
    else if (cpu_of_host(&host->cpu, &why) < 0)
        host->cpu.vendor[0] = '\0'; /* GET /v1/host says so */
    if (result == 0)
        result = host->store->ops->setting_get(host->store, SETTING, &text, err);
    if (result == 0 && text && text[0])
        host->baseline = fields_parse(text, strlen(text), "the recorded CPU baseline", err);
    if (result == 0 && text && text[0] && !host->baseline)
        result = -EINVAL;
    free(text);
    return result;
}

void cpu_baseline_close(struct host *host)
{
    free(host->generations);
    json_decref(host->baseline);
}

json_t *cpu_baseline_host_object(const struct host *host)
{
    const struct cpu *cpu = &host->cpu;
    const struct cpu_generation *best;

    if (!cpu->vendor[0])
        return json_null();
    best = cpu_generation_best(host->generations, cpu->vendor, &cpu->features);
    return json_pack("{s:s, s:s, s:s, s:o}", "vendor", cpu->vendor, "model", cpu->model, "generation",
                     best ? best->name : "", "features", cpu_features_json(&cpu->features));
}

json_t *cpu_baseline_get(struct host *host)
{
    json_t *baseline;

    host_lock(host);
    baseline = host->baseline ? json_incref(host->baseline) : json_null();
    host_unlock(host);
    return baseline;
}

int cpu_baseline_read_cpu(struct cpu *cpu, const json_t *json, struct ferry_error *err)
{
    const char *vendor = NULL;
    json_t *features = NULL;
    const struct field fields[] = {
        {"vendor", FIELD_STRING, true, &vendor},
        {"features", FIELD_ARRAY, true, &features},
    };
    int result = fields_read(json, fields, 2, FIELDS_LOOSE, "a CPU", err);

    memset(cpu, 0, sizeof(*cpu));
    if (result == 0 && strlen(vendor) >= sizeof(cpu->vendor))
        result = error_set(err, -EINVAL, "\"%.40s\" is not the vendor of a CPU", vendor);
    if (result == 0)
        snprintf(cpu->vendor, sizeof(cpu->vendor), "%s", vendor);
    return result == 0 ? cpu_features_from_json(&cpu->features, features, "a CPU", err) : result;
}

/* Of a baseline object, made here or elsewhere. */
static int read_baseline(const json_t *json, const char **name, struct cpu *cpu, struct ferry_error *err)
{
    *name = json_string_value(json_object_get(json, "name"));
    if (!*name || strlen(*name) >= CPU_BASELINE_NAME_SIZE)
        return error_set(err, HOST_USAGE, "a baseline without a usable name");
    return cpu_baseline_read_cpu(cpu, json, err);
}

bool cpu_baseline_given(struct host *host, const char *name, char vendor[static CPU_VENDOR_SIZE],
                        struct cpu_features *given)
{
    struct vm *vm = vm_get(host, name, NULL);
    json_t *json = NULL;
    struct cpu cpu;
    bool known;

    if (!vm)
        return false;
    vms_refresh(host, vm);
    host_lock(host);
    if (vm->process && vm->cpu)
        json = json_incref(vm->cpu);
    host_unlock(host);
    known = json_is_object(json) && cpu_baseline_read_cpu(&cpu, json, NULL) == 0;
    if (known) {
        memcpy(vendor, cpu.vendor, CPU_VENDOR_SIZE);
        *given = cpu.features;
    }
    json_decref(json);
    vm_unref(host, vm);
    return known;
}

/* The names of the x86_64 VMs with a process, a new array. */
static json_t *list_running(struct host *host)
{
    json_t *names = json_array();

    host_lock(host);
    for (struct vm *vm = host->vms; vm; vm = vm->next) {
        if (vm->listed && vm->process && strcmp(definition_machine(vm->definition), "x86_64") == 0)
            json_array_append_new(names, json_string(vm->name));
    }
    host_unlock(host);
    return names;
}

static size_t add_name(char *names, size_t length, const char *name)
{
    if (length < NAMES_SIZE)
        length += (size_t)snprintf(names + length, NAMES_SIZE - length, "%s%s", length ? ", " : "", name);
    return length;
}

/* No running VM may have been given more than BASELINE: it would be lowered under them. Of one whose process
 * does not say what that was, nobody knows. */
static int check_running(struct host *host, const char *name, const struct cpu *baseline,
                         struct ferry_error *err)
{
    json_t *running = list_running(host);
    struct cpu_features beyond = {0};
    char vms[NAMES_SIZE] = "", silent[NAMES_SIZE] = "", features[NAMES_SIZE];
    size_t length = 0, silent_length = 0;
    json_t *vm;
    size_t i;

    json_array_foreach(running, i, vm)
    {
        char vendor[CPU_VENDOR_SIZE];
        struct cpu_features given, more;

        if (!cpu_baseline_given(host, json_string_value(vm), vendor, &given)) {
            silent_length = add_name(silent, silent_length, json_string_value(vm));
            continue;
        }
        more = cpu_features_without(&given, &baseline->features);
        if (cpu_features_empty(&more))
            continue;
        beyond = cpu_features_or(&beyond, &more);
        length = add_name(vms, length, json_string_value(vm));
    }
    json_decref(running);
    if (!vms[0] && silent[0])
        return error_set(err, HOST_REFUSED,
                         "the baseline of host %s cannot be %s: the processes of %s do not say what CPU they "
                         "were given; try again, or kill them first",
                         host->config->name, name, silent);
    if (!vms[0])
        return 0;
    cpu_features_text(&beyond, features, sizeof(features));
    return error_set(
        err, HOST_REFUSED,
        "the baseline of host %s cannot be %s: VMs that run there were given more: %s have %s; power "
        "them off first, or choose a higher baseline",
        host->config->name, name, vms, features);
}

static int check_host(struct host *host, const char *name, const struct cpu *baseline,
                      struct ferry_error *err)
{
    struct cpu_features lacking = cpu_features_without(&baseline->features, &host->cpu.features);
    char features[NAMES_SIZE];

    if (!host->cpu.vendor[0]) /* it runs no VMs that this is about */
        return 0;
    if (baseline->vendor[0] && strcmp(baseline->vendor, host->cpu.vendor) != 0)
        return error_set(err, HOST_REFUSED,
                         "the baseline of host %s cannot be %s: its CPU is by %s, not by %s",
                         host->config->name, name, host->cpu.vendor, baseline->vendor);
    if (cpu_features_empty(&lacking))
        return 0;
    cpu_features_text(&lacking, features, sizeof(features));
    return error_set(err, HOST_REFUSED,
                     "the baseline of host %s cannot be %s: its CPU is below it and lacks %s",
                     host->config->name, name, features);
}

int cpu_baseline_take(struct host *host, const json_t *baseline, bool check_only, struct ferry_error *err)
{
    const char *name = "none";
    struct cpu cpu = {0};
    char *text = NULL;
    int result = baseline ? read_baseline(baseline, &name, &cpu, err) : 0;

    if (result == 0 && baseline)
        result = check_host(host, name, &cpu, err);
    if (result == 0 && baseline)
        result = check_running(host, name, &cpu, err);
    if (result < 0 || check_only)
        return result;
    text = baseline ? json_dumps(baseline, JSON_COMPACT) : strdup("");
    if (!text)
        return error_set(err, -ENOMEM, "out of memory for a baseline");
    result = host->store->ops->setting_put(host->store, SETTING, text, err);
    free(text);
    if (result < 0)
        return result;
    host_lock(host);
    json_decref(host->baseline);
    host->baseline = baseline ? json_deep_copy(baseline) : NULL;
    host_unlock(host);
    events_emit(host, EVENT_HOST_SETTING, NULL, NULL, NULL, "CPU baseline %s on host %s", name,
                host->config->name);
    return 0;
}

/* --- a VM --- */

/* What the generation that the definition names comes to on this host; FEATURES has what VMs get otherwise.
 */
static int apply_generation(struct host *host, const char *name, struct cpu_features *features,
                            struct ferry_error *err)
{
    const struct cpu_generation *generation = cpu_generation_find(host->generations, name, err);
    struct cpu_features lacking, allowed;
    char names[NAMES_SIZE];

    if (!generation)
        return HOST_USAGE;
    lacking = cpu_features_without(&generation->features, &host->cpu.features);
    cpu_features_text(&lacking, names, sizeof(names));
    if (generation->vendor[0] && strcmp(generation->vendor, host->cpu.vendor) != 0)
        return error_set(err, HOST_REFUSED, "its CPU is to be %s, and that of host %s is by %s", name,
                         host->config->name, host->cpu.vendor);
    if (names[0])
        return error_set(err, HOST_REFUSED,
                         "its CPU is to be %s, and host %s lacks CPU features %s of it; choose a "
                         "lower one, or another host",
                         name, host->config->name, names);
    allowed = cpu_features_or(&generation->features, &host->generations->always);
    *features = cpu_features_and(features, &allowed);
    return 0;
}

int cpu_baseline_for_vm(struct host *host, const json_t *definition, char **list, struct ferry_error *err)
{
    const char *text = definition_cpu(definition);
    struct cpu_features features = host->cpu.features;
    struct cpu_request request = {0};
    json_t *baseline = cpu_baseline_get(host);
    const char *name;
    struct cpu cpu;
    int result = text ? cpu_request_parse(&request, text, err) : 0;

    *list = NULL;
    if (strcmp(definition_machine(definition), "x86_64") != 0 || !host->cpu.vendor[0] ||
        (!text && json_is_null(baseline))) {
        json_decref(baseline);
        return result;
    }
    if (result == 0 && !json_is_null(baseline)) {
        result = read_baseline(baseline, &name, &cpu, err);
        features = cpu_features_and(&features, &cpu.features);
    }
    if (result == 0 && request.generation[0])
        result = apply_generation(host, request.generation, &features, err);
    if (result == 0) {
        features = cpu_features_without(&features, &request.without);
        *list = cpu_features_list(&features);
        if (!*list)
            result = error_set(err, -ENOMEM, "out of memory for CPU features");
    }
    json_decref(baseline);
    return result;
}
