#include "tls/https.h"

#include "base/error.h"

#include <errno.h>
#include <openssl/ssl.h>
#include <string.h>

static int verify(int good, X509_STORE_CTX *check)
{
    SSL *ssl = X509_STORE_CTX_get_ex_data(check, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct https *https = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));

    good = credentials_verify(good, check);
    if (!good)
        words_verify(X509_STORE_CTX_get_error(check), X509_STORE_CTX_get_current_cert(check), https->refused);
    return good;
}

static CURLcode take_context(CURL *curl, void *context, void *opaque)
{
    const struct https *https = opaque;

    (void)curl;
    if (credentials_apply(https->credentials, context, https->peer, NULL) < 0)
        return CURLE_SSL_CERTPROBLEM;
    SSL_CTX_set_app_data(context, opaque);
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, verify);
    return CURLE_OK;
}

void https_set_up(CURL *curl, struct https *https)
{
    https->words[0] = https->refused[0] = '\0';
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, https->words);
    /* None of the CAs that the system trusts. */
    curl_easy_setopt(curl, CURLOPT_CAINFO, NULL);
    curl_easy_setopt(curl, CURLOPT_CAPATH, NULL);
    curl_easy_setopt(curl, CURLOPT_SSL_VERIFYPEER, 1L);
    curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, https->peer ? 0L : 2L);
    curl_easy_setopt(curl, CURLOPT_SSL_CTX_FUNCTION, take_context);
    curl_easy_setopt(curl, CURLOPT_SSL_CTX_DATA, https);
}

/* libcurl gives what OpenSSL said as text only. */
static bool speaks_no_tls(const char *words)
{
    return strstr(words, "wrong version number") || strstr(words, "packet length too long") ||
           strstr(words, "record layer failure");
}

int https_explain(const struct https *https, CURLcode code, const char *who, struct ferry_error *err)
{
    switch (code) {
    case CURLE_PEER_FAILED_VERIFICATION:
        if (https->refused[0])
            return error_set(err, -EKEYREJECTED, "the certificate that %s shows %s", who, https->refused);
        return error_set(err, -EKEYREJECTED,
                         "the certificate that %s shows does not name that address; issue one that does: "
                         "ferry host certs issue NAME ADDRESS",
                         who);
    case CURLE_SSL_CONNECT_ERROR:
        if (speaks_no_tls(https->words))
            return error_set(err, -EPROTONOSUPPORT,
                             "%s does not speak TLS: it has no certificate (Host not licensed); issue one "
                             "and install it there: ferry host certs",
                             who);
        if (strstr(https->words, "protocol version") || strstr(https->words, "unsupported protocol"))
            return error_set(err, -EPROTONOSUPPORT, "%s does not speak TLS 1.3", who);
        return error_set(err, -EKEYREJECTED, "TLS with %s failed: %.200s", who, https->words);
    case CURLE_SSL_CERTPROBLEM:
        return error_set(err, -EKEYREJECTED, "the own certificate cannot be used for TLS with %s", who);
    default:
        return 0;
    }
}
