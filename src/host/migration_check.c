#include "host/migration.h"

#include "base/error.h"
#include "host/certificate.h"
#include "host/checks.h"
#include "host/definition.h"
#include "host/fields.h"
#include "host/forecast.h"
#include "host/migration_cold.h"
#include "host/peers.h"
#include "host/storage.h"
#include "host/vms.h"

#include <string.h>

json_t *migration_offer_body(const struct migration *migration, const json_t *definition, bool check_only)
{
    json_t *quick_resume = json_object_get(migration->options, "quick_resume");
    json_t *body =
        json_pack("{s:s, s:O, s:s, s:i, s:b, s:b, s:I}", "id", migration->id, "definition", definition,
                  "source", migration->source, "protocol", HOST_PROTOCOL, "check_only", check_only, "tls",
                  migration->encrypted, "patience", (json_int_t)migration->host->config->start_timeout_ns);

    if (quick_resume)
        json_object_set(body, "quick_resume", quick_resume);
    if (migration->cold)
        json_object_set(body, "cold", migration->cold);
    if (storage_moves(migration->cold))
        json_object_set_new(body, "definition", storage_definition(definition, migration->storage));
    return body;
}

/* The destination's rows: warnings into the log, all into RESULTS; the first error is the check's. */
static int take_rows(struct migration *migration, const json_t *rows, json_t *results,
                     struct ferry_error *err)
{
    int first = 0;
    json_t *row;
    size_t i;

    json_array_foreach(rows, i, row)
    {
        const char *severity = json_string_value(json_object_get(row, "severity"));
        const char *message = json_string_value(json_object_get(row, "message"));

        if (!severity || !message)
            return error_set(err, HOST_UNREACHABLE, "host %s makes no sense: a check without words",
                             migration->destination);
        if (results)
            json_array_append(results, row);
        if (strcmp(severity, "error") != 0)
            migration_log(migration, LOG_LEVEL_WARN, "%s", message);
        else if (first == 0)
            first = error_set(err, HOST_REFUSED, "%s", message);
    }
    return first;
}

/* A call to the destination; that it fails is a row too. */
static int ask(struct migration *migration, const char *method, const char *path, json_t *body,
               enum peer_patience patience, json_t **answer, json_t *results, struct ferry_error *err)
{
    int result =
        peer_call(migration->host, migration->peer_address, method, path, body, patience, answer, err);

    if (result == HOST_UNREACHABLE)
        error_prefix(err, result, "VM %s cannot move: host %s is not reachable", migration->vm_name,
                     migration->destination);
    if (result < 0 && results)
        json_array_append_new(results, json_pack("{s:s, s:s, s:o}", "check", "reachable", "severity", "error",
                                                 "message", fields_text(err->text)));
    return result;
}

/* Needs the destination; CONTEXT has all that does not. */
static int check_there(struct migration *migration, struct check_context *context, json_t *results,
                       struct ferry_error *err)
{
    json_t *there = NULL;
    json_t *answer = NULL;
    json_t *body;
    int result = ask(migration, "GET", "/v1/host", NULL, PEER_PROMPT, &there, results, err);

    context->there = there;
    migration->encrypted = result == 0 && certificate_shared(migration->host, there);
    if (result == 0)
        result = checks_run(CHECK_SOURCE_PEER, context, results, err);
    if (result == 0) {
        body = migration_offer_body(migration, context->definition, true);
        result = ask(migration, "POST", "/v1/incoming", body, PEER_LONG, &answer, results, err);
        json_decref(body);
    }
    if (result == 0)
        result = take_rows(migration, json_object_get(answer, "checks"), results, err);
    context->there_answer = answer;
    if (answer) {
        struct ferry_error found = {0};
        int code = checks_run(CHECK_SOURCE_ANSWER, context, results, &found);

        if (result == 0 && code < 0)
            result = error_set(err, code, "%s", found.text);
    }
    json_decref(there);
    json_decref(answer);
    return result;
}

int migration_check(struct migration *migration, const json_t *definition, json_t *results,
                    struct ferry_error *err)
{
    struct check_context context = {
        .host = migration->host,
        .vm = migration->vm_name,
        .definition = definition,
        .source = migration->source,
        .destination = migration->destination,
        .cold = migration->cold,
        .storage = migration->storage,
        .must_encrypt = migration->must_encrypt || migration->host->config->require_tls,
    };
    struct ferry_error found = {0};
    int result = checks_run(CHECK_SOURCE_LOCAL, &context, results, err);
    int code;

    /* Somebody who asks wants to hear of everything at once. */
    if (result < 0 && !results)
        return result;
    code = peers_find(migration->host, migration->destination, migration->peer_address, &found);
    if (code == 0)
        code = check_there(migration, &context, results, &found);
    return code == HOST_NOT_FOUND || (result == 0 && code < 0) ? error_set(err, code, "%s", found.text)
                                                               : result;
}

/* The VM is claimed. A failure is a warning: it says nothing against the migration. */
static json_t *foretell(struct migration *migration, struct vm *vm, const struct migration_options *options,
                        json_t *results)
{
    struct ferry_error err;
    json_t *forecast = NULL;

    if (forecast_make(migration->host, vm, migration->destination, migration->peer_address, options,
                      &forecast, &err) < 0) {
        json_array_append_new(results, json_pack("{s:s, s:s, s:o}", "check", "forecast", "severity",
                                                 "warning", "message", fields_text(err.text)));
        return json_null();
    }
    host_lock(migration->host);
    json_decref(vm->forecast);
    vm->forecast = json_incref(forecast);
    snprintf(vm->forecast_for, sizeof(vm->forecast_for), "%s", migration->destination);
    host_unlock(migration->host);
    return forecast;
}

static int check_and_foretell(struct migration *migration, struct vm *vm,
                              const struct migration_options *options, bool forecast, json_t **answer,
                              struct ferry_error *err)
{
    json_t *results = json_array();
    struct ferry_error why = {0};
    json_t *foretold = NULL;
    int result = migration_check(migration, vm->definition, results, &why);

    if (result == HOST_NOT_FOUND) {
        json_decref(results);
        return error_set(err, result, "%s", why.text);
    }
    if (forecast)
        foretold = result == 0 && !options->cold ? foretell(migration, vm, options, results) : json_null();
    *answer = json_pack("{s:s, s:s, s:s, s:b, s:o}", "vm", migration->vm_name, "source", migration->source,
                        "destination", migration->destination, "possible", result == 0, "checks", results);
    if (foretold)
        json_object_set_new(*answer, "forecast", foretold);
    return *answer ? 0 : error_set(err, -ENOMEM, "out of memory");
}

int migration_check_vm(struct host *host, const char *vm_name, const struct migration_options *options,
                       bool forecast, json_t **answer, struct ferry_error *err)
{
    char id[MIGRATION_ID_SIZE];
    struct migration *migration;
    struct vm *vm;
    int result = vm_claim(host, vm_name, "being checked for a migration", &vm, err);

    if (!vm)
        return result;
    migration = NULL;
    if (result == 0)
        result = migration_make_id(id, err);
    if (result == 0) {
        migration = migration_new(host, id, vm_name, definition_machine(vm->definition), host->config->name,
                                  options->destination);
        if (migration) {
            migration->must_encrypt = options->tls;
            migration->storage = options->storage ? strdup(options->storage) : NULL;
            migration->options = migration_make_options(options);
        }
        if (migration && options->cold)
            result = cold_prepare(migration, vm, err);
        if (result == 0)
            result = migration ? check_and_foretell(migration, vm, options, forecast, answer, err)
                               : error_set(err, -ENOMEM, "out of memory");
    }
    if (migration)
        migration_unref(migration);
    vm_release(host, vm);
    return result;
}
