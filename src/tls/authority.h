/*
 * A small certificate authority in a directory: a key that never leaves it, and certificates for the hosts
 * that may move VMs to each other. Made for operators who do not want to know more about it than this.
 *
 *     DIR/authority.key   the CA's key, mode 0600: who has it can make himself a host
 *     DIR/authority.pem   its certificate
 *     DIR/issued          a line a certificate: serial number, name, until when
 *
 * Keys are EC P-256, signatures ECDSA with SHA-256, versions X.509v3 (RFC 5280). A CA has path length 0 and
 * may sign certificates only; a host's certificate is for TLS servers and clients and names the host and
 * its addresses as alternative names; a person's is for clients only and names no host.
 */
#ifndef FERRY_TLS_AUTHORITY_H
#define FERRY_TLS_AUTHORITY_H

#include <ferry/error.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AUTHORITY_DAYS     3650 /* unless said otherwise */
#define AUTHORITY_DAYS_MAX 36500
#define CERTIFICATE_DAYS   730

/* Makes DIR (mode 0700) and the CA in it. -EEXIST when there is one. *until (may be NULL): its end, seconds
 * since 1970. */
int authority_init(const char *directory, unsigned days, int64_t *until, struct ferry_error *err);

struct certificate_request {
    const char *name;             /* a host's, or a person's */
    bool person;                  /* commands hosts, is none */
    const char *const *addresses; /* numeric addresses or DNS names, without port */
    size_t address_count;
    int64_t not_before; /* seconds since 1970 */
    int64_t not_after;  /* cut to the CA's own end */
};

/*
 * Signs a certificate for a new key. *bundle: what an installation needs, as PEM: the key, the certificate,
 * the CA's certificate; freed with private_file_free. *until (may be NULL) is its end.
 */
int authority_issue(const char *directory, const struct certificate_request *request, char **bundle,
                    int64_t *until, struct ferry_error *err);

#endif
