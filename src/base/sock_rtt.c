/* A file of its own: linux/tcp.h has all of struct tcp_info, and does not go together with netinet/tcp.h. */
#include "base/clock.h"
#include "base/sock.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <stddef.h>
#include <sys/socket.h>

uint64_t sock_shortest_rtt_ns(int fd)
{
    struct tcp_info info = {0};
    socklen_t size = sizeof(info);
    int family;
    socklen_t family_size = sizeof(family);

    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &family_size) < 0)
        return UINT64_MAX;
    if (family == AF_UNIX)
        return 0;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) < 0 ||
        size < offsetof(struct tcp_info, tcpi_min_rtt) + sizeof(info.tcpi_min_rtt) ||
        info.tcpi_min_rtt == UINT32_MAX)
        return UINT64_MAX;
    return info.tcpi_min_rtt * NS_PER_US;
}
