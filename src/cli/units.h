/*
 * Sizes, rates, durations and times: from what a person types, and to what a person reads.
 *
 * Typed:  size      256M, 1.5G, 4096        K M G T are powers of 1024 ("iB" may follow); alone: bytes
 *         rate      1G, 1G/s, 10Gbit        bytes a second, powers of 1024; with "bit": bits a second,
 *                                           powers of 1000, as networks are sold
 *         duration  50ms, 1.5s, 2min        ns us ms s min h; the unit must be there
 * Read:   "44.1 MiB", "1.2 GiB/s", "2.1 ms", "2 min 5 s", "2026-11-21 03:31:36 +01:00" (local time).
 *
 * Parsers return 0 or -EINVAL with a sentence that shows how it is written. Formatters write into text and
 * return it. Thread-safe; independent of the locale.
 */
#ifndef FERRY_CLI_UNITS_H
#define FERRY_CLI_UNITS_H

#include <ferry/error.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int units_parse_size(const char *text, uint64_t *bytes, struct ferry_error *err);
/* Guest memory, "512M" or "1G,hugepages" or "4G,hugepages=1G": *hugepage is the size of a huge page (2 MiB
 * unless said otherwise), 0 without. */
int units_parse_memory(const char *text, uint64_t *bytes, uint64_t *hugepage, struct ferry_error *err);
int units_parse_rate(const char *text, uint64_t *bytes_per_s, struct ferry_error *err);
int units_parse_duration(const char *text, uint64_t *ns, struct ferry_error *err);
int units_parse_number(const char *text, uint64_t *number, struct ferry_error *err);

#define UNITS_TEXT_SIZE 48
char *units_format_size(uint64_t bytes, char text[static UNITS_TEXT_SIZE]);
char *units_format_rate(uint64_t bytes_per_s, char text[static UNITS_TEXT_SIZE]);
char *units_format_duration(uint64_t ns, char text[static UNITS_TEXT_SIZE]);

/* RFC 3339 ("2026-11-21T03:31:36.123+01:00", fraction optional, zone needed) to nanoseconds since 1970. */
bool units_parse_time(const char *text, int64_t *realtime_ns);
/* Local time with its zone, to the second, or with milliseconds. A text that is no time is given back as it
 * is (cut to fit). */
char *units_format_time(const char *rfc3339, bool milliseconds, char text[static UNITS_TEXT_SIZE]);

#endif
