/*
 * The options of a user network, and whether the host's ports they name are free.
 */
#include "net/user.h"

#include "base/cleanup.h"
#include "base/error.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define DEFAULT_HOST_ADDR  "127.0.0.1"
#define DEFAULT_GUEST_ADDR "10.0.2.15"
#define NETWORK            0x0a000200 /* 10.0.2.0/24, host order */
#define NETMASK            0xffffff00

/* A decimal port, 1 to 65535, and nothing else. */
static bool parse_port(const char *text, uint16_t *port)
{
    unsigned value = 0;

    if (!*text || strlen(text) > 5)
        return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return false;
        value = value * 10 + (unsigned)(*text - '0');
    }
    *port = (uint16_t)value;
    return value >= 1 && value <= 65535;
}

/* "ADDRESS:PORT" with an empty address meaning STANDARD. Cuts the text. */
static const char *parse_end(char *text, const char *standard, struct in_addr *addr, uint16_t *port)
{
    char *colon = strrchr(text, ':');

    if (!colon)
        return "has no port";
    *colon = '\0';
    if (inet_pton(AF_INET, *text ? text : standard, addr) != 1)
        return "has an address that is not an IPv4 address";
    if (!parse_port(colon + 1, port))
        return "has a port that is not a number from 1 to 65535";
    return NULL;
}

/* VALUE is "tcp:127.0.0.1:2222-10.0.2.15:22", cut to pieces here. NULL or what is wrong with it. */
static const char *parse_forward(struct user_net_forward *forward, char *value)
{
    char *host = strchr(value, ':');
    char *guest;
    const char *why;

    if (!host)
        return "is not of the form tcp:[ADDRESS]:PORT-[GUEST]:PORT";
    *host++ = '\0';
    if (strcmp(value, "udp") == 0)
        forward->udp = true;
    else if (strcmp(value, "tcp") != 0)
        return "begins with neither tcp: nor udp:";
    guest = strchr(host, '-');
    if (!guest)
        return "does not say after a - where in the guest it goes";
    *guest++ = '\0';
    why = parse_end(host, DEFAULT_HOST_ADDR, &forward->host_addr, &forward->host_port);
    if (why)
        return why;
    why = parse_end(guest, DEFAULT_GUEST_ADDR, &forward->guest_addr, &forward->guest_port);
    if (why)
        return why;
    if ((ntohl(forward->guest_addr.s_addr) & NETMASK) != NETWORK)
        return "goes to an address outside the guest's network 10.0.2.0/24";
    return NULL;
}

static bool same_host_port(const struct user_net_forward *a, const struct user_net_forward *b)
{
    return a->udp == b->udp && a->host_port == b->host_port && a->host_addr.s_addr == b->host_addr.s_addr;
}

static int add_forward(struct user_net_options *options, char *value, struct ferry_error *err)
{
    struct user_net_forward forward = {0};
    CLEANUP_FREE char *copy = strdup(value);
    const char *why;

    if (!copy)
        return error_set(err, -ENOMEM, "out of memory while reading hostfwd");
    why = parse_forward(&forward, copy);
    if (!why && options->forward_count == USER_NET_FORWARDS_MAX)
        why = "is one too many";
    for (unsigned i = 0; i < options->forward_count && !why; i++) {
        if (same_host_port(&options->forwards[i], &forward))
            why = "names a host port a second time";
    }
    if (why)
        return error_set(err, -EINVAL, "hostfwd=%s %s", value, why);
    options->forwards[options->forward_count++] = forward;
    return 0;
}

int user_net_parse(struct user_net_options *options, const char *text, struct ferry_error *err)
{
    CLEANUP_FREE char *copy = strdup(text);
    char *rest = copy;
    char *option;
    int result = 0;

    *options = (struct user_net_options){0};
    if (!copy)
        return error_set(err, -ENOMEM, "out of memory while reading network options");
    while (*text && result == 0 && (option = strsep(&rest, ","))) {
        if (strncmp(option, "hostfwd=", strlen("hostfwd=")) == 0)
            result = add_forward(options, option + strlen("hostfwd="), err);
        else
            result =
                error_set(err, -EINVAL, "unknown option \"%s\"; hostfwd=... is the one there is", option);
    }
    return result;
}

int user_net_check_ports(const struct user_net_options *options, struct ferry_error *err)
{
    for (unsigned i = 0; i < options->forward_count; i++) {
        const struct user_net_forward *forward = &options->forwards[i];
        struct sockaddr_in addr = {
            .sin_family = AF_INET,
            .sin_addr = forward->host_addr,
            .sin_port = htons(forward->host_port),
        };
        CLEANUP_CLOSE int fd = socket(AF_INET, (forward->udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC, 0);
        int one = 1;
        char text[INET_ADDRSTRLEN];

        if (fd < 0)
            return error_set_errno(err, -errno, "cannot make a socket");
        inet_ntop(AF_INET, &forward->host_addr, text, sizeof(text));
        /* As libslirp will: TCP connections of an earlier VM that linger do not count. For UDP it would mean
         * sharing the port with whoever has it. */
        if (!forward->udp)
            (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
        if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 || (!forward->udp && listen(fd, 1) < 0)) {
            if (errno == EADDRINUSE)
                return error_set(err, -EADDRINUSE, "port %s:%u is in use; choose another hostfwd port", text,
                                 forward->host_port);
            return error_set_errno(err, -errno, "port %s:%u cannot be listened on", text, forward->host_port);
        }
    }
    return 0;
}
