#include "cli/guest_output.h"

#include "cli/memory.h"

#include <stdlib.h>
#include <string.h>

void guest_output_init(struct guest_output *output, struct cli *cli, const char *vm)
{
    *output = (struct guest_output){.cli = cli, .vm = vm};
}

static void remember(struct guest_output *output, const char *data, size_t size)
{
    size_t keep;

    output->count += size;
    if (size >= GUEST_OUTPUT_TAIL) {
        memcpy(output->tail, data + size - GUEST_OUTPUT_TAIL, GUEST_OUTPUT_TAIL);
        output->tail_size = GUEST_OUTPUT_TAIL;
        return;
    }
    keep = output->tail_size < GUEST_OUTPUT_TAIL - size ? output->tail_size : GUEST_OUTPUT_TAIL - size;
    memmove(output->tail, output->tail + output->tail_size - keep, keep);
    memcpy(output->tail + keep, data, size);
    output->tail_size = keep + size;
}

/* Bytes of the UTF-8 character that begins with BYTE; 0 for a byte that begins none. */
static size_t character_size(unsigned char byte)
{
    if (byte < 0x80)
        return 1;
    if (byte >= 0xc2 && byte < 0xe0)
        return 2;
    if (byte >= 0xe0 && byte < 0xf0)
        return 3;
    return byte >= 0xf0 && byte < 0xf5 ? 4 : 0;
}

/* jansson judges a single character; anything that is not UTF-8 becomes U+FFFD. */
static void append_character(FILE *out, const char *bytes, size_t size)
{
    json_t *valid = size ? json_stringn(bytes, size) : NULL;

    if (valid)
        fwrite(bytes, 1, size, out);
    else
        fputs("\xef\xbf\xbd", out);
    json_decref(valid);
}

static void write_json(struct guest_output *output, const char *data, size_t size)
{
    char *joined = memory_resize(NULL, output->partial_size + size), *text = NULL;
    size_t text_size, used = 0, all = output->partial_size + size;
    FILE *out = open_memstream(&text, &text_size);

    memcpy(joined, output->partial, output->partial_size);
    memcpy(joined + output->partial_size, data, size);
    output->partial_size = 0;
    while (out && used < all) {
        size_t length = character_size((unsigned char)joined[used]);
        size_t have = 1;

        while (have < length && used + have < all && (joined[used + have] & 0xc0) == 0x80)
            have++;
        if (have < length && used + have == all) {
            memcpy(output->partial, joined + used, have);
            output->partial_size = have;
            break;
        }
        append_character(out, joined + used, have == length ? length : 0);
        used += have;
    }
    if (out)
        fclose(out);
    if (text && text_size > 0) {
        json_t *line =
            cli_pack("{s:s, s:s, s:s%}", "vm", output->vm, "host", output->host, "text", text, text_size);

        cli_print_json_line(output->cli, line);
        json_decref(line);
    }
    free(joined);
    free(text);
}

int guest_output_write(struct guest_output *output, const char *data, size_t size)
{
    remember(output, data, size);
    if (output->cli->json)
        write_json(output, data, size);
    else
        fwrite(data, 1, size, output->cli->out);
    fflush(output->cli->out);
    return ferror(output->cli->out) ? 1 : 0;
}

size_t guest_output_find(const struct guest_output *output, const char *history, size_t size)
{
    size_t tail = output->tail_size;

    if (tail == 0)
        return 0;
    if (output->count <= size && memcmp(history + output->count - tail, output->tail, tail) == 0)
        return output->count;
    /* The history was cut at its beginning: the last place that fits. */
    for (size_t end = size; end >= tail; end--) {
        if (memcmp(history + end - tail, output->tail, tail) == 0)
            return end;
    }
    return 0;
}
