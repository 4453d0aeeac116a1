/*
 * The riscv64 board: memory map, and what is put into memory for Linux to start (Linux
 * Documentation/arch/riscv/boot.rst).
 *
 *     RAM start + 2 MiB    kernel (flat Image; an ELF kernel goes where it says)
 *     ...
 *     just below           initrd
 *     top of RAM           device tree, 64 KiB; below 4 GiB, where every kernel can map it early
 */
#include "machine/board.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "device/goldfish_rtc.h"
#include "machine/loader.h"
#include "machine/riscv64/device_tree.h"
#include "machine/riscv64/layout.h"

#include <elf.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define MIB     (UINT64_C(1) << 20)
#define LOW_END (UINT64_C(4) << 30)
#define KERNELS "a riscv64 kernel (neither a flat Image nor ELF)"

/* The flat Image's header (Linux Documentation/arch/riscv/boot-image-header.rst). */
#define IMAGE_HEADER_SIZE 64
#define IMAGE_TEXT_OFFSET 0x08
#define IMAGE_SIZE        0x10
#define IMAGE_FLAGS       0x18
#define IMAGE_MAGIC2      0x38
#define IMAGE_BIG_ENDIAN  1

/* Virtio devices by slot; part of what the guest sees, never to be changed. */
#define SLOT_RNG     0
#define SLOT_CONSOLE 1
#define SLOT_BLK     2
#define SLOT_NET     (SLOT_BLK + MACHINE_DISKS_MAX)
_Static_assert(SLOT_NET + MACHINE_NETS_MAX <= RISCV64_VIRTIO_SLOTS, "every device needs a slot");
_Static_assert(MACHINE_VCPUS_MAX_RISCV64 <= RISCV64_HARTS_MAX, "every vCPU is a hart");

static uint64_t get_u64(const uint8_t *bytes)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < 8; i++)
        value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

static int board_add_memory(struct memory *memory, uint64_t size, struct ferry_error *err)
{
    return memory_add_region(memory, "ram0", RISCV64_RAM_BASE, size, err);
}

static struct board_place board_place(enum board_device device, unsigned index)
{
    unsigned slot = index;

    switch (device) {
    case BOARD_UART:
        return (struct board_place){RISCV64_UART_BASE, RISCV64_UART_IRQ};
    case BOARD_RTC:
        return (struct board_place){RISCV64_RTC_BASE, RISCV64_RTC_IRQ};
    case BOARD_VMGENID:
        return (struct board_place){RISCV64_VMGENID_BASE, RISCV64_VMGENID_IRQ};
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
    return (struct board_place){RISCV64_VIRTIO_BASE + slot * RISCV64_VIRTIO_STRIDE,
                                RISCV64_VIRTIO_IRQ + slot};
}

/* END is one past the last byte the kernel may use. */
static int load_flat_image(const struct loader_file *file, const uint8_t *head, struct memory *memory,
                           uint64_t end, struct loader_image *image, struct ferry_error *err)
{
    uint64_t offset = get_u64(head + IMAGE_TEXT_OFFSET);
    uint64_t size = get_u64(head + IMAGE_SIZE);
    uint64_t space = end - RISCV64_RAM_BASE;

    if (get_u64(head + IMAGE_FLAGS) & IMAGE_BIG_ENDIAN)
        return error_set(err, -EINVAL, "%s %s is big-endian; this machine is little-endian", file->what,
                         file->path);
    /* The image's own size counts memory the kernel clears for itself; old kernels leave it 0. */
    if (size < file->size)
        size = file->size;
    if (offset % MEMORY_PAGE_SIZE)
        return error_set(err, -EINVAL, "%s %s cannot be loaded: its text offset 0x%" PRIx64 " makes no sense",
                         file->what, file->path, offset);
    if (offset > space || size > space - offset)
        return error_set(err, -ENOSPC,
                         "%s %s is too large: it needs %" PRIu64 " MiB, and the VM's memory of %" PRIu64
                         " MiB has %" PRIu64 " MiB for it; give the VM more memory",
                         file->what, file->path, size / MIB + offset / MIB + 1, memory_total(memory) / MIB,
                         space / MIB);
    image->start = RISCV64_RAM_BASE + offset;
    image->end = image->start + size;
    image->entry = image->start;
    return loader_read(file, 0, memory, image->start, file->size, err);
}

static int load_kernel(const char *path, struct memory *memory, uint64_t end, struct loader_image *image,
                       struct ferry_error *err)
{
    CLEANUP(loader_close) struct loader_file file = {.fd = -1};
    uint8_t head[IMAGE_HEADER_SIZE];
    int result = loader_open(&file, "kernel", path, err);

    if (result)
        return result;
    result = loader_peek(&file, head, sizeof(head), err);
    if (result)
        return result;
    if (memcmp(head + IMAGE_MAGIC2, "RSC\x05", 4) == 0)
        return load_flat_image(&file, head, memory, end, image, err);
    if (loader_is_elf(head))
        return loader_load_elf(&file, memory, EM_RISCV, image, err);
    return loader_refuse_kernel(&file, head, sizeof(head), KERNELS, err);
}

/* Below END, above the kernel. */
static int load_initrd(const char *path, struct memory *memory, const struct loader_image *kernel,
                       uint64_t end, struct device_tree_inputs *inputs, struct ferry_error *err)
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
    inputs->initrd_start = (end - file.size) & ~(uint64_t)(MEMORY_PAGE_SIZE - 1);
    inputs->initrd_end = inputs->initrd_start + file.size;
    return loader_read(&file, 0, memory, inputs->initrd_start, file.size, err);
}

static int load_device_tree(const struct device_tree_inputs *inputs, struct memory *memory,
                            uint64_t guest_addr, struct ferry_error *err)
{
    CLEANUP_FREE void *tree = malloc(DEVICE_TREE_SIZE_MAX);
    uint32_t size;
    int result;

    if (!tree)
        return error_set(err, -ENOMEM, "out of memory for the device tree");
    result = device_tree_make(inputs, tree, &size, err);
    if (result)
        return result;
    if (!memory_write(memory, guest_addr, tree, size))
        return error_set(err, -ENOSPC, "the device tree does not fit into the VM's memory");
    return 0;
}

static int board_load(const struct machine_config *config, struct memory *memory, struct accel_boot *boot,
                      struct ferry_error *err)
{
    struct device_tree_inputs inputs = {.config = config};
    struct loader_image kernel = {0};
    uint64_t top = RISCV64_RAM_BASE + config->memory;
    uint64_t tree_addr;
    int result;

    if (!config->kernel)
        return error_set(err, -EINVAL, "the VM definition names no kernel");
    tree_addr = (top < LOW_END ? top : LOW_END) - DEVICE_TREE_SIZE_MAX;
    result = load_kernel(config->kernel, memory, tree_addr, &kernel, err);
    if (result)
        return result;
    if (kernel.end > tree_addr)
        return error_set(err, -ENOSPC,
                         "kernel %s is too large for the VM's memory of %" PRIu64 " MiB; give it more memory",
                         config->kernel, config->memory / MIB);
    if (config->initrd) {
        result = load_initrd(config->initrd, memory, &kernel, tree_addr, &inputs, err);
        if (result)
            return result;
    }
    result = load_device_tree(&inputs, memory, tree_addr, err);
    if (result)
        return result;
    /* Linux: a0 is the hart's number, a1 the device tree. Hart 0 boots. */
    *boot = (struct accel_boot){.entry = kernel.entry, .arguments = {0, tree_addr}};
    return 0;
}

const struct board board_riscv64 = {
    .machine = "riscv64",
    .accel = &accel_soft,
    .add_memory = board_add_memory,
    .place = board_place,
    .create_rtc = goldfish_rtc_create,
    .load = board_load,
};
