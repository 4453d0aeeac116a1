#include "cli/text.h"

#include <stdint.h>
#include <string.h>
#include <wchar.h>

/* Decodes one character; returns its bytes, 0 at the end, or 1 with *out = -1 for a byte that is not UTF-8.
 */
static size_t utf8_decode(const char *text, int32_t *out)
{
    static const int32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *bytes = (const unsigned char *)text;
    size_t length;
    int32_t value;

    if (bytes[0] == 0)
        return 0;
    *out = bytes[0];
    if (bytes[0] < 0x80)
        return 1;
    *out = -1;
    if (bytes[0] >= 0xc2 && bytes[0] < 0xe0)
        length = 2;
    else if (bytes[0] >= 0xe0 && bytes[0] < 0xf0)
        length = 3;
    else if (bytes[0] >= 0xf0 && bytes[0] < 0xf5)
        length = 4;
    else
        return 1;
    value = bytes[0] & (0x7f >> length);
    for (size_t i = 1; i < length; i++) {
        if ((bytes[i] & 0xc0) != 0x80)
            return 1;
        value = value << 6 | (bytes[i] & 0x3f);
    }
    if (value < least[length] || value > 0x10ffff || (value >= 0xd800 && value < 0xe000))
        return 1;
    *out = value;
    return length;
}

static size_t character_width(int32_t character)
{
    int width = character < 0 ? 1 : wcwidth((wchar_t)character);

    return width < 0 ? 1 : (size_t)width;
}

size_t text_width(const char *text)
{
    size_t width = 0, length;
    int32_t character;

    for (; (length = utf8_decode(text, &character)) > 0; text += length)
        width += character_width(character);
    return width;
}

size_t text_cut(const char *text, size_t columns)
{
    size_t used = 0, width = 0, length;
    int32_t character;

    for (; (length = utf8_decode(text + used, &character)) > 0; used += length) {
        width += character_width(character);
        if (width > columns)
            break;
    }
    return used;
}

void text_clean(char *text)
{
    char *to = text;
    int32_t character;
    size_t length;

    for (; (length = utf8_decode(text, &character)) > 0; text += length) {
        if (character < 0x20 || (character >= 0x7f && character < 0xa0)) {
            *to++ = '?';
        } else {
            memmove(to, text, length);
            to += length;
        }
    }
    *to = '\0';
}

#define WORD_MAX 64

static size_t least_of(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Insertions, deletions, replacements and swaps of neighbours that make one word of the other. */
static size_t edit_distance(const char *a, const char *b)
{
    size_t table[3][WORD_MAX + 1];
    size_t *before = table[0], *last = table[1], *now = table[2];
    size_t length_a = strlen(a), length_b = strlen(b);

    if (length_a > WORD_MAX || length_b > WORD_MAX)
        return SIZE_MAX;
    for (size_t j = 0; j <= length_b; j++)
        last[j] = j;
    for (size_t i = 1; i <= length_a; i++) {
        size_t *free_row = before;

        now[0] = i;
        for (size_t j = 1; j <= length_b; j++) {
            now[j] = least_of(last[j - 1] + (a[i - 1] != b[j - 1]), least_of(last[j], now[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                now[j] = least_of(now[j], before[j - 2] + 1);
        }
        before = last;
        last = now;
        now = free_row;
    }
    return last[length_b];
}

const char *text_closest(const char *word, const char *const *candidates, size_t count)
{
    size_t length = strlen(word);
    size_t least = length / 3 + 2; /* not included */
    const char *closest = NULL;

    for (size_t i = 0; i < count; i++) {
        size_t distance = edit_distance(word, candidates[i]);

        /* "migr" means "migrate" though four letters are missing. */
        if (length >= 3 && strncmp(word, candidates[i], length) == 0)
            distance = least_of(distance, 1);
        if (distance < least) {
            least = distance;
            closest = candidates[i];
        }
    }
    return closest;
}
