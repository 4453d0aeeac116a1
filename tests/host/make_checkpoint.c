/*
 * Writes a genuine checkpoint file of a guest that is only memory, for VMs that only pretend:
 *
 *     make_checkpoint FILE snapshot|suspend ID VM DEFINITION
 */
#include "engine/testing/fake_guest.h"

#include <ferry/checkpoint.h>

#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    static const uint64_t size = 4u << 20;
    struct ferry_checkpoint_writer *writer = NULL;
    struct ferry_checkpoint_options options = {.overwrite = true};
    struct ferry_checkpoint_blob definition = {.name = "definition"};
    struct ferry_observer observer = {0};
    struct ferry_error err = {0};
    struct fake_guest guest = {0};
    int result;

    if (argc != 6) {
        fprintf(stderr, "usage: make_checkpoint FILE snapshot|suspend ID VM DEFINITION\n");
        return 2;
    }
    options.path = argv[1];
    options.kind = strcmp(argv[2], "suspend") == 0 ? FERRY_CHECKPOINT_SUSPEND : FERRY_CHECKPOINT_SNAPSHOT;
    snprintf(options.id, sizeof(options.id), "%s", argv[3]);
    snprintf(options.vm, sizeof(options.vm), "%s", argv[4]);
    definition.data = argv[5];
    definition.size = strlen(argv[5]);
    options.blobs = &definition;
    options.blob_count = 1;
    result = fake_guest_init(&guest, NULL, &size, 1, true, &err);
    if (result == 0) {
        fake_guest_run(&guest, true);
        result = ferry_checkpoint_writer_new(&writer, &options, &fake_guest_ops, &guest, &observer, &err);
        if (result == 0)
            result = ferry_checkpoint_write(writer, &err);
        ferry_checkpoint_writer_free(writer);
        fake_guest_destroy(&guest);
    }
    if (result < 0)
        fprintf(stderr, "make_checkpoint: %s\n", err.text);
    return result < 0;
}
