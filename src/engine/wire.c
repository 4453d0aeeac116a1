#include "engine/wire.h"

#include "base/error.h"

#include <errno.h>
#include <string.h>
#include <xxhash.h>

#define WIRE_BATCH_HEAD   8
#define WIRE_RUN_SIZE     8
#define WIRE_REASON_MAX   (1 + 4 + FERRY_ERROR_TEXT_SIZE)
#define WIRE_MISSING_HEAD 9
#define WIRE_PAGE_SIZE    5 /* of a page's name */

static const uint8_t wire_magic[8] = {'F', 'E', 'R', 'R', 'Y', 'M', 'I', 'G'};

/* Bounds of every frame. A type that is not here does not exist. */
struct frame_kind {
    const char *name;
    uint32_t length_min;
    uint32_t length_max;
    uint32_t data_max;
    uint8_t flags;
};

static const struct frame_kind frame_kinds[] = {
    [WIRE_HELLO] = {"HELLO", 8 + 4 + 4 + FERRY_TOKEN_SIZE, WIRE_HELLO_MAX, 0, 0},
    [WIRE_WELCOME] = {"WELCOME", 10, 10, 0, 0},
    [WIRE_REGIONS] = {"REGIONS", 1, 1 + FERRY_REGIONS_MAX *(4 + FERRY_NAME_SIZE + 16), 0, 0},
    [WIRE_START] = {"START", 8, 8, 0, 0},
    [WIRE_PAGES] = {"PAGES", WIRE_BATCH_HEAD + WIRE_RUN_SIZE, WIRE_BATCH_HEAD + WIRE_RUNS_MAX *WIRE_RUN_SIZE,
                    WIRE_DATA_MAX, 0},
    [WIRE_FENCE] = {"FENCE", 4, 4, 0, 0},
    [WIRE_ROUND_END] = {"ROUND_END", 4, 4, 0, 0},
    [WIRE_ROUND_DONE] = {"ROUND_DONE", 4, 4, 0, 0},
    [WIRE_PAUSED] = {"PAUSED", 1, 1, 0, 0},
    [WIRE_SECTION] = {"SECTION", 4 + 1 + 4 + 4, WIRE_BODY_MAX, 0, 0},
    [WIRE_END] = {"END", 16, 16, 0, WIRE_END_VERIFY | WIRE_END_FETCH},
    [WIRE_VERDICT] = {"VERDICT", 1 + 5, 1 + WIRE_REASON_MAX, 0, 0},
    [WIRE_GO] = {"GO", 0, 0, 0, 0},
    [WIRE_RUNNING] = {"RUNNING", 40, 40, 0, 0},
    [WIRE_NOT_RUNNING] = {"NOT_RUNNING", 5, WIRE_REASON_MAX, 0, 0},
    [WIRE_ABORT] = {"ABORT", 5, WIRE_REASON_MAX, 0, 0},
    [WIRE_KEEPALIVE] = {"KEEPALIVE", 0, 0, 0, 0},
    [WIRE_MEMORY] = {"MEMORY", 1, 1, 0, 0},
    [WIRE_MEMORY_TAKEN] = {"MEMORY_TAKEN", 0, 0, 0, 0},
    [WIRE_PRESENT] = {"PRESENT", 1 + 4 + 1, 1 + 4 + (UINT32_C(1) << 25), 0, 0},
    [WIRE_ENCODED] = {"ENCODED", WIRE_BATCH_HEAD + WIRE_RUN_SIZE,
                      WIRE_BATCH_HEAD + WIRE_RUNS_MAX *WIRE_RUN_SIZE + 2 * WIRE_BATCH_PAGES_MAX,
                      WIRE_DATA_MAX, 0},
    [WIRE_PREPARED] = {"PREPARED", 0, 0, 0, 0},
    [WIRE_FETCH] = {"FETCH", 2, 2, 0, 0},
    [WIRE_READY] = {"READY", 8, 8, 0, 0},
    [WIRE_MISSING] = {"MISSING", WIRE_MISSING_HEAD + 8, WIRE_MISSING_HEAD + WIRE_MISSING_WORDS_MAX * 8, 0, 0},
    [WIRE_REQUEST] = {"REQUEST", 2 + WIRE_PAGE_SIZE, 2 + WIRE_REQUEST_PAGES_MAX *WIRE_PAGE_SIZE, 0, 0},
    [WIRE_FETCHED] = {"FETCHED", 48, 48, 0, 0},
};

#define FRAME_KINDS (sizeof(frame_kinds) / sizeof(frame_kinds[0]))

const char *wire_type_name(uint8_t type)
{
    return type < FRAME_KINDS && frame_kinds[type].name ? frame_kinds[type].name : "unknown";
}

static void put_u16(uint8_t *out, uint16_t value)
{
    out[0] = (uint8_t)value;
    out[1] = (uint8_t)(value >> 8);
}

static void put_u32(uint8_t *out, uint32_t value)
{
    put_u16(out, (uint16_t)value);
    put_u16(out + 2, (uint16_t)(value >> 16));
}

static void put_u64(uint8_t *out, uint64_t value)
{
    put_u32(out, (uint32_t)value);
    put_u32(out + 4, (uint32_t)(value >> 32));
}

static uint64_t checksum_of(const uint8_t header[static 16], const void *body, size_t size)
{
    return XXH3_64bits_withSeed(body, size, XXH3_64bits(header, 16));
}

void wire_header_encode(uint8_t out[static WIRE_HEADER_SIZE], struct wire_header *header, const void *body)
{
    out[0] = header->type;
    out[1] = header->flags;
    put_u16(out + 2, 0);
    put_u32(out + 4, header->length);
    put_u32(out + 8, header->data);
    put_u32(out + 12, header->sequence);
    header->checksum = checksum_of(out, body, header->length);
    put_u64(out + 16, header->checksum);
}

int wire_header_decode(const uint8_t in[static WIRE_HEADER_SIZE], struct wire_header *header,
                       struct ferry_error *err)
{
    struct reader reader = reader_init(in, WIRE_HEADER_SIZE);

    header->type = reader_get_u8(&reader);
    header->flags = reader_get_u8(&reader);
    uint16_t reserved = reader_get_u16(&reader);
    header->length = reader_get_u32(&reader);
    header->data = reader_get_u32(&reader);
    header->sequence = reader_get_u32(&reader);
    header->checksum = reader_get_u64(&reader);

    if (header->type >= FRAME_KINDS || !frame_kinds[header->type].name)
        return error_set(err, -EBADMSG, "frame of unknown type %u", header->type);

    const struct frame_kind *kind = &frame_kinds[header->type];

    if (header->flags & ~kind->flags || reserved != 0)
        return error_set(err, -EBADMSG, "%s frame with unknown flags 0x%x", kind->name, header->flags);
    if (header->length < kind->length_min || header->length > kind->length_max)
        return error_set(err, -EBADMSG, "%s frame of %u bytes, must be %u to %u", kind->name, header->length,
                         kind->length_min, kind->length_max);
    if (header->data > kind->data_max)
        return error_set(err, -EBADMSG, "%s frame with %u bytes of data, at most %u", kind->name,
                         header->data, kind->data_max);
    if (header->sequence == 0)
        return error_set(err, -EBADMSG, "%s frame with sequence 0", kind->name);
    return 0;
}

int wire_body_check(const uint8_t in[static WIRE_HEADER_SIZE], const struct wire_header *header,
                    const void *body, struct ferry_error *err)
{
    if (checksum_of(in, body, header->length) != header->checksum)
        return error_set(err, -EBADMSG, "%s frame with a wrong checksum", wire_type_name(header->type));
    return 0;
}

void wire_frame_put(struct buffer *out, enum wire_type type, uint8_t flags, uint32_t sequence,
                    const void *body, size_t size)
{
    struct wire_header header = {
        .type = (uint8_t)type, .flags = flags, .length = (uint32_t)size, .sequence = sequence};
    uint8_t bytes[WIRE_HEADER_SIZE];

    wire_header_encode(bytes, &header, body);
    buffer_put(out, bytes, sizeof(bytes));
    if (size > 0)
        buffer_put(out, body, size);
}

/* The end of every decoder: nothing missing, nothing left over. */
static int decode_finish(const struct reader *in, enum wire_type type, struct ferry_error *err)
{
    if (reader_failed(in))
        return error_set(err, -EBADMSG, "%s frame is cut short or has text out of bounds",
                         wire_type_name((uint8_t)type));
    if (reader_left(in) > 0)
        return error_set(err, -EBADMSG, "%s frame has %zu bytes too many", wire_type_name((uint8_t)type),
                         reader_left(in));
    return 0;
}

void wire_hello_encode(struct buffer *out, const struct wire_hello *hello)
{
    buffer_put(out, wire_magic, sizeof(wire_magic));
    buffer_put_u16(out, hello->version_min);
    buffer_put_u16(out, hello->version_max);
    buffer_put_string(out, hello->migration_id);
    buffer_put(out, hello->token, sizeof(hello->token));
    buffer_put_u8(out, (uint8_t)hello->connection);
    buffer_put_u16(out, hello->index);
    buffer_put_u16(out, hello->streams);
    buffer_put_u32(out, hello->page_size);
    buffer_put_u64(out, hello->features);
    buffer_put_u64(out, hello->required);
    buffer_put_string(out, hello->source);
    buffer_put_string(out, hello->destination);
}

int wire_hello_decode(struct reader *in, struct wire_hello *hello, struct ferry_error *err)
{
    uint8_t magic[sizeof(wire_magic)];

    memset(hello, 0, sizeof(*hello));
    reader_get(in, magic, sizeof(magic));
    hello->version_min = reader_get_u16(in);
    hello->version_max = reader_get_u16(in);
    reader_get_string(in, hello->migration_id, sizeof(hello->migration_id));
    reader_get(in, hello->token, sizeof(hello->token));
    if (reader_failed(in) || memcmp(magic, wire_magic, sizeof(magic)) != 0)
        return error_set(err, -EBADMSG, "HELLO frame is not one of Ferry's");
    if (hello->version_min == 0 || hello->version_max < hello->version_min)
        return error_set(err, -EBADMSG, "HELLO frame with versions %u to %u", hello->version_min,
                         hello->version_max);
    if (hello->version_min > WIRE_VERSION_MAX || hello->version_max < WIRE_VERSION_MIN)
        return 0; /* the rest may mean anything */
    hello->version = hello->version_max < WIRE_VERSION_MAX ? hello->version_max : WIRE_VERSION_MAX;

    hello->connection = reader_get_u8(in);
    hello->index = reader_get_u16(in);
    hello->streams = reader_get_u16(in);
    hello->page_size = reader_get_u32(in);
    hello->features = reader_get_u64(in);
    hello->required = reader_get_u64(in);
    reader_get_string(in, hello->source, sizeof(hello->source));
    reader_get_string(in, hello->destination, sizeof(hello->destination));

    int result = decode_finish(in, WIRE_HELLO, err);

    if (result < 0)
        return result;
    if (hello->connection != WIRE_CONNECTION_CONTROL && hello->connection != WIRE_CONNECTION_PAGES &&
        hello->connection != WIRE_CONNECTION_FETCH)
        return error_set(err, -EBADMSG, "HELLO frame for unknown kind of connection %d",
                         (int)hello->connection);
    if (hello->streams == 0 || hello->streams > FERRY_STREAMS_MAX || hello->index >= hello->streams)
        return error_set(err, -EBADMSG, "HELLO frame for page connection %u of %u, at most %d", hello->index,
                         hello->streams, FERRY_STREAMS_MAX);
    return 0;
}

void wire_welcome_encode(struct buffer *out, const struct wire_welcome *welcome)
{
    buffer_put_u16(out, welcome->version);
    buffer_put_u64(out, welcome->features);
}

int wire_welcome_decode(struct reader *in, struct wire_welcome *welcome, struct ferry_error *err)
{
    welcome->version = reader_get_u16(in);
    welcome->features = reader_get_u64(in);
    return decode_finish(in, WIRE_WELCOME, err);
}

void wire_regions_encode(struct buffer *out, const struct ferry_ram_region *regions, size_t count)
{
    buffer_put_u8(out, (uint8_t)count);
    for (size_t i = 0; i < count; i++) {
        buffer_put_string(out, regions[i].name);
        buffer_put_u64(out, regions[i].guest_addr);
        buffer_put_u64(out, regions[i].size);
    }
}

int wire_regions_decode(struct reader *in, struct wire_region regions[static FERRY_REGIONS_MAX],
                        size_t *count, struct ferry_error *err)
{
    *count = reader_get_u8(in);
    if (*count == 0 || *count > FERRY_REGIONS_MAX)
        return error_set(err, -EBADMSG, "REGIONS frame with %zu regions, must be 1 to %d", *count,
                         FERRY_REGIONS_MAX);
    for (size_t i = 0; i < *count; i++) {
        reader_get_string(in, regions[i].name, sizeof(regions[i].name));
        regions[i].guest_addr = reader_get_u64(in);
        regions[i].size = reader_get_u64(in);
        if (reader_failed(in))
            break;
        if (regions[i].size == 0 || regions[i].size % FERRY_PAGE_SIZE != 0 ||
            regions[i].size / FERRY_PAGE_SIZE > UINT32_MAX)
            return error_set(err, -EBADMSG, "REGIONS frame with a region of %llu bytes",
                             (unsigned long long)regions[i].size);
    }
    return decode_finish(in, WIRE_REGIONS, err);
}

void wire_start_encode(struct buffer *out, const struct wire_start *start)
{
    buffer_put_u64(out, start->quiesce_timeout_ns);
}

int wire_start_decode(struct reader *in, struct wire_start *start, struct ferry_error *err)
{
    start->quiesce_timeout_ns = reader_get_u64(in);
    return decode_finish(in, WIRE_START, err);
}

void wire_memory_encode(struct buffer *out, size_t count)
{
    buffer_put_u8(out, (uint8_t)count);
}

int wire_memory_decode(struct reader *in, size_t *count, struct ferry_error *err)
{
    *count = reader_get_u8(in);

    int result = decode_finish(in, WIRE_MEMORY, err);

    if (result == 0 && (*count == 0 || *count > FERRY_REGIONS_MAX))
        result = error_set(err, -EBADMSG, "MEMORY frame with %zu descriptors, must be 1 to %d", *count,
                           FERRY_REGIONS_MAX);
    return result;
}

void wire_present_encode(struct buffer *out, const struct wire_present *present)
{
    buffer_put_u8(out, present->region);
    buffer_put_u32(out, (uint32_t)present->size);
    buffer_put(out, present->bits, present->size);
}

int wire_present_decode(struct reader *in, struct wire_present *present, struct ferry_error *err)
{
    present->region = reader_get_u8(in);
    present->size = reader_get_u32(in);
    present->bits = reader_view(in, present->size);
    if (present->region >= FERRY_REGIONS_MAX)
        return error_set(err, -EBADMSG, "PRESENT frame for region %u", present->region);
    return decode_finish(in, WIRE_PRESENT, err);
}

static void run_put(struct buffer *out, const struct wire_run *run)
{
    buffer_put_u8(out, run->region);
    buffer_put_u8(out, run->kind);
    buffer_put_u16(out, run->pages);
    buffer_put_u32(out, run->first);
}

static void run_get(struct reader *in, struct wire_run *run)
{
    run->region = reader_get_u8(in);
    run->kind = reader_get_u8(in);
    run->pages = reader_get_u16(in);
    run->first = reader_get_u32(in);
}

void wire_batch_encode(struct buffer *out, uint32_t round, const struct wire_run *runs, size_t count)
{
    buffer_put_u32(out, round);
    buffer_put_u16(out, (uint16_t)count);
    buffer_put_u16(out, 0);
    for (size_t i = 0; i < count; i++)
        run_put(out, &runs[i]);
}

int wire_batch_decode(struct reader *in, uint32_t data, uint32_t *round,
                      struct wire_run runs[static WIRE_RUNS_MAX], size_t *count, struct ferry_error *err)
{
    *round = reader_get_u32(in);
    *count = reader_get_u16(in);
    uint16_t reserved = reader_get_u16(in);

    if (*round == 0 || *count == 0 || *count > WIRE_RUNS_MAX || reserved != 0)
        return error_set(err, -EBADMSG, "PAGES frame of round %u with %zu runs, must be 1 to %d", *round,
                         *count, WIRE_RUNS_MAX);

    uint64_t raw = 0;

    for (size_t i = 0; i < *count; i++) {
        run_get(in, &runs[i]);
        if (reader_failed(in))
            break;
        if (runs[i].pages == 0 || (runs[i].kind != WIRE_PAGE_RAW && runs[i].kind != WIRE_PAGE_ZERO))
            return error_set(err, -EBADMSG, "PAGES frame with %u pages of unknown kind %u", runs[i].pages,
                             runs[i].kind);
        if (runs[i].kind == WIRE_PAGE_RAW)
            raw += (uint64_t)runs[i].pages * FERRY_PAGE_SIZE;
    }

    int result = decode_finish(in, WIRE_PAGES, err);

    if (result == 0 && raw != data)
        result = error_set(err, -EBADMSG, "PAGES frame with %u bytes of data for %llu of pages", data,
                           (unsigned long long)raw);
    return result;
}

void wire_encoded_encode(struct buffer *out, const struct wire_encoded *encoded)
{
    buffer_put_u32(out, encoded->round);
    buffer_put_u16(out, (uint16_t)encoded->count);
    buffer_put_u8(out, (uint8_t)encoded->compression);
    buffer_put_u8(out, 0);
    for (size_t i = 0; i < encoded->count; i++)
        run_put(out, &encoded->runs[i]);
    for (size_t i = 0; i < encoded->delta_count; i++)
        buffer_put_u16(out, encoded->deltas[i]);
}

/* The pages that have data are counted. */
static int encoded_runs_decode(struct reader *in, struct wire_encoded *encoded, size_t *pages,
                               struct ferry_error *err)
{
    *pages = 0;
    encoded->delta_count = 0;
    for (size_t i = 0; i < encoded->count; i++) {
        struct wire_run *run = &encoded->runs[i];

        run_get(in, run);
        if (reader_failed(in))
            break;
        if (run->pages == 0 || run->kind < WIRE_PAGE_RAW || run->kind > WIRE_PAGE_DELTA)
            return error_set(err, -EBADMSG, "ENCODED frame with %u pages of unknown kind %u", run->pages,
                             run->kind);
        if (run->kind == WIRE_PAGE_ZERO)
            continue;
        *pages += run->pages;
        if (run->kind == WIRE_PAGE_DELTA)
            encoded->delta_count += run->pages;
        if (*pages > WIRE_BATCH_PAGES_MAX)
            return error_set(err, -EBADMSG, "ENCODED frame with more than %d pages", WIRE_BATCH_PAGES_MAX);
    }
    return 0;
}

int wire_encoded_decode(struct reader *in, uint32_t data, struct wire_encoded *encoded,
                        struct ferry_error *err)
{
    encoded->round = reader_get_u32(in);
    encoded->count = reader_get_u16(in);
    encoded->compression = reader_get_u8(in);

    uint8_t reserved = reader_get_u8(in);
    size_t pages;

    if (encoded->round == 0 || encoded->count == 0 || encoded->count > WIRE_RUNS_MAX || reserved != 0 ||
        encoded->compression < WIRE_COMPRESSION_NONE || encoded->compression > WIRE_COMPRESSION_ZSTD)
        return error_set(err, -EBADMSG,
                         "ENCODED frame of round %u with %zu runs, must be 1 to %d, or unknown "
                         "compression %d",
                         encoded->round, encoded->count, WIRE_RUNS_MAX, (int)encoded->compression);

    int result = encoded_runs_decode(in, encoded, &pages, err);

    if (result < 0)
        return result;
    encoded->size = (uint32_t)(pages - encoded->delta_count) * FERRY_PAGE_SIZE;
    for (size_t i = 0; i < encoded->delta_count; i++) {
        encoded->deltas[i] = reader_get_u16(in);
        if (!reader_failed(in) && (encoded->deltas[i] == 0 || encoded->deltas[i] > FERRY_PAGE_SIZE))
            return error_set(err, -EBADMSG, "ENCODED frame with %u bytes of changes to a page",
                             encoded->deltas[i]);
        encoded->size += encoded->deltas[i];
    }
    result = decode_finish(in, WIRE_ENCODED, err);
    if (result == 0 && (encoded->compression == WIRE_COMPRESSION_NONE ? data != encoded->size
                                                                      : data == 0 || data >= encoded->size))
        result = error_set(err, -EBADMSG, "ENCODED frame with %u bytes of data for %u of pages", data,
                           encoded->size);
    return result;
}

void wire_round_encode(struct buffer *out, uint32_t round)
{
    buffer_put_u32(out, round);
}

int wire_round_decode(struct reader *in, uint32_t *round, struct ferry_error *err)
{
    *round = reader_get_u32(in);

    int result = decode_finish(in, WIRE_FENCE, err);

    if (result == 0 && *round == 0)
        result = error_set(err, -EBADMSG, "frame for round 0");
    return result;
}

void wire_paused_encode(struct buffer *out, bool was_running)
{
    buffer_put_u8(out, was_running ? 1 : 2);
}

int wire_paused_decode(struct reader *in, bool *was_running, struct ferry_error *err)
{
    uint8_t value = reader_get_u8(in);
    int result = decode_finish(in, WIRE_PAUSED, err);

    if (result == 0 && value != 1 && value != 2)
        result = error_set(err, -EBADMSG, "PAUSED frame for unknown run state %u", value);
    *was_running = value == 1;
    return result;
}

void wire_section_encode(struct buffer *out, const struct ferry_section *section)
{
    buffer_put_string(out, section->name);
    buffer_put_u32(out, section->version);
    buffer_put_u32(out, (uint32_t)section->size);
    buffer_put(out, section->data, section->size);
}

int wire_section_decode(struct reader *in, struct ferry_section *section, struct ferry_error *err)
{
    reader_get_string(in, section->name, sizeof(section->name));
    section->version = reader_get_u32(in);
    section->size = reader_get_u32(in);
    section->data = reader_view(in, section->size);

    int result = decode_finish(in, WIRE_SECTION, err);

    if (result == 0 &&
        (section->name[0] == '\0' || section->version == 0 || section->size > FERRY_SECTION_SIZE_MAX))
        result = error_set(err, -EBADMSG, "SECTION frame without a name, of version 0, or too large");
    return result;
}

void wire_end_encode(struct buffer *out, const struct wire_end *end)
{
    buffer_put_u32(out, end->sections);
    buffer_put_u32(out, end->fence);
    buffer_put_u64(out, end->memory_checksum);
}

int wire_end_decode(struct reader *in, struct wire_end *end, struct ferry_error *err)
{
    end->sections = reader_get_u32(in);
    end->fence = reader_get_u32(in);
    end->memory_checksum = reader_get_u64(in);
    return decode_finish(in, WIRE_END, err);
}

static void reason_get(struct reader *in, struct wire_reason *reason)
{
    uint8_t cause = reader_get_u8(in);

    reader_get_string(in, reason->text, sizeof(reason->text));
    /* A cause this version does not know is still a failure. */
    reason->cause = cause > FERRY_CAUSE_INTERNAL ? FERRY_CAUSE_INTERNAL : cause;
    for (char *c = reason->text; *c; c++) {
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = '?';
    }
}

void wire_reason_encode(struct buffer *out, const struct wire_reason *reason)
{
    buffer_put_u8(out, (uint8_t)reason->cause);
    buffer_put_string(out, reason->text);
}

int wire_reason_decode(struct reader *in, struct wire_reason *reason, struct ferry_error *err)
{
    reason_get(in, reason);
    return decode_finish(in, WIRE_ABORT, err);
}

void wire_verdict_encode(struct buffer *out, enum wire_verdict verdict, const struct wire_reason *reason)
{
    buffer_put_u8(out, (uint8_t)verdict);
    wire_reason_encode(out, reason);
}

int wire_verdict_decode(struct reader *in, enum wire_verdict *verdict, struct wire_reason *reason,
                        struct ferry_error *err)
{
    *verdict = reader_get_u8(in);
    reason_get(in, reason);

    int result = decode_finish(in, WIRE_VERDICT, err);

    if (result == 0 && *verdict != WIRE_RESTORE_OK && *verdict != WIRE_RESTORE_FAILURE)
        result = error_set(err, -EBADMSG, "VERDICT frame with unknown verdict %d", (int)*verdict);
    return result;
}

void wire_running_encode(struct buffer *out, const struct wire_running *running)
{
    buffer_put_u64(out, running->since_go_ns);
    buffer_put_u64(out, running->state_load_ns);
    buffer_put_u64(out, running->lock_ns);
    buffer_put_u64(out, running->resume_ns);
    buffer_put_u64(out, running->announce_ns);
}

int wire_running_decode(struct reader *in, struct wire_running *running, struct ferry_error *err)
{
    running->since_go_ns = reader_get_u64(in);
    running->state_load_ns = reader_get_u64(in);
    running->lock_ns = reader_get_u64(in);
    running->resume_ns = reader_get_u64(in);
    running->announce_ns = reader_get_u64(in);
    return decode_finish(in, WIRE_RUNNING, err);
}

void wire_fetch_encode(struct buffer *out, uint16_t connections)
{
    buffer_put_u16(out, connections);
}

int wire_fetch_decode(struct reader *in, uint16_t *connections, struct ferry_error *err)
{
    *connections = reader_get_u16(in);

    int result = decode_finish(in, WIRE_FETCH, err);

    if (result == 0 && (*connections < 2 || *connections > FERRY_STREAMS_MAX))
        result = error_set(err, -EBADMSG, "FETCH frame for %u connections, must be 2 to %d", *connections,
                           FERRY_STREAMS_MAX);
    return result;
}

void wire_ready_encode(struct buffer *out, uint64_t missing)
{
    buffer_put_u64(out, missing);
}

int wire_ready_decode(struct reader *in, uint64_t *missing, struct ferry_error *err)
{
    *missing = reader_get_u64(in);
    return decode_finish(in, WIRE_READY, err);
}

void wire_missing_encode(struct buffer *out, const struct wire_missing *missing, const uint64_t *bits)
{
    buffer_put_u8(out, missing->region);
    buffer_put_u32(out, missing->first);
    buffer_put_u32(out, missing->words);
    for (uint32_t i = 0; i < missing->words; i++)
        buffer_put_u64(out, bits[i]);
}

int wire_missing_decode(struct reader *in, struct wire_missing *missing, uint64_t *bits,
                        struct ferry_error *err)
{
    missing->region = reader_get_u8(in);
    missing->first = reader_get_u32(in);
    missing->words = reader_get_u32(in);
    if (missing->first % 64 != 0 || missing->words == 0 || missing->words > WIRE_MISSING_WORDS_MAX)
        return error_set(err, -EBADMSG, "MISSING frame of %u words from page %u", missing->words,
                         missing->first);
    for (uint32_t i = 0; i < missing->words; i++)
        bits[i] = reader_get_u64(in);
    return decode_finish(in, WIRE_MISSING, err);
}

void wire_request_encode(struct buffer *out, const struct wire_page *pages, size_t count)
{
    buffer_put_u16(out, (uint16_t)count);
    for (size_t i = 0; i < count; i++) {
        buffer_put_u8(out, pages[i].region);
        buffer_put_u32(out, pages[i].page);
    }
}

int wire_request_decode(struct reader *in, struct wire_page pages[static WIRE_REQUEST_PAGES_MAX],
                        size_t *count, struct ferry_error *err)
{
    *count = reader_get_u16(in);
    if (*count == 0 || *count > WIRE_REQUEST_PAGES_MAX)
        return error_set(err, -EBADMSG, "REQUEST frame for %zu pages, must be 1 to %d", *count,
                         WIRE_REQUEST_PAGES_MAX);
    for (size_t i = 0; i < *count; i++) {
        pages[i].region = reader_get_u8(in);
        pages[i].page = reader_get_u32(in);
    }
    return decode_finish(in, WIRE_REQUEST, err);
}

void wire_fetched_encode(struct buffer *out, const struct wire_fetched *fetched)
{
    buffer_put_u64(out, fetched->faults);
    buffer_put_u64(out, fetched->median_ns);
    buffer_put_u64(out, fetched->p99_ns);
    buffer_put_u64(out, fetched->max_ns);
    buffer_put_u64(out, fetched->duration_ns);
    buffer_put_u64(out, fetched->paused_ns);
}

int wire_fetched_decode(struct reader *in, struct wire_fetched *fetched, struct ferry_error *err)
{
    fetched->faults = reader_get_u64(in);
    fetched->median_ns = reader_get_u64(in);
    fetched->p99_ns = reader_get_u64(in);
    fetched->max_ns = reader_get_u64(in);
    fetched->duration_ns = reader_get_u64(in);
    fetched->paused_ns = reader_get_u64(in);
    return decode_finish(in, WIRE_FETCHED, err);
}
