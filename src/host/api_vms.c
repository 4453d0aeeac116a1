#include "host/api.h"

#include "base/error.h"
#include "host/vm_runnable.h"

#include <string.h>

int api_vms_list(struct api_request *request)
{
    return api_answer(request, MHD_HTTP_OK, vms_list(request->host));
}

int api_vms_create(struct api_request *request)
{
    json_t *definition = NULL;
    json_t *vm = NULL;
    bool paused = false;
    const struct field fields[] = {
        {"definition", FIELD_OBJECT, true, &definition},
        {"paused", FIELD_BOOL, false, &paused},
    };
    int result = api_read_body(request, fields, 2);

    if (result == 0)
        result = vms_create(request->host, definition, paused, &vm, &request->err);
    return result < 0 ? result : api_answer(request, MHD_HTTP_CREATED, vm);
}

int api_vm_show(struct api_request *request)
{
    json_t *vm = NULL;
    int result = vms_show(request->host, request->arguments[0], &vm, &request->err);

    return result < 0 ? result : api_answer(request, MHD_HTTP_OK, vm);
}

int api_vm_start(struct api_request *request)
{
    json_t *vm = NULL;
    bool paused = false;
    const struct field fields[] = {{"paused", FIELD_BOOL, false, &paused}};
    int result = api_read_body(request, fields, 1);

    if (result == 0)
        result = vms_start(request->host, request->arguments[0], paused, &vm, &request->err);
    return result < 0 ? result : api_answer(request, MHD_HTTP_OK, vm);
}

static int command(struct api_request *request, const char *method)
{
    json_t *vm = NULL;
    int result = api_read_body(request, NULL, 0);

    if (result == 0)
        result = vms_command(request->host, request->arguments[0], method, &vm, &request->err);
    return result < 0 ? result : api_answer(request, MHD_HTTP_OK, vm);
}

int api_vm_pause(struct api_request *request)
{
    return command(request, "pause");
}

int api_vm_unpause(struct api_request *request)
{
    return command(request, "resume");
}

int api_vm_stop(struct api_request *request)
{
    return command(request, "stop");
}

int api_vm_kill(struct api_request *request)
{
    json_t *vm = NULL;
    bool force = false;
    const struct field fields[] = {{"force", FIELD_BOOL, false, &force}};
    int result = api_read_body(request, fields, 1);

    if (result == 0)
        result = vms_kill(request->host, request->arguments[0], force, &vm, &request->err);
    return result < 0 ? result : api_answer(request, MHD_HTTP_OK, vm);
}

int api_vm_remove(struct api_request *request)
{
    int result = vms_remove(request->host, request->arguments[0], &request->err);

    return result < 0 ? result : api_answer_empty(request);
}

int api_vm_runnable(struct api_request *request)
{
    json_t *vm = NULL;
    bool runnable = false;
    const char *reason = NULL;
    const struct field fields[] = {
        {"runnable", FIELD_BOOL, true, &runnable},
        {"reason", FIELD_STRING, false, &reason},
    };
    int result = api_read_body(request, fields, 2);

    if (result == 0)
        result = vms_set_runnable(request->host, request->arguments[0], runnable, reason, &vm, &request->err);
    return result < 0 ? result : api_answer(request, MHD_HTTP_OK, vm);
}

int api_vm_recover(struct api_request *request)
{
    json_t *vm = NULL;
    enum recover_force force = RECOVER_ASK;
    const char *word = NULL;
    const struct field fields[] = {{"force", FIELD_STRING, false, &word}};
    int result = api_read_body(request, fields, 1);

    if (result == 0 && word) {
        force = strcmp(word, "here") == 0 ? RECOVER_HERE : RECOVER_THERE;
        if (force == RECOVER_THERE && strcmp(word, "there") != 0)
            result = error_set(&request->err, HOST_USAGE, "\"force\" is \"here\" or \"there\", not \"%.32s\"",
                               word);
    }
    if (result == 0)
        result = vms_recover(request->host, request->arguments[0], force, &vm, &request->err);
    return result < 0 ? result : api_answer(request, MHD_HTTP_OK, vm);
}
