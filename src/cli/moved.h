/*
 * A VM's console ended here: why, and where does it go on?
 */
#ifndef FERRY_CLI_MOVED_H
#define FERRY_CLI_MOVED_H

#include "cli/client.h"

enum moved_kind {
    MOVED_AWAY = 1, /* it runs on another host now: host, address */
    MOVED_ENDED,    /* it is off: why */
    MOVED_NOT,      /* it is still here; the connection broke for another reason */
};

struct moved {
    enum moved_kind kind;
    char host[64];
    char address[128]; /* "ADDR:PORT"; empty when the host is not known here */
    char why[256];
};

/* Asks the host behind CLIENT; a migration that is just ending is waited for, and so is, for a while, a
 * ferryd that is being restarted. A VM that is not here and did not leave from here is -ENOENT. */
int moved_find(struct client *client, const char *vm, struct moved *moved, struct ferry_error *err);
/* As moved_find, and when it moved to a host that is known, CLIENT talks to that one from here on. For
 * MOVED_AWAY without an address: an error that says where to look. Before MOVED_NOT it pauses, for the caller
 * to try again. */
int moved_follow(struct client *client, const char *vm, struct moved *moved, struct ferry_error *err);

#endif
