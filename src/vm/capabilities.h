/*
 * What ferry-vm keeps of root's rights (capabilities(7)) when it is started by root. Threads have rights of
 * their own: each gives up all but those of its kind. Without rights, as for any other user, nothing happens.
 */
#ifndef FERRY_VM_CAPABILITIES_H
#define FERRY_VM_CAPABILITIES_H

#include "base/thread.h"

#include <ferry/error.h>

/* First thing: what set-up needs, and no program started later can have more. Threads have it from the one
 * that starts them. */
int capabilities_keep_for_setup(struct ferry_error *err);
/* The calling thread's; 0 or a negative errno. */
int capabilities_keep_for_kind(enum thread_kind kind);

#endif
