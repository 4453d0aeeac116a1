#include "certificates.h"

#include "tls/authority.h"

#include <time.h>

void certificates_make(struct certificates *certificates)
{
    struct ferry_error err = {0};

    unit_dir_make(&certificates->dir);
    assert_ok(authority_init(certificates->dir.path, 10, NULL, &err), err);
}

void certificates_remove(struct certificates *certificates)
{
    unit_dir_remove(&certificates->dir);
}

char *certificates_bundle(struct certificates *certificates, const char *host, int64_t from, int64_t until)
{
    struct certificate_request request = {
        .name = host,
        .not_before = time(NULL) + from,
        .not_after = time(NULL) + until,
    };
    struct ferry_error err = {0};
    char *bundle = NULL;

    assert_ok(authority_issue(certificates->dir.path, &request, &bundle, NULL, &err), err);
    return bundle;
}

struct ferry_credentials *certificates_issue_for(struct certificates *certificates, const char *host,
                                                 int64_t from, int64_t until)
{
    struct ferry_credentials *credentials = NULL;
    struct ferry_error err = {0};
    char *bundle = certificates_bundle(certificates, host, from, until);

    assert_ok(credentials_parse(&credentials, bundle, "a bundle", &err), err);
    free(bundle);
    return credentials;
}

struct ferry_credentials *certificates_issue(struct certificates *certificates, const char *host)
{
    return certificates_issue_for(certificates, host, -60, 3600);
}
