#include "net/backend.h"

#include "base/error.h"
#include "net/user.h"

#include <errno.h>
#include <string.h>

static const struct net_backend_ops *const backends[] = {
    &net_backend_user,
};

/* Splits SPECIFICATION at its first comma. NULL when no backend has that name. */
static const struct net_backend_ops *find_backend(const char *specification, const char **options)
{
    size_t length = strcspn(specification, ",");

    *options = specification[length] ? specification + length + 1 : "";
    for (size_t i = 0; i < sizeof(backends) / sizeof(backends[0]); i++) {
        if (strlen(backends[i]->name) == length && strncmp(backends[i]->name, specification, length) == 0)
            return backends[i];
    }
    return NULL;
}

static int unknown_backend(const char *specification, struct ferry_error *err)
{
    return error_set(err, -EINVAL, "network %s: there is no network of that name; user is always there",
                     specification);
}

int net_backend_new(struct net_backend **out, const char *specification, struct log *log,
                    struct ferry_error *err)
{
    const char *options;
    const struct net_backend_ops *ops = find_backend(specification, &options);
    int result;

    if (!ops)
        return unknown_backend(specification, err);
    result = ops->create(out, options, log, err);
    return result < 0 ? error_prefix(err, result, "network %s", specification) : 0;
}

int net_backend_check(const char *specification, struct ferry_error *err)
{
    const char *options;
    const struct net_backend_ops *ops = find_backend(specification, &options);
    int result;

    if (!ops)
        return unknown_backend(specification, err);
    result = ops->check(options, err);
    return result < 0 ? error_prefix(err, result, "network %s", specification) : 0;
}

void net_backend_destroy(struct net_backend *backend)
{
    if (backend)
        backend->ops->destroy(backend);
}
