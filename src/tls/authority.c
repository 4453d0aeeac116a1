#include "tls/authority.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "tls/private_file.h"
#include "tls/words.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* Clocks of hosts differ a little. */
#define CLOCK_SKEW_S  3600
#define SECONDS_A_DAY 86400
#define SERIAL_BITS   127 /* positive, and at most 20 bytes (RFC 5280 §4.1.2.2) */

/* A certificate in the making, with what belongs to it. */
struct signing {
    EVP_PKEY *key; /* of the certificate */
    X509 *certificate;
    EVP_PKEY *authority_key; /* of who signs; the same for a CA */
    X509 *authority;
};

static void signing_free(struct signing *signing)
{
    if (signing->authority_key != signing->key)
        EVP_PKEY_free(signing->authority_key);
    if (signing->authority != signing->certificate)
        X509_free(signing->authority);
    EVP_PKEY_free(signing->key);
    X509_free(signing->certificate);
}

static bool set_serial(X509 *certificate)
{
    BIGNUM *serial = BN_new();
    bool done = serial && BN_rand(serial, SERIAL_BITS, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY) &&
                BN_to_ASN1_INTEGER(serial, X509_get_serialNumber(certificate));

    BN_free(serial);
    return done;
}

static bool set_times(X509 *certificate, int64_t not_before, int64_t not_after)
{
    return ASN1_TIME_set(X509_getm_notBefore(certificate), (time_t)not_before) &&
           ASN1_TIME_set(X509_getm_notAfter(certificate), (time_t)not_after);
}

static bool set_subject(X509 *certificate, const char *name)
{
    X509_NAME *subject = X509_get_subject_name(certificate);

    return X509_NAME_add_entry_by_txt(subject, "O", MBSTRING_ASC, (const unsigned char *)"Ferry", -1, -1,
                                      0) &&
           X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0);
}

static bool add_extension(struct signing *signing, int nid, const char *value)
{
    X509V3_CTX context;
    X509_EXTENSION *extension;
    bool done;

    X509V3_set_ctx_nodb(&context);
    X509V3_set_ctx(&context, signing->authority, signing->certificate, NULL, NULL, 0);
    extension = X509V3_EXT_conf_nid(NULL, &context, nid, value);
    done = extension && X509_add_ext(signing->certificate, extension, -1);
    X509_EXTENSION_free(extension);
    return done;
}

/* All but subject, extensions and signature. */
static bool begin_certificate(struct signing *signing, int64_t not_before, int64_t not_after)
{
    signing->key = EVP_EC_gen("P-256");
    signing->certificate = X509_new();
    return signing->key && signing->certificate && X509_set_version(signing->certificate, X509_VERSION_3) &&
           set_serial(signing->certificate) && set_times(signing->certificate, not_before, not_after) &&
           X509_set_pubkey(signing->certificate, signing->key);
}

static bool end_certificate(struct signing *signing)
{
    return add_extension(signing, NID_subject_key_identifier, "hash") &&
           add_extension(signing, NID_authority_key_identifier, "keyid:always") &&
           X509_sign(signing->certificate, signing->authority_key, EVP_sha256()) > 0;
}

/* KEY, CERTIFICATE and AUTHORITY (each may be NULL) as PEM, NUL-terminated; NULL when that fails. */
static char *to_pem(EVP_PKEY *key, X509 *certificate, X509 *authority)
{
    BIO *out = BIO_new(BIO_s_mem());
    char *data = NULL;
    char *text = NULL;
    long size;

    if (out && (!key || PEM_write_bio_PrivateKey(out, key, NULL, NULL, 0, NULL, NULL)) &&
        (!certificate || PEM_write_bio_X509(out, certificate)) &&
        (!authority || PEM_write_bio_X509(out, authority))) {
        size = BIO_get_mem_data(out, &data);
        text = strndup(data, (size_t)size);
        explicit_bzero(data, (size_t)size);
    }
    BIO_free(out);
    return text;
}

static int authority_path(const char *directory, const char *name, char path[static PATH_MAX],
                          struct ferry_error *err)
{
    if (snprintf(path, PATH_MAX, "%s/%s", directory, name) >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "the path %s is too long", directory);
    return 0;
}

/* Different CAs must differ in their names, or a certificate's issuer is looked for in the wrong one. */
static bool make_authority(struct signing *signing, int64_t not_before, int64_t not_after)
{
    unsigned char random[4];
    char name[64];

    if (RAND_bytes(random, sizeof(random)) <= 0)
        return false;
    snprintf(name, sizeof(name), "Ferry CA %02x%02x%02x%02x", random[0], random[1], random[2], random[3]);
    if (!begin_certificate(signing, not_before, not_after) || !set_subject(signing->certificate, name))
        return false;
    signing->authority_key = signing->key;
    signing->authority = signing->certificate;
    return X509_set_issuer_name(signing->certificate, X509_get_subject_name(signing->certificate)) &&
           add_extension(signing, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
           add_extension(signing, NID_key_usage, "critical,keyCertSign,cRLSign") && end_certificate(signing);
}

/* The key first: a certificate without one would look like a CA and be none. */
static int store_authority(const char *directory, const struct signing *signing, struct ferry_error *err)
{
    char path[PATH_MAX];
    char *key = to_pem(signing->key, NULL, NULL);
    char *certificate = to_pem(NULL, signing->certificate, NULL);
    int result = authority_path(directory, "authority.key", path, err);

    if (!key || !certificate)
        result = error_set(err, -ENOMEM, "out of memory for a certificate authority");
    if (result == 0)
        result = private_file_write(path, key, false, false, err);
    if (result == -EEXIST)
        error_set(err, result, "there is a certificate authority in %s already", directory);
    if (result == 0)
        result = authority_path(directory, "authority.pem", path, err);
    if (result == 0)
        result = private_file_write(path, certificate, true, true, err);
    private_file_free(key);
    private_file_free(certificate);
    return result;
}

int authority_init(const char *directory, unsigned days, int64_t *until, struct ferry_error *err)
{
    struct signing signing = {0};
    int64_t now = time(NULL);
    int64_t end = now + (int64_t)days * SECONDS_A_DAY;
    int result = private_directory_make(directory, err);

    if (result == 0 && !make_authority(&signing, now - CLOCK_SKEW_S, end))
        result = words_set(err, -EIO, "cannot make a certificate authority");
    if (result == 0)
        result = store_authority(directory, &signing, err);
    if (until)
        *until = end;
    signing_free(&signing);
    return result;
}

static int load_authority(const char *directory, struct signing *signing, struct ferry_error *err)
{
    char path[PATH_MAX];
    char *texts[2] = {NULL, NULL};
    BIO *bios[2] = {NULL, NULL};
    int result = authority_path(directory, "authority.key", path, err);

    if (result == 0)
        result = private_file_read(path, false, &texts[0], err);
    if (result == -ENOENT)
        error_set(err, result,
                  "there is no certificate authority in %s; make one with: ferry host certs init", directory);
    if (result == 0)
        result = authority_path(directory, "authority.pem", path, err);
    if (result == 0)
        result = private_file_read(path, true, &texts[1], err);
    for (size_t i = 0; result == 0 && i < 2; i++)
        bios[i] = BIO_new_mem_buf(texts[i], -1);
    if (bios[0] && bios[1]) {
        signing->authority_key = PEM_read_bio_PrivateKey(bios[0], NULL, NULL, (void *)"");
        signing->authority = PEM_read_bio_X509(bios[1], NULL, NULL, (void *)"");
    }
    if (result == 0 && (!signing->authority_key || !signing->authority))
        result = words_set(err, -EINVAL, "the certificate authority in %s cannot be read", directory);
    if (result == 0 && X509_check_private_key(signing->authority, signing->authority_key) != 1)
        result = error_set(err, -EINVAL, "authority.key and authority.pem in %s do not belong together",
                           directory);
    for (size_t i = 0; i < 2; i++) {
        BIO_free(bios[i]);
        private_file_free(texts[i]);
    }
    ERR_clear_error();
    return result;
}

/* Takes NAME over. */
static bool push_name(GENERAL_NAMES *names, int type, ASN1_STRING *value)
{
    GENERAL_NAME *name = GENERAL_NAME_new();

    if (!name || !value || !sk_GENERAL_NAME_push(names, name)) {
        GENERAL_NAME_free(name);
        ASN1_STRING_free(value);
        return false;
    }
    GENERAL_NAME_set0_value(name, type, value);
    return true;
}

static ASN1_STRING *make_string(int type, const void *data, size_t size)
{
    ASN1_STRING *string = ASN1_STRING_type_new(type);

    if (string && !ASN1_STRING_set(string, data, (int)size)) {
        ASN1_STRING_free(string);
        string = NULL;
    }
    return string;
}

static bool is_dns_name(const char *text)
{
    size_t length = strlen(text);

    return length > 0 && length < 254 && text[0] != '-' && text[0] != '.' &&
           strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == length;
}

static int push_address(GENERAL_NAMES *names, const char *address, struct ferry_error *err)
{
    unsigned char binary[16];
    bool done;

    if (inet_pton(AF_INET, address, binary) == 1)
        done = push_name(names, GEN_IPADD, make_string(V_ASN1_OCTET_STRING, binary, 4));
    else if (inet_pton(AF_INET6, address, binary) == 1)
        done = push_name(names, GEN_IPADD, make_string(V_ASN1_OCTET_STRING, binary, 16));
    else if (is_dns_name(address))
        done = push_name(names, GEN_DNS, make_string(V_ASN1_IA5STRING, address, strlen(address)));
    else
        return error_set(err, -EINVAL,
                         "\"%.128s\" is not an address for a certificate; write a numeric address or a DNS "
                         "name, without a port",
                         address);
    return done ? 0 : error_set(err, -ENOMEM, "out of memory for a certificate");
}

static int add_alternative_names(struct signing *signing, const struct certificate_request *request,
                                 struct ferry_error *err)
{
    GENERAL_NAMES *names = sk_GENERAL_NAME_new_null();
    int result = names ? 0 : error_set(err, -ENOMEM, "out of memory for a certificate");

    if (result == 0 &&
        !push_name(names, GEN_DNS, make_string(V_ASN1_IA5STRING, request->name, strlen(request->name))))
        result = error_set(err, -ENOMEM, "out of memory for a certificate");
    for (size_t i = 0; result == 0 && i < request->address_count; i++)
        result = push_address(names, request->addresses[i], err);
    if (result == 0 && X509_add1_ext_i2d(signing->certificate, NID_subject_alt_name, names, 0, 0) != 1)
        result = words_set(err, -EIO, "cannot name a host in a certificate");
    sk_GENERAL_NAME_pop_free(names, GENERAL_NAME_free);
    return result;
}

/* A host's is what ferryd takes for one; a person's may be an address of mail, too. */
static bool is_good_name(const char *name, bool person)
{
    static const char good[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@";
    size_t length = strlen(name);

    return length > 0 && length < 64 && !strchr("._-@", name[0]) && strspn(name, good) == length &&
           (person || !strchr(name, '@'));
}

static int sign_request(struct signing *signing, const struct certificate_request *request, int64_t *until,
                        struct ferry_error *err)
{
    int64_t last = words_seconds(X509_get0_notAfter(signing->authority));
    const char *use = request->person ? "clientAuth" : "serverAuth,clientAuth";
    int result = 0;

    *until = request->not_after < last ? request->not_after : last;
    if (!begin_certificate(signing, request->not_before, *until) ||
        !set_subject(signing->certificate, request->name) ||
        !X509_set_issuer_name(signing->certificate, X509_get_subject_name(signing->authority)) ||
        !add_extension(signing, NID_basic_constraints, "critical,CA:FALSE") ||
        !add_extension(signing, NID_key_usage, "critical,digitalSignature") ||
        !add_extension(signing, NID_ext_key_usage, use))
        return words_set(err, -EIO, "cannot make a certificate for %s", request->name);
    if (!request->person)
        result = add_alternative_names(signing, request, err);
    if (result == 0 && !end_certificate(signing))
        result = words_set(err, -EIO, "cannot sign a certificate for %s", request->name);
    return result;
}

/* For people: nothing reads it. */
static int note_issued(const char *directory, X509 *certificate, const char *name, int64_t until,
                       struct ferry_error *err)
{
    BIGNUM *number = ASN1_INTEGER_to_BN(X509_get0_serialNumber(certificate), NULL);
    char *serial = number ? BN_bn2hex(number) : NULL;
    char path[PATH_MAX];
    char date[WORDS_DATE_SIZE];
    CLEANUP_CLOSE int fd = -1;
    int result = authority_path(directory, "issued", path, err);

    if (result == 0) {
        fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0 ||
            dprintf(fd, "%s\t%s\tuntil %s\n", serial ? serial : "?", name, words_date(until, date)) < 0)
            result = error_set_errno(err, -errno, "cannot write %s", path);
    }
    OPENSSL_free(serial);
    BN_free(number);
    return result;
}

int authority_issue(const char *directory, const struct certificate_request *request, char **bundle,
                    int64_t *until, struct ferry_error *err)
{
    struct signing signing = {0};
    int64_t end = 0;
    int result;

    *bundle = NULL;
    if (!is_good_name(request->name, request->person))
        return error_set(
            err, -EINVAL,
            "\"%.80s\" is not a name for a certificate: 1 to 63 of letters, digits, '.', '_' and "
            "'-'%s, beginning with a letter or a digit",
            request->name, request->person ? " and '@'" : "");
    result = load_authority(directory, &signing, err);
    if (result == 0)
        result = sign_request(&signing, request, &end, err);
    if (result == 0)
        result = note_issued(directory, signing.certificate, request->name, end, err);
    if (result == 0) {
        *bundle = to_pem(signing.key, signing.certificate, signing.authority);
        if (!*bundle)
            result = error_set(err, -ENOMEM, "out of memory for a certificate");
    }
    if (until)
        *until = end;
    signing_free(&signing);
    return result;
}
