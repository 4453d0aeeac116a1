/* Kernels that are not what they say they are. */
#include "unit.h"

#include "machine/board.h"
#include "machine/loader.h"
#include "machine/riscv64/layout.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define MEMORY_SIZE (16u << 20)

struct fixture {
    struct unit_dir dir;
    char kernel[128];
    char initrd[128];
    struct memory *memory;
    struct machine_config config;
};

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    struct ferry_error err;

    unit_dir_make(&fixture->dir);
    snprintf(fixture->kernel, sizeof(fixture->kernel), "%s/kernel", fixture->dir.path);
    snprintf(fixture->initrd, sizeof(fixture->initrd), "%s/initrd", fixture->dir.path);
    assert_ok(memory_new(&fixture->memory, &err), err);
    assert_ok(board_riscv64.add_memory(fixture->memory, MEMORY_SIZE, &err), err);
    fixture->config = (struct machine_config){
        .name = "t", .machine = "riscv64", .memory = MEMORY_SIZE, .vcpus = 1, .kernel = fixture->kernel};
    *state = fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;

    memory_free(fixture->memory);
    unit_dir_remove(&fixture->dir);
    free(fixture);
    return 0;
}

static void write_file(const char *path, const void *data, size_t size, size_t file_size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, size), size);
    assert_int_equal(ftruncate(fd, (off_t)file_size), 0);
    close(fd);
}

static int load(struct fixture *fixture, struct accel_boot *boot, struct ferry_error *err)
{
    return board_riscv64.load(&fixture->config, fixture->memory, boot, err);
}

static void assert_load_fails(struct fixture *fixture, int code, const char *part)
{
    struct ferry_error err = {0};
    struct accel_boot boot;
    int result = load(fixture, &boot, &err);

    if (result != code)
        fail_msg("returned %d (%s), expected %d", result, err.text, code);
    assert_contains(err.text, fixture->kernel);
    assert_contains(err.text, part);
}

struct image_header {
    uint32_t code[2];
    uint64_t text_offset;
    uint64_t image_size;
    uint64_t flags;
    uint32_t version;
    uint32_t reserved1;
    uint64_t reserved2;
    char magic[8];
    char magic2[4];
    uint32_t reserved3;
};

static struct image_header good_image(void)
{
    struct image_header header = {.text_offset = 0x200000, .image_size = 0x5000, .version = 2};

    memcpy(header.magic, "RISCV\0\0", 8);
    memcpy(header.magic2, "RSC\x05", 4);
    return header;
}

static void flat_image_goes_to_its_offset(void **state)
{
    struct fixture *fixture = *state;
    struct image_header header = good_image(), loaded;
    struct accel_boot boot;
    struct ferry_error err;

    write_file(fixture->kernel, &header, sizeof(header), 0x3000);
    assert_ok(load(fixture, &boot, &err), err);
    assert_int_equal(boot.entry, RISCV64_RAM_BASE + 0x200000);
    assert_int_equal(boot.arguments[0], 0);
    assert_int_equal(boot.arguments[1], RISCV64_RAM_BASE + MEMORY_SIZE - 0x10000);
    assert_true(memory_read(fixture->memory, boot.entry, &loaded, sizeof(loaded)));
    assert_memory_equal(&loaded, &header, sizeof(header));
}

static void flat_image_with_nonsense_in_its_header_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct image_header header = good_image();

    header.image_size = UINT64_MAX;
    write_file(fixture->kernel, &header, sizeof(header), 0x3000);
    assert_load_fails(fixture, -ENOSPC, "too large");
    header.image_size = UINT64_MAX - 0x200000 + 1;
    write_file(fixture->kernel, &header, sizeof(header), 0x3000);
    assert_load_fails(fixture, -ENOSPC, "too large");
    header.image_size = MEMORY_SIZE;
    write_file(fixture->kernel, &header, sizeof(header), 0x3000);
    assert_load_fails(fixture, -ENOSPC, "more memory");
    header = good_image();
    header.text_offset = UINT64_MAX - 0xfff;
    write_file(fixture->kernel, &header, sizeof(header), 0x3000);
    assert_load_fails(fixture, -ENOSPC, "too large");
    header.text_offset = 0x200001;
    write_file(fixture->kernel, &header, sizeof(header), 0x3000);
    assert_load_fails(fixture, -EINVAL, "text offset");
    header = good_image();
    header.flags = 1;
    write_file(fixture->kernel, &header, sizeof(header), 0x3000);
    assert_load_fails(fixture, -EINVAL, "big-endian");
}

static void file_larger_than_memory_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct image_header header = good_image();

    header.image_size = 0;
    write_file(fixture->kernel, &header, sizeof(header), MEMORY_SIZE);
    assert_load_fails(fixture, -ENOSPC, "too large");
}

static void things_that_are_no_kernel_are_named(void **state)
{
    struct fixture *fixture = *state;
    char text[100] = "hello";

    assert_load_fails(fixture, -ENOENT, "does not exist");
    write_file(fixture->kernel, "", 0, 0);
    assert_load_fails(fixture, -EINVAL, "empty");
    write_file(fixture->kernel, text, 5, 5);
    assert_load_fails(fixture, -EINVAL, "not a riscv64 kernel");
    write_file(fixture->kernel, "\x1f\x8b\x08", 3, 1000);
    assert_load_fails(fixture, -EINVAL, "gzip");
    fixture->config.kernel = fixture->dir.path;
    {
        struct ferry_error err;
        struct accel_boot boot;

        assert_int_equal(load(fixture, &boot, &err), -EISDIR);
        assert_contains(err.text, "directory");
    }
    fixture->config.kernel = "/dev/zero";
    {
        struct ferry_error err;
        struct accel_boot boot;

        assert_int_equal(load(fixture, &boot, &err), -EINVAL);
        assert_contains(err.text, "not a regular file");
    }
}

static void initrd_ends_below_the_device_tree(void **state)
{
    struct fixture *fixture = *state;
    struct image_header header = good_image();
    struct accel_boot boot;
    struct ferry_error err;
    char text[5] = {0};

    write_file(fixture->kernel, &header, sizeof(header), 0x3000);
    write_file(fixture->initrd, "disk", 4, 5000);
    fixture->config.initrd = fixture->initrd;
    assert_ok(load(fixture, &boot, &err), err);
    assert_true(memory_read(fixture->memory, boot.arguments[1] - 0x2000, text, 4));
    assert_string_equal(text, "disk");
}

static void initrd_that_does_not_fit_beside_the_kernel_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct image_header header = good_image();
    struct accel_boot boot;
    struct ferry_error err;

    write_file(fixture->kernel, &header, sizeof(header), 0x3000);
    fixture->config.initrd = fixture->initrd;
    assert_int_equal(load(fixture, &boot, &err), -ENOENT);
    assert_contains(err.text, fixture->initrd);
    write_file(fixture->initrd, "disk", 4, MEMORY_SIZE - 0x200000 - 0x5000 - 0x10000 + 1);
    assert_int_equal(load(fixture, &boot, &err), -ENOSPC);
    assert_contains(err.text, fixture->initrd);
    write_file(fixture->initrd, "disk", 4, (size_t)1 << 40);
    assert_int_equal(load(fixture, &boot, &err), -ENOSPC);
    write_file(fixture->initrd, "disk", 4, MEMORY_SIZE - 0x200000 - 0x5000 - 0x10000);
    assert_ok(load(fixture, &boot, &err), err);
}

struct elf_file {
    Elf64_Ehdr header;
    Elf64_Phdr segments[2];
    uint8_t text[64];
};

static struct elf_file good_elf(void)
{
    struct elf_file elf = {
        .header = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
                   .e_type = ET_EXEC,
                   .e_machine = EM_RISCV,
                   .e_version = EV_CURRENT,
                   .e_entry = 0xffffffff80000010,
                   .e_phoff = offsetof(struct elf_file, segments),
                   .e_phentsize = sizeof(Elf64_Phdr),
                   .e_phnum = 2},
    };

    elf.segments[0] = (Elf64_Phdr){.p_type = PT_LOAD,
                                   .p_flags = PF_R | PF_X,
                                   .p_offset = offsetof(struct elf_file, text),
                                   .p_vaddr = 0xffffffff80000000,
                                   .p_paddr = RISCV64_RAM_BASE + 0x1000,
                                   .p_filesz = 64,
                                   .p_memsz = 64};
    elf.segments[1] = (Elf64_Phdr){.p_type = PT_LOAD,
                                   .p_flags = PF_R | PF_W,
                                   .p_offset = offsetof(struct elf_file, text),
                                   .p_vaddr = 0xffffffff80002000,
                                   .p_paddr = RISCV64_RAM_BASE + 0x3000,
                                   .p_filesz = 8,
                                   .p_memsz = 0x2000};
    memset(elf.text, 0xaa, sizeof(elf.text));
    return elf;
}

static void elf_segments_go_to_their_physical_addresses(void **state)
{
    struct fixture *fixture = *state;
    struct elf_file elf = good_elf();
    struct accel_boot boot;
    struct ferry_error err;
    uint8_t old[0x2000], bytes[0x2000];

    memset(old, 0x55, sizeof(old));
    assert_true(memory_write(fixture->memory, RISCV64_RAM_BASE + 0x3000, old, sizeof(old)));
    write_file(fixture->kernel, &elf, sizeof(elf), sizeof(elf));
    assert_ok(load(fixture, &boot, &err), err);
    assert_int_equal(boot.entry, RISCV64_RAM_BASE + 0x1010);
    assert_true(memory_read(fixture->memory, RISCV64_RAM_BASE + 0x3000, bytes, sizeof(bytes)));
    assert_int_equal(bytes[7], 0xaa);
    assert_int_equal(bytes[8], 0);
    assert_int_equal(bytes[0x1fff], 0);
}

static void elf_cut_short_anywhere_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct elf_file elf = good_elf();

    for (size_t size = 1; size < sizeof(elf); size++) {
        struct ferry_error err = {0};
        struct accel_boot boot;

        write_file(fixture->kernel, &elf, size, size);
        assert_true(load(fixture, &boot, &err) < 0);
        assert_contains(err.text, fixture->kernel);
    }
}

static void elf_with_hostile_headers_is_refused(void **state)
{
    struct fixture *fixture = *state;
    static const struct {
        size_t offset;
        size_t size;
        uint64_t value;
        int code;
    } cases[] = {
#define HEADER(member) offsetof(struct elf_file, header.member), sizeof(((Elf64_Ehdr *)0)->member)
#define SEGMENT(n, member)                                                                                   \
    offsetof(struct elf_file, segments) + (n) * sizeof(Elf64_Phdr) + offsetof(Elf64_Phdr, member),           \
        sizeof(((Elf64_Phdr *)0)->member)
        {HEADER(e_machine), EM_X86_64, -EINVAL},
        {HEADER(e_type), ET_DYN, -EINVAL},
        {HEADER(e_ident[EI_CLASS]), ELFCLASS32, -EINVAL},
        {HEADER(e_ident[EI_DATA]), ELFDATA2MSB, -EINVAL},
        {HEADER(e_phentsize), 55, -EINVAL},
        {HEADER(e_phnum), 0, -EINVAL},
        {HEADER(e_phnum), 65535, -EINVAL},
        {HEADER(e_phoff), UINT64_MAX, -EINVAL},
        {HEADER(e_phoff), UINT64_MAX - 64, -EINVAL},
        {HEADER(e_phoff), (uint64_t)INT64_MAX, -EINVAL},
        {HEADER(e_entry), 0, -EINVAL},
        {HEADER(e_entry), UINT64_MAX, -EINVAL},
        {HEADER(e_entry), 0xffffffff80002000, -EINVAL}, /* in a segment that is not executable */
        {SEGMENT(0, p_offset), UINT64_MAX, -EINVAL},
        {SEGMENT(0, p_offset), UINT64_MAX - 63, -EINVAL},
        {SEGMENT(0, p_offset), (uint64_t)INT64_MAX, -EINVAL},
        {SEGMENT(0, p_filesz), UINT64_MAX, -EINVAL},
        {SEGMENT(0, p_filesz), 65, -EINVAL},
        {SEGMENT(0, p_memsz), UINT64_MAX, -ENOSPC},
        {SEGMENT(0, p_paddr), 0, -ENOSPC},
        {SEGMENT(0, p_paddr), UINT64_MAX, -ENOSPC},
        {SEGMENT(0, p_paddr), UINT64_MAX - 63, -ENOSPC},
        {SEGMENT(0, p_paddr), RISCV64_RAM_BASE + MEMORY_SIZE - 63, -ENOSPC},
        {SEGMENT(1, p_memsz), MEMORY_SIZE, -ENOSPC},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct elf_file elf = good_elf();
        struct ferry_error err = {0};
        struct accel_boot boot;
        int result;

        memcpy((uint8_t *)&elf + cases[i].offset, &cases[i].value, cases[i].size);
        write_file(fixture->kernel, &elf, sizeof(elf), sizeof(elf));
        result = load(fixture, &boot, &err);
        if (result != cases[i].code)
            fail_msg("case %zu: returned %d: %s", i, result, err.text);
        assert_contains(err.text, fixture->kernel);
    }
}

static void damaged_kernels_never_break_the_loader(void **state)
{
    struct fixture *fixture = *state;
    uint64_t seed = 0x5eed;

    print_message("seed 0x5eed\n");
    for (int i = 0; i < 2000; i++) {
        struct elf_file elf = good_elf();
        struct ferry_error err;
        struct accel_boot boot;

        for (int j = 0; j < 4; j++)
            ((uint8_t *)&elf)[unit_random(&seed) % sizeof(elf)] = (uint8_t)unit_random(&seed);
        write_file(fixture->kernel, &elf, sizeof(elf), sizeof(elf));
        (void)load(fixture, &boot, &err);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(flat_image_goes_to_its_offset, setup, teardown),
        cmocka_unit_test_setup_teardown(flat_image_with_nonsense_in_its_header_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(file_larger_than_memory_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(things_that_are_no_kernel_are_named, setup, teardown),
        cmocka_unit_test_setup_teardown(initrd_ends_below_the_device_tree, setup, teardown),
        cmocka_unit_test_setup_teardown(initrd_that_does_not_fit_beside_the_kernel_is_refused, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(elf_segments_go_to_their_physical_addresses, setup, teardown),
        cmocka_unit_test_setup_teardown(elf_cut_short_anywhere_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(elf_with_hostile_headers_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(damaged_kernels_never_break_the_loader, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
