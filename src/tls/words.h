/*
 * OpenSSL's failures as sentences that an operator can act on.
 *
 * OpenSSL keeps a queue of errors a thread; these take from it and leave it empty.
 */
#ifndef FERRY_TLS_WORDS_H
#define FERRY_TLS_WORDS_H

#include <ferry/error.h>

#include <openssl/x509.h>
#include <stdarg.h>
#include <stdint.h>

/* CODE with FORMAT and what OpenSSL says is the reason. Returns CODE. */
int words_set(struct ferry_error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4), cold));

#define WORDS_DATE_SIZE 32
/* "2026-11-21 03:31 UTC" */
char *words_date(int64_t seconds, char text[static WORDS_DATE_SIZE]);
/* Seconds since 1970; INT64_MIN when TIME is none. */
int64_t words_seconds(const ASN1_TIME *time);

/*
 * Why a certificate was not accepted, "has expired (2026-11-21 03:31 UTC)": what comes after "the certificate
 * of NAME ". VERIFY_RESULT is X509_V_ERR_…; CERTIFICATE (may be NULL) the one it is about.
 */
#define WORDS_VERIFY_SIZE 256
char *words_verify(long verify_result, X509 *certificate, char text[static WORDS_VERIFY_SIZE]);

/* The alert of the other side that is in the queue (which is not emptied), 0 when there is none. */
int words_alert(void);
/* What an alert about our certificate says: "does not know its CA". NULL when it is about something else. */
const char *words_alert_text(int alert);

#endif
