#include "host/api.h"

#include "base/error.h"
#include "host/checkpoint.h"
#include "host/resume.h"

int api_vm_checkpoint(struct api_request *request)
{
    struct checkpoint_options options = {0};
    char id[MIGRATION_ID_SIZE];
    const struct field fields[] = {
        {"file", FIELD_STRING, true, &options.file},
        {"kind", FIELD_STRING, true, &options.kind},
        {"compress", FIELD_STRING, false, &options.compress},
        {"bandwidth_limit", FIELD_UINT, false, &options.bandwidth},
        {"overwrite", FIELD_BOOL, false, &options.overwrite},
    };
    int result = api_read_body(request, fields, 5);

    if (result == 0)
        result = checkpoint_save(request->host, request->arguments[0], &options, id, &request->err);
    return result < 0 ? result : api_answer(request, MHD_HTTP_ACCEPTED, json_pack("{s:s}", "id", id));
}

int api_checkpoints_list(struct api_request *request)
{
    return api_answer(request, MHD_HTTP_OK, checkpoints_list(request->host));
}

int api_checkpoint_show(struct api_request *request)
{
    char id[MIGRATION_ID_SIZE];
    json_t *object = NULL;
    int result = checkpoint_resolve(request->host, request->arguments[0], id, &request->err);

    if (result == 0)
        result = checkpoint_show(request->host, id, &object, &request->err);
    return result < 0 ? result : api_answer(request, MHD_HTTP_OK, object);
}

int api_checkpoint_watch(struct api_request *request)
{
    char id[MIGRATION_ID_SIZE];
    int result = checkpoint_resolve(request->host, request->arguments[0], id, &request->err);

    return result < 0 ? result : api_answer_watch(request, id, checkpoint_watch);
}

int api_checkpoint_cancel(struct api_request *request)
{
    char id[MIGRATION_ID_SIZE];
    json_t *object = NULL;
    int result = api_read_body(request, NULL, 0);

    if (result == 0)
        result = checkpoint_resolve(request->host, request->arguments[0], id, &request->err);
    if (result == 0)
        result = checkpoint_cancel(request->host, id, &object, &request->err);
    return result < 0 ? result : api_answer(request, MHD_HTTP_OK, object);
}

int api_resume(struct api_request *request)
{
    struct resume_options options = {0};
    json_t *vm = NULL;
    const struct field fields[] = {
        {"file", FIELD_STRING, true, &options.file},
        {"name", FIELD_STRING, false, &options.name},
        {"eager", FIELD_BOOL, false, &options.eager},
        {"paused", FIELD_BOOL, false, &options.paused},
        {"disks_restored", FIELD_BOOL, false, &options.disks_restored},
    };
    int result = api_read_body(request, fields, 5);

    if (result == 0)
        result = vms_resume(request->host, &options, &vm, &request->err);
    return result < 0 ? result : api_answer(request, MHD_HTTP_CREATED, vm);
}

int api_vm_resumed(struct api_request *request)
{
    const char *by = NULL;
    const char *id = NULL;
    const struct field fields[] = {
        {"host", FIELD_STRING, true, &by},
        {"checkpoint", FIELD_STRING, true, &id},
    };
    int result = api_read_body(request, fields, 2);

    if (result == 0 && !config_name_valid(by))
        result = error_set(&request->err, HOST_USAGE, "\"%.80s\" is not a host's name", by);
    if (result == 0)
        result = api_check_is(request, by);
    if (result == 0)
        result = vms_resumed_elsewhere(request->host, request->arguments[0], by, id, &request->err);
    return result < 0 ? result : api_answer_empty(request);
}
