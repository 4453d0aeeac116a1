/*
 * The error value that travels up through Ferry and through libferry's public interface.
 *
 * A function that can fail returns 0 or a negative errno value and takes a `struct ferry_error *` as its last
 * parameter. On failure the struct holds one sentence for a person: what happened, to what (by name), and
 * what to do about it where that is known. On success it is left untouched. The pointer may be NULL when the
 * caller does not want the words. The struct owns nothing and may be copied.
 */
#ifndef FERRY_ERROR_H
#define FERRY_ERROR_H

#define FERRY_ERROR_TEXT_SIZE 512

struct ferry_error {
    int code;                         /* negative errno, the same value the function returned */
    char text[FERRY_ERROR_TEXT_SIZE]; /* one sentence, no newline, NUL-terminated, truncated if too long */
};

#endif
