/* What the small certificate authority makes is what it says, and what does not belong together is refused.
 */
#include "certificates.h"

#include "tls/authority.h"
#include "tls/private_file.h"

#include <errno.h>
#include <sys/stat.h>
#include <time.h>

static struct certificates ours, others;

static int make(void **state)
{
    certificates_make(&ours);
    certificates_make(&others);
    return 0;
}

static int clean_up(void **state)
{
    certificates_remove(&ours);
    certificates_remove(&others);
    return 0;
}

static unsigned mode_of(const char *name)
{
    char path[128];
    struct stat status;

    assert_int_equal(stat(unit_path(&ours.dir, name, path), &status), 0);
    return status.st_mode & 07777;
}

static void the_key_is_its_owners_alone(void **state)
{
    assert_int_equal(mode_of("."), 0700);
    assert_int_equal(mode_of("authority.key"), 0600);
}

static void a_second_authority_does_not_replace_the_first(void **state)
{
    struct ferry_error err = {0};
    char path[128], *before = NULL, *after = NULL;

    unit_path(&ours.dir, "authority.key", path);
    assert_ok(private_file_read(path, false, &before, &err), err);
    assert_int_equal(authority_init(ours.dir.path, 10, NULL, &err), -EEXIST);
    assert_contains(err.text, ours.dir.path);
    assert_ok(private_file_read(path, false, &after, &err), err);
    assert_string_equal(before, after);
    private_file_free(before);
    private_file_free(after);
}

static void certificate_is_the_hosts_and_no_other(void **state)
{
    struct ferry_credentials *beta = certificates_issue(&ours, "beta");
    struct ferry_error err = {0};

    assert_ok(credentials_check(beta, "beta", &err), err);
    assert_string_equal(credentials_name(beta), "beta");
    assert_int_equal(credentials_check(beta, "gamma", &err), -EKEYREJECTED);
    assert_contains(err.text, "beta");
    assert_contains(err.text, "not of host gamma");
    /* two hosts may differ in nothing but that */
    assert_int_equal(credentials_check(beta, "Beta", &err), -EKEYREJECTED);
    assert_int_equal(credentials_check(beta, "bet", &err), -EKEYREJECTED);
    credentials_unref(beta);
}

static void addresses_are_in_it(void **state)
{
    const char *addresses[] = {"10.0.0.2", "beta.example.org", "fd00::2"};
    struct certificate_request request = {
        .name = "beta", .addresses = addresses, .address_count = 3, .not_after = time(NULL) + 3600};
    struct ferry_credentials *credentials = NULL;
    struct ferry_error err = {0};
    char *bundle = NULL;

    assert_ok(authority_issue(ours.dir.path, &request, &bundle, NULL, &err), err);
    assert_ok(credentials_parse(&credentials, bundle, "a bundle", &err), err);
    assert_string_equal(credentials_alternatives(credentials), "DNS:beta, IP Address:10.0.0.2, "
                                                               "DNS:beta.example.org, "
                                                               "IP Address:FD00:0:0:0:0:0:0:2");
    assert_ok(credentials_check(credentials, "beta", &err), err);
    private_file_free(bundle);
    credentials_unref(credentials);
}

static void what_is_no_name_or_address_is_refused(void **state)
{
    static const char *const names[] = {"",
                                        "-b",
                                        "b,DNS:c",
                                        "b/c",
                                        "b c",
                                        "alice@example.org",
                                        "0123456789012345678901234567890123456789012345678901234567890123"};
    static const char *const addresses[] = {"", "10.0.0.2:7001", "c,DNS:d", "*.example.org", ".x", "[::1]"};
    struct ferry_error err = {0};
    char *bundle = NULL;

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct certificate_request request = {.name = names[i], .not_after = time(NULL) + 60};

        assert_int_equal(authority_issue(ours.dir.path, &request, &bundle, NULL, &err), -EINVAL);
        assert_contains(err.text, names[i]);
        assert_null(bundle);
    }
    for (size_t i = 0; i < sizeof(addresses) / sizeof(addresses[0]); i++) {
        struct certificate_request request = {
            .name = "b", .addresses = &addresses[i], .address_count = 1, .not_after = time(NULL) + 60};

        assert_int_equal(authority_issue(ours.dir.path, &request, &bundle, NULL, &err), -EINVAL);
        assert_contains(err.text, addresses[i]);
    }
}

static void a_person_is_no_host(void **state)
{
    struct certificate_request request = {.name = "alice@example.org",
                                          .person = true,
                                          .not_before = time(NULL) - 60,
                                          .not_after = time(NULL) + 60};
    struct ferry_credentials *credentials = NULL;
    struct ferry_error err = {0};
    char *bundle = NULL;

    assert_ok(authority_issue(ours.dir.path, &request, &bundle, NULL, &err), err);
    assert_ok(credentials_parse(&credentials, bundle, "a bundle", &err), err);
    assert_ok(credentials_check(credentials, NULL, &err), err);
    assert_int_equal(credentials_check(credentials, "alice@example.org", &err), -EKEYREJECTED);
    private_file_free(bundle);
    credentials_unref(credentials);
}

static void no_certificate_outlives_its_authority(void **state)
{
    struct certificate_request request = {.name = "beta", .not_after = time(NULL) + 3650 * 86400ll};
    struct ferry_credentials *credentials = NULL;
    struct ferry_error err = {0};
    char *bundle = NULL;
    int64_t until = 0;

    assert_ok(authority_issue(ours.dir.path, &request, &bundle, &until, &err), err);
    assert_ok(credentials_parse(&credentials, bundle, "a bundle", &err), err);
    assert_int_equal(credentials_end(credentials), until);
    assert_in_range(until, time(NULL) + 9 * 86400, time(NULL) + 10 * 86400);
    private_file_free(bundle);
    credentials_unref(credentials);
}

static void expired_and_future_ones_are_told_apart(void **state)
{
    struct ferry_credentials *old = certificates_issue_for(&ours, "beta", -7200, -3600);
    struct ferry_credentials *young = certificates_issue_for(&ours, "beta", 3600, 7200);
    struct ferry_error err = {0};

    assert_int_equal(credentials_check(old, "beta", &err), -EKEYEXPIRED);
    assert_contains(err.text, "the certificate of beta has expired");
    assert_int_equal(credentials_check(young, "beta", &err), -EKEYREJECTED);
    assert_contains(err.text, "not valid before");
    credentials_unref(old);
    credentials_unref(young);
}

/* Where the N-th block "-----BEGIN WHAT" begins. */
static char *block(char *pem, const char *what, int number)
{
    char begin[64];
    char *found = pem - 1;

    snprintf(begin, sizeof(begin), "-----BEGIN %s", what);
    while (found && number-- >= 0)
        found = strstr(found + 1, begin);
    assert_non_null(found);
    return found;
}

static void assert_refused(const char *pem, const char *words)
{
    struct ferry_credentials *credentials;
    struct ferry_error err = {0};

    assert_int_equal(credentials_parse(&credentials, pem, "/some/file", &err), -EINVAL);
    assert_null(credentials);
    assert_contains(err.text, "/some/file");
    assert_contains(err.text, words);
}

static void what_does_not_belong_together_is_refused(void **state)
{
    char *one = certificates_bundle(&ours, "beta", -60, 60);
    char *two = certificates_bundle(&ours, "beta", -60, 60);
    char *other = certificates_bundle(&others, "beta", -60, 60);
    char *authority = block(one, "CERTIFICATE", 1);
    char *made = calloc(1, 16384);

    assert_refused("", "no key");
    assert_refused("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no key");
    assert_refused(block(one, "CERTIFICATE", 0), "no key");

    memcpy(made, one, (size_t)(authority - one));
    assert_refused(made, "no certificate of a CA");

    memset(made, 0, 16384);
    memcpy(made, two, (size_t)(block(two, "CERTIFICATE", 0) - two));
    strcat(made, block(one, "CERTIFICATE", 0));
    assert_refused(made, "no certificate that belongs to its key");

    memset(made, 0, 16384);
    memcpy(made, one, (size_t)(authority - one));
    strcat(made, block(other, "CERTIFICATE", 1));
    assert_refused(made, "not from a CA that is in the file");

    private_file_free(one);
    private_file_free(two);
    private_file_free(other);
    free(made);
}

static X509 *certificate_of(const struct ferry_credentials *credentials)
{
    return SSL_CTX_get0_certificate(credentials_context(credentials));
}

/* The client's certificate as it would come from another TLS library. */
static int check_client(const struct ferry_credentials *server, const struct ferry_credentials *client,
                        struct credentials_peer *peer, struct ferry_error *err)
{
    unsigned char *der = NULL;
    int size = i2d_X509(certificate_of(client), &der);
    int result = credentials_check_client(server, der, (size_t)size, peer, err);

    OPENSSL_free(der);
    return result;
}

static void clients_are_known_by_their_certificates(void **state)
{
    struct ferry_credentials *server = certificates_issue(&ours, "beta");
    struct ferry_credentials *client = certificates_issue(&ours, "alpha");
    struct ferry_credentials *old = certificates_issue_for(&ours, "alpha", -7200, -3600);
    struct ferry_credentials *stranger = certificates_issue(&others, "alpha");
    struct credentials_peer peer = {0};
    struct ferry_error err = {0};

    assert_ok(check_client(server, client, &peer, &err), err);
    assert_string_equal(peer.name, "alpha");
    assert_true(credentials_peer_is(&peer, "alpha"));
    assert_false(credentials_peer_is(&peer, "beta"));
    assert_false(credentials_peer_is(&peer, "Alpha"));
    credentials_peer_free(&peer);

    assert_int_equal(check_client(server, old, &peer, &err), -EKEYREJECTED);
    assert_contains(err.text, "alpha has expired");
    assert_null(peer.certificate);
    assert_int_equal(check_client(server, stranger, &peer, &err), -EKEYREJECTED);
    assert_contains(err.text, "alpha is not from the CA that is trusted here");
    assert_int_equal(credentials_check_client(server, (const unsigned char *)"0", 1, &peer, &err),
                     -EKEYREJECTED);
    assert_false(credentials_peer_is(&peer, "alpha"));

    credentials_unref(server);
    credentials_unref(client);
    credentials_unref(old);
    credentials_unref(stranger);
}

/* A CA takes over from another: hosts whose files hold both trust certificates of either. */
static void a_further_authority_in_the_file_is_trusted(void **state)
{
    char *bundle = certificates_bundle(&ours, "beta", -60, 60);
    char *other = certificates_bundle(&others, "alpha", -60, 60);
    char *both = calloc(1, 16384);
    struct ferry_credentials *client = certificates_issue(&others, "alpha");
    struct ferry_credentials *server = NULL;
    struct credentials_peer peer = {0};
    struct ferry_error err = {0};

    /* whichever comes first */
    strcat(strcpy(both, block(other, "CERTIFICATE", 1)), bundle);
    assert_ok(credentials_parse(&server, both, "both", &err), err);
    assert_ok(credentials_check(server, "beta", &err), err);
    assert_ok(check_client(server, client, &peer, &err), err);
    assert_string_not_equal(credentials_authority(server), credentials_authority(client));
    credentials_peer_free(&peer);
    credentials_unref(server);
    credentials_unref(client);
    private_file_free(bundle);
    private_file_free(other);
    free(both);
}

static void a_key_that_everybody_may_read_is_refused(void **state)
{
    char *bundle = certificates_bundle(&ours, "beta", -60, 60);
    struct ferry_credentials *credentials;
    struct ferry_error err = {0};
    char path[128];

    unit_path(&ours.dir, "beta.pem", path);
    assert_int_equal(credentials_load(&credentials, path, &err), -ENOENT);
    assert_ok(private_file_write(path, bundle, false, false, &err), err);
    assert_int_equal(mode_of("beta.pem"), 0600);
    assert_int_equal(private_file_write(path, bundle, false, false, &err), -EEXIST);
    assert_ok(credentials_load(&credentials, path, &err), err);
    credentials_unref(credentials);
    assert_int_equal(chmod(path, 0604), 0);
    assert_int_equal(credentials_load(&credentials, path, &err), -EACCES);
    assert_contains(err.text, "chmod 600");
    private_file_free(bundle);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_key_is_its_owners_alone),
        cmocka_unit_test(a_second_authority_does_not_replace_the_first),
        cmocka_unit_test(certificate_is_the_hosts_and_no_other),
        cmocka_unit_test(addresses_are_in_it),
        cmocka_unit_test(what_is_no_name_or_address_is_refused),
        cmocka_unit_test(a_person_is_no_host),
        cmocka_unit_test(no_certificate_outlives_its_authority),
        cmocka_unit_test(expired_and_future_ones_are_told_apart),
        cmocka_unit_test(what_does_not_belong_together_is_refused),
        cmocka_unit_test(clients_are_known_by_their_certificates),
        cmocka_unit_test(a_further_authority_in_the_file_is_trusted),
        cmocka_unit_test(a_key_that_everybody_may_read_is_refused),
    };

    return cmocka_run_group_tests(tests, make, clean_up);
}
