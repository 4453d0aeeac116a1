#include "tls/credentials.h"

#include "base/error.h"
#include "tls/private_file.h"
#include "tls/words.h"

#include <ferry/ferry.h>

#include <errno.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PRINT_SIZE (2 * 32 + 1)

struct ferry_credentials {
    unsigned refs; /* atomic */
    EVP_PKEY *key;
    X509 *certificate;
    STACK_OF(X509) * authorities; /* trusted; the first has signed the certificate */
    SSL_CTX *context;
    char name[CREDENTIALS_NAME_SIZE];
    char authority_name[CREDENTIALS_NAME_SIZE];
    char authority_print[PRINT_SIZE];
    char *alternatives;
    char *key_pem;
    char *certificate_pem;
    char *authority_pem;
};

/* ---- reading ---- */

static void read_name(X509 *certificate, char name[static CREDENTIALS_NAME_SIZE])
{
    X509_NAME *subject = X509_get_subject_name(certificate);

    if (X509_NAME_get_text_by_NID(subject, NID_commonName, name, CREDENTIALS_NAME_SIZE) < 0)
        name[0] = '\0';
    for (char *c = name; *c; c++) {
        if (*c < 0x20 || *c > 0x7e)
            *c = '?';
    }
}

/* What was written to OUT as text; OUT is used up. */
static char *take_text(BIO *out)
{
    char *data = NULL;
    long size = out ? BIO_get_mem_data(out, &data) : 0;
    char *text = out ? strndup(data ? data : "", (size_t)size) : NULL;

    if (data)
        explicit_bzero(data, (size_t)size);
    BIO_free(out);
    return text;
}

static char *certificate_text(X509 *certificate)
{
    BIO *out = BIO_new(BIO_s_mem());

    if (out)
        PEM_write_bio_X509(out, certificate);
    return take_text(out);
}

static char *authorities_text(STACK_OF(X509) * authorities)
{
    BIO *out = BIO_new(BIO_s_mem());

    for (int i = 0; out && i < sk_X509_num(authorities); i++)
        PEM_write_bio_X509(out, sk_X509_value(authorities, i));
    return take_text(out);
}

static char *key_text(EVP_PKEY *key)
{
    BIO *out = BIO_new(BIO_s_mem());

    if (out)
        PEM_write_bio_PrivateKey(out, key, NULL, NULL, 0, NULL, NULL);
    return take_text(out);
}

static char *alternatives_text(X509 *certificate)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL);
    BIO *out = BIO_new(BIO_s_mem());

    for (int i = 0; out && i < sk_GENERAL_NAME_num(names); i++) {
        if (i > 0)
            BIO_puts(out, ", ");
        GENERAL_NAME_print(out, sk_GENERAL_NAME_value(names, i));
    }
    sk_GENERAL_NAME_pop_free(names, GENERAL_NAME_free);
    return take_text(out);
}

static bool read_print(struct ferry_credentials *credentials)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;

    if (!X509_digest(sk_X509_value(credentials->authorities, 0), EVP_sha256(), digest, &size))
        return false;
    for (unsigned i = 0; i < size && i < PRINT_SIZE / 2; i++)
        snprintf(credentials->authority_print + 2 * i, 3, "%02x", digest[i]);
    return true;
}

/* Sorts one certificate of the file. Takes it over; false when there is no memory. */
static bool place_certificate(struct ferry_credentials *credentials, X509 *found)
{
    X509 *own = credentials->certificate;

    if (!own && X509_check_private_key(found, credentials->key) == 1) {
        credentials->certificate = found;
        return true;
    }
    if (sk_X509_push(credentials->authorities, found))
        return true;
    X509_free(found);
    return false;
}

/* The certificate's own CA to the front. */
static bool sort_authorities(struct ferry_credentials *credentials)
{
    for (int i = 0; i < sk_X509_num(credentials->authorities); i++) {
        X509 *authority = sk_X509_value(credentials->authorities, i);

        if (X509_check_issued(authority, credentials->certificate) == X509_V_OK) {
            sk_X509_set(credentials->authorities, i, sk_X509_value(credentials->authorities, 0));
            sk_X509_set(credentials->authorities, 0, authority);
            return true;
        }
    }
    return false;
}

/* The key, the certificate that belongs to it, and those of the CAs, in any order. */
static int read_bundle(struct ferry_credentials *credentials, const char *pem, const char *what,
                       struct ferry_error *err)
{
    BIO *keys = BIO_new_mem_buf(pem, -1);
    BIO *certificates = BIO_new_mem_buf(pem, -1);
    X509 *found;
    int result = 0;

    credentials->authorities = sk_X509_new_null();
    if (!keys || !certificates || !credentials->authorities)
        result = error_set(err, -ENOMEM, "out of memory for a certificate");
    if (result == 0)
        credentials->key = PEM_read_bio_PrivateKey(keys, NULL, NULL, (void *)"");
    if (result == 0 && !credentials->key)
        result = error_set(err, -EINVAL, "%s holds no key that can be read", what);
    while (result == 0 && (found = PEM_read_bio_X509(certificates, NULL, NULL, (void *)""))) {
        if (!place_certificate(credentials, found))
            result = error_set(err, -ENOMEM, "out of memory for a certificate");
    }
    if (result == 0 && !credentials->certificate)
        result = error_set(err, -EINVAL, "%s holds no certificate that belongs to its key", what);
    else if (result == 0 && sk_X509_num(credentials->authorities) == 0)
        result = error_set(err, -EINVAL, "%s holds no certificate of a CA", what);
    else if (result == 0 && !sort_authorities(credentials))
        result = error_set(err, -EINVAL, "%s: the certificate is not from a CA that is in the file", what);
    BIO_free(keys);
    BIO_free(certificates);
    ERR_clear_error();
    return result;
}

/* Whether CERTIFICATE is good for PURPOSE. FLAGS are X509_V_FLAG_…. 0, or the X509_V_ERR_…. */
static long verify_certificate(const struct ferry_credentials *credentials, X509 *certificate, int purpose,
                               unsigned long flags)
{
    X509_STORE_CTX *check = X509_STORE_CTX_new();
    long result = X509_V_ERR_OUT_OF_MEM;

    if (check &&
        X509_STORE_CTX_init(check, SSL_CTX_get_cert_store(credentials->context), certificate, NULL) &&
        X509_STORE_CTX_set_purpose(check, purpose)) {
        X509_STORE_CTX_set_flags(check, flags);
        result = X509_verify_cert(check) == 1 ? X509_V_OK : X509_STORE_CTX_get_error(check);
    }
    X509_STORE_CTX_free(check);
    ERR_clear_error();
    return result;
}

static int check_signed(const struct ferry_credentials *credentials, const char *what,
                        struct ferry_error *err)
{
    long result = verify_certificate(credentials, credentials->certificate, X509_PURPOSE_SSL_CLIENT,
                                     X509_V_FLAG_NO_CHECK_TIME);
    char words[WORDS_VERIFY_SIZE];

    if (result == X509_V_OK)
        return 0;
    if (result == X509_V_ERR_INVALID_PURPOSE || result == X509_V_ERR_INVALID_CA)
        return error_set(err, -EINVAL, "%s: the certificate or that of its CA is not meant for TLS", what);
    return error_set(err, -EINVAL, "%s: the certificate %s", what,
                     words_verify(result, credentials->certificate, words));
}

/* ---- contexts ---- */

static bool has_dns_name(X509 *certificate, const char *host)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL);
    size_t length = strlen(host);
    bool found = false;

    for (int i = 0; !found && i < sk_GENERAL_NAME_num(names); i++) {
        int type;
        const ASN1_STRING *value = GENERAL_NAME_get0_value(sk_GENERAL_NAME_value(names, i), &type);

        found = type == GEN_DNS && (size_t)ASN1_STRING_length(value) == length &&
                memcmp(ASN1_STRING_get0_data(value), host, length) == 0;
    }
    sk_GENERAL_NAME_pop_free(names, GENERAL_NAME_free);
    return found;
}

/* OpenSSL takes capital letters in a host's name for small ones. To Ferry "A" and "a" are two hosts. */
int credentials_verify(int good, X509_STORE_CTX *check)
{
    const char *expected = X509_VERIFY_PARAM_get0_host(X509_STORE_CTX_get0_param(check), 0);

    if (!good || !expected || X509_STORE_CTX_get_error_depth(check) != 0 ||
        has_dns_name(X509_STORE_CTX_get_current_cert(check), expected))
        return good;
    X509_STORE_CTX_set_error(check, X509_V_ERR_HOSTNAME_MISMATCH);
    return 0;
}

/* Where the CPU has instructions for AES it is several times faster than anything else. */
static const char *cipher_suites(void)
{
#if defined(__x86_64__) || defined(__i386__)
    if (!__builtin_cpu_supports("aes"))
        return "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384";
#endif
    return "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";
}

static bool expect_name(X509_VERIFY_PARAM *parameters, const char *peer)
{
    X509_VERIFY_PARAM_set_hostflags(parameters,
                                    X509_CHECK_FLAG_NO_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT);
    return X509_VERIFY_PARAM_set1_host(parameters, peer, 0);
}

int credentials_apply(const struct ferry_credentials *credentials, SSL_CTX *context, const char *peer,
                      struct ferry_error *err)
{
    X509_STORE *store = X509_STORE_new();
    bool done = store && X509_STORE_set_flags(store, X509_V_FLAG_PARTIAL_CHAIN);

    for (int i = 0; done && i < sk_X509_num(credentials->authorities); i++)
        done = X509_STORE_add_cert(store, sk_X509_value(credentials->authorities, i));
    if (!done) {
        X509_STORE_free(store);
        return words_set(err, -ENOMEM, "cannot prepare TLS");
    }
    SSL_CTX_set_cert_store(context, store);
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, credentials_verify);
    if (!SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) ||
        !SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION) ||
        !SSL_CTX_set_ciphersuites(context, cipher_suites()) ||
        !SSL_CTX_use_certificate(context, credentials->certificate) ||
        !SSL_CTX_use_PrivateKey(context, credentials->key) ||
        (peer && !expect_name(SSL_CTX_get0_param(context), peer)))
        return words_set(err, -EINVAL, "cannot prepare TLS");
    return 0;
}

static int make_context(struct ferry_credentials *credentials, struct ferry_error *err)
{
    credentials->context = SSL_CTX_new(TLS_method());
    if (!credentials->context)
        return words_set(err, -ENOMEM, "cannot prepare TLS");
    /* Connections are few and long: nothing to resume. A ticket would be bytes that nobody reads. */
    SSL_CTX_set_session_cache_mode(credentials->context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_num_tickets(credentials->context, 0);
    SSL_CTX_set_options(credentials->context, SSL_OP_NO_TICKET | SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_set_mode(credentials->context,
                     SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    return credentials_apply(credentials, credentials->context, NULL, err);
}

SSL_CTX *credentials_context(const struct ferry_credentials *credentials)
{
    return credentials->context;
}

bool credentials_expect(SSL *ssl, const char *peer)
{
    return expect_name(SSL_get0_param(ssl), peer);
}

/* ---- life ---- */

static void credentials_free(struct ferry_credentials *credentials)
{
    SSL_CTX_free(credentials->context);
    EVP_PKEY_free(credentials->key);
    X509_free(credentials->certificate);
    sk_X509_pop_free(credentials->authorities, X509_free);
    private_file_free(credentials->key_pem);
    free(credentials->certificate_pem);
    free(credentials->authority_pem);
    free(credentials->alternatives);
    free(credentials);
}

int credentials_parse(struct ferry_credentials **out, const char *pem, const char *what,
                      struct ferry_error *err)
{
    struct ferry_credentials *credentials = calloc(1, sizeof(*credentials));
    int result;

    *out = NULL;
    if (!credentials)
        return error_set(err, -ENOMEM, "out of memory for a certificate");
    credentials->refs = 1;
    result = read_bundle(credentials, pem, what, err);
    if (result == 0)
        result = make_context(credentials, err);
    if (result == 0)
        result = check_signed(credentials, what, err);
    if (result == 0) {
        read_name(credentials->certificate, credentials->name);
        read_name(sk_X509_value(credentials->authorities, 0), credentials->authority_name);
        credentials->alternatives = alternatives_text(credentials->certificate);
        credentials->key_pem = key_text(credentials->key);
        credentials->certificate_pem = certificate_text(credentials->certificate);
        credentials->authority_pem = authorities_text(credentials->authorities);
        if (!read_print(credentials) || !credentials->alternatives || !credentials->key_pem ||
            !credentials->certificate_pem || !credentials->authority_pem)
            result = error_set(err, -ENOMEM, "out of memory for a certificate");
    }
    if (result < 0) {
        credentials_free(credentials);
        return result;
    }
    *out = credentials;
    return 0;
}

int credentials_load(struct ferry_credentials **out, const char *path, struct ferry_error *err)
{
    char *pem = NULL;
    int result = private_file_read(path, false, &pem, err);

    *out = NULL;
    if (result == 0)
        result = credentials_parse(out, pem, path, err);
    private_file_free(pem);
    return result;
}

struct ferry_credentials *credentials_ref(struct ferry_credentials *credentials)
{
    if (credentials)
        __atomic_fetch_add(&credentials->refs, 1, __ATOMIC_RELAXED);
    return credentials;
}

void credentials_unref(struct ferry_credentials *credentials)
{
    if (credentials && __atomic_sub_fetch(&credentials->refs, 1, __ATOMIC_ACQ_REL) == 0)
        credentials_free(credentials);
}

int ferry_credentials_load(struct ferry_credentials **out, const char *path, struct ferry_error *err)
{
    return credentials_load(out, path, err);
}

void ferry_credentials_free(struct ferry_credentials *credentials)
{
    credentials_unref(credentials);
}

/* ---- what is in it ---- */

int credentials_check(const struct ferry_credentials *credentials, const char *host, struct ferry_error *err)
{
    char words[WORDS_VERIFY_SIZE];
    long result;

    if (host && !has_dns_name(credentials->certificate, host))
        return error_set(err, -EKEYREJECTED, "the certificate is that of %s (%.200s), not of host %s",
                         credentials->name,
                         credentials->alternatives[0] ? credentials->alternatives : "a person", host);
    result = verify_certificate(credentials, credentials->certificate,
                                host ? X509_PURPOSE_SSL_SERVER : X509_PURPOSE_SSL_CLIENT, 0);
    if (result == X509_V_OK)
        return 0;
    return error_set(err, result == X509_V_ERR_CERT_HAS_EXPIRED ? -EKEYEXPIRED : -EKEYREJECTED,
                     "the certificate of %s %s", credentials->name,
                     words_verify(result, credentials->certificate, words));
}

const char *credentials_name(const struct ferry_credentials *credentials)
{
    return credentials->name;
}

const char *credentials_alternatives(const struct ferry_credentials *credentials)
{
    return credentials->alternatives;
}

const char *credentials_authority(const struct ferry_credentials *credentials)
{
    return credentials->authority_name;
}

const char *credentials_authority_print(const struct ferry_credentials *credentials)
{
    return credentials->authority_print;
}

int64_t credentials_begin(const struct ferry_credentials *credentials)
{
    return words_seconds(X509_get0_notBefore(credentials->certificate));
}

int64_t credentials_end(const struct ferry_credentials *credentials)
{
    return words_seconds(X509_get0_notAfter(credentials->certificate));
}

const char *credentials_key_pem(const struct ferry_credentials *credentials)
{
    return credentials->key_pem;
}

const char *credentials_certificate_pem(const struct ferry_credentials *credentials)
{
    return credentials->certificate_pem;
}

const char *credentials_authority_pem(const struct ferry_credentials *credentials)
{
    return credentials->authority_pem;
}

/* ---- others ---- */

int credentials_check_client(const struct ferry_credentials *credentials, const unsigned char *der,
                             size_t size, struct credentials_peer *peer, struct ferry_error *err)
{
    char words[WORDS_VERIFY_SIZE];
    long result;

    *peer = (struct credentials_peer){.certificate = d2i_X509(NULL, &der, (long)size)};
    if (!peer->certificate)
        return words_set(err, -EKEYREJECTED, "the certificate of the client cannot be read");
    read_name(peer->certificate, peer->name);
    result = verify_certificate(credentials, peer->certificate, X509_PURPOSE_SSL_CLIENT, 0);
    if (result == X509_V_OK)
        return 0;
    error_set(err, -EKEYREJECTED, "the certificate of %s %s", peer->name,
              words_verify(result, peer->certificate, words));
    credentials_peer_free(peer);
    return -EKEYREJECTED;
}

bool credentials_peer_is(const struct credentials_peer *peer, const char *host)
{
    return peer->certificate && has_dns_name(peer->certificate, host);
}

void credentials_peer_free(struct credentials_peer *peer)
{
    X509_free(peer->certificate);
    peer->certificate = NULL;
}
