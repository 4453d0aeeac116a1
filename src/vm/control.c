/*
 * The methods of control.sock (docs/API.md "ferry-vm").
 */
#include "vm/vm.h"

#include "base/error.h"
#include "bus/state.h"
#include "vm/checkpoint.h"
#include "vm/migrate.h"
#include "vm/params.h"
#include "vm/sample.h"

#include <errno.h>
#include <string.h>

struct control_method {
    const char *name;
    bool has_params; /* false: any are refused here */
    /* *result may stay NULL: {} is answered. */
    int (*call)(struct vm *vm, json_t *params, json_t **result, struct ferry_error *err);
};

static int control_status(struct vm *vm, json_t *params, json_t **result, struct ferry_error *err)
{
    *result = vm_status_json(vm);
    return 0;
}

static int control_pause(struct vm *vm, json_t *params, json_t **result, struct ferry_error *err)
{
    return vm_pause(vm, err);
}

static int control_resume(struct vm *vm, json_t *params, json_t **result, struct ferry_error *err)
{
    return vm_resume(vm, err);
}

static int control_stop(struct vm *vm, json_t *params, json_t **result, struct ferry_error *err)
{
    return vm_ask_stop(vm, err);
}

static int control_quit(struct vm *vm, json_t *params, json_t **result, struct ferry_error *err)
{
    return vm_quit(vm, err);
}

static int control_recover(struct vm *vm, json_t *params, json_t **result, struct ferry_error *err)
{
    static const char *const names[] = {"here", NULL};
    const json_t *here = json_object_get(params, "here");
    int code = params_only(params, names, err);

    if (code)
        return code;
    if (!json_is_boolean(here))
        return error_set(err, -EINVAL, "parameter \"here\" must be true or false");
    return vm_recover(vm, json_is_true(here), err);
}

static int control_prepare(struct vm *vm, json_t *params, json_t **result, struct ferry_error *err)
{
    return migration_prepare(vm, params, err);
}

static int control_send(struct vm *vm, json_t *params, json_t **result, struct ferry_error *err)
{
    return migration_send(vm, params, err);
}

static int control_limit(struct vm *vm, json_t *params, json_t **result, struct ferry_error *err)
{
    return migration_limit(vm, params, err);
}

static int control_reconnect(struct vm *vm, json_t *params, json_t **result, struct ferry_error *err)
{
    return migration_reconnect(vm, params, err);
}

static int control_end_fetch(struct vm *vm, json_t *params, json_t **result, struct ferry_error *err)
{
    return migration_end_fetch(vm, params, err);
}

static int control_cancel(struct vm *vm, json_t *params, json_t **result, struct ferry_error *err)
{
    return migration_cancel(vm, params, err);
}

static int control_migration_status(struct vm *vm, json_t *params, json_t **result, struct ferry_error *err)
{
    *result = migration_json(vm->migration, true);
    return 0;
}

static int control_checkpoint_cancel(struct vm *vm, json_t *params, json_t **result, struct ferry_error *err)
{
    return vm_checkpoint_cancel(vm, params, err);
}

static const struct control_method methods[] = {
    {"status", false, control_status},
    {"pause", false, control_pause},
    {"resume", false, control_resume},
    {"stop", false, control_stop},
    {"quit", false, control_quit},
    {"recover", true, control_recover},
    {"migrate.prepare", true, control_prepare},
    {"migrate.send", true, control_send},
    {"migrate.receive", true, migration_receive},
    {"migrate.limit", true, control_limit},
    {"migrate.cancel", true, control_cancel},
    {"migrate.reconnect", true, control_reconnect},
    {"migrate.end_fetch", true, control_end_fetch},
    {"checkpoint-save", true, vm_checkpoint_save},
    {"checkpoint-cancel", true, control_checkpoint_cancel},
    {"migrate.status", false, control_migration_status},
};

void vm_control(void *opaque, struct jsonrpc_request *request, const char *method, json_t *params)
{
    static const char *const none[] = {NULL};
    const struct control_method *found = NULL;
    struct vm *vm = opaque;
    struct ferry_error err = {0};
    json_t *result = NULL;
    int code;

    if (strcmp(method, "memory.sample") == 0) {
        code = sample_begin(vm, params, request, &err); /* answers later */
        if (code)
            jsonrpc_fail(request, &err);
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(methods) && !found; i++)
        if (strcmp(methods[i].name, method) == 0)
            found = &methods[i];
    if (!found)
        code = error_set(&err, -ENOSYS, "there is no method \"%.40s\"", method);
    else
        code = found->has_params ? 0 : params_only(params, none, &err);
    if (!code)
        code = found->call(vm, params, &result, &err);
    if (code)
        jsonrpc_fail(request, &err);
    else
        jsonrpc_answer(request, result ? result : json_object());
}
