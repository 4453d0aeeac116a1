#include "host/machines.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "host/definition.h"

#include <elf.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define RISCV_MAGIC_AT  0x38  /* Linux, Documentation/arch/riscv/boot-image-header.rst */
#define BZIMAGE_HDRS_AT 0x202 /* Linux, Documentation/arch/x86/boot.rst */
#define HEAD_SIZE       0x210

static const char *kvm_missing(void)
{
#ifdef __x86_64__
    if (access("/dev/kvm", R_OK | W_OK) == 0)
        return NULL;
    if (errno == ENOENT)
        return "there is no /dev/kvm: KVM is missing or switched off";
    return "ferryd may not use /dev/kvm";
#else
    return "KVM runs x86_64 machines on x86-64 hosts only";
#endif
}

static const struct host_machine {
    const char *machine;
    const char *accel;
    const char *(*missing)(void); /* its answer NULL, or itself: it runs here */
} machines[] = {
    {"riscv64", "soft", NULL},
    {"x86_64", "kvm", kvm_missing},
};

const char *machines_missing(const char *machine)
{
    for (size_t i = 0; i < sizeof(machines) / sizeof(machines[0]); i++) {
        if (strcmp(machines[i].machine, machine) == 0)
            return machines[i].missing ? machines[i].missing() : NULL;
    }
    return "it is not known";
}

json_t *machines_list(void)
{
    json_t *list = json_array();

    for (size_t i = 0; i < sizeof(machines) / sizeof(machines[0]); i++) {
        const char *missing = machines_missing(machines[i].machine);

        json_array_append_new(list, json_pack("{s:s, s:s, s:b, s:s}", "machine", machines[i].machine, "accel",
                                              machines[i].accel, "available", !missing, "why",
                                              missing ? missing : ""));
    }
    return list;
}

json_t *machines_kvm(const struct host *host)
{
    return json_pack("{s:s, s:s}", "kind", kvm_kind_name(host->kvm), "why", host->kvm_why.text);
}

enum kernel_kind machines_kernel_kind(const char *path)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    unsigned char head[HEAD_SIZE];
    Elf64_Ehdr elf;

    if (fd < 0 || pread(fd, head, sizeof(head), 0) != (ssize_t)sizeof(head))
        return KERNEL_UNKNOWN;
    memcpy(&elf, head, sizeof(elf));
    if (memcmp(elf.e_ident, ELFMAG, SELFMAG) == 0)
        return elf.e_machine == EM_X86_64  ? KERNEL_X86_64
               : elf.e_machine == EM_RISCV ? KERNEL_RISCV64
                                           : KERNEL_UNKNOWN;
    if (memcmp(head + BZIMAGE_HDRS_AT, "HdrS", 4) == 0)
        return KERNEL_X86_64_BZIMAGE;
    return memcmp(head + RISCV_MAGIC_AT, "RSC\x05", 4) == 0 ? KERNEL_RISCV64 : KERNEL_UNKNOWN;
}

const char *machines_for_kernel(const char *path)
{
    enum kernel_kind kind = machines_kernel_kind(path);

    return kind == KERNEL_X86_64 || kind == KERNEL_X86_64_BZIMAGE ? "x86_64" : "riscv64";
}

int machines_check(const struct host *host, const json_t *definition, struct ferry_error *err)
{
    const char *machine = definition_machine(definition);
    const char *missing = machines_missing(machine);

    if (missing)
        return error_set(err, HOST_REFUSED, "host %s cannot run %s machines: %s", host->config->name, machine,
                         missing);
    if (strcmp(machine, "x86_64") == 0 && host->kvm == KVM_PARAVIRTUALISED &&
        machines_kernel_kind(definition_kernel(definition)) == KERNEL_X86_64_BZIMAGE)
        return error_set(
            err, HOST_REFUSED,
            "host %s cannot run %s: its KVM is para-virtualised and runs bare-metal guests only, no "
            "Linux for x86-64; choose a host whose KVM is hardware-assisted, or a riscv64 kernel",
            host->config->name, definition_name(definition));
    return 0;
}
