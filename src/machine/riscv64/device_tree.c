#include "machine/riscv64/device_tree.h"

#include "base/error.h"
#include "machine/board.h"
#include "machine/riscv64/layout.h"

#include <errno.h>
#include <inttypes.h>
#include <libfdt.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

/* Hart N's interrupt controller is PHANDLE_HART + N. */
#define PHANDLE_PLIC 1
#define PHANDLE_HART 2
/* Number of the supervisor external interrupt (RISC-V privileged specification, table 4.2). */
#define IRQ_S_EXTERNAL 9

/* Writes in order; after the first failure nothing more is done and `result` tells. */
struct tree {
    void *fdt;
    int result; /* libfdt's: 0 or negative */
};

static void tree_begin(struct tree *tree, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void tree_begin(struct tree *tree, const char *format, ...)
{
    char name[64];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(name, sizeof(name), format, arguments);
    va_end(arguments);
    if (!tree->result)
        tree->result = fdt_begin_node(tree->fdt, name);
}

static void tree_end(struct tree *tree)
{
    if (!tree->result)
        tree->result = fdt_end_node(tree->fdt);
}

static void tree_bytes(struct tree *tree, const char *name, const void *data, size_t size)
{
    if (!tree->result)
        tree->result = fdt_property(tree->fdt, name, data, (int)size);
}

static void tree_text(struct tree *tree, const char *name, const char *text)
{
    tree_bytes(tree, name, text, strlen(text) + 1);
}

static void tree_u32(struct tree *tree, const char *name, uint32_t value)
{
    if (!tree->result)
        tree->result = fdt_property_u32(tree->fdt, name, value);
}

static void tree_u64(struct tree *tree, const char *name, uint64_t value)
{
    if (!tree->result)
        tree->result = fdt_property_u64(tree->fdt, name, value);
}

/* An address and a size of two cells each. */
static void tree_reg(struct tree *tree, uint64_t addr, uint64_t size)
{
    fdt64_t cells[2] = {cpu_to_fdt64(addr), cpu_to_fdt64(size)};

    tree_bytes(tree, "reg", cells, sizeof(cells));
}

/* The serial number (Devicetree Specification 0.4 §3.2), and what Power machines call it, of which systemd
 * makes a new system's machine id. */
static void tree_uuid(struct tree *tree, const struct machine_config *config)
{
    char text[UUID_TEXT_SIZE];

    uuid_format(config->uuid, text);
    tree_text(tree, "serial-number", text);
    tree_text(tree, "vm,uuid", text);
}

static int tree_chosen(struct tree *tree, const struct device_tree_inputs *inputs, struct ferry_error *err)
{
    const char *cmdline = inputs->config->cmdline;
    char stdout_path[64];
    uint8_t seed[64];

    if (getrandom(seed, sizeof(seed), 0) != sizeof(seed))
        return error_set_errno(err, -errno, "no random numbers for the guest's seed");
    snprintf(stdout_path, sizeof(stdout_path), "/soc/serial@%" PRIx64, RISCV64_UART_BASE);
    tree_begin(tree, "chosen");
    tree_text(tree, "bootargs", cmdline ? cmdline : "");
    tree_text(tree, "stdout-path", stdout_path);
    tree_bytes(tree, "rng-seed", seed, 56);
    tree_bytes(tree, "kaslr-seed", seed + 56, 8);
    if (inputs->initrd_end > inputs->initrd_start) {
        tree_u64(tree, "linux,initrd-start", inputs->initrd_start);
        tree_u64(tree, "linux,initrd-end", inputs->initrd_end);
    }
    tree_end(tree);
    explicit_bzero(seed, sizeof(seed));
    return 0;
}

static void tree_cpus(struct tree *tree, unsigned count)
{
    static const char extensions[] = RISCV64_ISA_EXTENSIONS;

    tree_begin(tree, "cpus");
    tree_u32(tree, "#address-cells", 1);
    tree_u32(tree, "#size-cells", 0);
    tree_u32(tree, "timebase-frequency", RISCV64_TIMEBASE_HZ);
    for (unsigned i = 0; i < count; i++) {
        tree_begin(tree, "cpu@%x", i);
        tree_text(tree, "device_type", "cpu");
        tree_u32(tree, "reg", i);
        tree_text(tree, "status", "okay");
        tree_text(tree, "compatible", "riscv");
        tree_text(tree, "riscv,isa", RISCV64_ISA);
        tree_text(tree, "riscv,isa-base", RISCV64_ISA_BASE);
        tree_bytes(tree, "riscv,isa-extensions", extensions, sizeof(extensions));
        tree_text(tree, "mmu-type", RISCV64_MMU_TYPE);
        tree_begin(tree, "interrupt-controller");
        tree_u32(tree, "#interrupt-cells", 1);
        tree_bytes(tree, "interrupt-controller", NULL, 0);
        tree_text(tree, "compatible", "riscv,cpu-intc");
        tree_u32(tree, "phandle", PHANDLE_HART + i);
        tree_end(tree);
        tree_end(tree);
    }
    tree_end(tree);
}

static void tree_plic(struct tree *tree, unsigned harts)
{
    static const char compatible[] = "sifive,plic-1.0.0\0riscv,plic0";
    fdt32_t contexts[2 * RISCV64_HARTS_MAX];

    for (unsigned i = 0; i < harts; i++) {
        contexts[2 * i] = cpu_to_fdt32(PHANDLE_HART + i);
        contexts[2 * i + 1] = cpu_to_fdt32(IRQ_S_EXTERNAL);
    }
    tree_begin(tree, "plic@%" PRIx64, RISCV64_PLIC_BASE);
    tree_bytes(tree, "compatible", compatible, sizeof(compatible));
    tree_reg(tree, RISCV64_PLIC_BASE, RISCV64_PLIC_SIZE);
    tree_u32(tree, "#address-cells", 0);
    tree_u32(tree, "#interrupt-cells", 1);
    tree_bytes(tree, "interrupt-controller", NULL, 0);
    tree_bytes(tree, "interrupts-extended", contexts, harts * 2 * sizeof(contexts[0]));
    tree_u32(tree, "riscv,ndev", RISCV64_PLIC_SOURCES);
    tree_u32(tree, "phandle", PHANDLE_PLIC);
    tree_end(tree);
}

/* What all devices on the bus have; the caller adds more and ends the node. */
static void tree_device(struct tree *tree, const char *kind, const char *compatible, uint64_t addr,
                        uint64_t size, unsigned irq)
{
    tree_begin(tree, "%s@%" PRIx64, kind, addr);
    tree_text(tree, "compatible", compatible);
    tree_reg(tree, addr, size);
    tree_u32(tree, "interrupt-parent", PHANDLE_PLIC);
    tree_u32(tree, "interrupts", irq);
}

static void tree_virtio(struct tree *tree, enum board_device device, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct board_place place = board_riscv64.place(device, i);

        tree_device(tree, "virtio_mmio", "virtio,mmio", place.mmio_addr, RISCV64_VIRTIO_STRIDE, place.irq);
        tree_end(tree);
    }
}

static void tree_soc(struct tree *tree, const struct machine_config *config)
{
    tree_begin(tree, "soc");
    tree_text(tree, "compatible", "simple-bus");
    tree_u32(tree, "#address-cells", 2);
    tree_u32(tree, "#size-cells", 2);
    tree_bytes(tree, "ranges", NULL, 0);
    tree_plic(tree, config->vcpus);
    tree_device(tree, "serial", "ns16550a", RISCV64_UART_BASE, RISCV64_UART_SIZE, RISCV64_UART_IRQ);
    tree_u32(tree, "clock-frequency", RISCV64_UART_CLOCK);
    tree_end(tree);
    tree_device(tree, "rtc", "google,goldfish-rtc", RISCV64_RTC_BASE, RISCV64_RTC_SIZE, RISCV64_RTC_IRQ);
    tree_end(tree);
    tree_device(tree, "rng", "microsoft,vmgenid", RISCV64_VMGENID_BASE, RISCV64_VMGENID_SIZE,
                RISCV64_VMGENID_IRQ);
    tree_end(tree);
    tree_virtio(tree, BOARD_RNG, 1);
    tree_virtio(tree, BOARD_CONSOLE, 1);
    tree_virtio(tree, BOARD_BLK, config->disk_count);
    tree_virtio(tree, BOARD_NET, config->net_count);
    tree_end(tree);
}

int device_tree_make(const struct device_tree_inputs *inputs, void *out, uint32_t *size,
                     struct ferry_error *err)
{
    const struct machine_config *config = inputs->config;
    struct tree tree = {.fdt = out};
    int result;

    tree.result = fdt_create(out, DEVICE_TREE_SIZE_MAX);
    if (!tree.result)
        tree.result = fdt_finish_reservemap(out);
    tree_begin(&tree, "%s", "");
    tree_u32(&tree, "#address-cells", 2);
    tree_u32(&tree, "#size-cells", 2);
    tree_text(&tree, "compatible", "ferry,riscv64");
    tree_text(&tree, "model", "Ferry riscv64");
    tree_uuid(&tree, config);
    result = tree_chosen(&tree, inputs, err);
    if (result)
        return result;
    tree_begin(&tree, "memory@%" PRIx64, RISCV64_RAM_BASE);
    tree_text(&tree, "device_type", "memory");
    tree_reg(&tree, RISCV64_RAM_BASE, config->memory);
    tree_end(&tree);
    tree_cpus(&tree, config->vcpus);
    tree_soc(&tree, config);
    tree_end(&tree);
    if (!tree.result)
        tree.result = fdt_finish(out);
    if (tree.result)
        return error_set(err, -ENOSPC, "cannot make the device tree: %s", fdt_strerror(tree.result));
    *size = fdt_totalsize(out);
    return 0;
}
