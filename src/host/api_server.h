/*
 * Between the API's requests (api.c) and the connections they come by (api_server.c, api_client.c).
 */
#ifndef FERRY_HOST_API_SERVER_H
#define FERRY_HOST_API_SERVER_H

#include "host/api.h"
#include "host/api_connections.h"

/* One way in. */
struct api_listener {
    struct host *host;
    struct MHD_Daemon *daemon;
    bool tcp;
    bool tls;
    struct api_connections *connections; /* NULL: not by TCP */
};

/* libmicrohttpd's callbacks; OPAQUE is the listener. */
enum MHD_Result api_handle(void *opaque, struct MHD_Connection *connection, const char *url,
                           const char *method, const char *version, const char *data, size_t *size,
                           void **state);
void api_completed(void *opaque, struct MHD_Connection *connection, void **state,
                   enum MHD_RequestTerminationCode code);

/* The request has come as a whole, or its answer has gone. */
void api_being_served(const struct api_listener *listener, struct MHD_Connection *connection, bool served);

/* Who is it? HOST_REFUSED when he may not command this host: on TCP without TLS where that is asked for, or
 * without a certificate of this host's CA. */
int api_check_client(struct api_request *request);

#endif
