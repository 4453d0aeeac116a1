/*
 * Signs a certificate that has expired, which `ferry host certs issue` does not: for tests.
 *
 *   expired_certificate CA_DIR NAME FILE
 */
#include "tls/authority.h"
#include "tls/private_file.h"

#include <stdio.h>
#include <time.h>

int main(int argc, char **argv)
{
    struct certificate_request request = {.not_before = time(NULL) - 7200, .not_after = time(NULL) - 3600};
    struct ferry_error err = {0};
    char *bundle = NULL;

    if (argc != 4)
        return 2;
    request.name = argv[2];
    if (authority_issue(argv[1], &request, &bundle, NULL, &err) < 0 ||
        private_file_write(argv[3], bundle, false, true, &err) < 0) {
        fprintf(stderr, "expired_certificate: %s\n", err.text);
        return 1;
    }
    private_file_free(bundle);
    return 0;
}
