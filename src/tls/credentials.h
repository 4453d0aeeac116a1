/*
 * Who this host (or person) is for TLS: a key, its certificate, and the CA whose certificates are trusted. It
 * is read from one PEM file that holds all three ("bundle"; authority.h makes them), and does not change.
 * Every further certificate in the file is a CA that is trusted, too: so one CA takes over from another.
 *
 *     credentials_load(&credentials, "/var/lib/ferry/certificate.pem", &err)
 *     ssl = SSL_new(credentials_context(credentials))
 *     credentials_expect(ssl, "b")
 *
 * A host's name is one of its certificate's DNS names, letter by letter; a common name is only for people to
 * read. Only TLS 1.3 is spoken (RFC 8446), and both sides must show a certificate.
 *
 * Counted references; everything but the counting is constant, so all functions are for any thread.
 */
#ifndef FERRY_TLS_CREDENTIALS_H
#define FERRY_TLS_CREDENTIALS_H

#include <ferry/error.h>

#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ferry_credentials;

/*
 * WHAT (a path) is for messages. -EINVAL with the reason when something is missing or does not belong
 * together. Whether it is too old, too young or another host's is not looked at (credentials_check).
 */
int credentials_parse(struct ferry_credentials **out, const char *pem, const char *what,
                      struct ferry_error *err);
/* -ENOENT when there is no such file; -EACCES when everybody may read it. */
int credentials_load(struct ferry_credentials **out, const char *path, struct ferry_error *err);
struct ferry_credentials *credentials_ref(struct ferry_credentials *credentials);
void credentials_unref(struct ferry_credentials *credentials); /* NULL allowed */

/* 0 when they are HOST's (NULL: anybody's) and valid now; -EKEYREJECTED or -EKEYEXPIRED. */
int credentials_check(const struct ferry_credentials *credentials, const char *host, struct ferry_error *err);

/* The common name, "b". */
const char *credentials_name(const struct ferry_credentials *credentials);
/* "DNS:b, IP Address:10.0.0.2"; empty for a person's. */
const char *credentials_alternatives(const struct ferry_credentials *credentials);
/* Its CA's common name, and the SHA-256 fingerprint of that CA's certificate in hexadecimal digits. */
const char *credentials_authority(const struct ferry_credentials *credentials);
const char *credentials_authority_print(const struct ferry_credentials *credentials);
/* Seconds since 1970. */
int64_t credentials_begin(const struct ferry_credentials *credentials);
int64_t credentials_end(const struct ferry_credentials *credentials);
/* Key, certificate, and the CAs' certificates, as PEM for other TLS libraries. */
const char *credentials_key_pem(const struct ferry_credentials *credentials);
const char *credentials_certificate_pem(const struct ferry_credentials *credentials);
const char *credentials_authority_pem(const struct ferry_credentials *credentials);

/* For SSL_new, on either side. Borrowed. */
SSL_CTX *credentials_context(const struct ferry_credentials *credentials);
/* Makes a context of somebody else's (libcurl) one like it, whose servers must be PEER (NULL: who they are is
 * checked elsewhere, that they are of the CA here). */
int credentials_apply(const struct ferry_credentials *credentials, SSL_CTX *context, const char *peer,
                      struct ferry_error *err);
/* The other side of SSL must be PEER. False: no memory. */
bool credentials_expect(SSL *ssl, const char *peer);
/* The verify callback of these contexts, for who sets one of his own that calls it. */
int credentials_verify(int good, X509_STORE_CTX *check);

/* Who showed a certificate, by another TLS library. */
#define CREDENTIALS_NAME_SIZE 80
struct credentials_peer {
    char name[CREDENTIALS_NAME_SIZE]; /* the common name */
    X509 *certificate;                /* owned */
};

/* DER is a client's certificate. -EKEYREJECTED, with what is wrong with it, unless it is valid and of our CA.
 */
int credentials_check_client(const struct ferry_credentials *credentials, const unsigned char *der,
                             size_t size, struct credentials_peer *peer, struct ferry_error *err);
/* Whether that is the certificate of HOST. */
bool credentials_peer_is(const struct credentials_peer *peer, const char *host);
void credentials_peer_free(struct credentials_peer *peer); /* a zeroed one is fine */

#endif
