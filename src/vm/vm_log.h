/*
 * vm.log: what the VM's process says, a line an event; bounded, and it moves with the VM. The destination's
 * newest file begins with the last lines that the source's had. Older ones are vm.log.1 and so on.
 */
#ifndef FERRY_VM_VM_LOG_H
#define FERRY_VM_VM_LOG_H

#include "bus/state.h"

#include <ferry/error.h>

#include <stdint.h>

struct vm;

struct vm_log_limit {
    uint64_t size; /* bytes, of one file; the line that exceeds it is its last */
    unsigned kept; /* older files */
};

#define VM_LOG_SIZE     (1u << 20) /* unless said otherwise */
#define VM_LOG_SIZE_MIN 4096
#define VM_LOG_KEPT     5

/* "BYTES,FILES". -EINVAL with a sentence. */
int vm_log_limit_parse(const char *text, struct vm_log_limit *limit, struct ferry_error *err);

/* A new vm.log in the current directory; that of an earlier process becomes vm.log.1. Needs vm->loop. */
int vm_log_open(struct vm *vm, struct ferry_error *err);

/* The end of vm.log as a state section: at the destination vm.log reads on from there. Migration thread. */
#define VM_LOG_SECTION     "log"
#define VM_LOG_SECTION_MAX (16 * 1024)
extern const struct state_table vm_log_state;
/* Called while the guest is stopped and its log still grows: what comes later stays at the source. */
int vm_log_save(struct vm *vm, struct buffer *out, struct ferry_error *err);
int vm_log_load(struct vm *vm, uint32_t version, struct reader *in, struct ferry_error *err);
/* Puts what was loaded before what vm.log has, once the guest runs here: until then the log is that of an
 * attempt. Loop thread. */
void vm_log_join(struct vm *vm);

#endif
