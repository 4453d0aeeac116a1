/*
 * The other hosts: who they are (name and address, recorded) and calls to them. The calls are the same REST
 * API that `ferry` uses. Every call has a deadline, ends early when this host stops, follows no redirects,
 * uses no proxy, and takes at most 16 MiB of answer; what comes back is as untrusted as any other input.
 *
 * A host that is silent for the peer timeout does not answer; one that takes long and answers GET /v1/host
 * meanwhile does (base/http.h).
 */
#ifndef FERRY_HOST_PEERS_H
#define FERRY_HOST_PEERS_H

#include "host/host.h"

struct peer {
    struct peer *next; /* host lock, as all of it; name and address are constant */
    char name[HOST_NAME_SIZE];
    char address[SOCK_ADDRESS_SIZE];
    bool spoke_tls; /* since this host started: who answers there without is not believed */
};

enum peer_patience {
    PEER_BRIEF = 1, /* for listings: half of the peer timeout */
    PEER_PROMPT,    /* the answer is at hand: the peer timeout */
    PEER_LONG,      /* it takes work: the start timeout, while the host lives */
    PEER_ENDLESS,   /* while the host lives */
};

int peers_load(struct host *host, struct ferry_error *err);
void peers_free(struct host *host);

/* Asks ADDRESS for its name first: it must answer, and be NAME. */
int peers_add(struct host *host, const char *name, const char *address, struct ferry_error *err);
int peers_remove(struct host *host, const char *name, struct ferry_error *err);
/* The list of GET /v1/hosts: this host, then the others, asked whether they answer. New reference. */
json_t *peers_list(struct host *host);
int peers_find(struct host *host, const char *name, char address[static SOCK_ADDRESS_SIZE],
               struct ferry_error *err);

/*
 * METHOD "GET", "POST" or "DELETE"; BODY (borrowed) may be NULL. *answer (may be NULL): parsed JSON, or NULL
 * for an answer without a body. HOST_UNREACHABLE when there is no answer, -ETIMEDOUT when the host lives and
 * has not answered in time, both naming it; otherwise an error of the other host comes back with the code of
 * its class and its sentence.
 */
int peer_call(struct host *host, const char *address, const char *method, const char *path, json_t *body,
              enum peer_patience patience, json_t **answer, struct ferry_error *err);
/*
 * GET whose answer may be long: TAKE (OPAQUE goes to it) gets it piece by piece, and ends it by a negative
 * code, which is returned with its words. It may last while the other host sends, or lives. With ENCRYPTED
 * never in the clear.
 */
typedef int peer_take(void *opaque, const void *data, size_t size, struct ferry_error *err);
int peer_fetch(struct host *host, const char *address, const char *path, bool encrypted, peer_take *take,
               void *opaque, struct ferry_error *err);
/* GET whose answer is one JSON object a line: a new array of them. */
int peer_lines(struct host *host, const char *address, const char *path, enum peer_patience patience,
               json_t **answer, struct ferry_error *err);

#endif
