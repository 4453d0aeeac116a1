#include "tls/words.h"

#include "base/error.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

int words_set(struct ferry_error *err, int code, const char *format, ...)
{
    unsigned long reason = ERR_peek_last_error();
    const char *words = ERR_reason_error_string(reason);
    char text[FERRY_ERROR_TEXT_SIZE];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    if (ERR_SYSTEM_ERROR(reason))
        words = strerrordesc_np(ERR_GET_REASON(reason));
    ERR_clear_error();
    return error_set(err, code, "%s: %s", text, words ? words : "no reason is known");
}

char *words_date(int64_t seconds, char text[static WORDS_DATE_SIZE])
{
    time_t time = (time_t)seconds;
    struct tm parts;

    if (!gmtime_r(&time, &parts) || strftime(text, WORDS_DATE_SIZE, "%Y-%m-%d %H:%M UTC", &parts) == 0)
        snprintf(text, WORDS_DATE_SIZE, "an unknown day");
    return text;
}

int64_t words_seconds(const ASN1_TIME *time)
{
    struct tm parts;

    return time && ASN1_TIME_to_tm(time, &parts) ? timegm(&parts) : INT64_MIN;
}

static char *describe_name(X509 *certificate, char *text, size_t size)
{
    X509_NAME *subject = certificate ? X509_get_subject_name(certificate) : NULL;

    if (!subject || X509_NAME_get_text_by_NID(subject, NID_commonName, text, (int)size) <= 0)
        snprintf(text, size, "another host");
    for (char *c = text; *c; c++) {
        if (*c < 0x20 || *c > 0x7e)
            *c = '?';
    }
    return text;
}

char *words_verify(long verify_result, X509 *certificate, char text[static WORDS_VERIFY_SIZE])
{
    const ASN1_TIME *begins = certificate ? X509_get0_notBefore(certificate) : NULL;
    const ASN1_TIME *ends = certificate ? X509_get0_notAfter(certificate) : NULL;
    char date[WORDS_DATE_SIZE];
    char name[80];

    switch (verify_result) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
        snprintf(text, WORDS_VERIFY_SIZE, "has expired (%s)", words_date(words_seconds(ends), date));
        break;
    case X509_V_ERR_CERT_NOT_YET_VALID:
        snprintf(text, WORDS_VERIFY_SIZE, "is not valid before %s; are the clocks of both sides right?",
                 words_date(words_seconds(begins), date));
        break;
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
    case X509_V_ERR_CERT_UNTRUSTED:
        snprintf(text, WORDS_VERIFY_SIZE, "is not from the CA that is trusted here");
        break;
    case X509_V_ERR_HOSTNAME_MISMATCH:
        snprintf(text, WORDS_VERIFY_SIZE, "is that of %s", describe_name(certificate, name, sizeof(name)));
        break;
    case X509_V_ERR_INVALID_PURPOSE:
        snprintf(text, WORDS_VERIFY_SIZE, "is not meant for that: it is not a host's");
        break;
    default:
        snprintf(text, WORDS_VERIFY_SIZE, "is not good: %s", X509_verify_cert_error_string(verify_result));
        break;
    }
    return text;
}

int words_alert(void)
{
    unsigned long reason = ERR_peek_last_error();
    int number = ERR_GET_REASON(reason) - SSL_AD_REASON_OFFSET;

    return ERR_GET_LIB(reason) == ERR_LIB_SSL && number > 0 && number < 256 ? number : 0;
}

const char *words_alert_text(int alert)
{
    switch (alert) {
    case SSL_AD_UNKNOWN_CA:
        return "it is from another CA than the one trusted there";
    case SSL_AD_CERTIFICATE_EXPIRED:
        return "it has expired, or the clock there is wrong";
    case SSL_AD_BAD_CERTIFICATE:
    case SSL_AD_CERTIFICATE_UNKNOWN:
    case SSL_AD_UNSUPPORTED_CERTIFICATE:
    case SSL_AD_CERTIFICATE_REVOKED:
    case SSL_AD_ACCESS_DENIED:
        return "it is not the one that is expected there";
    case SSL_AD_CERTIFICATE_REQUIRED:
        return "there is none";
    default:
        return NULL;
    }
}
