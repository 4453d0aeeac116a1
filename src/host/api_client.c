/* Who the clients of the API are: on the Unix socket whoever may open it, on TCP by certificate. */
#include "host/api_server.h"

#include "base/error.h"
#include "host/certificate.h"

#include <gnutls/gnutls.h>

bool api_is_local(const struct api_request *request)
{
    return !request->listener->tcp;
}

/* The certificate that the client showed in the handshake, whose key it has. NULL: none. */
static const gnutls_datum_t *shown_certificate(struct api_request *request)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(request->connection, MHD_CONNECTION_INFO_GNUTLS_SESSION);
    unsigned count = 0;
    const gnutls_datum_t *list;

    if (!info)
        return NULL;
    list = gnutls_certificate_get_peers(info->tls_session, &count);
    return count > 0 ? list : NULL;
}

static int check_certificate(struct api_request *request, struct credentials_peer *peer)
{
    struct ferry_credentials *credentials = certificate_get(request->host);
    const char *name = request->host->config->name;
    const gnutls_datum_t *shown = shown_certificate(request);
    struct ferry_error why = {0};
    int result = 0;

    *peer = (struct credentials_peer){0};
    if (!credentials)
        result = error_set(&request->err, HOST_REFUSED, "host %s has no certificate any more", name);
    else if (!shown)
        result =
            error_set(&request->err, HOST_REFUSED,
                      "host %s wants to see a certificate of its CA; issue one (ferry host certs issue) and "
                      "install it where this came from",
                      name);
    else if (credentials_check_client(credentials, shown->data, shown->size, peer, &why) < 0)
        result = error_set(&request->err, HOST_REFUSED, "host %s refuses this client: %s", name, why.text);
    credentials_unref(credentials);
    return result;
}

int api_check_client(struct api_request *request)
{
    const struct api_listener *listener = request->listener;
    struct credentials_peer peer;
    int result;

    if (!listener->tcp || (!listener->tls && certificate_clear_allowed(request->host)))
        return 0;
    if (!listener->tls)
        return error_set(&request->err, HOST_REFUSED,
                         "host %s speaks TLS only, and this client does not: it has no certificate (Host not "
                         "licensed); issue one (ferry host certs issue) and install it where this came from",
                         request->host->config->name);
    result = check_certificate(request, &peer);
    credentials_peer_free(&peer);
    return result;
}

int api_check_is(struct api_request *request, const char *host)
{
    struct credentials_peer peer;
    int result;

    if (!request->listener->tls)
        return 0;
    result = check_certificate(request, &peer);
    if (result == 0 && !credentials_peer_is(&peer, host))
        result =
            error_set(&request->err, HOST_REFUSED,
                      "host %s refuses this client: it says that it is host %.64s, but its certificate is "
                      "that of %s",
                      request->host->config->name, host, peer.name);
    credentials_peer_free(&peer);
    return result;
}
