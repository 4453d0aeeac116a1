#include "disk.h"

#include "clock.h"
#include "options.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <unistd.h>

#define DISK_RECORD  4096
#define RECORD_WORDS (DISK_RECORD / 8)
#define RECORD_MAGIC UINT64_C(0x4345525952524546) /* "FERRYREC" */

#define MOUNT_POINT "/mnt"

enum { WORD_MAGIC, WORD_NUMBER, WORD_SLOTS, WORD_SUM, WORD_DATA };

struct journal {
    const char *device; /* As it is named in the lines printed. */
    int fd;
    uint64_t slots;
    uint64_t last; /* Number of the newest record on the disk; 0: none. */
    uint64_t written, verified, errors;
    uint64_t *record; /* Buffers of one record, aligned for direct I/O. */
    uint64_t *readback;
};

static uint64_t record_sum(const uint64_t *record)
{
    uint64_t sum = 0x2545f4914f6cdd1d;

    for (unsigned i = 0; i < RECORD_WORDS; i++) {
        if (i != WORD_SUM)
            sum = ((sum ^ record[i]) * UINT64_C(0x9fb21c651e98df25)) ^ sum >> 32;
    }
    return sum;
}

static void record_make(uint64_t *record, uint64_t number, uint64_t slots)
{
    record[WORD_MAGIC] = RECORD_MAGIC;
    record[WORD_NUMBER] = number;
    record[WORD_SLOTS] = slots;
    for (unsigned i = WORD_DATA; i < RECORD_WORDS; i++)
        record[i] = (number * RECORD_WORDS + i) * UINT64_C(0x9e3779b97f4a7c15);
    record[WORD_SUM] = record_sum(record);
}

enum slot_state { SLOT_EMPTY, SLOT_RECORD, SLOT_BROKEN };

static enum slot_state slot_state_of(const struct journal *journal, uint64_t slot, const uint64_t *record)
{
    uint64_t any = 0;

    for (unsigned i = 0; i < RECORD_WORDS; i++)
        any |= record[i];
    if (!any)
        return SLOT_EMPTY;
    return record[WORD_MAGIC] == RECORD_MAGIC && record[WORD_SLOTS] == journal->slots &&
                   record[WORD_NUMBER] % journal->slots == slot && record[WORD_SUM] == record_sum(record)
               ? SLOT_RECORD
               : SLOT_BROKEN;
}

static int slot_read(struct journal *journal, uint64_t slot)
{
    ssize_t got = pread(journal->fd, journal->readback, DISK_RECORD, (off_t)(slot * DISK_RECORD));

    if (got == DISK_RECORD)
        return 0;
    printf("DISK ERROR slot=%" PRIu64 " read: %s\n", slot, got < 0 ? strerror(errno) : "short");
    return -1;
}

/* Reads all slots: the newest record first, then whether each slot has what it must. Returns 0, or -1 when
 * not readable. */
static int journal_scan(struct journal *journal)
{
    uint64_t *numbers = calloc(journal->slots, sizeof(*numbers)), bad = 0, torn = 0;
    const uint64_t broken = UINT64_MAX;

    if (!numbers)
        return -1;
    for (uint64_t slot = 0; slot < journal->slots; slot++) {
        enum slot_state state;

        if (slot_read(journal, slot) < 0) {
            free(numbers);
            return -1;
        }
        state = slot_state_of(journal, slot, journal->readback);
        numbers[slot] = state == SLOT_EMPTY    ? 0
                        : state == SLOT_BROKEN ? broken
                                               : journal->readback[WORD_NUMBER];
        if (state == SLOT_RECORD && journal->readback[WORD_NUMBER] > journal->last)
            journal->last = journal->readback[WORD_NUMBER];
    }
    for (uint64_t slot = 0; slot < journal->slots && journal->last; slot++) {
        uint64_t behind = (journal->last + journal->slots - slot) % journal->slots;
        uint64_t wanted = journal->last > behind ? journal->last - behind : 0;

        if (numbers[slot] == wanted)
            continue;
        if (numbers[slot] == broken && slot == (journal->last + 1) % journal->slots) {
            torn++;
            continue;
        }
        bad++;
        printf("DISK ERROR slot=%" PRIu64 " record=%" PRIu64 " found=%" PRId64 "\n", slot, wanted,
               (int64_t)numbers[slot]);
    }
    free(numbers);
    journal->errors = bad;
    printf("disk journal slots=%" PRIu64 " last=%" PRIu64 " bad=%" PRIu64 " torn=%" PRIu64 " dev=%s\n",
           journal->slots, journal->last, bad, torn, journal->device);
    return 0;
}

static int journal_write(struct journal *journal)
{
    uint64_t number = journal->last + 1;
    off_t at = (off_t)(number % journal->slots * DISK_RECORD);
    ssize_t done;

    record_make(journal->record, number, journal->slots);
    done = pwrite(journal->fd, journal->record, DISK_RECORD, at);
    if (done != DISK_RECORD || fdatasync(journal->fd) < 0) {
        printf("DISK ERROR record=%" PRIu64 " write: %s\n", number,
               done >= 0 && done < DISK_RECORD ? "short" : strerror(errno));
        journal->errors++;
        return -1;
    }
    journal->last = number;
    journal->written++;
    return 0;
}

/* Record NUMBER, as it is on the disk now, must be as it was written. */
static void journal_verify(struct journal *journal, uint64_t number)
{
    if (slot_read(journal, number % journal->slots) < 0) {
        journal->errors++;
        return;
    }
    record_make(journal->record, number, journal->slots);
    if (memcmp(journal->record, journal->readback, DISK_RECORD) == 0) {
        journal->verified++;
        return;
    }
    if (journal->errors++ == 0)
        printf("DISK ERROR record=%" PRIu64 " slot=%" PRIu64 " found=%" PRIu64 "\n", number,
               number % journal->slots, journal->readback[WORD_NUMBER]);
}

static int journal_run(struct journal *journal, uint64_t rate, uint64_t seconds)
{
    uint64_t start = clock_now(), line = start + NS_PER_S / 2, now = start, random = start;
    struct pace pace = {.rate = rate};

    if (journal_scan(journal) < 0)
        return 1;
    while (seconds == 0 || now - start < seconds * NS_PER_S) {
        if (journal_write(journal) < 0)
            return 1;
        journal_verify(journal, journal->last);
        /* And one of the older ones. */
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        if (journal->last > 1) {
            uint64_t back =
                (random >> 33) % (journal->last < journal->slots ? journal->last : journal->slots);

            journal_verify(journal, journal->last - back);
        }
        pace_take(&pace, DISK_RECORD);
        now = clock_now();
        if (now >= line) {
            printf("disk %" PRIu64 " written=%" PRIu64 " verified=%" PRIu64 " errors=%" PRIu64 " t=%" PRIu64
                   ".%03" PRIu64 " dev=%s\n",
                   journal->last, journal->written, journal->verified, journal->errors,
                   (now - start) / NS_PER_S, (now - start) / NS_PER_MS % 1000, journal->device);
            line = now + NS_PER_S / 2;
        }
    }
    printf("disk ends last=%" PRIu64 " errors=%" PRIu64 " dev=%s\n", journal->last, journal->errors,
           journal->device);
    return journal->errors ? 1 : 0;
}

static int check_result(const char *name, bool ok, const char *reason)
{
    if (ok)
        printf("disk check %s ok\n", name);
    else
        printf("disk check %s failed: %s\n", name, reason);
    return ok ? 0 : 1;
}

/* Nothing may be written to a read-only disk. */
static int check_readonly(const char *device, uint64_t size)
{
    int fd = open(device, O_RDONLY | O_CLOEXEC), set = 0;
    char byte = 0;

    (void)size;
    if (fd < 0)
        return check_result("readonly", false, strerror(errno));
    if (ioctl(fd, BLKROGET, &set) < 0 || !set || read(fd, &byte, 1) != 1) {
        close(fd);
        return check_result("readonly", false, "the disk does not say so, or cannot be read");
    }
    close(fd);
    fd = open(device, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return check_result("readonly", true, NULL);
    set = write(fd, &byte, 1) == 1 && fsync(fd) == 0;
    close(fd);
    return check_result("readonly", !set, "a write was taken");
}

/* Fills SIZE bytes, has the middle half zeroed or discarded, and looks at what is left. */
static int check_range(const char *name, const char *device, uint64_t size, unsigned long request,
                       bool must_be_zero)
{
    int fd = open(device, O_RDWR | O_CLOEXEC | O_DIRECT);
    uint64_t range[2] = {size / 4, size / 2};
    const char *reason = NULL;
    unsigned char *buffer = NULL;

    if (fd < 0 || posix_memalign((void **)&buffer, DISK_RECORD, size) != 0) {
        reason = strerror(errno);
    } else {
        memset(buffer, 0xa5, size);
        if (pwrite(fd, buffer, size, 0) != (ssize_t)size || ioctl(fd, request, range) < 0 || fsync(fd) < 0 ||
            pread(fd, buffer, size, 0) != (ssize_t)size)
            reason = strerror(errno);
        for (uint64_t i = 0; i < size && !reason; i++) {
            bool inside = i >= range[0] && i < range[0] + range[1];

            if (!inside && buffer[i] != 0xa5)
                reason = "it reached too far";
            else if (inside && must_be_zero && buffer[i] != 0)
                reason = "what was zeroed is not zero";
        }
    }
    free(buffer);
    if (fd >= 0)
        close(fd);
    return check_result(name, !reason, reason);
}

static int check_zero(const char *device, uint64_t size)
{
    return check_range("zero", device, size, BLKZEROOUT, true);
}

static int check_discard(const char *device, uint64_t size)
{
    return check_range("discard", device, size, BLKDISCARD, false);
}

static const struct {
    const char *name;
    int (*run)(const char *device, uint64_t size);
} checks[] = {
    {"zero", check_zero},
    {"discard", check_discard},
    {"readonly", check_readonly},
};

/* Opens the journal's place: the device itself, or a file on the file system it holds. */
static int place_open(const char *device, const char *file_system, uint64_t size)
{
    int fd;

    if (file_system) {
        if (mount(device, MOUNT_POINT, file_system, 0, NULL) < 0) {
            printf("DISK ERROR mount %s: %s\n", device, strerror(errno));
            return -1;
        }
        device = MOUNT_POINT "/journal";
    }
    fd = open(device, O_RDWR | O_DIRECT | O_CLOEXEC | (file_system ? O_CREAT : 0), 0644);
    if (fd >= 0 && file_system && posix_fallocate(fd, 0, (off_t)size) != 0) {
        close(fd);
        fd = -1;
    }
    if (fd < 0)
        printf("DISK ERROR open %s: %s\n", device, strerror(errno));
    return fd;
}

/* Takes the words with text values out of WORDS; the others stay for options_read(). */
static int words_read(char *words, const char **file_system, const char **check, char *numbers)
{
    char *word;

    numbers[0] = '\0';
    while ((word = strsep(&words, ","))) {
        if (strncmp(word, "fs=", 3) == 0) {
            *file_system = word + 3;
        } else if (strncmp(word, "check=", 6) == 0) {
            *check = word + 6;
        } else {
            strcat(numbers, *numbers ? "," : "");
            strcat(numbers, word);
        }
    }
    if (*file_system && strcmp(*file_system, "ext4") != 0) {
        printf("ferry-work: cannot use the file system %s\n", *file_system);
        return -1;
    }
    return 0;
}

static int disk_run_words(char *words, char *numbers)
{
    const char *device = strsep(&words, ","), *file_system = NULL, *check = NULL;
    uint64_t size = 4 << 20, rate = 400 << 10, seconds = 0;
    const struct option_rule rules[] = {
        {"size", &size, 2 * DISK_RECORD, UINT64_C(1) << 36},
        {"rate", &rate, 0, UINT64_C(1) << 40},
        {"seconds", &seconds, 0, UINT64_C(1) << 32},
    };
    struct journal journal = {0};

    if (words && (words_read(words, &file_system, &check, numbers) < 0 ||
                  options_read(numbers, rules, sizeof(rules) / sizeof(rules[0])) < 0))
        return 2;
    size -= size % (2 * DISK_RECORD);
    for (size_t i = 0; check && i < sizeof(checks) / sizeof(checks[0]); i++) {
        if (strcmp(check, checks[i].name) == 0)
            return checks[i].run(device, size);
    }
    if (check) {
        printf("ferry-work: there is no disk check %s\n", check);
        return 2;
    }
    journal.device = device;
    journal.slots = size / DISK_RECORD;
    if (posix_memalign((void **)&journal.record, DISK_RECORD, DISK_RECORD) != 0 ||
        posix_memalign((void **)&journal.readback, DISK_RECORD, DISK_RECORD) != 0)
        return 1;
    journal.fd = place_open(device, file_system, size);
    return journal.fd < 0 ? 1 : journal_run(&journal, rate, seconds);
}

int disk_run(const char *text)
{
    char *words = strdup(text), *numbers = malloc(strlen(text) + 1);
    int status = words && numbers ? disk_run_words(words, numbers) : 1;

    free(words);
    free(numbers);
    return status;
}
