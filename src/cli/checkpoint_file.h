/*
 * A checkpoint file for people and scripts: what is in it by name, read without a host.
 */
#ifndef FERRY_CLI_CHECKPOINT_FILE_H
#define FERRY_CLI_CHECKPOINT_FILE_H

#include <ferry/checkpoint.h>

#include <jansson.h>

#define CHECKPOINT_MAP_CELLS 64

/*
 * All but memory's content: {file, version, kind, id, uuid, vm, stopped, was_running, compress, file_size,
 * memory_bytes, pages, definition, host, regions: [{name, guest_addr, size, pages (not of zeros), map (how
 * full each 64th of it is, per cent)}], sections: [{name, version, size, fields (null: not known here),
 * why}]}. -EIO when the index is damaged. New reference.
 */
int checkpoint_file_describe(const struct ferry_checkpoint *checkpoint, const char *file, json_t **out,
                             struct ferry_error *err);

#endif
