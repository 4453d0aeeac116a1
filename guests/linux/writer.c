#include "writer.h"

#include "../common/pattern.h"
#include "clock.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/mman.h>

static void *map(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return memory == MAP_FAILED ? NULL : memory;
}

static struct pattern_owner owner_of(const struct writer *writer, uint32_t page)
{
    return (struct pattern_owner){
        .writer = writer->index, .page = page, .generation = writer->generation[page]};
}

static uint64_t *page_of(const struct writer *writer, uint32_t page)
{
    return writer->memory + (size_t)page * PATTERN_WORDS;
}

int writer_prepare(struct writer *writer)
{
    writer->memory = map((size_t)writer->pages * PATTERN_PAGE_SIZE);
    writer->generation = map((size_t)writer->pages * sizeof(*writer->generation));
    if (!writer->memory || !writer->generation) {
        perror("ferry-work: memory");
        return -1;
    }
    for (uint32_t page = 0; page < writer->pages; page++) {
        writer->generation[page] = 1;
        pattern_fill(page_of(writer, page), owner_of(writer, page));
    }
    return 0;
}

/* Counts the fault at word INDEX of PAGE, and prints the first of each kind. */
static void writer_report(struct writer *writer, uint32_t page, unsigned index)
{
    struct pattern_owner wanted = owner_of(writer, page), found;
    uint64_t got = page_of(writer, page)[index], expected = pattern_base(wanted) + index * PATTERN_STEP;
    enum pattern_fault fault = pattern_fault_of(got, index, wanted, writer->count, writer->pages);

    atomic_fetch_add(&writer->counters->errors, 1);
    if (atomic_fetch_or(&writer->counters->fault_kinds, 1u << fault) & 1u << fault)
        return;
    found = pattern_owner_of(got - index * PATTERN_STEP);
    printf("WORK ERROR page=%u:%u word=%u generation=%u expected=%016" PRIx64 " got=%016" PRIx64
           " kind=%s of=%u:%u generation=%u\n",
           wanted.writer, page, index, wanted.generation, expected, got, pattern_fault_name(fault),
           found.writer, found.page, found.generation);
}

static void page_verify(struct writer *writer, uint32_t page)
{
    unsigned wrong = pattern_check(page_of(writer, page), owner_of(writer, page));

    if (wrong < PATTERN_WORDS)
        writer_report(writer, page, wrong);
    atomic_fetch_add_explicit(&writer->counters->writers[writer->index].verified, PATTERN_PAGE_SIZE,
                              memory_order_relaxed);
}

void *writer_main(void *argument)
{
    struct writer *writer = argument;
    struct pace pace = {.rate = writer->rate};

    do {
        for (uint32_t page = 0; page < writer->pages; page++) {
            page_verify(writer, page);
            if (writer->once)
                continue;
            writer->generation[page]++;
            pattern_fill(page_of(writer, page), owner_of(writer, page));
            pace_take(&pace, PATTERN_PAGE_SIZE);
        }
        atomic_fetch_add(&writer->counters->writers[writer->index].passes, 1);
    } while (!writer->once);
    return NULL;
}
