/* The x86_64 board: where memory and devices are, what a PVH kernel is told, how a guest ends. */
#include "unit.h"

#include "machine/board.h"
#include "machine/x86_64/layout.h"
#include "machine/x86_64/linux_boot.h"
#include "machine/x86_64/memory_map.h"
#include "machine/x86_64/pc_ports.h"
#include "machine/x86_64/pvh.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define MIB UINT64_C(0x100000)
#define GIB UINT64_C(0x40000000)

/* ---- memory ---- */

static struct memory *memory_of(uint64_t size)
{
    struct ferry_error err;
    struct memory *memory;

    assert_ok(memory_new(&memory, &err), err);
    assert_ok(board_x86_64.add_memory(memory, size, &err), err);
    return memory;
}

static void memory_goes_around_the_hole(void **state)
{
    static const struct {
        uint64_t size, low, high;
    } cases[] = {{16 * MIB, 16 * MIB, 0},
                 {3 * GIB, 3 * GIB, 0},
                 {3 * GIB + MIB, 3 * GIB, MIB},
                 {64 * GIB, 3 * GIB, 61 * GIB}};

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct memory *memory = memory_of(cases[i].size);

        assert_int_equal(memory_total(memory), cases[i].size);
        assert_int_equal(memory_region(memory, 0)->size, cases[i].low);
        assert_int_equal(memory_region_count(memory), cases[i].high ? 2 : 1);
        if (cases[i].high) {
            assert_int_equal(memory_region(memory, 1)->guest_addr, 4 * GIB);
            assert_int_equal(memory_region(memory, 1)->size, cases[i].high);
        }
        memory_free(memory);
    }
}

static void memory_map_has_all_ram_but_what_firmware_keeps(void **state)
{
    struct memory *memory = memory_of(5 * GIB);
    struct memory_map_entry map[MEMORY_MAP_MAX];
    uint64_t ram = 0;

    assert_int_equal(memory_map_make(memory, map), 4);
    for (size_t i = 0; i < 4; i++) {
        ram += map[i].type == MEMORY_MAP_RAM ? map[i].size : 0;
        assert_true(i == 0 || map[i].addr >= map[i - 1].addr + map[i - 1].size);
    }
    assert_int_equal(ram, 5 * GIB - (MIB - X86_64_LOW_RAM_END));
    assert_int_equal(map[1].type, MEMORY_MAP_RESERVED);
    assert_int_equal(map[3].addr, 4 * GIB);
    memory_free(memory);
}

static void every_device_has_a_place_and_an_interrupt_of_its_own(void **state)
{
    struct board_place places[3 + 2 + MACHINE_DISKS_MAX + MACHINE_NETS_MAX];
    size_t count = 0;

    places[count++] = board_x86_64.place(BOARD_UART, 0);
    places[count++] = board_x86_64.place(BOARD_RTC, 0);
    places[count++] = board_x86_64.place(BOARD_RNG, 0);
    places[count++] = board_x86_64.place(BOARD_CONSOLE, 0);
    places[count++] = board_x86_64.place(BOARD_VMGENID, 0);
    for (unsigned i = 0; i < MACHINE_DISKS_MAX; i++)
        places[count++] = board_x86_64.place(BOARD_BLK, i);
    for (unsigned i = 0; i < MACHINE_NETS_MAX; i++)
        places[count++] = board_x86_64.place(BOARD_NET, i);
    for (size_t i = 0; i < count; i++) {
        assert_true(places[i].irq > 0 && places[i].irq != 2 && places[i].irq < 24 && places[i].irq != 9);
        assert_true(places[i].mmio_addr >= X86_64_HOLE);
        for (size_t j = 0; j < i; j++) {
            assert_int_not_equal(places[i].irq, places[j].irq);
            assert_int_not_equal(places[i].mmio_addr, places[j].mmio_addr);
        }
    }
}

/* ---- kernels ---- */

struct image {
    Elf64_Ehdr header;
    Elf64_Phdr segments[2];
    uint32_t note[5];
    uint8_t code[16];
};

#define ENTRY 0x100004u

static void image_make(struct image *image)
{
    *image = (struct image){
        .header = {.e_type = ET_EXEC,
                   .e_machine = EM_X86_64,
                   .e_entry = 0x100000,
                   .e_phoff = offsetof(struct image, segments),
                   .e_phentsize = sizeof(Elf64_Phdr),
                   .e_phnum = 2},
        .segments = {{.p_type = PT_LOAD,
                      .p_flags = PF_X | PF_R,
                      .p_offset = offsetof(struct image, code),
                      .p_vaddr = 0x100000,
                      .p_paddr = 0x100000,
                      .p_filesz = 16,
                      .p_memsz = 4096},
                     {.p_type = PT_NOTE, .p_offset = offsetof(struct image, note), .p_filesz = 20}},
        .note = {4, 4, 18, 0x6e6558 /* "Xen" */, ENTRY},
    };
    memcpy(image->header.e_ident, ELFMAG, SELFMAG);
    image->header.e_ident[EI_CLASS] = ELFCLASS64;
    image->header.e_ident[EI_DATA] = ELFDATA2LSB;
    image->header.e_ident[EI_VERSION] = EV_CURRENT;
}

struct boot_fixture {
    struct unit_dir dir;
    char kernel[128], initrd[128];
    struct memory *memory;
    struct machine_config config;
};

static int boot_setup(void **state)
{
    struct boot_fixture *fixture = calloc(1, sizeof(*fixture));

    unit_dir_make(&fixture->dir);
    snprintf(fixture->kernel, sizeof(fixture->kernel), "%s/kernel", fixture->dir.path);
    snprintf(fixture->initrd, sizeof(fixture->initrd), "%s/initrd", fixture->dir.path);
    fixture->memory = memory_of(16 * MIB);
    fixture->config = (struct machine_config){
        .name = "t", .machine = "x86_64", .memory = 16 * MIB, .vcpus = 1, .kernel = fixture->kernel};
    *state = fixture;
    return 0;
}

static int boot_teardown(void **state)
{
    struct boot_fixture *fixture = *state;

    memory_free(fixture->memory);
    unit_dir_remove(&fixture->dir);
    free(fixture);
    return 0;
}

static void write_file(const char *path, const void *data, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, size), size);
    close(fd);
}

static uint64_t get(const struct memory *memory, uint64_t addr, size_t size)
{
    uint64_t value = 0;

    assert_true(memory_read(memory, addr, &value, size));
    return value;
}

static void pvh_kernel_is_told_of_memory_command_line_and_initrd(void **state)
{
    struct boot_fixture *fixture = *state;
    const struct memory *memory = fixture->memory;
    struct accel_boot boot;
    struct ferry_error err;
    struct image image;
    uint64_t info, module;
    char text[16];

    image_make(&image);
    write_file(fixture->kernel, &image, sizeof(image));
    write_file(fixture->initrd, "initrd", 6);
    fixture->config.initrd = fixture->initrd;
    fixture->config.cmdline = "quiet mem=1";
    assert_ok(board_x86_64.load(&fixture->config, fixture->memory, &boot, &err), err);
    assert_int_equal(boot.entry, ENTRY);
    assert_int_equal(boot.arguments[1], X86_64_BOOT_PVH);
    info = boot.arguments[0];
    assert_int_equal(get(memory, info, 4), 0x336ec578);
    assert_int_equal(get(memory, info + 4, 4), 1);
    assert_int_equal(get(memory, info + 12, 4), 1);
    module = get(memory, info + 16, 8);
    assert_true(memory_read(memory, get(memory, info + 24, 8), text, 12));
    assert_string_equal(text, "quiet mem=1");
    assert_int_equal(get(memory, get(memory, info + 32, 8), 8), 0x2052545020445352); /* "RSD PTR " */
    assert_int_equal(get(memory, info + 48, 4), 3);
    assert_int_equal(get(memory, get(memory, info + 40, 8) + 2 * 24, 8), MIB);
    assert_int_equal(get(memory, module + 8, 8), 6);
    assert_int_equal(get(memory, get(memory, module, 8), 6), 0x647274696e69);
}

static void note_that_makes_no_sense_is_refused(void **state)
{
    static const uint32_t notes[][5] = {
        {4, 4, 17, 0x6e6558, ENTRY},          /* another type */
        {4, 4, 18, 0x6e6559, ENTRY},          /* another name */
        {UINT32_MAX, 4, 18, 0x6e6558, ENTRY}, /* a name, a content larger than all */
        {4, UINT32_MAX, 18, 0x6e6558, ENTRY}, {4, UINT32_MAX - 2, 18, 0x6e6558, ENTRY},
        {0, 0, 18, 0x6e6558, ENTRY},          {4, 3, 18, 0x6e6558, ENTRY},
    };
    struct boot_fixture *fixture = *state;
    struct accel_boot boot;
    struct ferry_error err;
    struct image image;

    for (size_t i = 0; i < ARRAY_SIZE(notes); i++) {
        image_make(&image);
        memcpy(image.note, notes[i], sizeof(image.note));
        write_file(fixture->kernel, &image, sizeof(image));
        assert_int_equal(board_x86_64.load(&fixture->config, fixture->memory, &boot, &err), -EINVAL);
        assert_contains(err.text, "PVH");
    }
    image_make(&image);
    image.segments[1].p_offset = UINT64_MAX - 8;
    write_file(fixture->kernel, &image, sizeof(image));
    assert_int_equal(board_x86_64.load(&fixture->config, fixture->memory, &boot, &err), -EINVAL);
    image_make(&image);
    image.segments[0].p_paddr = 0x1000; /* over what the kernel is told */
    write_file(fixture->kernel, &image, sizeof(image));
    assert_int_equal(board_x86_64.load(&fixture->config, fixture->memory, &boot, &err), -EINVAL);
    assert_contains(err.text, "below 1 MiB");
}

/* ---- bzImage ---- */

#define BZ_SIZE 4096

static void bzimage_make(uint8_t image[static BZ_SIZE])
{
    memset(image, 0, BZ_SIZE);
    image[0x1f1] = 1; /* one sector of set-up behind the first */
    image[0x1fe] = 0x55;
    image[0x1ff] = 0xaa;
    image[0x201] = 0x66;
    memcpy(image + 0x202, "HdrS", 4);
    image[0x207] = 2; /* 2.15 */
    image[0x206] = 15;
    image[0x211] = 1;
    memset(image + 0x22c, 0xff, 3);
    image[0x22f] = 0x7f;
    image[0x236] = 1;
    image[0x238] = 20;
    image[0x25a] = 0x20; /* prefers 2 MiB */
    image[0x262] = 0x10; /* needs 1 MiB */
    memset(image + 1024, 0x90, BZ_SIZE - 1024);
}

static void bzimage_is_told_by_the_64_bit_protocol(void **state)
{
    struct boot_fixture *fixture = *state;
    const struct memory *memory = fixture->memory;
    struct accel_boot boot;
    struct ferry_error err;
    uint8_t image[BZ_SIZE];
    char text[16];
    uint64_t params, pointers, directory;

    bzimage_make(image);
    write_file(fixture->kernel, image, sizeof(image));
    write_file(fixture->initrd, "initrd", 6);
    fixture->config.initrd = fixture->initrd;
    fixture->config.cmdline = "quiet";
    assert_ok(board_x86_64.load(&fixture->config, fixture->memory, &boot, &err), err);
    assert_int_equal(boot.entry, 0x200200);
    assert_int_equal(boot.arguments[1], X86_64_BOOT_LINUX64);
    assert_int_equal(get(memory, 0x200000, 8), 0x9090909090909090);
    assert_int_equal(get(memory, 0x200000 + BZ_SIZE - 1024, 8), 0);
    params = boot.arguments[0];
    assert_int_equal(get(memory, params + 0x202, 4), 0x53726448);
    assert_int_equal(get(memory, params + 0x210, 1), 0xff);
    assert_true(memory_read(memory, get(memory, params + 0x228, 4), text, 6));
    assert_string_equal(text, "quiet");
    assert_int_equal(get(memory, get(memory, params + 0x218, 4), 6), 0x647274696e69);
    assert_int_equal(get(memory, params + 0x21c, 4), 6);
    assert_int_equal(get(memory, get(memory, params + 0x70, 8), 8), 0x2052545020445352);
    assert_int_equal(get(memory, params + 0x1e8, 1), 3);
    assert_int_equal(get(memory, params + 0x2d0 + 40, 8), MIB);
    assert_int_equal(get(memory, params + 0x2d0 + 48, 8), 15 * MIB);
    /* The last byte of the first 4 GiB is mapped to itself. */
    pointers = get(memory, LINUX_BOOT_PAGE_TABLES, 8) & ~UINT64_C(0xfff);
    directory = get(memory, pointers + 24, 8) & ~UINT64_C(0xfff);
    assert_int_equal(get(memory, directory + 511 * 8, 8), 0xffe00083);
}

static void bzimage_that_cannot_be_started_is_refused(void **state)
{
    static const struct {
        size_t offset;
        uint8_t value;
        const char *word;
    } cases[] = {{0x206, 11, "older"},  {0x236, 0, "64-bit"},      {0x211, 0, "64-bit"},
                 {0x25a, 0, "address"}, {0x258, 1, "address"},     {0x25f, 0x80, "memory"},
                 {0x263, 2, "memory"},  {0x1f1, 200, "cut short"}, {0x238, 2, "command line"}};
    struct boot_fixture *fixture = *state;
    struct accel_boot boot;
    struct ferry_error err;
    uint8_t image[BZ_SIZE];

    fixture->config.cmdline = "quiet";
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        bzimage_make(image);
        image[cases[i].offset] = cases[i].value;
        write_file(fixture->kernel, image, sizeof(image));
        assert_true(board_x86_64.load(&fixture->config, fixture->memory, &boot, &err) < 0);
        assert_contains(err.text, cases[i].word);
    }
}

/* ---- ports ---- */

static void note_event(void *opaque, enum accel_event event, const char *why)
{
    *(enum accel_event *)opaque = event;
}

static void guest_ends_by_acpi_and_keyboard_controller(void **state)
{
    enum accel_event event = 0;
    const struct accel_platform platform = {.opaque = &event, .event = note_event};
    struct pc_ports ports;
    struct mmio_bus *bus;
    struct ferry_error err;
    uint64_t value;

    assert_ok(mmio_bus_new(&bus, &err), err);
    assert_ok(pc_ports_init(&ports, bus, &platform, &err), err);
    assert_true(mmio_bus_write(bus, X86_64_PORTS + 0x604, 2, 0x2400)); /* another sleep type */
    assert_true(mmio_bus_write(bus, X86_64_PORTS + 0x604, 2, 0x0001));
    assert_true(mmio_bus_write(bus, X86_64_PORTS + 0x600, 2, 0xffff));
    assert_true(mmio_bus_write(bus, X86_64_PORTS + 0x64, 1, 0xd1));
    assert_true(mmio_bus_write(bus, X86_64_PORTS + 0x64, 1, 0xff));
    assert_int_equal(event, 0);
    assert_true(mmio_bus_write(bus, X86_64_PORTS + 0x604, 2, 0x2000));
    assert_int_equal(event, ACCEL_EVENT_POWER_OFF);
    assert_true(mmio_bus_write(bus, X86_64_PORTS + 0x64, 1, 0xfe));
    assert_int_equal(event, ACCEL_EVENT_RESET);
    assert_true(mmio_bus_read(bus, X86_64_PORTS + 0x604, 2, &value));
    assert_int_equal(value, 1);
    /* Linux enables and disables events, and reads that they are. */
    for (unsigned enabled = 0; enabled <= 0x420; enabled += 0x20) {
        assert_true(mmio_bus_write(bus, X86_64_PORTS + 0x602, 2, enabled));
        assert_true(mmio_bus_read(bus, X86_64_PORTS + 0x602, 2, &value));
        assert_int_equal(value, enabled);
    }
    mmio_bus_free(bus);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_goes_around_the_hole),
        cmocka_unit_test(memory_map_has_all_ram_but_what_firmware_keeps),
        cmocka_unit_test(every_device_has_a_place_and_an_interrupt_of_its_own),
        cmocka_unit_test_setup_teardown(pvh_kernel_is_told_of_memory_command_line_and_initrd, boot_setup,
                                        boot_teardown),
        cmocka_unit_test_setup_teardown(note_that_makes_no_sense_is_refused, boot_setup, boot_teardown),
        cmocka_unit_test_setup_teardown(bzimage_is_told_by_the_64_bit_protocol, boot_setup, boot_teardown),
        cmocka_unit_test_setup_teardown(bzimage_that_cannot_be_started_is_refused, boot_setup, boot_teardown),
        cmocka_unit_test(guest_ends_by_acpi_and_keyboard_controller),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
