/*
 * The API's sockets and libmicrohttpd's daemons behind them: one for the Unix socket, and for TCP one in the
 * clear and one for TLS, between which the door (door.h) chooses by a connection's first byte. The one in the
 * clear is always there: where TLS is asked for, it says so.
 *
 * What may come in by TCP, and how long it may take, is api_connections.h's; libmicrohttpd's own limit must
 * never be reached: with connections that are added to it, release 0.9.75 hangs then.
 *
 * A new certificate is a new daemon. The one before serves its connections to their end, and is stopped when
 * it has none left, with the next certificate, or at the end.
 */
#include "host/api_server.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/sock.h"
#include "host/certificate.h"
#include "host/door.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define DAEMON_CONNECTIONS_MAX (2 * CONNECTIONS_MAX)
#define CONNECTION_MEMORY      (32u << 10)
#define PRIORITIES             "NORMAL:-VERS-ALL:+VERS-TLS1.3"

/* A daemon for TLS, of this or a former certificate. */
struct secure {
    struct secure *next;
    struct api_listener listener;
};

struct api {
    struct api_listener unix_listener;
    struct api_listener clear_listener;
    struct door *door;
    struct api_connections *connections;
    int unix_fd; /* until a daemon or the door has them */
    int tcp_fd;
    char address[SOCK_ADDRESS_SIZE];

    pthread_mutex_t lock;  /* guards the rest, and that no daemon goes while a connection is given to it */
    struct secure *secure; /* the newest first; NULL: no certificate */
};

const char *api_address(const struct host *host)
{
    return host->api ? host->api->address : "";
}

static void log_http(void *opaque, const char *format, va_list args)
{
    struct api_listener *listener = opaque;
    char text[256];

    vsnprintf(text, sizeof(text), format, args);
    text[strcspn(text, "\n")] = '\0';
    log_debug(listener->host->log, "http: %s", text);
}

/* A client that is gone without a word must not keep a connection open for ever. */
static void connection_changed(void *opaque, struct MHD_Connection *connection, void **state,
                               enum MHD_ConnectionNotificationCode code)
{
    const struct api_listener *listener = opaque;
    const union MHD_ConnectionInfo *info;

    if (code != MHD_CONNECTION_NOTIFY_STARTED) {
        if (listener->connections)
            api_connection_closed(listener->connections, *state);
        *state = NULL;
        return;
    }
    info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    if (!info)
        return;
    sock_tune(info->connect_fd, (unsigned)host_peer_ms(listener->host), NULL);
    if (listener->connections)
        *state = api_connection_started(listener->connections, info->connect_fd);
}

void api_being_served(const struct api_listener *listener, struct MHD_Connection *connection, bool served)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);

    if (listener->connections && info)
        api_connection_served(listener->connections, info->socket_context, served);
}

/* OPTIONS are what listeners differ in. */
static int start_daemon(struct api_listener *listener, unsigned flags, const struct MHD_OptionItem *options,
                        struct ferry_error *err)
{
    listener->daemon =
        MHD_start_daemon(flags | MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION |
                             MHD_USE_POLL | MHD_ALLOW_UPGRADE | MHD_USE_ITC | MHD_USE_ERROR_LOG,
                         0, NULL, NULL, api_handle, listener, MHD_OPTION_EXTERNAL_LOGGER, log_http, listener,
                         MHD_OPTION_NOTIFY_COMPLETED, api_completed, listener, MHD_OPTION_CONNECTION_LIMIT,
                         (unsigned)DAEMON_CONNECTIONS_MAX, MHD_OPTION_CONNECTION_TIMEOUT,
                         (unsigned)(host_peer_ms(listener->host) / 1000), MHD_OPTION_NOTIFY_CONNECTION,
                         connection_changed, listener, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
                         (size_t)CONNECTION_MEMORY, MHD_OPTION_ARRAY, options, MHD_OPTION_END);
    return listener->daemon ? 0 : error_set(err, -EIO, "cannot serve the API");
}

static int start_unix(struct api *api, struct ferry_error *err)
{
    const struct MHD_OptionItem options[] = {{MHD_OPTION_LISTEN_SOCKET, api->unix_fd, NULL},
                                             {MHD_OPTION_END, 0, NULL}};
    int result = start_daemon(&api->unix_listener, 0, options, err);

    if (result == 0)
        api->unix_fd = -1; /* closed by the daemon */
    return result;
}

static int start_clear(struct api *api, struct ferry_error *err)
{
    const struct MHD_OptionItem options[] = {{MHD_OPTION_END, 0, NULL}};

    return start_daemon(&api->clear_listener, MHD_USE_NO_LISTEN_SOCKET, options, err);
}

static int start_secure(struct host *host, struct secure **out, struct ferry_error *err)
{
    struct ferry_credentials *credentials = certificate_get(host);
    struct secure *secure = calloc(1, sizeof(*secure));
    int result;

    *out = NULL;
    if (!credentials || !secure) {
        result = credentials ? error_set(err, -ENOMEM, "out of memory") : 0;
        free(secure);
        credentials_unref(credentials);
        return result;
    }
    secure->listener =
        (struct api_listener){.host = host, .tcp = true, .tls = true, .connections = host->api->connections};
    /* Copied by the daemon. Clients are asked for a certificate because there is something to trust; it is
     * looked at when a request comes (api_client.c), so that the refusal is a sentence. */
    const struct MHD_OptionItem options[] = {
        {MHD_OPTION_HTTPS_MEM_KEY, 0, (void *)credentials_key_pem(credentials)},
        {MHD_OPTION_HTTPS_MEM_CERT, 0, (void *)credentials_certificate_pem(credentials)},
        {MHD_OPTION_HTTPS_MEM_TRUST, 0, (void *)credentials_authority_pem(credentials)},
        {MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)PRIORITIES},
        {MHD_OPTION_END, 0, NULL}};

    result = start_daemon(&secure->listener, MHD_USE_NO_LISTEN_SOCKET | MHD_USE_TLS, options, err);
    credentials_unref(credentials);
    if (result < 0) {
        free(secure);
        return error_prefix(err, result, "TLS with this host's certificate");
    }
    *out = secure;
    return 0;
}

static void stop_secure(struct secure *secure)
{
    MHD_stop_daemon(secure->listener.daemon);
    free(secure);
}

/* Takes those that no connection uses any more out of the list after FIRST. */
static struct secure *take_idle(struct secure *first)
{
    struct secure *idle = NULL;

    for (struct secure **link = &first->next; *link;) {
        struct secure *secure = *link;
        const union MHD_DaemonInfo *info =
            MHD_get_daemon_info(secure->listener.daemon, MHD_DAEMON_INFO_CURRENT_CONNECTIONS);

        if (!info || info->num_connections > 0) {
            link = &secure->next;
            continue;
        }
        *link = secure->next;
        secure->next = idle;
        idle = secure;
    }
    return idle;
}

int api_renew(struct host *host, struct ferry_error *err)
{
    struct api *api = host->api;
    struct secure *secure;
    struct secure *idle;
    int result = api && api->door ? start_secure(host, &secure, err) : 0;

    if (result < 0 || !api || !api->door || !secure)
        return result;
    pthread_mutex_lock(&api->lock);
    secure->next = api->secure;
    api->secure = secure;
    idle = take_idle(secure);
    pthread_mutex_unlock(&api->lock);
    while (idle) {
        struct secure *next = idle->next;

        stop_secure(idle);
        idle = next;
    }
    return 0;
}

/* To a client that speaks TLS where there is no certificate. It takes that for nonsense, and its user is told
 * what it means. */
static void refuse_tls(int fd)
{
    static const char words[] = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    char hello[4096];

    while (recv(fd, hello, sizeof(hello), MSG_DONTWAIT) > 0)
        continue; /* unread bytes would reset the connection before the answer is read */
    send(fd, words, sizeof(words) - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    shutdown(fd, SHUT_WR);
    close(fd);
}

static void take_connection(void *opaque, int fd, bool tls)
{
    struct api *api = opaque;
    struct sockaddr_storage address = {0};
    socklen_t size = sizeof(address);
    struct MHD_Daemon *chosen = api->clear_listener.daemon;

    if (getpeername(fd, (struct sockaddr *)&address, &size) < 0 ||
        !api_connections_admit(api->connections, fd, &address)) {
        close(fd);
        return;
    }
    pthread_mutex_lock(&api->lock);
    if (tls)
        chosen = api->secure ? api->secure->listener.daemon : NULL;
    if (!chosen)
        refuse_tls(fd);
    /* It closes the descriptor in any case. */
    if (!chosen || MHD_add_connection(chosen, fd, (struct sockaddr *)&address, size) != MHD_YES)
        api_connections_drop(api->connections, fd);
    pthread_mutex_unlock(&api->lock);
}

int api_listen(struct host *host, struct ferry_error *err)
{
    char path[PATH_MAX];
    struct api *api = calloc(1, sizeof(*api));
    int result = 0;

    if (!api)
        return error_set(err, -ENOMEM, "out of memory");
    host->api = api;
    pthread_mutex_init(&api->lock, NULL);
    api->unix_fd = api->tcp_fd = -1;
    api->unix_listener = (struct api_listener){.host = host};
    api->clear_listener = (struct api_listener){.host = host, .tcp = true};
    if (host->config->listen[0]) {
        api->tcp_fd = sock_listen(host->config->listen, err);
        if (api->tcp_fd < 0)
            return api->tcp_fd;
        result = sock_local_address(api->tcp_fd, api->address, err);
    }
    if (result == 0 && snprintf(path, sizeof(path), "%s/ferryd.sock", host->config->state_dir) >= PATH_MAX)
        result = error_set(err, -ENAMETOOLONG, "the path of the state directory is too long");
    if (result == 0) {
        api->unix_fd = sock_listen(path, err);
        result = api->unix_fd < 0 ? api->unix_fd : 0;
    }
    return result;
}

int api_serve(struct host *host, struct ferry_error *err)
{
    struct api *api = host->api;
    int fd = api->tcp_fd;
    int result = start_unix(api, err);

    if (result < 0 || fd < 0)
        return result;
    result = api_connections_new(&api->connections, host->loop, 2 * host->config->peer_timeout_ns, err);
    api->clear_listener.connections = api->connections;
    if (result == 0)
        result = start_clear(api, err);
    if (result == 0)
        result = start_secure(host, &api->secure, err);
    if (result < 0)
        return result;
    api->tcp_fd = -1;
    return door_open(&api->door, host->loop, fd, host->config->peer_timeout_ns, take_connection, api, err);
}

void api_free(struct host *host)
{
    struct api *api = host->api;
    char path[PATH_MAX];

    if (!api)
        return;
    if (api->unix_listener.daemon &&
        snprintf(path, sizeof(path), "%s/ferryd.sock", host->config->state_dir) < PATH_MAX)
        unlink(path);
    door_close(api->door);
    if (api->unix_listener.daemon)
        MHD_stop_daemon(api->unix_listener.daemon); /* first: a request by it may be making a new one */
    while (api->secure) {
        struct secure *secure = api->secure;

        api->secure = secure->next;
        stop_secure(secure);
    }
    if (api->clear_listener.daemon)
        MHD_stop_daemon(api->clear_listener.daemon);
    api_connections_free(api->connections);
    if (api->unix_fd >= 0)
        close(api->unix_fd);
    if (api->tcp_fd >= 0)
        close(api->tcp_fd);
    pthread_mutex_destroy(&api->lock);
    free(api);
    host->api = NULL;
}
