/*
 * The system calls of ferry-vm's threads, for confine.c. A call is let through when one of its rows for the
 * thread's kind matches; what has no row is forbidden. The table ends with a row without kinds.
 */
#ifndef FERRY_VM_CONFINE_RULES_H
#define FERRY_VM_CONFINE_RULES_H

#include <stdint.h>

/* Builds for tests, whose sanitizers make calls of their own: these are let through on any thread. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CONFINE_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define CONFINE_SANITIZED 1
#endif
#endif

enum confine_test {
    CONFINE_ALWAYS = 0,
    CONFINE_EQUAL,   /* argument & mask == value */
    CONFINE_OWN_PID, /* the argument is this process */
};

struct confine_rule {
    int call;         /* libseccomp's number */
    uint8_t kinds;    /* bits of enum thread_kind */
    uint8_t test;     /* enum confine_test */
    uint8_t argument; /* 0 to 5 */
    uint16_t refusal; /* errno that it gets instead of being let through; 0: let through */
    uint64_t mask;
    uint64_t value;
};

extern const struct confine_rule confine_rules[];

#endif
