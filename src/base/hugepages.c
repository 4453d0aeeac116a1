#include "base/hugepages.h"

#include "base/error.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define KIB UINT64_C(1024)
#define MIB (UINT64_C(1) << 20)

bool hugepages_size_known(uint64_t page_size)
{
    return page_size == HUGEPAGES_2M || page_size == HUGEPAGES_1G;
}

const char *hugepages_size_name(uint64_t page_size)
{
    return page_size == HUGEPAGES_1G ? "1 GiB" : "2 MiB";
}

int hugepages_check_memory(uint64_t memory, uint64_t page_size, struct ferry_error *err)
{
    uint64_t less = memory - memory % page_size;

    if (memory == less && memory > 0)
        return 0;
    if (less == 0)
        return error_set(err, -EINVAL,
                         "memory of %" PRIu64 " MiB is less than one huge page of %s; give it %" PRIu64 "M",
                         memory / MIB, hugepages_size_name(page_size), page_size / MIB);
    return error_set(err, -EINVAL,
                     "memory of %" PRIu64 " MiB is not a whole number of huge pages of %s; give it %" PRIu64
                     "M or %" PRIu64 "M",
                     memory / MIB, hugepages_size_name(page_size), less / MIB, (less + page_size) / MIB);
}

/* 0 or a negative errno. */
static int read_number(const char *directory, uint64_t page_size, const char *name, uint64_t *number)
{
    char path[512];
    char line[32];
    FILE *file;
    int result = 0;

    snprintf(path, sizeof(path), "%s/hugepages-%" PRIu64 "kB/%s", directory ? directory : HUGEPAGES_DIRECTORY,
             page_size / KIB, name);
    file = fopen(path, "re");
    if (!file)
        return -errno;
    if (!fgets(line, sizeof(line), file) || line[0] < '0' || line[0] > '9')
        result = -EIO;
    else
        *number = strtoull(line, NULL, 10);
    fclose(file);
    return result;
}

int hugepages_read(const char *directory, uint64_t page_size, struct hugepages *pages,
                   struct ferry_error *err)
{
    static const char *const names[] = {"nr_hugepages", "free_hugepages", "resv_hugepages",
                                        "surplus_hugepages", "nr_overcommit_hugepages"};
    enum { TOTAL, FREE, RESERVED, SURPLUS, OVERCOMMIT, COUNT };
    uint64_t numbers[COUNT];

    for (int i = 0; i < COUNT; i++) {
        int result = read_number(directory, page_size, names[i], &numbers[i]);

        if (result == -ENOENT)
            return error_set(err, result, "there are no huge pages of %s: the CPU or its kernel has none",
                             hugepages_size_name(page_size));
        if (result)
            return error_set_errno(err, result, "cannot read %s of the huge pages of %s", names[i],
                                   hugepages_size_name(page_size));
    }
    *pages = (struct hugepages){.total = numbers[TOTAL]};
    if (numbers[FREE] > numbers[RESERVED])
        pages->available = numbers[FREE] - numbers[RESERVED];
    if (numbers[OVERCOMMIT] > numbers[SURPLUS])
        pages->available += numbers[OVERCOMMIT] - numbers[SURPLUS];
    return 0;
}

char *hugepages_advice(uint64_t page_size, const struct hugepages *pages, uint64_t wanted,
                       char text[static HUGEPAGES_ADVICE_SIZE])
{
    uint64_t missing = wanted > pages->available ? wanted - pages->available : 0;

    snprintf(text, HUGEPAGES_ADVICE_SIZE, "echo %" PRIu64 " > %s/hugepages-%" PRIu64 "kB/nr_hugepages",
             pages->total + missing, HUGEPAGES_DIRECTORY, page_size / KIB);
    return text;
}
