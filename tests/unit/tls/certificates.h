/*
 * Certificates for tests: a certificate authority in a scratch directory, and whatever it is asked to sign.
 *
 *     struct certificates good;
 *     certificates_make(&good);
 *     credentials = certificates_issue(&good, "beta");
 *     certificates_remove(&good);
 */
#ifndef TESTS_UNIT_TLS_CERTIFICATES_H
#define TESTS_UNIT_TLS_CERTIFICATES_H

#include "unit.h"

#include "tls/credentials.h"

struct certificates {
    struct unit_dir dir;
};

void certificates_make(struct certificates *certificates);
void certificates_remove(struct certificates *certificates);

/* Of a host, valid now. The caller's, for credentials_unref. */
struct ferry_credentials *certificates_issue(struct certificates *certificates, const char *host);
/* Valid from FROM to UNTIL seconds from now. */
struct ferry_credentials *certificates_issue_for(struct certificates *certificates, const char *host,
                                                 int64_t from, int64_t until);
/* The bundle as PEM; free(3). */
char *certificates_bundle(struct certificates *certificates, const char *host, int64_t from, int64_t until);

#endif
