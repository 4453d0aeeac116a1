/*
 * The x86_64 board: memory map, devices' places, and what is put into memory for a kernel to start.
 *
 *     0x1000   what a kernel is told (pvh.h, linux_boot.h)
 *     0xe0000  ACPI tables (acpi.h)
 *     0xf0000  SMBIOS tables (smbios.h)
 *     1 MiB    and on: where kernels go, as their file says
 *     ...
 *     below the end of RAM, or of 3 GiB of it: initrd
 */
#include "machine/board.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "device/mc146818.h"
#include "machine/loader.h"
#include "machine/x86_64/acpi.h"
#include "machine/x86_64/layout.h"
#include "machine/x86_64/linux_boot.h"
#include "machine/x86_64/pvh.h"
#include "machine/x86_64/smbios.h"

#include <elf.h>
#include <errno.h>
#include <inttypes.h>

#define MIB     (UINT64_C(1) << 20)
#define KERNELS "an x86_64 kernel that Ferry can start (neither a bzImage nor ELF)"

/* Virtio devices by slot; part of what the guest sees, never to be changed. */
#define SLOT_RNG     0
#define SLOT_CONSOLE 1
#define SLOT_BLK     2
#define SLOT_NET     (SLOT_BLK + MACHINE_DISKS_MAX)
_Static_assert(SLOT_NET + MACHINE_NETS_MAX <= X86_64_VIRTIO_SLOTS, "every device needs a slot");

static uint64_t low_size(uint64_t size)
{
    return size < X86_64_HOLE ? size : X86_64_HOLE;
}

static int board_add_memory(struct memory *memory, uint64_t size, struct ferry_error *err)
{
    uint64_t low = low_size(size);
    int result = memory_add_region(memory, "ram0", 0, low, err);

    if (result || size == low)
        return result;
    return memory_add_region(memory, "ram1", X86_64_HIGH_RAM, size - low, err);
}

static struct board_place board_place(enum board_device device, unsigned index)
{
    static const uint8_t irqs[X86_64_VIRTIO_SLOTS] = X86_64_VIRTIO_IRQS;
    unsigned slot = index;

    switch (device) {
    case BOARD_UART:
        return (struct board_place){X86_64_PORTS + X86_64_PORT_UART, X86_64_UART_IRQ};
    case BOARD_RTC:
        return (struct board_place){X86_64_PORTS + X86_64_PORT_CMOS, X86_64_RTC_IRQ};
    case BOARD_VMGENID:
        return (struct board_place){X86_64_VMGENID_BASE, X86_64_VMGENID_IRQ};
    case BOARD_RNG:
        slot += SLOT_RNG;
        break;
    case BOARD_CONSOLE:
        slot += SLOT_CONSOLE;
        break;
    case BOARD_BLK:
        slot += SLOT_BLK;
        break;
    case BOARD_NET:
        slot += SLOT_NET;
        break;
    }
    return (struct board_place){X86_64_VIRTIO_BASE + slot * X86_64_VIRTIO_STRIDE, irqs[slot]};
}

/* What of a kernel's file is needed later on. */
struct kernel {
    uint8_t head[LINUX_BOOT_HEAD_SIZE];
    struct loader_image image;
    enum x86_64_boot boot;
};

static int load_elf(const struct loader_file *file, struct memory *memory, struct loader_image *image,
                    struct ferry_error *err)
{
    int result = loader_load_elf(file, memory, EM_X86_64, image, err);

    if (!result)
        result = pvh_find_entry(file, &image->entry, err);
    if (!result && image->start < X86_64_KERNEL_RAM)
        result =
            error_set(err, -EINVAL, "kernel %s cannot be loaded: it wants memory below 1 MiB", file->path);
    return result;
}

static int load_kernel(const char *path, struct memory *memory, struct kernel *kernel,
                       struct ferry_error *err)
{
    CLEANUP(loader_close) struct loader_file file = {.fd = -1};
    int result = loader_open(&file, "kernel", path, err);

    if (result)
        return result;
    result = loader_peek(&file, kernel->head, sizeof(kernel->head), err);
    if (result)
        return result;
    if (linux_boot_is_bzimage(kernel->head)) {
        kernel->boot = X86_64_BOOT_LINUX64;
        return linux_boot_load(&file, kernel->head, memory, &kernel->image, err);
    }
    kernel->boot = X86_64_BOOT_PVH;
    if (loader_is_elf(kernel->head))
        return load_elf(&file, memory, &kernel->image, err);
    return loader_refuse_kernel(&file, kernel->head, sizeof(kernel->head), KERNELS, err);
}

/* One past where an initrd may end: older kernels want it below 2 GiB, and say so. */
static uint64_t initrd_end(const struct kernel *kernel, uint64_t memory)
{
    uint64_t end = low_size(memory);
    uint64_t most = kernel->boot == X86_64_BOOT_LINUX64 ? linux_boot_initrd_end(kernel->head) : end;

    return end < most ? end : most & ~(uint64_t)(MEMORY_PAGE_SIZE - 1);
}

/* At the end of low memory, above the kernel. */
static int load_initrd(const char *path, struct memory *memory, const struct loader_image *kernel,
                       uint64_t end, struct linux_boot_inputs *inputs, struct ferry_error *err)
{
    CLEANUP(loader_close) struct loader_file file = {.fd = -1};
    int result = loader_open(&file, "initrd", path, err);

    if (result)
        return result;
    if (kernel->end > end || file.size > end - kernel->end ||
        ((end - file.size) & ~(uint64_t)(MEMORY_PAGE_SIZE - 1)) < kernel->end)
        return error_set(err, -ENOSPC,
                         "initrd %s is too large: its %" PRIu64
                         " MiB do not fit beside the kernel in the VM's memory of %" PRIu64
                         " MiB; give the VM more memory",
                         path, file.size / MIB + 1, memory_total(memory) / MIB);
    inputs->initrd = (end - file.size) & ~(uint64_t)(MEMORY_PAGE_SIZE - 1);
    inputs->initrd_size = file.size;
    return loader_read(&file, 0, memory, inputs->initrd, file.size, err);
}

static int tell_kernel(const struct kernel *kernel, const struct linux_boot_inputs *inputs,
                       struct memory *memory, struct accel_boot *boot, struct ferry_error *err)
{
    const struct pvh_inputs pvh = {.cmdline = inputs->cmdline,
                                   .rsdp = inputs->rsdp,
                                   .initrd = inputs->initrd,
                                   .initrd_size = inputs->initrd_size};

    boot->entry = kernel->image.entry;
    boot->arguments[1] = kernel->boot;
    if (kernel->boot == X86_64_BOOT_LINUX64) {
        boot->arguments[0] = LINUX_BOOT_PARAMS;
        return linux_boot_write(memory, kernel->head, inputs, err);
    }
    boot->arguments[0] = PVH_START_INFO;
    return pvh_write(memory, &pvh, err);
}

static int board_load(const struct machine_config *config, struct memory *memory, struct accel_boot *boot,
                      struct ferry_error *err)
{
    struct linux_boot_inputs inputs = {.cmdline = config->cmdline, .rsdp = ACPI_START};
    struct kernel kernel = {.image = {0}};
    int result;

    if (!config->kernel)
        return error_set(err, -EINVAL, "the VM definition names no kernel");
    result = load_kernel(config->kernel, memory, &kernel, err);
    if (!result && config->initrd)
        result = load_initrd(config->initrd, memory, &kernel.image, initrd_end(&kernel, config->memory),
                             &inputs, err);
    if (!result)
        result = acpi_write(config, memory, err);
    if (!result)
        result = smbios_write(config, memory, err);
    return result ? result : tell_kernel(&kernel, &inputs, memory, boot, err);
}

const struct board board_x86_64 = {
    .machine = "x86_64",
    .accel = &accel_kvm,
    .add_memory = board_add_memory,
    .place = board_place,
    .create_rtc = mc146818_create,
    .load = board_load,
};
