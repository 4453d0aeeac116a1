/*
 * Runs a riscv64 program on the built-in CPU without the rest of the machine: RAM, harts, PLIC, a device
 * tree. The console is the firmware's (SBI); the program ends by asking for a reset.
 *
 *     riscv64_run [--cpus N] [--memory MIB] [--cmdline TEXT] [--initrd FILE] [--seconds N] [--dirty-check]
 * PROGRAM
 *
 * PROGRAM is an ELF file, loaded where it says, or a flat Image, loaded 2 MiB above the start of RAM.
 * --dirty-check fetches dirty pages all the time and keeps a copy of memory by them, which at the end must be
 * what memory is. Exit status: 0 switched off, 1 crash or a failed check, 2 bad usage, 3 time was up.
 */
#include "base/bitmap.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/thread.h"
#include "bus/memory.h"
#include "bus/mmio.h"
#include "machine/accel.h"
#include "machine/riscv64/layout.h"

#include <elf.h>
#include <errno.h>
#include <getopt.h>
#include <libfdt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FDT_SIZE 65536

struct run {
    struct memory *memory;
    struct mmio_bus *bus;
    struct accel *accel;
    unsigned cpus, seconds;
    uint64_t memory_size;
    const char *cmdline, *initrd;
    bool dirty_check;
    uint64_t initrd_start, initrd_end;
    struct accel_boot boot;

    pthread_mutex_t lock; /* guards event, done */
    pthread_cond_t changed;
    enum accel_event event;
    bool done;
    struct thread threads[RISCV64_HARTS_MAX];
    unsigned next_index;
    struct ferry_error thread_error;
};

static void on_event(void *opaque, enum accel_event event, const char *why)
{
    struct run *run = opaque;

    pthread_mutex_lock(&run->lock);
    if (!run->event)
        run->event = event;
    pthread_cond_broadcast(&run->changed);
    pthread_mutex_unlock(&run->lock);
    if (event != ACCEL_EVENT_POWER_OFF)
        fprintf(stderr, "riscv64_run: %s\n", why);
}

static void on_console(void *opaque, const void *data, size_t size)
{
    (void)opaque;
    if (write(STDOUT_FILENO, data, size) < 0)
        perror("riscv64_run: console");
}

static void *hart_thread(void *argument)
{
    struct run *run = argument;
    unsigned index = __atomic_fetch_add(&run->next_index, 1, __ATOMIC_SEQ_CST);

    for (;;) {
        bool done;

        if (run->accel->ops->vcpu_run(run->accel, index, &run->thread_error) == ACCEL_EXIT_ERROR)
            on_event(run, ACCEL_EVENT_CRASH, run->thread_error.text);
        pthread_mutex_lock(&run->lock);
        done = run->done;
        pthread_mutex_unlock(&run->lock);
        if (done)
            return NULL;
    }
}

/* The whole file, malloc'd. */
static uint8_t *read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    uint8_t *data = NULL;
    long length;

    if (!file) {
        fprintf(stderr, "riscv64_run: cannot open %s: %s\n", path, strerror(errno));
        return NULL;
    }
    if (fseek(file, 0, SEEK_END) == 0 && (length = ftell(file)) >= 0 && fseek(file, 0, SEEK_SET) == 0) {
        *size = (size_t)length;
        data = malloc(*size + 1);
        if (data && fread(data, 1, *size, file) != *size) {
            free(data);
            data = NULL;
        }
    }
    fclose(file);
    return data;
}

static bool load_elf(struct run *run, const uint8_t *data, size_t size)
{
    Elf64_Ehdr header;

    memcpy(&header, data, sizeof(header));
    for (unsigned i = 0; i < header.e_phnum; i++) {
        Elf64_Phdr segment;
        uint64_t at = header.e_phoff + (uint64_t)i * sizeof(segment);

        if (at > size || sizeof(segment) > size - at)
            return false;
        memcpy(&segment, data + at, sizeof(segment));
        if (segment.p_type != PT_LOAD)
            continue;
        if (segment.p_offset > size || segment.p_filesz > size - segment.p_offset ||
            !memory_write(run->memory, segment.p_paddr, data + segment.p_offset, segment.p_filesz))
            return false;
    }
    run->boot.entry = header.e_entry;
    return true;
}

static bool load_program(struct run *run, const char *path)
{
    size_t size = 0;
    uint8_t *data = read_file(path, &size);
    bool loaded;

    if (!data)
        return false;
    if (size > sizeof(Elf64_Ehdr) && memcmp(data, ELFMAG, SELFMAG) == 0) {
        loaded = load_elf(run, data, size);
    } else {
        run->boot.entry = RISCV64_RAM_BASE + RISCV64_KERNEL_OFFSET;
        loaded = memory_write(run->memory, run->boot.entry, data, size);
    }
    free(data);
    if (!loaded)
        fprintf(stderr, "riscv64_run: %s does not fit into memory\n", path);
    return loaded;
}

static bool load_initrd(struct run *run)
{
    size_t size = 0;
    uint8_t *data;
    bool loaded;

    if (!run->initrd)
        return true;
    data = read_file(run->initrd, &size);
    if (!data)
        return false;
    run->initrd_start = RISCV64_RAM_BASE + (run->memory_size / 2 & ~UINT64_C(0x1fffff));
    run->initrd_end = run->initrd_start + size;
    loaded = memory_write(run->memory, run->initrd_start, data, size);
    free(data);
    return loaded;
}

static void add_cpu(void *fdt, unsigned index)
{
    char name[32];

    snprintf(name, sizeof(name), "cpu@%u", index);
    fdt_begin_node(fdt, name);
    fdt_property_string(fdt, "device_type", "cpu");
    fdt_property_string(fdt, "compatible", "riscv");
    fdt_property_u32(fdt, "reg", index);
    fdt_property_string(fdt, "status", "okay");
    fdt_property_string(fdt, "riscv,isa", RISCV64_ISA);
    fdt_property_string(fdt, "mmu-type", RISCV64_MMU_TYPE);
    fdt_begin_node(fdt, "interrupt-controller");
    fdt_property_u32(fdt, "#interrupt-cells", 1);
    fdt_property(fdt, "interrupt-controller", NULL, 0);
    fdt_property_string(fdt, "compatible", "riscv,cpu-intc");
    fdt_property_u32(fdt, "phandle", index + 1);
    fdt_end_node(fdt);
    fdt_end_node(fdt);
}

static void add_plic(const struct run *run, void *fdt)
{
    uint32_t interrupts[2 * RISCV64_HARTS_MAX];
    uint64_t reg[2] = {cpu_to_fdt64(RISCV64_PLIC_BASE), cpu_to_fdt64(RISCV64_PLIC_SIZE)};

    for (unsigned i = 0; i < run->cpus; i++) {
        interrupts[2 * i] = cpu_to_fdt32(i + 1);
        interrupts[2 * i + 1] = cpu_to_fdt32(9);
    }
    fdt_begin_node(fdt, "plic@c000000");
    fdt_property_string(fdt, "compatible", "sifive,plic-1.0.0");
    fdt_property(fdt, "interrupt-controller", NULL, 0);
    fdt_property_u32(fdt, "#interrupt-cells", 1);
    fdt_property_u32(fdt, "#address-cells", 0);
    fdt_property(fdt, "reg", reg, sizeof(reg));
    fdt_property_u32(fdt, "riscv,ndev", RISCV64_PLIC_SOURCES);
    fdt_property(fdt, "interrupts-extended", interrupts, (int)(8 * run->cpus));
    fdt_property_u32(fdt, "phandle", 100);
    fdt_end_node(fdt);
}

static bool add_device_tree(struct run *run)
{
    uint64_t at = RISCV64_RAM_BASE + run->memory_size - FDT_SIZE;
    uint64_t reg[2] = {cpu_to_fdt64(RISCV64_RAM_BASE), cpu_to_fdt64(run->memory_size)};
    void *fdt = calloc(1, FDT_SIZE);
    bool written;

    if (!fdt)
        return false;
    fdt_create(fdt, FDT_SIZE);
    fdt_finish_reservemap(fdt);
    fdt_begin_node(fdt, "");
    fdt_property_u32(fdt, "#address-cells", 2);
    fdt_property_u32(fdt, "#size-cells", 2);
    fdt_property_string(fdt, "compatible", "riscv-virtio");
    fdt_property_string(fdt, "model", "ferry,test");
    fdt_begin_node(fdt, "chosen");
    if (run->cmdline)
        fdt_property_string(fdt, "bootargs", run->cmdline);
    if (run->initrd) {
        fdt_property_u64(fdt, "linux,initrd-start", run->initrd_start);
        fdt_property_u64(fdt, "linux,initrd-end", run->initrd_end);
    }
    fdt_end_node(fdt);
    fdt_begin_node(fdt, "memory@80000000");
    fdt_property_string(fdt, "device_type", "memory");
    fdt_property(fdt, "reg", reg, sizeof(reg));
    fdt_end_node(fdt);
    fdt_begin_node(fdt, "cpus");
    fdt_property_u32(fdt, "#address-cells", 1);
    fdt_property_u32(fdt, "#size-cells", 0);
    fdt_property_u32(fdt, "timebase-frequency", RISCV64_TIMEBASE_HZ);
    for (unsigned i = 0; i < run->cpus; i++)
        add_cpu(fdt, i);
    fdt_end_node(fdt);
    fdt_begin_node(fdt, "soc");
    fdt_property_u32(fdt, "#address-cells", 2);
    fdt_property_u32(fdt, "#size-cells", 2);
    fdt_property_string(fdt, "compatible", "simple-bus");
    fdt_property(fdt, "ranges", NULL, 0);
    add_plic(run, fdt);
    fdt_end_node(fdt);
    fdt_end_node(fdt);
    written = fdt_finish(fdt) == 0 && memory_write(run->memory, at, fdt, fdt_totalsize(fdt));
    free(fdt);
    run->boot.arguments[0] = 0;
    run->boot.arguments[1] = at;
    return written;
}

/* Until the guest ends or the time is up; true: it ended. */
static bool wait_for_end(struct run *run, uint8_t *copy)
{
    const struct memory_region *region = memory_region(run->memory, 0);
    size_t pages = (size_t)(region->size >> MEMORY_PAGE_SHIFT);
    uint64_t deadline = clock_deadline((int64_t)run->seconds * 1000), *dirty = bitmap_new(pages);
    struct ferry_error err;
    size_t fetched = 0, rounds = 0;
    bool ended;

    for (;;) {
        uint64_t until = copy ? clock_now_ns() + NS_PER_MS / 4 : deadline;

        pthread_mutex_lock(&run->lock);
        while (!run->event && clock_now_ns() < deadline &&
               thread_cond_wait_until(&run->changed, &run->lock, until))
            ;
        ended = run->event != 0;
        pthread_mutex_unlock(&run->lock);
        if (ended || clock_now_ns() >= deadline)
            break;
        if (run->accel->ops->dirty_fetch(run->accel, 0, dirty, &err))
            break;
        rounds++;
        for (size_t i = 0; (i = bitmap_next_set(dirty, pages, i)) < pages; i++, fetched++) {
            bitmap_clear(dirty, i);
            memcpy(copy + i * MEMORY_PAGE_SIZE, region->host_ptr + i * MEMORY_PAGE_SIZE, MEMORY_PAGE_SIZE);
        }
    }
    if (copy)
        fprintf(stderr, "riscv64_run: %zu pages in %zu fetches\n", fetched, rounds);
    free(dirty);
    return ended;
}

/* After the harts have stopped: the last pages, then the copy must be what memory is. */
static bool check_copy(struct run *run, uint8_t *copy)
{
    const struct memory_region *region = memory_region(run->memory, 0);
    size_t pages = (size_t)(region->size >> MEMORY_PAGE_SHIFT), wrong = 0;
    uint64_t *dirty = bitmap_new(pages);
    struct ferry_error err;

    if (run->accel->ops->dirty_fetch(run->accel, 0, dirty, &err))
        return false;
    for (size_t i = 0; i < pages; i++) {
        size_t at = i * MEMORY_PAGE_SIZE;

        if (!bitmap_test(dirty, i) && memcmp(copy + at, region->host_ptr + at, MEMORY_PAGE_SIZE) != 0)
            wrong++;
    }
    free(dirty);
    fprintf(stderr, "riscv64_run: %zu pages were written without having been reported\n", wrong);
    return wrong == 0;
}

static int run_program(struct run *run, const char *path, struct ferry_error *err)
{
    struct accel_platform platform = {.opaque = run, .event = on_event, .console_write = on_console};
    struct accel_config config = {.vcpus = run->cpus, .platform = &platform};
    const struct accel_ops *ops = &accel_soft;
    uint8_t *copy = NULL;
    bool ended, good = true;

    if (memory_new(&run->memory, err) ||
        memory_add_region(run->memory, "ram0", RISCV64_RAM_BASE, run->memory_size, err) ||
        mmio_bus_new(&run->bus, err))
        return -1;
    config.memory = run->memory;
    config.bus = run->bus;
    if (!load_program(run, path) || !load_initrd(run) || !add_device_tree(run))
        return error_set(err, -EIO, "cannot load %s", path);
    if (ops->create(&run->accel, &config, err) || ops->reset(run->accel, &run->boot, err))
        return -1;
    if (run->dirty_check) {
        copy = malloc(run->memory_size);
        if (!copy || ops->dirty_start(run->accel, err))
            return -1;
        memcpy(copy, memory_region(run->memory, 0)->host_ptr, run->memory_size);
    }
    ops->clock_start(run->accel);
    for (unsigned i = 0; i < run->cpus; i++) {
        if (thread_start(&run->threads[i], THREAD_GENERAL, "hart", hart_thread, run, err))
            return -1;
    }
    ended = wait_for_end(run, copy);
    pthread_mutex_lock(&run->lock);
    run->done = true;
    pthread_mutex_unlock(&run->lock);
    for (unsigned i = 0; i < run->cpus; i++)
        ops->vcpu_kick(run->accel, i);
    for (unsigned i = 0; i < run->cpus; i++)
        thread_join(&run->threads[i]);
    if (copy)
        good = check_copy(run, copy);
    free(copy);
    ops->destroy(run->accel);
    mmio_bus_free(run->bus);
    memory_free(run->memory);
    if (!ended) {
        fprintf(stderr, "riscv64_run: time is up\n");
        return 3;
    }
    return good && run->event != ACCEL_EVENT_CRASH ? 0 : 1;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"cpus", required_argument, NULL, 'c'},
        {"memory", required_argument, NULL, 'm'},
        {"cmdline", required_argument, NULL, 'a'},
        {"initrd", required_argument, NULL, 'i'},
        {"seconds", required_argument, NULL, 's'},
        {"dirty-check", no_argument, NULL, 'd'},
        {0},
    };
    struct run run = {.cpus = 1, .seconds = 600, .memory_size = UINT64_C(128) << 20};
    struct ferry_error err = {0};
    int option, result;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'c':
            run.cpus = (unsigned)strtoul(optarg, NULL, 0);
            break;
        case 'm':
            run.memory_size = strtoull(optarg, NULL, 0) << 20;
            break;
        case 'a':
            run.cmdline = optarg;
            break;
        case 'i':
            run.initrd = optarg;
            break;
        case 's':
            run.seconds = (unsigned)strtoul(optarg, NULL, 0);
            break;
        case 'd':
            run.dirty_check = true;
            break;
        default:
            return 2;
        }
    }
    if (optind + 1 != argc) {
        fprintf(stderr, "usage: riscv64_run [--cpus N] [--memory MIB] [--cmdline TEXT] [--initrd FILE] "
                        "[--seconds N] [--dirty-check] PROGRAM\n");
        return 2;
    }
    pthread_mutex_init(&run.lock, NULL);
    thread_cond_init(&run.changed);
    result = run_program(&run, argv[optind], &err);
    if (result < 0) {
        fprintf(stderr, "riscv64_run: %s\n", err.text);
        return 2;
    }
    return result;
}
