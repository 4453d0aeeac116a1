/*
 * Sockets: names to descriptors, and whole reads and writes with deadlines.
 *
 * Addresses are "ADDR:PORT" with a numeric IPv4 address, "[v6]:PORT", or a Unix socket path (anything with a
 * '/'). All descriptors are close-on-exec, and
 * blocking but for listening ones; no function here depends on that. Deadlines are clock_deadline() instants;
 * UINT64_MAX is never. Interruptible: every wait also watches `cancel_fd` (an eventfd; -1 for none); readable
 * means -ECANCELED.
 */
#ifndef FERRY_BASE_SOCK_H
#define FERRY_BASE_SOCK_H

#include <ferry/error.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SOCK_ADDRESS_SIZE 128

/* Returns a listening descriptor or a negative errno. Unix: an old socket nobody answers on is replaced; mode
 * 0600. */
int sock_listen(const char *address, struct ferry_error *err);
/* The bound address of a listening or connected socket as text (port 0 resolved). */
int sock_local_address(int fd, char out[static SOCK_ADDRESS_SIZE], struct ferry_error *err);
int sock_peer_address(int fd, char out[static SOCK_ADDRESS_SIZE], struct ferry_error *err);
int sock_connect(const char *address, uint64_t deadline, int cancel_fd, struct ferry_error *err);
/* Waits for and accepts one connection. -ETIMEDOUT, -ECANCELED or a descriptor. */
int sock_accept(int listen_fd, uint64_t deadline, int cancel_fd, struct ferry_error *err);
/* TCP_NODELAY, keep-alive and TCP_USER_TIMEOUT so that a silent peer is noticed within TIMEOUT_MS. No-op on
 * Unix. */
int sock_tune(int fd, unsigned timeout_ms, struct ferry_error *err);
/* The shortest round trip that the kernel has seen on a TCP connection: the network's alone, whatever the two
 * programs do meanwhile. 0 on Unix; UINT64_MAX when it is not known. */
uint64_t sock_shortest_rtt_ns(int fd);
/* Bytes a second at which TCP lately saw sent data arrive at the other end; when little is sent that is the
 * rate of its bursts, and so tells what the path carries. 0: not known, or no TCP. */
uint64_t sock_delivery_rate(int fd);
/* Whether a TCP connection's two ends are one address: then no link is between them. False when not known. */
bool sock_is_within_host(int fd);
/* The CPU that worked on what came last by FD: of a connection within a host, the sender's. Negative: not
 * known. */
int sock_incoming_cpu(int fd);
bool sock_address_is_loopback(const char *address); /* Unix paths count as loopback */

/* All of it or an error; -EPIPE with "the peer closed the connection" when it ends early; -ETIMEDOUT;
 * -ECANCELED. After an error a part may have been moved: the stream is then of no further use. */
int sock_read_full(int fd, void *data, size_t size, uint64_t deadline, int cancel_fd,
                   struct ferry_error *err);
int sock_write_full(int fd, const void *data, size_t size, uint64_t deadline, int cancel_fd,
                    struct ferry_error *err);

#endif
