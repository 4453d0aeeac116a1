/*
 * A virtual machine as an object: memory, CPUs and devices put together from a configuration, with the verbs
 * a process around it needs. Made the same way for a cold boot and for an arriving VM.
 *
 *     machine_new -> machine_boot | machine_load -> machine_resume -> machine_pause ... -> machine_free
 *
 * One controlling thread calls these functions (ferry-vm: whichever thread holds the lifecycle lock); dirty
 * tracking, throttle and machine_status may be used from any thread. vCPU threads are owned here: started by
 * machine_new, parked until machine_resume, parked by machine_pause, ended by machine_free.
 */
#ifndef FERRY_MACHINE_MACHINE_H
#define FERRY_MACHINE_MACHINE_H

#include "base/buffer.h"
#include "base/log.h"
#include "base/uuid.h"
#include "bus/memory.h"
#include "cpu/cpu.h"

#include <ferry/error.h>

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define MACHINE_DISKS_MAX         8
#define MACHINE_NETS_MAX          8
#define MACHINE_VCPUS_MAX         64
#define MACHINE_VCPUS_MAX_RISCV64 8

struct machine_disk_config {
    char *path;
    bool readonly;
    bool direct; /* O_DIRECT */
};

struct machine_net_config {
    char *backend;  /* "user" with options: "user,hostfwd=tcp:127.0.0.1:2222-:22" */
    uint8_t mac[6]; /* locally administered, fixed when the VM is defined; travels with it */
};

/* The definition of a VM: what `ferry run` says. It travels to the destination as JSON. Owned strings. */
struct machine_config {
    char *name;              /* 1 to 63 of [A-Za-z0-9._-], starting with a letter or digit */
    uint8_t uuid[UUID_SIZE]; /* the guest's own, which it can read; fixed like a mac */
    char *machine;           /* "riscv64" or "x86_64" */
    uint64_t memory;         /* bytes; whole MiB, 16 MiB or more */
    /* Memory is of huge pages of so many bytes, whole ones (base/hugepages.h); 0: ordinary memory. */
    uint64_t hugepages;
    unsigned vcpus; /* 1 to 64, of riscv64 to 8 */
    char *kernel;   /* path; not needed by an arriving VM */
    char *initrd;   /* or NULL */
    char *cmdline;  /* or NULL */
    char *cpu;      /* as the user asked for it, or NULL; what comes of that is the next two */
    bool cpu_cut;   /* the guest gets of the host's features only those; not in the JSON form */
    struct cpu_features cpu_features;
    bool console_marks;            /* a migration leaves marks in the guest's console (vm/console_mark.h) */
    enum memory_tracking tracking; /* this host's choice; not in the JSON form */
    bool new_identity;             /* the guest that is loaded was another VM; not in the JSON form */
    struct machine_disk_config disks[MACHINE_DISKS_MAX];
    unsigned disk_count;
    struct machine_net_config nets[MACHINE_NETS_MAX];
    unsigned net_count;
};

/*
 * The JSON form, as in docs/API.md "VM definition". Strict: unknown keys, wrong types and values out of range
 * are refused naming the key. Fills in defaults (memory 256 MiB, 1 vCPU, machine riscv64), a missing UUID and
 * missing MAC addresses. *config is written on success only. Whether a network backend exists and understands
 * its options is found out by machine_new.
 */
int machine_config_from_json(struct machine_config *config, const json_t *json, struct ferry_error *err);
json_t *machine_config_to_json(const struct machine_config *config);
void machine_config_free(struct machine_config *config);

enum machine_event {
    MACHINE_EVENT_POWER_OFF = 1, /* the guest switched itself off; vCPUs are parked */
    MACHINE_EVENT_RESET,         /* the guest asked for a reboot; vCPUs are parked until machine_reset +
                                    machine_resume */
    MACHINE_EVENT_CRASH,         /* the guest cannot go on; vCPUs are parked */
    MACHINE_EVENT_ERROR,         /* Ferry cannot go on; why says so */
};

struct machine_callbacks {
    void *opaque;
    /* Any machine thread; must not call back into the machine; hands over to its own thread. */
    void (*event)(void *opaque, enum machine_event event, const char *why);
    /* Console output of the guest (UART, firmware console, virtio-console), in order. Any thread, serialised.
     */
    void (*console_output)(void *opaque, const void *data, size_t size);
    /* machine_console_input took less than it was given, and there is room again. Any thread; may be NULL. */
    void (*console_input_ready)(void *opaque);
};

struct machine;

/* CONFIG is copied; log and callbacks are borrowed for the machine's life. Disks are opened but not locked.
 */
int machine_new(struct machine **out, const struct machine_config *config, struct log *log,
                const struct machine_callbacks *callbacks, struct ferry_error *err);
void machine_free(struct machine *machine); /* pauses first; NULL allowed */

const struct machine_config *machine_config(const struct machine *machine);
/* What the guest was told of its CPU; not while an arriving VM's state is loaded. False: there is nothing to
 * tell. */
bool machine_cpu(const struct machine *machine, struct cpu *cpu);
struct memory *machine_memory(struct machine *machine);

/* Loads kernel, initrd and device tree, sets the boot vCPU. Host ports that a network wants and that are
 * taken are errors here, and warnings for an arriving VM. */
int machine_boot(struct machine *machine, struct ferry_error *err);
/* Guest reboot: devices and CPUs reset, kernel loaded again. Paused only. */
int machine_reset(struct machine *machine, struct ferry_error *err);

int machine_resume(struct machine *machine,
                   struct ferry_error *err); /* devices start, then vCPUs; idempotent */
/* vCPUs stop; devices go on. Returns when no vCPU executes an instruction any more. Idempotent. */
int machine_pause(struct machine *machine, struct ferry_error *err);
/* As machine_pause, but only until the deadline. -EBUSY: a vCPU waits for memory that is not there yet; all
 * go on as before. */
int machine_try_pause(struct machine *machine, uint64_t deadline_ns, struct ferry_error *err);
/* vCPUs stand still, but for what they are just waiting for; waits for nobody. Any thread; independent of
 * machine_pause and machine_resume. */
void machine_suspend(struct machine *machine, bool on);
/* Devices finish outstanding I/O and stop. vCPUs must be paused. On -ETIMEDOUT the devices go on as they
 * were. */
int machine_quiesce(struct machine *machine, uint64_t deadline_ns, struct ferry_error *err);
bool machine_running(const struct machine *machine);

/* Exclusive access to disks (image locks). boot and resume need it; a migration passes it on. */
int machine_acquire(struct machine *machine, struct ferry_error *err);
void machine_release(struct machine *machine);

/* Orderly stop: asks the guest (control port). -EOPNOTSUPP when the guest does not listen. */
int machine_ask_stop(struct machine *machine, struct ferry_error *err);
/* Console input; any thread. Returns how many bytes were taken (the FIFO may be full). */
size_t machine_console_input(struct machine *machine, const void *data, size_t size);
/* Asks guests on networks to be announced from here (RARP); nothing to do for user networking. */
void machine_announce(struct machine *machine);

/* State sections. Paused and quiesced. The visitor is called once a section; a non-zero answer ends the walk.
 */
typedef int machine_section_visitor(void *opaque, const char *name, uint32_t version, const void *data,
                                    size_t size, struct ferry_error *err);
int machine_save(struct machine *machine, machine_section_visitor *visitor, void *opaque,
                 struct ferry_error *err);
/* Loads one section. Unknown names are refused. */
int machine_load_section(struct machine *machine, const char *name, uint32_t version, const void *data,
                         size_t size, struct ferry_error *err);
/* After all sections: 0, or an error naming the first section that is missing. Of a device that there was not
 * always none need come. */
int machine_load_finish(struct machine *machine, struct ferry_error *err);
/* The guest whose state was loaded goes on from a moment from which it has gone on before, or may have: it is
 * told when it runs (device/vmgenid.h). */
int machine_new_generation(struct machine *machine, struct ferry_error *err);
void machine_clock_advance(struct machine *machine, uint64_t nanoseconds);

int machine_dirty_start(struct machine *machine, struct ferry_error *err);
int machine_dirty_fetch(struct machine *machine, size_t region, uint64_t *bitmap, struct ferry_error *err);
void machine_dirty_stop(struct machine *machine);
/* In words, for people: how it is found out which pages the guest writes. */
void machine_dirty_tracking(const struct machine *machine, char *text, size_t size);
void machine_throttle(struct machine *machine, unsigned percent);
/* Fills pages[i] with what vCPU i was the first to write (accel.h); the number of vCPUs, at most MAX. 0: the
 * accelerator cannot tell, nor slow single vCPUs. */
size_t machine_vcpus_dirtied(const struct machine *machine, uint64_t *pages, size_t max);
/* percent[i] for vCPU i, of COUNT as machine_vcpus_dirtied said. */
void machine_throttle_vcpus(struct machine *machine, const unsigned *percent, size_t count);

#endif
