#include "bus/memory_file.h"

#include "base/error.h"
#include "base/hugepages.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/memfd.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/types.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)

static int configure(int fs)
{
    /* The limits of a tmpfs are half of the host's memory; a VM's is its definition. */
    if (fsconfig(fs, FSCONFIG_SET_STRING, "huge", "within_size", 0) < 0 ||
        fsconfig(fs, FSCONFIG_SET_STRING, "size", "0", 0) < 0 ||
        fsconfig(fs, FSCONFIG_SET_STRING, "nr_inodes", "0", 0) < 0 ||
        fsconfig(fs, FSCONFIG_SET_STRING, "mode", "0700", 0) < 0)
        return -1;
    return fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
}

/* A file without a name in a tmpfs that lasts as long as the file; -1 where that is not to be had. */
static int huge_file(void)
{
    int fs = fsopen("tmpfs", FSOPEN_CLOEXEC);
    int mount = -1;
    int file = -1;

    if (fs < 0)
        return -1;
    if (configure(fs) == 0)
        mount = fsmount(fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
    if (mount >= 0) {
        file = openat(mount, ".", O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
        close(mount);
    }
    close(fs);
    return file;
}

/* Of pages that are set aside. ENODEV is the kernel's word for none of that size. */
static int set_aside_file(const char *name, uint64_t page_size, struct ferry_error *err)
{
    unsigned size_bits = (unsigned)__builtin_ctzll(page_size) << MFD_HUGE_SHIFT;
    int file = memfd_create(name, MFD_CLOEXEC | MFD_HUGETLB | size_bits);

    if (file >= 0)
        return file;
    if (errno == ENODEV || errno == EINVAL || errno == ENOSYS)
        return error_set(err, -EOPNOTSUPP, "guest memory %s: this host's kernel has no huge pages of %s",
                         name, hugepages_size_name(page_size));
    return error_set_errno(err, -errno, "cannot create guest memory %s of huge pages", name);
}

static int ordinary_file(const char *name, struct ferry_error *err)
{
    int file = huge_file();

    if (file < 0)
        file = memfd_create(name, MFD_CLOEXEC);
    return file < 0 ? error_set_errno(err, -errno, "cannot create guest memory %s", name) : file;
}

int memory_file_new(const char *name, uint64_t size, uint64_t page_size, struct ferry_error *err)
{
    int file = page_size ? set_aside_file(name, page_size, err) : ordinary_file(name, err);

    if (file < 0)
        return file;
    if (ftruncate(file, (off_t)size) < 0) {
        int result =
            error_set_errno(err, -errno, "cannot size guest memory %s to %" PRIu64 " MiB", name, size / MIB);

        close(file);
        return result;
    }
    return file;
}
