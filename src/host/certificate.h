/*
 * This host's certificate: the file certificate.pem in the state directory (tls/credentials.h says what is in
 * it), read when ferryd starts and replaced by certificate_install. From then on new connections use the new
 * one; those that are open go on.
 */
#ifndef FERRY_HOST_CERTIFICATE_H
#define FERRY_HOST_CERTIFICATE_H

#include "host/host.h"
#include "tls/credentials.h"

#define CERTIFICATE_FILE      CONFIG_CERTIFICATE
#define CERTIFICATE_WARN_DAYS 30 /* how long before its end people are told */

/* At the start. A host without one is fine; one that is not this host's, or not readable, is not: to go on
 * without would be to go on in the clear. An expired one is taken, and everybody told. */
int certificate_load(struct host *host, struct ferry_error *err);

/* Checks BUNDLE (PEM) and makes it this host's, in the file first. HOST_USAGE or another error: nothing has
 * changed. */
int certificate_install(struct host *host, const char *bundle, struct ferry_error *err);

/* A new reference, or NULL: this host has none. Any thread. */
struct ferry_credentials *certificate_get(struct host *host);

/* Whether who is on TCP may go without TLS: without a certificate there is no other way, and --insecure
 * allows it beside; --require-tls never does. */
bool certificate_clear_allowed(struct host *host);
/* Whether a migration to or from the host whose object THERE is can be encrypted: both have certificates. */
bool certificate_shared(struct host *host, const json_t *there);

/* Where it is, absolute. */
void certificate_path(const struct config *config, char path[static PATH_MAX]);

/* For the host object: what people want to know of it, or null. New reference. */
json_t *certificate_object(struct host *host);
/* The host's online migration status: "Host disabled", "Host not licensed" (it has no certificate, so that
 * nothing can move encrypted), "Host enabled". */
const char *certificate_migration_status(struct host *host);

#endif
