#include "host/api.h"

#include "base/error.h"
#include "host/agreement.h"
#include "host/migration.h"
#include "host/upgrade.h"
#include "host/migration_fetch.h"
#include "host/probe.h"
#include "host/statistics.h"
#include "host/storage_copy.h"

#include <ferry/ferry.h>

#include <stdlib.h>
#include <string.h>

#define STREAMS_MAX  16
#define THROTTLE_MAX 99 /* per cent */

static int check_quick_resume(const char *word, struct ferry_error *err)
{
    if (word && strcmp(word, "allowed") != 0 && strcmp(word, "now") != 0)
        return error_set(err, HOST_USAGE, "\"quick_resume\" is \"allowed\" or \"now\", not \"%.32s\"", word);
    return 0;
}

static int check_options(const struct migration_options *options, struct ferry_error *err)
{
    enum ferry_compress compress;

    if (!config_name_valid(options->destination))
        return error_set(err, HOST_USAGE, "\"%.80s\" is not a host's name", options->destination);
    if (options->streams > STREAMS_MAX)
        return error_set(err, HOST_USAGE, "\"streams\" must be 1 to %d", STREAMS_MAX);
    if (options->throttle_max != MIGRATION_DEFAULT && options->throttle_max > THROTTLE_MAX)
        return error_set(err, HOST_USAGE, "\"throttle_max\" must be 0 to %d per cent", THROTTLE_MAX);
    if (options->compress && ferry_compress_parse(options->compress, &compress, err) < 0)
        return error_prefix(err, HOST_USAGE, "\"compress\" makes no sense");
    if (options->cold && options->quick_resume)
        return error_set(err, HOST_USAGE, "\"cold\" and \"quick_resume\" exclude each other");
    if (options->storage && !options->cold)
        return error_set(err, HOST_USAGE,
                         "the disks of a VM that runs on while it moves cannot move along yet; with --cold "
                         "they can: it is suspended meanwhile");
    if (options->storage && options->storage[0] && options->storage[0] != '/')
        return error_set(err, HOST_USAGE,
                         "\"storage\" must be the absolute path of a directory, not \"%.200s\"",
                         options->storage);
    return check_quick_resume(options->quick_resume, err);
}

/* The body of a request to migrate; FORECAST may be NULL: then it is no member of it. */
static int read_options(struct api_request *request, struct migration_options *options, bool *forecast)
{
    const struct field fields[] = {
        {"destination", FIELD_STRING, true, &options->destination},
        {"downtime_limit", FIELD_UINT, false, &options->downtime_limit},
        {"bandwidth_limit", FIELD_UINT, false, &options->bandwidth_limit},
        {"copy_time_limit", FIELD_UINT, false, &options->copy_time_limit},
        {"throttle_max", FIELD_UINT, false, &options->throttle_max},
        {"streams", FIELD_UINT, false, &options->streams},
        {"tls", FIELD_BOOL, false, &options->tls},
        {"quick_resume", FIELD_STRING, false, &options->quick_resume},
        {"compress", FIELD_STRING, false, &options->compress},
        {"cold", FIELD_BOOL, false, &options->cold},
        {"storage", FIELD_STRING, false, &options->storage},
        {"forecast", FIELD_BOOL, false, forecast},
    };
    int result;

    *options = (struct migration_options){.throttle_max = MIGRATION_DEFAULT};
    result = api_read_body(request, fields, sizeof(fields) / sizeof(fields[0]) - (forecast ? 0 : 1));
    return result < 0 ? result : check_options(options, &request->err);
}

int api_vm_migrate(struct api_request *request)
{
    struct migration_options options;
    char id[MIGRATION_ID_SIZE];
    int result = read_options(request, &options, NULL);

    if (result == 0)
        result = migration_start(request->host, request->arguments[0], &options, id, &request->err);
    return result < 0 ? result : api_answer(request, MHD_HTTP_ACCEPTED, json_pack("{s:s}", "id", id));
}

int api_vm_check(struct api_request *request)
{
    struct migration_options options;
    bool forecast = false;
    json_t *answer = NULL;
    int result = read_options(request, &options, &forecast);

    if (result == 0)
        result = migration_check_vm(request->host, request->arguments[0], &options, forecast, &answer,
                                    &request->err);
    return result < 0 ? result : api_answer(request, MHD_HTTP_OK, answer);
}

int api_probe(struct api_request *request)
{
    const char *id = NULL;
    const char *source = NULL;
    bool tls = false;
    const struct field fields[] = {
        {"id", FIELD_STRING, true, &id},
        {"source", FIELD_STRING, true, &source},
        {"tls", FIELD_BOOL, false, &tls},
    };
    json_t *answer = NULL;
    int result = api_read_body(request, fields, 3);

    if (result == 0 && !migration_id_valid(id))
        result = error_set(&request->err, HOST_USAGE, "\"id\" is a lower-case UUID");
    if (result == 0 && !config_name_valid(source))
        result = error_set(&request->err, HOST_USAGE, "\"%.80s\" is not a host's name", source);
    if (result == 0)
        result = api_check_is(request, source);
    if (result == 0)
        result = probe_receive(request->host, id, source, tls, &answer, &request->err);
    return result < 0 ? result : api_answer(request, MHD_HTTP_CREATED, answer);
}

int api_vm_upgrade(struct api_request *request)
{
    char id[MIGRATION_ID_SIZE];
    int result = api_read_body(request, NULL, 0);

    if (result == 0)
        result = upgrade_start(request->host, request->arguments[0], id, &request->err);
    return result < 0 ? result : api_answer(request, MHD_HTTP_ACCEPTED, json_pack("{s:s}", "id", id));
}

int api_migrations_list(struct api_request *request)
{
    static const struct {
        const char *name;
        enum store_view view;
    } views[] = {
        {"active", STORE_VIEW_ACTIVE}, {"history", STORE_VIEW_HISTORY}, {"failed", STORE_VIEW_FAILED}};
    const char *name = api_query(request, "view");

    if (!name)
        return api_answer(request, MHD_HTTP_OK, migrations_list(request->host, STORE_VIEW_ALL));
    for (size_t i = 0; i < sizeof(views) / sizeof(views[0]); i++) {
        if (strcmp(name, views[i].name) == 0)
            return api_answer(request, MHD_HTTP_OK, migrations_list(request->host, views[i].view));
    }
    return error_set(&request->err, HOST_USAGE, "?view= is active, history or failed, not \"%.32s\"", name);
}

int api_migrations_statistics(struct api_request *request)
{
    return api_answer(request, MHD_HTTP_OK, statistics_of_host(request->host));
}

int api_migration_show(struct api_request *request)
{
    json_t *object = NULL;
    bool local = false;
    int result = api_query_bool(request, "local", &local);

    if (result == 0)
        result = migration_show(request->host, request->arguments[0], local, &object, &request->err);
    return result < 0 ? result : api_answer(request, MHD_HTTP_OK, object);
}

int api_migration_cancel(struct api_request *request)
{
    json_t *object = NULL;
    int result = api_read_body(request, NULL, 0);

    if (result == 0)
        result = migration_cancel(request->host, request->arguments[0], &object, &request->err);
    return result < 0 ? result : api_answer(request, MHD_HTTP_OK, object);
}

int api_migration_reconnect(struct api_request *request)
{
    int result = api_read_body(request, NULL, 0);

    if (result == 0)
        result = fetch_reconnect(request->host, request->arguments[0], &request->err);
    return result < 0 ? result : api_answer_empty(request);
}

int api_migration_end(struct api_request *request)
{
    const char *from = NULL, *outcome = NULL, *cause = NULL, *error = NULL;
    json_t *answer = NULL;
    const struct field fields[] = {
        {"host", FIELD_STRING, true, &from},
        {"outcome", FIELD_STRING, true, &outcome},
        {"cause", FIELD_STRING, false, &cause},
        {"error", FIELD_STRING, false, &error},
    };
    int result = api_read_body(request, fields, 4);

    if (result == 0)
        result =
            agreement_told(request->host, request->arguments[0], from, request->body, &answer, &request->err);
    return result < 0 ? result : api_answer(request, MHD_HTTP_OK, answer);
}

int api_migration_watch(struct api_request *request)
{
    char id[MIGRATION_ID_SIZE];
    int result = migration_resolve(request->host, request->arguments[0], id, &request->err);

    return result < 0 ? result : api_answer_watch(request, id, migration_watch);
}

/* Disk INDEX, or STORAGE_FILE. */
static int answer_part(struct api_request *request, uint64_t index)
{
    const char *to = api_query(request, "to");
    struct storage_stream *stream = NULL;
    int result;

    if (!to || !config_name_valid(to))
        return error_set(&request->err, HOST_USAGE, "?to= is the name of the host that asks");
    result = api_check_is(request, to);
    if (result == 0)
        result = storage_stream_open(&stream, request->host, request->arguments[0], index, to, &request->err);
    return result < 0 ? result
                      : api_answer_stream(request, "application/octet-stream", storage_stream_fill, stream,
                                          storage_stream_free);
}

int api_migration_disk(struct api_request *request)
{
    const char *index = request->arguments[1];

    if (strlen(index) != 1 || index[0] < '0' || index[0] > '9')
        return error_set(&request->err, HOST_NOT_FOUND, "there is no disk %.32s", index);
    return answer_part(request, (uint64_t)(index[0] - '0'));
}

int api_migration_file(struct api_request *request)
{
    return answer_part(request, STORAGE_FILE);
}

int api_migration_copied(struct api_request *request)
{
    const char *from = NULL;
    const struct field fields[] = {{"host", FIELD_STRING, true, &from}};
    int result = api_read_body(request, fields, 1);

    if (result == 0)
        result = api_check_is(request, from);
    if (result == 0)
        result = storage_copied(request->host, request->arguments[0], from, &request->err);
    return result < 0 ? result : api_answer_empty(request);
}

int api_incoming_take(struct api_request *request)
{
    const char *from = NULL;
    uint64_t generation = 0;
    const struct field fields[] = {
        {"host", FIELD_STRING, true, &from},
        {"generation", FIELD_UINT, true, &generation},
    };
    int result = api_read_body(request, fields, 2);

    if (result == 0)
        result = api_check_is(request, from);
    if (result == 0)
        result = storage_take(request->host, request->arguments[0], from, generation, &request->err);
    return result < 0 ? result : api_answer_empty(request);
}

int api_incoming(struct api_request *request)
{
    struct migration_offer offer = {0};
    json_t *cold = NULL;
    json_t *definition = NULL;
    json_t *answer = NULL;
    const struct field fields[] = {
        {"id", FIELD_STRING, true, &offer.id},
        {"definition", FIELD_OBJECT, true, &definition},
        {"source", FIELD_STRING, true, &offer.source},
        {"protocol", FIELD_UINT, true, &offer.protocol},
        {"patience", FIELD_UINT, false, &offer.patience_ns},
        {"check_only", FIELD_BOOL, false, &offer.check_only},
        {"tls", FIELD_BOOL, false, &offer.tls},
        {"quick_resume", FIELD_STRING, false, &offer.quick_resume},
        {"cold", FIELD_OBJECT, false, &cold},
    };
    int result = api_read_body(request, fields, 9);

    if (result == 0)
        result = check_quick_resume(offer.quick_resume, &request->err);

    offer.definition = definition;
    offer.cold = cold;
    if (result == 0)
        result = api_check_is(request, offer.source);
    if (result == 0)
        result = migration_receive(request->host, &offer, &answer, &request->err);
    if (result == 0 && !offer.check_only && api_client_gone(api_client_fd(request))) {
        /* The source gave up while memory was reserved: it will not come. */
        json_decref(answer);
        migration_withdraw(request->host, offer.id, true, NULL);
        result = error_set(&request->err, HOST_CONFLICT, "the source gave up migration %s", offer.id);
    }
    if (result < 0)
        return result;
    return api_answer(request, offer.check_only ? MHD_HTTP_OK : MHD_HTTP_CREATED, answer);
}

int api_incoming_withdraw(struct api_request *request)
{
    bool force = false;
    int result = api_query_bool(request, "force", &force);

    if (result == 0)
        result = migration_withdraw(request->host, request->arguments[0], force, &request->err);

    return result < 0 ? result : api_answer_empty(request);
}
