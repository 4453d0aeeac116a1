#include "cli/units.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/hugepages.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define FRACTION_DIGITS 9
#define FRACTION_SCALE  UINT64_C(1000000000)

struct unit {
    const char *name;
    uint64_t factor;
};

static const struct unit size_units[] = {
    {"", 1},
    {"B", 1},
    {"K", UINT64_C(1) << 10},
    {"KiB", UINT64_C(1) << 10},
    {"M", UINT64_C(1) << 20},
    {"MiB", UINT64_C(1) << 20},
    {"G", UINT64_C(1) << 30},
    {"GiB", UINT64_C(1) << 30},
    {"T", UINT64_C(1) << 40},
    {"TiB", UINT64_C(1) << 40},
};

/* Bits a second, in bits. */
static const struct unit bit_units[] = {
    {"bit", 1},
    {"Kbit", 1000},
    {"Mbit", 1000 * 1000},
    {"Gbit", 1000 * 1000 * 1000},
    {"Tbit", UINT64_C(1000) * 1000 * 1000 * 1000},
};

static const struct unit duration_units[] = {
    {"ns", 1},
    {"us", NS_PER_US},
    {"ms", NS_PER_MS},
    {"s", NS_PER_S},
    {"min", 60 * NS_PER_S},
    {"m", 60 * NS_PER_S},
    {"h", 3600 * NS_PER_S},
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* A number as digits with at most FRACTION_DIGITS decimals, no sign. */
struct decimal {
    uint64_t whole;
    uint64_t fraction; /* in 1 / FRACTION_SCALE */
};

/* Reads a decimal; *rest is what follows it. False when there is none or it does not fit. */
static bool decimal_parse(const char *text, struct decimal *out, const char **rest)
{
    uint64_t weight = FRACTION_SCALE;

    *out = (struct decimal){0};
    if (!isdigit((unsigned char)*text))
        return false;
    for (; isdigit((unsigned char)*text); text++) {
        if (__builtin_mul_overflow(out->whole, UINT64_C(10), &out->whole) ||
            __builtin_add_overflow(out->whole, (uint64_t)(*text - '0'), &out->whole))
            return false;
    }
    if (*text == '.') {
        text++;
        if (!isdigit((unsigned char)*text))
            return false;
        for (; isdigit((unsigned char)*text); text++) {
            weight /= 10;
            out->fraction += (uint64_t)(*text - '0') * weight;
        }
    }
    *rest = text;
    return true;
}

static const struct unit *unit_find(const struct unit *units, size_t count, const char *name, size_t length)
{
    for (size_t i = 0; i < count; i++) {
        if (strlen(units[i].name) == length && strncasecmp(units[i].name, name, length) == 0)
            return &units[i];
    }
    return NULL;
}

static bool decimal_scale(const struct decimal *decimal, uint64_t factor, uint64_t *out)
{
    unsigned __int128 value = (unsigned __int128)decimal->whole * factor +
                              (unsigned __int128)decimal->fraction * factor / FRACTION_SCALE;

    if (value > INT64_MAX)
        return false;
    *out = (uint64_t)value;
    return true;
}

int units_parse_size(const char *text, uint64_t *bytes, struct ferry_error *err)
{
    const struct unit *unit;
    struct decimal decimal;
    const char *rest;

    if (!decimal_parse(text, &decimal, &rest) ||
        !(unit = unit_find(size_units, COUNT(size_units), rest, strlen(rest))))
        return error_set(err, -EINVAL, "'%s' is not a size; write it like 256M or 1.5G (powers of 1024)",
                         text);
    if (!decimal_scale(&decimal, unit->factor, bytes))
        return error_set(err, -EINVAL, "size '%s' is too large", text);
    return 0;
}

/* OPTION is what follows the comma. */
static int parse_hugepages(const char *option, uint64_t *hugepage, struct ferry_error *err)
{
    static const char word[] = "hugepages";
    size_t length = strcspn(option, "=");
    const char *size = option + length;

    *hugepage = HUGEPAGES_2M;
    if (length != sizeof(word) - 1 || strncmp(option, word, length) != 0)
        return error_set(err, -EINVAL,
                         "there is no memory option '%s'; there are hugepages, hugepages=2M and hugepages=1G",
                         option);
    if (!*size)
        return 0;
    if (units_parse_size(size + 1, hugepage, NULL) < 0 || !hugepages_size_known(*hugepage))
        return error_set(err, -EINVAL, "there are no huge pages of '%s'; there are some of 2M and of 1G",
                         size + 1);
    return 0;
}

int units_parse_memory(const char *text, uint64_t *bytes, uint64_t *hugepage, struct ferry_error *err)
{
    const char *comma = strchr(text, ',');
    char size[UNITS_TEXT_SIZE];

    *hugepage = 0;
    if (!comma)
        return units_parse_size(text, bytes, err);
    if (snprintf(size, sizeof(size), "%.*s", (int)(comma - text), text) >= (int)sizeof(size))
        return error_set(err, -EINVAL, "size '%s...' is too large", size);
    if (units_parse_size(size, bytes, err) < 0)
        return -EINVAL;
    return parse_hugepages(comma + 1, hugepage, err);
}

int units_parse_rate(const char *text, uint64_t *bytes_per_s, struct ferry_error *err)
{
    const struct unit *unit = NULL;
    struct decimal decimal;
    const char *rest;
    uint64_t divisor = 1;

    if (decimal_parse(text, &decimal, &rest)) {
        size_t length = strlen(rest);

        if (length >= 2 && strcmp(rest + length - 2, "/s") == 0)
            length -= 2;
        unit = unit_find(size_units, COUNT(size_units), rest, length);
        if (!unit) {
            unit = unit_find(bit_units, COUNT(bit_units), rest, length);
            divisor = 8;
        }
    }
    if (!unit)
        return error_set(err, -EINVAL,
                         "'%s' is not a rate; write bytes a second like 500M or 1G (powers of 1024), or bits "
                         "a second like 10Gbit",
                         text);
    if (!decimal_scale(&decimal, unit->factor, bytes_per_s))
        return error_set(err, -EINVAL, "rate '%s' is too large", text);
    *bytes_per_s /= divisor;
    return 0;
}

int units_parse_duration(const char *text, uint64_t *ns, struct ferry_error *err)
{
    const struct unit *unit;
    struct decimal decimal;
    const char *rest;

    if (!decimal_parse(text, &decimal, &rest) ||
        !(unit = unit_find(duration_units, COUNT(duration_units), rest, strlen(rest))))
        return error_set(err, -EINVAL, "'%s' is not a duration; write it with its unit, like 50ms or 1.5s",
                         text);
    if (!decimal_scale(&decimal, unit->factor, ns))
        return error_set(err, -EINVAL, "duration '%s' is too long", text);
    return 0;
}

int units_parse_number(const char *text, uint64_t *number, struct ferry_error *err)
{
    struct decimal decimal;
    const char *rest;

    if (!decimal_parse(text, &decimal, &rest) || *rest || strchr(text, '.') || decimal.whole > INT64_MAX)
        return error_set(err, -EINVAL, "'%s' is not a whole number", text);
    *number = decimal.whole;
    return 0;
}

/* "4", "44.1", "256" and the unit: three figures, no ".0". */
static char *format_scaled(uint64_t value, uint64_t unit, const char *name, char *text)
{
    uint64_t tenths =
        (uint64_t)(((unsigned __int128)value * 10 + unit / 2) / unit); /* rounded to the nearest tenth */

    if (tenths >= 1000 || tenths % 10 == 0)
        snprintf(text, UNITS_TEXT_SIZE, "%llu %s", (unsigned long long)((tenths + 5) / 10), name);
    else
        snprintf(text, UNITS_TEXT_SIZE, "%llu.%llu %s", (unsigned long long)(tenths / 10),
                 (unsigned long long)(tenths % 10), name);
    return text;
}

char *units_format_size(uint64_t bytes, char text[static UNITS_TEXT_SIZE])
{
    static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    size_t step = 0;

    while (step + 1 < COUNT(names) && bytes >> (10 * (step + 1)))
        step++;
    return format_scaled(bytes, UINT64_C(1) << (10 * step), names[step], text);
}

char *units_format_rate(uint64_t bytes_per_s, char text[static UNITS_TEXT_SIZE])
{
    units_format_size(bytes_per_s, text);
    strncat(text, "/s", UNITS_TEXT_SIZE - 1 - strlen(text));
    return text;
}

char *units_format_duration(uint64_t ns, char text[static UNITS_TEXT_SIZE])
{
    unsigned long long seconds = ns / NS_PER_S;

    if (ns < NS_PER_US)
        snprintf(text, UNITS_TEXT_SIZE, ns ? "%llu ns" : "0 s", (unsigned long long)ns);
    else if (ns < NS_PER_MS)
        format_scaled(ns, NS_PER_US, "us", text);
    else if (ns < NS_PER_S)
        format_scaled(ns, NS_PER_MS, "ms", text);
    else if (seconds < 60)
        format_scaled(ns, NS_PER_S, "s", text);
    else if (seconds < 3600)
        snprintf(text, UNITS_TEXT_SIZE, "%llu min %llu s", seconds / 60, seconds % 60);
    else if (seconds < 86400)
        snprintf(text, UNITS_TEXT_SIZE, "%llu h %llu min", seconds / 3600, seconds / 60 % 60);
    else
        snprintf(text, UNITS_TEXT_SIZE, "%llu d %llu h", seconds / 86400, seconds / 3600 % 24);
    return text;
}

/* Exactly WIDTH digits at *text, which moves past them; -1 when they are not there. */
static int digits(const char **text, int width)
{
    int value = 0;

    for (int i = 0; i < width; i++) {
        if (!isdigit((unsigned char)(*text)[0]))
            return -1;
        value = value * 10 + *(*text)++ - '0';
    }
    return value;
}

static bool skip(const char **text, char wanted)
{
    if (**text != wanted)
        return false;
    (*text)++;
    return true;
}

/* "Z" or "+01:00" to seconds east of Greenwich. */
static bool zone_parse(const char **text, int64_t *seconds)
{
    int sign = **text == '-' ? -1 : 1;
    int hours, minutes;

    *seconds = 0;
    if (skip(text, 'Z'))
        return true;
    if (!skip(text, '+') && !skip(text, '-'))
        return false;
    hours = digits(text, 2);
    if (hours < 0 || !skip(text, ':'))
        return false;
    minutes = digits(text, 2);
    *seconds = sign * (hours * 3600 + minutes * 60);
    return minutes >= 0;
}

bool units_parse_time(const char *text, int64_t *realtime_ns)
{
    struct tm tm = {0};
    int64_t zone, nanoseconds = 0;

    tm.tm_year = digits(&text, 4) - 1900;
    if (tm.tm_year < 0 || !skip(&text, '-'))
        return false;
    tm.tm_mon = digits(&text, 2) - 1;
    if (tm.tm_mon < 0 || tm.tm_mon > 11 || !skip(&text, '-'))
        return false;
    tm.tm_mday = digits(&text, 2);
    if (tm.tm_mday < 1 || tm.tm_mday > 31 || !skip(&text, 'T'))
        return false;
    tm.tm_hour = digits(&text, 2);
    if (tm.tm_hour < 0 || !skip(&text, ':'))
        return false;
    tm.tm_min = digits(&text, 2);
    if (tm.tm_min < 0 || !skip(&text, ':'))
        return false;
    tm.tm_sec = digits(&text, 2);
    if (tm.tm_sec < 0)
        return false;
    if (skip(&text, '.')) {
        int64_t weight = NS_PER_S / 10;

        for (; isdigit((unsigned char)*text); text++, weight /= 10)
            nanoseconds += (*text - '0') * weight;
    }
    if (!zone_parse(&text, &zone) || *text)
        return false;
    *realtime_ns = ((int64_t)timegm(&tm) - zone) * (int64_t)NS_PER_S + nanoseconds;
    return true;
}

char *units_format_time(const char *rfc3339, bool milliseconds, char text[static UNITS_TEXT_SIZE])
{
    char date[24], zone[8], fraction[8] = "";
    int64_t realtime_ns;
    struct tm tm;
    time_t seconds;

    if (!units_parse_time(rfc3339, &realtime_ns) || realtime_ns < 0) {
        snprintf(text, UNITS_TEXT_SIZE, "%s", rfc3339);
        return text;
    }
    seconds = realtime_ns / (int64_t)NS_PER_S;
    localtime_r(&seconds, &tm);
    strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
    strftime(zone, sizeof(zone), "%z", &tm);
    if (milliseconds)
        snprintf(fraction, sizeof(fraction), ".%03u", (unsigned)(realtime_ns / (int64_t)NS_PER_MS % 1000));
    snprintf(text, UNITS_TEXT_SIZE, "%s%s %.3s:%.2s", date, fraction, zone, zone + 3);
    return text;
}
