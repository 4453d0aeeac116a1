/*
 * User-mode networking: a network of its own for each VM, inside the process, made by libslirp.
 *
 *     10.0.2.0/24   guest 10.0.2.15 (by DHCP)   gateway 10.0.2.2   DNS 10.0.2.3
 *
 * Options, separated by commas: hostfwd=PROTO:[ADDRESS]:PORT-[GUEST]:PORT, any number of times up to
 * USER_NET_FORWARDS_MAX; PROTO is tcp or udp, ADDRESS defaults to 127.0.0.1, GUEST to 10.0.2.15.
 *
 * Connections do not move with a VM. stop gives the forwarded host ports up and freezes the connections;
 * start on the same backend takes the ports and goes on with them; on another host a new one starts empty,
 * and the connections end (closed by the kernel) when the source's backend is destroyed.
 */
#ifndef FERRY_NET_USER_H
#define FERRY_NET_USER_H

#include "net/backend.h"

#include <netinet/in.h>
#include <stdbool.h>

#define USER_NET_FORWARDS_MAX 32

struct user_net_forward {
    bool udp;
    struct in_addr host_addr;
    uint16_t host_port; /* host order, as the next */
    struct in_addr guest_addr;
    uint16_t guest_port;
};

struct user_net_options {
    struct user_net_forward forwards[USER_NET_FORWARDS_MAX];
    unsigned forward_count;
};

/* Parses what follows "user,". -EINVAL with a sentence naming the option that is wrong. */
int user_net_parse(struct user_net_options *options, const char *text, struct ferry_error *err);
/* Tries every forwarded port. -EADDRINUSE "port 127.0.0.1:2222 is in use; choose another hostfwd port". */
int user_net_check_ports(const struct user_net_options *options, struct ferry_error *err);

extern const struct net_backend_ops net_backend_user;

#endif
