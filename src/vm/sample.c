#include "vm/sample.h"

#include "base/bitmap.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/sparse.h"
#include "vm/checkpoint.h"
#include "vm/migrate.h"
#include "vm/params.h"
#include "vm/vm.h"

#include <ferry/ferry.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define WINDOW_DEFAULT_NS NS_PER_S
#define WINDOW_MAX_NS     (10 * NS_PER_S)
#define WINDOW_MIN_NS     (10 * NS_PER_MS)
/* Looks are at these parts of the window: how fast new pages come at first, and later. */
#define LOOKS 4
static const unsigned look_permille[LOOKS] = {100, 250, 500, 1000};
/* Pages looked at to tell how many are zeros. */
#define ZERO_PROBES 1024
/* Of these, and what follows them, so much is compressed for a try. */
#define TRIED_RUNS     16
#define TRIED_RUN      8 /* pages */
#define TRIED_DISTANCE (ZERO_PROBES / TRIED_RUNS)

/* What was found in memory. */
struct findings {
    uint64_t looked;
    uint64_t zeros;
    const uint8_t *tried[TRIED_RUNS * TRIED_RUN];
    size_t tried_count;
};

struct sample {
    struct vm *vm;
    struct jsonrpc_request *request;
    struct loop_timer *timer;
    uint64_t begin_ns;
    uint64_t window_ns;
    unsigned look;
    json_t *looks;
    uint64_t *written[MEMORY_REGIONS_MAX]; /* since the beginning */
};

static size_t pages_of(const struct memory_region *region)
{
    return (size_t)(region->size >> MEMORY_PAGE_SHIFT);
}

static void sample_end(struct sample *sample)
{
    struct vm *vm = sample->vm;

    machine_dirty_stop(vm->machine);
    loop_timer_remove(sample->timer);
    for (size_t i = 0; i < MEMORY_REGIONS_MAX; i++)
        free(sample->written[i]);
    json_decref(sample->looks);
    free(sample);
    vm->sample = NULL;
}

void sample_abort(struct vm *vm, const char *why)
{
    struct ferry_error err;

    if (!vm->sample)
        return;
    error_set(&err, -ECANCELED, "%s's memory was not watched to the end: %s", vm->config.name, why);
    jsonrpc_fail(vm->sample->request, &err);
    sample_end(vm->sample);
}

static bool is_zero(const uint8_t *page)
{
    return page[0] == 0 && memcmp(page, page + 1, MEMORY_PAGE_SIZE - 1) == 0;
}

/* PAGE is among those looked at, MORE pages after it were touched, too. */
static void look_at(struct findings *findings, const uint8_t *page, uint64_t more)
{
    bool zero = is_zero(page);
    size_t limit = (findings->looked / TRIED_DISTANCE + 1) * TRIED_RUN;

    findings->looked++;
    findings->zeros += zero;
    if (limit > TRIED_RUNS * TRIED_RUN)
        limit = TRIED_RUNS * TRIED_RUN;
    for (uint64_t i = 0; !zero && i <= more && findings->tried_count < limit; i++, page += MEMORY_PAGE_SIZE) {
        if (!is_zero(page))
            findings->tried[findings->tried_count++] = page;
    }
}

/* Pages that were ever touched; with STEP also looks at every STEPth of them. */
static uint64_t walk_used(const struct memory *memory, uint64_t step, struct findings *findings)
{
    uint64_t pages = 0;

    for (size_t i = 0; i < memory_region_count(memory); i++) {
        const struct memory_region *region = memory_region(memory, i);
        struct sparse touched;
        uint64_t end = 0;
        uint64_t at;

        sparse_look(&touched, region->memfd, region->host_ptr, region->size);
        while (sparse_next(&touched, end, &at, &end)) {
            for (uint64_t page = at; step && page < end; page += MEMORY_PAGE_SIZE) {
                if ((pages + (page - at) / MEMORY_PAGE_SIZE) % step != 0)
                    continue;
                look_at(findings, region->host_ptr + page, (end - page) / MEMORY_PAGE_SIZE - 1);
            }
            pages += (end - at) / MEMORY_PAGE_SIZE;
        }
        sparse_free(&touched);
    }
    return pages;
}

static void sample_answer(struct sample *sample)
{
    struct memory *memory = machine_memory(sample->vm->machine);
    struct ferry_compressibility compressed;
    struct findings findings = {0};
    uint64_t used = walk_used(memory, 0, NULL);
    json_t *answer;

    if (used > 0)
        walk_used(memory, used / ZERO_PROBES + 1, &findings);
    ferry_compressibility_measure(findings.tried, findings.tried_count, &compressed);
    answer = json_pack("{s:O, s:I, s:I}", "looks", sample->looks, "used_bytes",
                       (json_int_t)used * MEMORY_PAGE_SIZE, "zero_permille",
                       (json_int_t)(findings.looked ? findings.zeros * 1000 / findings.looked : 0));
    for (int i = FERRY_ENCODING_LZ4; i <= FERRY_ENCODING_ZSTD; i++)
        json_object_set_new(answer, ferry_encoding_name((enum ferry_encoding)i),
                            json_pack("{s:I, s:I}", "page_bytes", (json_int_t)compressed.page_bytes[i],
                                      "page_ns", (json_int_t)compressed.page_ns[i]));
    jsonrpc_answer(sample->request, answer);
    sample_end(sample);
}

static void arm(struct sample *sample)
{
    uint64_t due = sample->begin_ns + sample->window_ns / 1000 * look_permille[sample->look];
    uint64_t now = clock_now_ns();

    loop_timer_arm(sample->timer, due > now ? due - now : 1);
}

static void sample_look(void *opaque)
{
    struct sample *sample = opaque;
    struct vm *vm = sample->vm;
    struct memory *memory = machine_memory(vm->machine);
    struct ferry_error err;
    size_t pages = 0;

    for (size_t i = 0; i < memory_region_count(memory); i++) {
        if (machine_dirty_fetch(vm->machine, i, sample->written[i], &err) < 0) {
            sample_abort(vm, err.text);
            return;
        }
        pages += bitmap_count(sample->written[i], pages_of(memory_region(memory, i)));
    }
    json_array_append_new(sample->looks, json_pack("{s:I, s:I}", "elapsed_ns",
                                                   (json_int_t)(clock_now_ns() - sample->begin_ns), "pages",
                                                   (json_int_t)pages));
    if (++sample->look == LOOKS)
        sample_answer(sample);
    else
        arm(sample);
}

static int sample_new(struct sample **out, struct vm *vm, uint64_t window_ns, struct ferry_error *err)
{
    struct memory *memory = machine_memory(vm->machine);
    struct sample *sample = calloc(1, sizeof(*sample));
    int result = 0;

    if (!sample)
        return error_set(err, -ENOMEM, "out of memory for a look at the guest's memory");
    sample->vm = vm;
    sample->window_ns = window_ns;
    sample->looks = json_array();
    for (size_t i = 0; i < memory_region_count(memory) && !result; i++) {
        sample->written[i] = bitmap_new(pages_of(memory_region(memory, i)));
        if (!sample->written[i])
            result = error_set(err, -ENOMEM, "out of memory for a look at the guest's memory");
    }
    if (!result)
        result = loop_timer_add(vm->loop, sample_look, sample, &sample->timer, err);
    if (!result)
        result = machine_dirty_start(vm->machine, err);
    if (result) {
        sample_end(sample);
        return result;
    }
    *out = sample;
    return 0;
}

int sample_begin(struct vm *vm, const json_t *params, struct jsonrpc_request *request,
                 struct ferry_error *err)
{
    static const char *const names[] = {"window_ns", NULL};
    uint64_t window_ns = WINDOW_DEFAULT_NS;
    int result = params_only(params, names, err);

    if (!result)
        result = params_number(params, "window_ns", WINDOW_MAX_NS, &window_ns, err);
    if (!result && window_ns < WINDOW_MIN_NS)
        result = error_set(err, -EINVAL, "parameter \"window_ns\" must be 10 ms to 10 s");
    if (!result && (vm->sample || migration_active(vm->migration) || vm_checkpoint_active(vm->checkpoint)))
        result = error_set(err, -EBUSY, "%s's memory is being watched already", vm->config.name);
    if (!result && (vm->setup || vm->away || vm->exit))
        result = error_set(err, -EBUSY, "%s is not running here", vm->config.name);
    if (!result)
        result = vm_checkpoint_check_filled(vm, err);
    if (!result)
        result = sample_new(&vm->sample, vm, window_ns, err);
    if (result)
        return result;
    vm->sample->request = request;
    vm->sample->begin_ns = clock_now_ns();
    arm(vm->sample);
    return 0;
}
