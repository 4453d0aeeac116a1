#include "host/api.h"

#include "base/error.h"
#include "host/certificate.h"
#include "host/cluster.h"
#include "host/cpu_baseline.h"
#include "host/peers.h"

int api_host_show(struct api_request *request)
{
    return api_answer(request, MHD_HTTP_OK, host_object(request->host));
}

int api_host_migration(struct api_request *request)
{
    bool enabled = false;
    const struct field fields[] = {{"enabled", FIELD_BOOL, true, &enabled}};
    int result = api_read_body(request, fields, 1);

    if (result < 0)
        return result;
    host_set_migration(request->host, enabled);
    return api_answer(request, MHD_HTTP_OK, host_object(request->host));
}

int api_host_certificate(struct api_request *request)
{
    const char *bundle = NULL;
    const struct field fields[] = {{"bundle", FIELD_STRING, true, &bundle}};
    int result = api_read_body(request, fields, 1);

    if (result == 0 && !api_is_local(request))
        result = error_set(&request->err, HOST_USAGE,
                           "host %s takes a certificate by its Unix socket only: install it there",
                           request->host->config->name);
    if (result == 0)
        result = certificate_install(request->host, bundle, &request->err);
    return result < 0 ? result : api_answer(request, MHD_HTTP_OK, host_object(request->host));
}

int api_hosts_list(struct api_request *request)
{
    return api_answer(request, MHD_HTTP_OK, peers_list(request->host));
}

int api_hosts_add(struct api_request *request)
{
    const char *name = NULL;
    const char *address = NULL;
    const struct field fields[] = {
        {"name", FIELD_STRING, true, &name},
        {"address", FIELD_STRING, true, &address},
    };
    int result = api_read_body(request, fields, 2);

    if (result == 0)
        result = peers_add(request->host, name, address, &request->err);
    if (result < 0)
        return result;
    return api_answer(request, MHD_HTTP_CREATED, json_pack("{s:s, s:s}", "name", name, "address", address));
}

int api_hosts_remove(struct api_request *request)
{
    int result = peers_remove(request->host, request->arguments[0], &request->err);

    return result < 0 ? result : api_answer_empty(request);
}

int api_host_baseline(struct api_request *request)
{
    json_t *baseline = NULL;
    bool check_only = false;
    const struct field fields[] = {{"baseline", FIELD_OBJECT, false, &baseline},
                                   {"check_only", FIELD_BOOL, false, &check_only}};
    int result = api_read_body(request, fields, 2);

    if (result == 0)
        result = cpu_baseline_take(request->host, baseline, check_only, &request->err);
    return result < 0 ? result : api_answer_empty(request);
}

int api_cluster_baseline(struct api_request *request)
{
    json_t *answer = NULL;
    int result = cluster_baseline_show(request->host, &answer, &request->err);

    return result < 0 ? result : api_answer(request, MHD_HTTP_OK, answer);
}

int api_cluster_baseline_compute(struct api_request *request)
{
    json_t *answer = NULL;
    int result = cluster_baseline_compute(request->host, &answer, &request->err);

    return result < 0 ? result : api_answer(request, MHD_HTTP_OK, answer);
}

int api_cluster_baseline_set(struct api_request *request)
{
    const char *name = NULL;
    const struct field fields[] = {{"name", FIELD_STRING, false, &name}};
    json_t *answer = NULL;
    int result = api_read_body(request, fields, 1);

    if (result == 0)
        result = cluster_baseline_set(request->host, name, &answer, &request->err);
    return result < 0 ? result : api_answer(request, MHD_HTTP_OK, answer);
}
