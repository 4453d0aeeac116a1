/*
 * Small files that hold a key: readable by their owner only, and never half written.
 */
#ifndef FERRY_TLS_PRIVATE_FILE_H
#define FERRY_TLS_PRIVATE_FILE_H

#include <ferry/error.h>

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define PRIVATE_FILE_MAX (64u << 10)

/* Mode 0600 or, with SHOWN, 0644. After a crash it is there whole or not at all. -EEXIST when there is a
 * file of that name and REPLACE is not set. */
int private_file_write(const char *path, const char *text, bool shown, bool replace, struct ferry_error *err);

/* All of it, NUL-terminated, at most PRIVATE_FILE_MAX bytes; freed with private_file_free. -EACCES when
 * others than its owner and group may read it, unless SHOWN. */
int private_file_read(const char *path, bool shown, char **text, struct ferry_error *err);
/* Overwrites first. NULL allowed. */
void private_file_free(char *text);

/* DIRECTORY and what is missing above it; what is made is its owner's alone. */
int private_directory_make(const char *directory, struct ferry_error *err);

#endif
