#include "host/certificate.h"

#include "base/error.h"
#include "host/api.h"
#include "host/fields.h"
#include "host/migration.h"
#include "tls/private_file.h"

#include <stdio.h>
#include <time.h>

#define SECONDS_A_DAY 86400

void certificate_path(const struct config *config, char path[static PATH_MAX])
{
    /* state-dir is checked to leave room for names of files */
    snprintf(path, PATH_MAX, "%.*s/" CERTIFICATE_FILE, (int)(PATH_MAX - sizeof("/" CERTIFICATE_FILE)),
             config->state_dir);
}

static int64_t days_left(const struct ferry_credentials *credentials)
{
    int64_t left = credentials_end(credentials) - time(NULL);

    return left < 0 ? -1 : left / SECONDS_A_DAY;
}

static void tell_about(struct host *host, const struct ferry_credentials *credentials)
{
    int64_t days = days_left(credentials);

    if (days < 0)
        log_error(
            host->log,
            "the certificate of this host has expired: other hosts refuse it; issue and install a new one");
    else if (days < CERTIFICATE_WARN_DAYS)
        log_warn(host->log, "the certificate of this host ends in %lld days; issue and install a new one",
                 (long long)days);
    log_info(host->log, "certificate of %s, from %s", credentials_name(credentials),
             credentials_authority(credentials));
}

static void put_in_place(struct host *host, struct ferry_credentials *credentials)
{
    struct ferry_credentials *before;

    host_lock(host);
    before = host->credentials;
    host->credentials = credentials;
    host_unlock(host);
    credentials_unref(before);
}

int certificate_load(struct host *host, struct ferry_error *err)
{
    struct ferry_credentials *credentials = NULL;
    char path[PATH_MAX];
    int result;

    certificate_path(host->config, path);
    result = credentials_load(&credentials, path, err);
    if (result == -ENOENT)
        return 0;
    if (result == 0)
        result = credentials_check(credentials, host->config->name, err);
    if (result == -EKEYEXPIRED)
        result = 0;
    if (result < 0) {
        credentials_unref(credentials);
        return error_prefix(err, result, "this host's certificate (%s) cannot be used", path);
    }
    tell_about(host, credentials);
    put_in_place(host, credentials);
    return 0;
}

int certificate_install(struct host *host, const char *bundle, struct ferry_error *err)
{
    struct ferry_credentials *credentials = NULL;
    char path[PATH_MAX];
    int result = credentials_parse(&credentials, bundle, "the certificate file", err);

    if (result == 0)
        result = credentials_check(credentials, host->config->name, err);
    if (result == 0) {
        certificate_path(host->config, path);
        result = private_file_write(path, bundle, false, true, err);
    } else {
        result = HOST_USAGE;
    }
    if (result < 0) {
        credentials_unref(credentials);
        return result;
    }
    tell_about(host, credentials);
    put_in_place(host, credentials);
    return api_renew(host, err);
}

struct ferry_credentials *certificate_get(struct host *host)
{
    struct ferry_credentials *credentials;

    host_lock(host);
    credentials = credentials_ref(host->credentials);
    host_unlock(host);
    return credentials;
}

bool certificate_clear_allowed(struct host *host)
{
    bool allowed;

    host_lock(host);
    allowed = !host->config->require_tls && (!host->credentials || host->config->insecure);
    host_unlock(host);
    return allowed;
}

bool certificate_shared(struct host *host, const json_t *there)
{
    bool shared;

    host_lock(host);
    shared = host->credentials && json_is_object(json_object_get(there, "certificate"));
    host_unlock(host);
    return shared;
}

json_t *certificate_object(struct host *host)
{
    struct ferry_credentials *credentials = certificate_get(host);
    char path[PATH_MAX];
    json_t *object;

    if (!credentials)
        return json_null();
    certificate_path(host->config, path);
    object =
        json_pack("{s:s, s:o, s:s, s:s, s:I, s:o}", "name", credentials_name(credentials), "names",
                  fields_text(credentials_alternatives(credentials)), "authority",
                  credentials_authority(credentials), "fingerprint", credentials_authority_print(credentials),
                  "days_left", (json_int_t)days_left(credentials), "file", fields_text(path));
    migration_set_time(object, "from", (uint64_t)credentials_begin(credentials) * NS_PER_S);
    migration_set_time(object, "until", (uint64_t)credentials_end(credentials) * NS_PER_S);
    credentials_unref(credentials);
    return object;
}

const char *certificate_migration_status(struct host *host)
{
    const char *status;

    host_lock(host);
    if (!host->migration_enabled)
        status = "Host disabled";
    else if (!host->credentials)
        status = "Host not licensed";
    else
        status = "Host enabled";
    host_unlock(host);
    return status;
}
