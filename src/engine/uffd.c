#include "engine/uffd.h"

#include "base/error.h"

#include <ferry/ferry.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NEEDED (UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM)

/* The system call, where this process may use it; else the device, if it may open that. */
static int make(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    int device, code;

    if (fd >= 0 || errno != EPERM)
        return fd >= 0 ? fd : -errno;
    device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0)
        return -EPERM;
    fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    code = errno;
    close(device);
    return fd >= 0 ? fd : -code;
}

int uffd_open(struct ferry_error *err)
{
    struct uffdio_api api = {.api = UFFD_API, .features = NEEDED};
    int fd = make();

    if (fd == -EPERM)
        return error_set(
            err, fd,
            "quick resume needs userfaultfd, which this host keeps from ferry-vm: allow it access to "
            "/dev/userfaultfd, or set vm.unprivileged_userfaultfd to 1");
    if (fd < 0)
        return error_set_errno(err, fd, "quick resume needs userfaultfd");
    if (ioctl(fd, UFFDIO_API, &api) < 0 || (api.features & NEEDED) != NEEDED) {
        close(fd);
        return error_set(
            err, -ENOSYS,
            "quick resume needs userfaultfd with minor faults of shared memory: Linux 5.14 or newer");
    }
    return fd;
}

int ferry_quick_resume_check(struct ferry_error *err)
{
    int fd = uffd_open(err);

    if (fd < 0)
        return fd;
    close(fd);
    return 0;
}

int uffd_watch(int uffd, void *address, size_t size, struct ferry_error *err)
{
    struct uffdio_register watch = {
        .range = {.start = (uintptr_t)address, .len = size},
        .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR,
    };

    if (ioctl(uffd, UFFDIO_REGISTER, &watch) < 0)
        return error_set_errno(err, -errno, "cannot watch guest memory");
    return 0;
}

void uffd_forget(int uffd, void *address, size_t size)
{
    struct uffdio_range range = {.start = (uintptr_t)address, .len = size};

    ioctl(uffd, UFFDIO_UNREGISTER, &range);
    /* That wakes who waits, but first, and not who begins to wait meanwhile. */
    ioctl(uffd, UFFDIO_WAKE, &range);
}

int uffd_unmap(void *address, size_t size, struct ferry_error *err)
{
    /* Of a shared mapping this drops the page table entries only. */
    if (madvise(address, size, MADV_DONTNEED) < 0)
        return error_set_errno(err, -errno, "cannot take mappings of guest memory away");
    return 0;
}

void uffd_map(int uffd, void *address, size_t size)
{
    struct uffdio_range all = {.start = (uintptr_t)address, .len = size};
    struct uffdio_range left = all;
    bool skipped = false;

    while (left.len > 0) {
        struct uffdio_continue map = {.range = left};
        uint64_t done = left.len;

        if (ioctl(uffd, UFFDIO_CONTINUE, &map) < 0) {
            int code = errno;

            done = map.mapped > 0 ? (uint64_t)map.mapped : 0;
            /* A page that has a mapping already, or does not exist. */
            if (code != EAGAIN) {
                skipped = true;
                done = FERRY_PAGE_SIZE;
            }
        }
        left.start += done;
        left.len -= done;
    }
    /* Mapping wakes, but not who waits for a page that somebody else has just mapped. */
    if (skipped)
        ioctl(uffd, UFFDIO_WAKE, &all);
}

size_t uffd_faults(int uffd, uint64_t *addresses, size_t count)
{
    struct uffd_msg messages[16];
    size_t found = 0;

    if (count > sizeof(messages) / sizeof(messages[0]))
        count = sizeof(messages) / sizeof(messages[0]);

    ssize_t n = read(uffd, messages, count * sizeof(messages[0]));

    for (ssize_t i = 0; i < n / (ssize_t)sizeof(messages[0]); i++) {
        if (messages[i].event == UFFD_EVENT_PAGEFAULT)
            addresses[found++] = messages[i].arg.pagefault.address;
    }
    return found;
}
