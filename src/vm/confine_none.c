/*
 * ferry-vm built without libseccomp (-Dseccomp=disabled): nothing is confined, and nobody is told otherwise.
 */
#include "base/error.h"
#include "vm/confine.h"

#include <errno.h>
#include <stddef.h>

int confine_new(struct confine **out, enum confine_mode mode, struct ferry_error *err)
{
    *out = NULL;
    if (mode == CONFINE_OFF)
        return 0;
    return error_set(err, -ENOSYS,
                     "this ferry-vm was built without system call filters; --seccomp off runs it");
}

int confine_self(const struct confine *confine, struct ferry_error *err)
{
    return 0;
}

void confine_free(struct confine *confine)
{
}
