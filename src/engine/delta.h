/*
 * What changed in a page: the bytes of a newer copy that differ from an older one.
 *
 *     skip, count, COUNT bytes, skip, count, COUNT bytes, …
 *
 * SKIP bytes stay as they are, then COUNT (1 or more) are replaced; what is left at the end stays. Numbers
 * are 7 bits a byte, low bits first, the high bit set in all but the last; two bytes at most.
 */
#ifndef FERRY_ENGINE_DELTA_H
#define FERRY_ENGINE_DELTA_H

#include <ferry/ferry.h>

/* Room that every delta of a page fits in that is worth sending. */
#define DELTA_SIZE_MAX 3072

/* Returns the delta's size, 0 when nothing differs, or SIZE_MAX when it does not fit in ROOM bytes. */
size_t delta_encode(const uint8_t older[static FERRY_PAGE_SIZE], const uint8_t newer[static FERRY_PAGE_SIZE],
                    uint8_t *out, size_t room);
/* Makes PAGE, which is the older copy, the newer one. -EBADMSG for what is no delta: it may have been changed
 * then, but nothing outside of it. */
int delta_apply(uint8_t page[static FERRY_PAGE_SIZE], const uint8_t *delta, size_t size,
                struct ferry_error *err);

#endif
