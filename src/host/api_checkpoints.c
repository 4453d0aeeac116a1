#include "host/api.h"

#include "base/error.h"
#include "host/checkpoint.h"

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
