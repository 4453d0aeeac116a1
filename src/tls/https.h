/*
 * HTTPS with libcurl, by the credentials of this host or user: TLS 1.3, both sides show certificates.
 *
 *     struct https https = {.credentials = credentials, .peer = "b"};
 *     https_set_up(curl, &https);              as often as the handle is reset
 *     code = curl_easy_perform(curl);
 *     result = https_explain(&https, code, "host b at 10.0.0.2:7001", err);
 */
#ifndef FERRY_TLS_HTTPS_H
#define FERRY_TLS_HTTPS_H

#include "tls/credentials.h"
#include "tls/words.h"

#include <curl/curl.h>

struct https {
    struct ferry_credentials *credentials; /* borrowed */
    const char *peer;                      /* the host it must be; NULL: the one that the URL names */
    char words[CURL_ERROR_SIZE];           /* libcurl's */
    char refused[WORDS_VERIFY_SIZE];       /* what is wrong with its certificate; empty: nothing */
};

/* What CURL needs for https URLs; HTTPS is borrowed until CURL is reset or freed. */
void https_set_up(CURL *curl, struct https *https);

/* For a request that failed with CODE because of TLS: the sentence, about WHO, and -EKEYREJECTED (a
 * certificate) or -EPROTONOSUPPORT (no TLS 1.3 there). 0, and err untouched, when it failed for something
 * else. */
int https_explain(const struct https *https, CURLcode code, const char *who, struct ferry_error *err);

#endif
