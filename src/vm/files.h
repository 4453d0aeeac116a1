/*
 * The files of a VM's directory that ferry-vm reads and writes once, and its first word to whoever started
 * it. Paths are relative to the VM's directory, which is the current one.
 */
#ifndef FERRY_VM_FILES_H
#define FERRY_VM_FILES_H

#include "base/buffer.h"
#include "machine/machine.h"

#include <ferry/error.h>

#include <jansson.h>

#define FILES_DEFINITION_MAX (1024 * 1024)

int files_read_definition(const char *path, struct machine_config *config, struct ferry_error *err);
/* Whole or not at all: a new file takes the place of the old one. */
int files_write_json(const char *path, const json_t *json, struct ferry_error *err);
/*
 * HANDOVER reads "1" from the moment on after which the other side of a migration may own the VM, or this one
 * by its word: at the source before it says GO, at the destination before it says Restore-OK; "0" before.
 * Whoever finds the process dead can tell by it whether that moment had come. The file is made when the
 * process starts, so that marking it takes no time and no space on the disk while the guest stands still. It
 * is not synchronised to storage: a power failure is told by other means.
 */
#define FILES_HANDOVER "handover"
int files_open_handover(int *out, struct ferry_error *err); /* "0"; the caller closes it */
int files_mark_handover(int fd, bool begun, struct ferry_error *err);

/* The last SIZE_MAX bytes of the file FD, from the start of a line on; appended to OUT. What cannot be read
 * is left out. */
void files_read_end(int fd, size_t size_max, struct buffer *out);
/*
 * Puts HISTORY before what PATH, which is being appended to through FD, has: a new file takes its place, and
 * FD goes on in that. Lines that others write meanwhile are kept.
 */
int files_put_before(const char *path, int fd, const void *history, size_t size, struct ferry_error *err);
/* One line of JSON: success when err is NULL. Closes FD; -1: nobody wants to know. */
void files_tell_ready(int fd, const struct ferry_error *err);
/* Standard input from nowhere, output and errors (assertions, sanitizers) to OUTPUT. */
int files_leave_terminal(int output, struct ferry_error *err);

#endif
