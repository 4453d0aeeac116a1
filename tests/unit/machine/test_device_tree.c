#include "unit.h"

#include "machine/board.h"
#include "machine/riscv64/device_tree.h"
#include "machine/riscv64/layout.h"

#include <libfdt.h>

static uint8_t tree[DEVICE_TREE_SIZE_MAX];

static void make(struct machine_config *config, uint64_t initrd_start, uint64_t initrd_end)
{
    struct device_tree_inputs inputs = {
        .config = config, .initrd_start = initrd_start, .initrd_end = initrd_end};
    struct ferry_error err;
    uint32_t size;

    assert_ok(device_tree_make(&inputs, tree, &size, &err), err);
    assert_int_equal(fdt_check_full(tree, size), 0);
}

static const void *property(const char *path, const char *name, int *size)
{
    int node = fdt_path_offset(tree, path);
    const void *value = node >= 0 ? fdt_getprop(tree, node, name, size) : NULL;

    if (!value)
        fail_msg("%s has no %s", path, name);
    return value;
}

static const char *text(const char *path, const char *name)
{
    int size;

    return property(path, name, &size);
}

static uint64_t number(const char *path, const char *name)
{
    int size;
    const uint8_t *bytes = property(path, name, &size);
    uint64_t value = 0;

    while (size-- > 0)
        value = value << 8 | *bytes++;
    return value;
}

static struct machine_config small = {.name = "t", .machine = "riscv64", .memory = 64 << 20, .vcpus = 1};

static void memory_is_what_was_configured(void **state)
{
    int size;
    const fdt64_t *reg;

    make(&small, 0, 0);
    reg = property("/memory@80000000", "reg", &size);
    assert_int_equal(size, 16);
    assert_int_equal(fdt64_to_cpu(reg[0]), RISCV64_RAM_BASE);
    assert_int_equal(fdt64_to_cpu(reg[1]), 64 << 20);
}

static void chosen_says_how_to_start(void **state)
{
    struct machine_config config = small;
    uint8_t seed[56];
    int size;

    config.cmdline = "console=ttyS0 quiet";
    make(&config, 0x84000000, 0x84001234);
    assert_string_equal(text("/chosen", "bootargs"), "console=ttyS0 quiet");
    assert_int_equal(number("/chosen", "linux,initrd-start"), 0x84000000);
    assert_int_equal(number("/chosen", "linux,initrd-end"), 0x84001234);
    assert_true(fdt_path_offset(tree, text("/chosen", "stdout-path")) > 0);
    memcpy(seed, property("/chosen", "rng-seed", &size), sizeof(seed));
    assert_int_equal(size, sizeof(seed));
    make(&config, 0, 0);
    assert_memory_not_equal(seed, property("/chosen", "rng-seed", &size), sizeof(seed));
    assert_null(fdt_getprop(tree, fdt_path_offset(tree, "/chosen"), "linux,initrd-start", NULL));
}

static void root_has_the_uuid_of_the_vm(void **state)
{
    static const char uuid[] = "1b4e28ba-2fa1-41d2-883f-0016d3cca427";
    struct machine_config config = small;

    assert_true(uuid_parse(uuid, config.uuid));
    make(&config, 0, 0);
    assert_string_equal(text("/", "serial-number"), uuid);
    assert_string_equal(text("/", "vm,uuid"), uuid);
}

static void every_hart_has_a_node_and_a_plic_context(void **state)
{
    struct machine_config config = small;
    const fdt32_t *contexts;
    int size;

    config.vcpus = 8;
    make(&config, 0, 0);
    assert_int_equal(number("/cpus", "timebase-frequency"), 10000000);
    assert_string_equal(text("/cpus/cpu@7", "mmu-type"), RISCV64_MMU_TYPE);
    assert_string_equal(text("/cpus/cpu@7", "riscv,isa"), RISCV64_ISA);
    assert_int_equal(number("/cpus/cpu@7", "reg"), 7);
    assert_true(fdt_path_offset(tree, "/cpus/cpu@8") < 0);
    contexts = property("/soc/plic@c000000", "interrupts-extended", &size);
    assert_int_equal(size, 8 * 8);
    for (int i = 0; i < 8; i++) {
        char path[64];

        snprintf(path, sizeof(path), "/cpus/cpu@%d/interrupt-controller", i);
        assert_int_equal(fdt32_to_cpu(contexts[2 * i]), number(path, "phandle"));
        assert_int_equal(fdt32_to_cpu(contexts[2 * i + 1]), 9);
    }
}

static void devices_are_where_the_board_puts_them(void **state)
{
    struct machine_config config = small;

    config.disk_count = 2;
    config.net_count = 1;
    make(&config, 0, 0);
    assert_string_equal(text("/soc/serial@10000000", "compatible"), "ns16550a");
    assert_int_equal(number("/soc/serial@10000000", "interrupts"), RISCV64_UART_IRQ);
    assert_string_equal(text("/soc/rtc@101000", "compatible"), "google,goldfish-rtc");
    for (int i = 0; i < 2; i++) {
        struct board_place place = board_riscv64.place(BOARD_BLK, (unsigned)i);
        char path[64];

        snprintf(path, sizeof(path), "/soc/virtio_mmio@%lx", (unsigned long)place.mmio_addr);
        assert_string_equal(text(path, "compatible"), "virtio,mmio");
        assert_int_equal(number(path, "interrupts"), place.irq);
    }
    /* rng, console, two disks, one card */
    assert_true(fdt_path_offset(tree, "/soc/virtio_mmio@10001000") > 0);
    assert_true(fdt_path_offset(tree, "/soc/virtio_mmio@10002000") > 0);
    assert_true(fdt_path_offset(tree, "/soc/virtio_mmio@1000b000") > 0);
    assert_true(fdt_path_offset(tree, "/soc/virtio_mmio@1000c000") < 0);
}

static void places_do_not_depend_on_what_else_there_is(void **state)
{
    assert_int_equal(board_riscv64.place(BOARD_NET, 0).mmio_addr, 0x1000b000);
    assert_int_equal(board_riscv64.place(BOARD_NET, 0).irq, 11);
    assert_int_equal(board_riscv64.place(BOARD_BLK, 0).mmio_addr, 0x10003000);
    assert_int_equal(board_riscv64.place(BOARD_BLK, 7).irq, 10);
}

static void largest_machine_fits(void **state)
{
    struct machine_config config = small;
    char cmdline[1024];

    memset(cmdline, 'x', 1023);
    cmdline[1023] = '\0';
    config.cmdline = cmdline;
    config.vcpus = MACHINE_VCPUS_MAX_RISCV64;
    config.disk_count = MACHINE_DISKS_MAX;
    config.net_count = MACHINE_NETS_MAX;
    config.memory = UINT64_C(1) << 40;
    make(&config, 1, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_what_was_configured),
        cmocka_unit_test(chosen_says_how_to_start),
        cmocka_unit_test(root_has_the_uuid_of_the_vm),
        cmocka_unit_test(every_hart_has_a_node_and_a_plic_context),
        cmocka_unit_test(devices_are_where_the_board_puts_them),
        cmocka_unit_test(places_do_not_depend_on_what_else_there_is),
        cmocka_unit_test(largest_machine_fits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
