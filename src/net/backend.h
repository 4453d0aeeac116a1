/*
 * Where a virtual network card's packets go: one table of functions for each kind of network.
 *
 *     net_backend_new("user,hostfwd=tcp:127.0.0.1:2222-:22") -> set receiver -> (start -> stop)* -> destroy
 *
 * Between start and stop the backend delivers packets for the guest by calling the receiver on a thread of
 * its own; after stop returns it delivers nothing and holds none of the host's ports, so that the VM's other
 * half, maybe on this same host, can have them. A stopped backend may be started again (a migration that
 * fell back). Packets are Ethernet frames without checksum, at most NET_PACKET_MAX bytes.
 */
#ifndef FERRY_NET_BACKEND_H
#define FERRY_NET_BACKEND_H

#include "base/log.h"

#include <ferry/error.h>

#include <stddef.h>
#include <stdint.h>

#define NET_PACKET_MAX 1514

struct net_backend;

/* Called on a backend's thread, or inside send. Must take the packet or drop it; must not call send. */
typedef void net_receiver(void *opaque, const void *packet, size_t size);

struct net_backend_ops {
    const char *name; /* the word before the first comma of a specification: "user" */
    /* OPTIONS: what follows the first comma, "" when nothing. Checks the syntax; touches nothing outside. */
    int (*create)(struct net_backend **out, const char *options, struct log *log, struct ferry_error *err);
    /* Would a start find on this host what it needs, just now? */
    int (*check)(const char *options, struct ferry_error *err);
    /* Things of the host that are missing or taken are a warning in the log; only what makes the network
     * unusable is an error (but see device.h: threads and memory are had at creation). */
    int (*start)(struct net_backend *backend, struct ferry_error *err);
    void (*stop)(struct net_backend *backend); /* idempotent */
    /* Between start and stop; one thread at a time. May drop. */
    void (*send)(struct net_backend *backend, const void *packet, size_t size);
    /* Tell the network where MAC now is. After start. */
    void (*announce)(struct net_backend *backend, const uint8_t mac[6]);
    void (*destroy)(struct net_backend *backend); /* stops first */
};

struct net_backend {
    const struct net_backend_ops *ops;
    net_receiver *receive;
    void *receiver; /* its opaque */
};

/* Finds the kind by name. LOG is borrowed. -EINVAL naming what is wrong in SPECIFICATION. */
int net_backend_new(struct net_backend **out, const char *specification, struct log *log,
                    struct ferry_error *err);
/* For a cold boot, before anything is started: ports that are taken and the like are errors here. */
int net_backend_check(const char *specification, struct ferry_error *err);
void net_backend_destroy(struct net_backend *backend); /* NULL allowed */

#endif
