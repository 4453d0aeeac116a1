#include "saving.h"

#include <dirent.h>

static void take_copy(void *opaque, const char *step)
{
    struct saving *saving = opaque;

    if (strcmp(step, "save") == 0) {
        for (size_t i = 0; i < saving->region_count; i++)
            memcpy(saving->stopped[i], saving->guest.regions[i].host_ptr, saving->sizes[i]);
        saving->count = fake_guest_count(&saving->guest);
    }
    if (saving->on_step && strcmp(step, saving->step) == 0)
        saving->on_step(saving);
}

static void add_log(void *opaque, enum ferry_log_level level, const char *text)
{
    struct saving *saving = opaque;
    size_t length = strlen(saving->log);

    snprintf(saving->log + length, sizeof(saving->log) - length, "%s\n", text);
}

void saving_init(struct saving *saving, const uint64_t *sizes, size_t region_count, bool memfd)
{
    struct ferry_error err = {0};

    *saving = (struct saving){.region_count = region_count};
    unit_dir_make(&saving->dir);
    unit_path(&saving->dir, "checkpoint", saving->path);
    assert_ok(fake_guest_init(&saving->guest, NULL, sizes, region_count, memfd, &err), err);
    for (size_t i = 0; i < region_count; i++) {
        saving->sizes[i] = sizes[i];
        saving->stopped[i] = malloc(sizes[i]);
        assert_non_null(saving->stopped[i]);
    }
    saving->guest.opaque = saving;
    saving->guest.on_step = take_copy;
    saving->blob = (struct ferry_checkpoint_blob){.name = "definition", .data = "{}", .size = 2};
    saving->options = (struct ferry_checkpoint_options){
        .id = "0d2f7b8e-7a33-4c1f-9f5b-1f9f2d9a5a77",
        .vm = "web",
        .path = saving->path,
        .kind = FERRY_CHECKPOINT_SNAPSHOT,
        .blobs = &saving->blob,
        .blob_count = 1,
    };
}

void saving_free(struct saving *saving)
{
    fake_guest_destroy(&saving->guest);
    for (size_t i = 0; i < saving->region_count; i++)
        free(saving->stopped[i]);
    unit_dir_remove(&saving->dir);
}

int saving_save(struct saving *saving, struct ferry_error *err)
{
    struct ferry_observer observer = {.opaque = saving, .log = add_log};
    int result = ferry_checkpoint_writer_new(&saving->writer, &saving->options, &fake_guest_ops,
                                             &saving->guest, &observer, err);

    if (result < 0)
        return result;
    result = ferry_checkpoint_write(saving->writer, err);
    thread_join(&saving->helper);
    ferry_checkpoint_progress(saving->writer, &saving->progress);
    ferry_checkpoint_writer_free(saving->writer);
    saving->writer = NULL;
    return result;
}

int saving_restore(struct saving *saving, const char *path, struct ferry_error *err)
{
    struct ferry_checkpoint *checkpoint = NULL;
    struct fake_guest guest;
    int result;

    assert_ok(fake_guest_init(&guest, NULL, saving->sizes, saving->region_count, true, err), *err);
    guest.arriving = true;
    result = ferry_checkpoint_open(&checkpoint, path, err);
    if (result == 0)
        result = ferry_checkpoint_restore(checkpoint, &fake_guest_ops, &guest, NULL, NULL, err);
    if (result == 0) {
        assert_true(guest.loaded);
        assert_int_equal(fake_guest_count(&guest), saving->count);
        for (size_t i = 0; i < saving->region_count; i++)
            assert_int_equal(memcmp(guest.regions[i].host_ptr, saving->stopped[i], saving->sizes[i]), 0);
    }
    ferry_checkpoint_close(checkpoint);
    fake_guest_destroy(&guest);
    return result;
}

void saving_expect_restored(struct saving *saving)
{
    struct ferry_error err = {0};

    assert_ok(saving_restore(saving, saving->path, &err), err);
}

unsigned saving_files(const struct saving *saving)
{
    DIR *directory = opendir(saving->dir.path);
    unsigned count = 0;

    assert_non_null(directory);
    while (readdir(directory))
        count++;
    closedir(directory);
    return count - 2;
}
