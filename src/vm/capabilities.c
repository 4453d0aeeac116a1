#include "vm/capabilities.h"

#include "base/error.h"

#include <errno.h>
#include <linux/capability.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BIT(capability) (UINT64_C(1) << (capability))

/* Root runs VMs of files that others own, takes ports below 1024 for forwards, and gets a thread back from
 * the background. */
#define KEEP_NET     BIT(CAP_NET_BIND_SERVICE)
#define KEEP_CONTROL (BIT(CAP_DAC_OVERRIDE) | BIT(CAP_SYS_NICE) | KEEP_NET)
/* A tmpfs for guest memory is made (bus/memory_file.c), and old kernels limit what a ring locks. */
#define KEEP_SETUP (BIT(CAP_SYS_ADMIN) | BIT(CAP_IPC_LOCK))

/* Of the main thread and of migrations, which take page faults for quick resume (engine/uffd.c): without the
 * device that is for those who may trace. */
static uint64_t control_capabilities(void)
{
    return access("/dev/userfaultfd", R_OK | W_OK) == 0 ? KEEP_CONTROL : KEEP_CONTROL | BIT(CAP_SYS_PTRACE);
}

static int keep(uint64_t capabilities)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];
    bool any = false;

    if (syscall(SYS_capget, &header, sets) < 0)
        return -errno;
    for (unsigned i = 0; i < _LINUX_CAPABILITY_U32S_3; i++) {
        any |= sets[i].permitted || sets[i].inheritable;
        sets[i].permitted &= (uint32_t)(capabilities >> 32 * i);
        sets[i].effective = sets[i].permitted;
        sets[i].inheritable = 0;
    }
    return any && syscall(SYS_capset, &header, sets) < 0 ? -errno : 0;
}

int capabilities_keep_for_setup(struct ferry_error *err)
{
    uint64_t wanted = control_capabilities() | KEEP_SETUP;
    int result;

    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    /* EINVAL: no more of them. EPERM: it may not be changed, and the process has nothing to give away. */
    for (int i = 0; prctl(PR_CAPBSET_READ, i, 0, 0, 0) >= 0; i++)
        if (!(wanted & BIT(i)))
            (void)prctl(PR_CAPBSET_DROP, i, 0, 0, 0);
    result = keep(wanted);
    return result < 0 ? error_set_errno(err, result, "cannot give up privileges") : 0;
}

int capabilities_keep_for_kind(enum thread_kind kind)
{
    switch (kind) {
    case THREAD_GENERAL:
    case THREAD_MIGRATION:
        return keep(control_capabilities());
    case THREAD_NET:
        return keep(KEEP_NET);
    default:
        return keep(0);
    }
}
