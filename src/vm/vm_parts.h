/* Between life.c, which makes a VM and puts it away, and vm.c, which is what happens in between. */
#ifndef FERRY_VM_VM_PARTS_H
#define FERRY_VM_VM_PARTS_H

#include "vm/vm.h"

/* The machine's callbacks, on its threads: OPAQUE is the vm. */
void vm_on_machine_event(void *opaque, enum machine_event event, const char *why);
void vm_on_console_output(void *opaque, const void *data, size_t size);
void vm_on_console_ready(void *opaque);
/* What somebody types. Returns how much of it the guest has taken. */
size_t vm_console_input(void *opaque, const void *data, size_t size);

/* vm->patience: a migration never came, or one that was told to end does not. */
void vm_patience_ended(void *opaque);
/* How the process is to end; the first time counts. */
void vm_set_exit(struct vm *vm, enum vm_exit exit, const char *why);

#endif
