/*
 * ferry-vm built without libseccomp (-Dseccomp=disabled): no call is forbidden, and nobody is told otherwise.
 */
#include "base/error.h"
#include "base/thread.h"
#include "vm/capabilities.h"
#include "vm/confine.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

static void confine_thread(void *opaque, enum thread_kind kind)
{
    if (capabilities_keep_for_kind(kind) < 0)
        abort();
}

int confine_new(struct confine **out, enum confine_mode mode, struct ferry_error *err)
{
    *out = NULL;
    if (mode == CONFINE_OFF) {
        thread_set_guard(confine_thread, NULL);
        return 0;
    }
    return error_set(err, -ENOSYS,
                     "this ferry-vm was built without system call filters; --seccomp off runs it");
}

int confine_self(const struct confine *confine, struct ferry_error *err)
{
    int result = capabilities_keep_for_kind(THREAD_GENERAL);

    return result < 0 ? error_set_errno(err, result, "the main thread cannot be confined") : 0;
}

void confine_free(struct confine *confine)
{
    thread_set_guard(NULL, NULL);
}
