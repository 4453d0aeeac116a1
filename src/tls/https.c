#include "tls/https.h"

#include "base/error.h"
#include "tls/words.h"

#include <errno.h>
#include <openssl/ssl.h>
#include <string.h>

static CURLcode take_context(CURL *curl, void *context, void *opaque)
{
    const struct https *https = opaque;

    (void)curl;
    return credentials_apply(https->credentials, context, https->peer, NULL) == 0 ? CURLE_OK
                                                                                  : CURLE_SSL_CERTPROBLEM;
}

void https_set_up(CURL *curl, struct https *https)
{
    https->words[0] = '\0';
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

int https_explain(const struct https *https, CURL *curl, CURLcode code, const char *who,
                  struct ferry_error *err)
{
    char words[WORDS_VERIFY_SIZE];
    long verified = X509_V_OK;

    curl_easy_getinfo(curl, CURLINFO_SSL_VERIFYRESULT, &verified);
    switch (code) {
    case CURLE_PEER_FAILED_VERIFICATION:
        if (verified != X509_V_OK)
            return error_set(err, -EKEYREJECTED, "the certificate that %s shows %s", who,
                             words_verify(verified, NULL, words));
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
