#include "host/peers.h"

#include "base/buffer.h"
#include "base/error.h"
#include "base/http.h"
#include "base/thread.h"
#include "host/api.h"
#include "host/certificate.h"
#include "host/cluster.h"
#include "host/fields.h"
#include "tls/https.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define ANSWER_MAX   (16u << 20)
#define FETCH_BUFFER (256l << 10)

struct call {
    struct host *host;
    struct buffer answer;

    /* peer_fetch */
    bool encrypted;  /* or not at all */
    peer_take *take; /* gets an answer that is no error; NULL: it goes into `answer` */
    void *opaque;
    CURL *curl; /* of the exchange under way */
    int failed; /* what TAKE returned */
    struct ferry_error why;
};

static size_t hand_on(struct call *call, const char *data, size_t bytes)
{
    call->failed = call->take(call->opaque, data, bytes, &call->why);
    return call->failed < 0 ? 0 : bytes;
}

static size_t take_bytes(char *data, size_t size, size_t count, void *opaque)
{
    struct call *call = opaque;
    size_t bytes = size * count;
    long status = 0;

    if (call->take && curl_easy_getinfo(call->curl, CURLINFO_RESPONSE_CODE, &status) == CURLE_OK &&
        status == 200)
        return bytes ? hand_on(call, data, bytes) : 0;
    if (call->answer.size + bytes > ANSWER_MAX)
        return 0;
    buffer_put(&call->answer, data, bytes);
    return buffer_failed(&call->answer) ? 0 : bytes;
}

/* How one request gets there. */
struct way {
    const char *address;
    char name[HOST_NAME_SIZE]; /* who it must be; empty: not known */
    bool tls;
    struct https https;
};

/* What is the same for every request that takes this WAY. */
static void set_target(CURL *curl, struct way *way, const char *path)
{
    char url[SOCK_ADDRESS_SIZE + 512];

    if (way->address[0] == '/') {
        snprintf(url, sizeof(url), "http://localhost%s", path);
        curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, way->address);
    } else {
        snprintf(url, sizeof(url), "%s://%s%s", way->tls ? "https" : "http", way->address, path);
    }
    if (way->tls)
        https_set_up(curl, &way->https);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, way->tls ? "https" : "http");
    curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
}

/* Its own words, or it would spoil those of the request that it is asked for. */
static void ask_for_life(const void *opaque, CURL *curl)
{
    set_target(curl, (struct way *)opaque, "/v1/host");
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, NULL);
}

static struct http_patience patience_for(const struct host *host, const struct way *way,
                                         enum peer_patience patience)
{
    int64_t silence_ms = patience == PEER_BRIEF ? host_peer_ms(host) / 2 : host_peer_ms(host);
    int64_t limit_ms = patience == PEER_LONG ? host_start_ms(host) : silence_ms;

    return (struct http_patience){
        .silence_ms = silence_ms,
        .limit_ms = patience == PEER_ENDLESS ? 0
                    : limit_ms > silence_ms  ? limit_ms
                                             : silence_ms,
        .cancel_fd = host->stop_fd,
        .set_up_question = ask_for_life,
        .opaque = way,
    };
}

/* NAME "": the one that is known there. */
static void find_way(struct host *host, const char *name, const char *address, struct way *way)
{
    *way = (struct way){.address = address, .https.credentials = certificate_get(host)};
    snprintf(way->name, sizeof(way->name), "%s", name);
    way->tls = way->https.credentials && address[0] != '/';
    host_lock(host);
    for (struct peer *peer = host->peers; peer && !way->name[0]; peer = peer->next) {
        if (strcmp(peer->address, address) == 0)
            snprintf(way->name, sizeof(way->name), "%s", peer->name);
    }
    host_unlock(host);
    way->https.peer = way->name;
}

/* "host b at 127.0.0.1:7002", or the address alone when it is not known. */
static void describe(const struct way *way, char *text, size_t size)
{
    if (way->name[0])
        snprintf(text, size, "host %s at %s", way->name, way->address);
    else
        snprintf(text, size, "%s", way->address);
}

static int no_answer(struct way *way, const char *method, const char *path, int result,
                     const struct http_patience *patience, CURLcode rc, struct ferry_error *err)
{
    char who[HOST_NAME_SIZE + SOCK_ADDRESS_SIZE + 16];

    describe(way, who, sizeof(who));
    if (result == -ECANCELED)
        return error_set(err, -ECANCELED, "ferryd is stopping");
    if (result == HTTP_SLOW)
        return error_set(err, -ETIMEDOUT, "%s lives, but has not answered %s %.200s within %.1f s", who,
                         method, path, (double)patience->limit_ms / 1000);
    if (result == HTTP_SILENT)
        return error_set(err, HOST_UNREACHABLE,
                         "no answer from %s for %.1f s; is ferryd running there, and is that its address?",
                         who, (double)patience->silence_ms / 1000);
    if (way->tls && https_explain(&way->https, rc, who, err) == -EPROTONOSUPPORT)
        return -EPROTONOSUPPORT;
    if (way->tls && https_explain(&way->https, rc, who, err) < 0)
        return HOST_REFUSED;
    return error_set(err, HOST_UNREACHABLE,
                     "no answer from %s (%s); is ferryd running there, and is that its address?", who,
                     curl_easy_strerror(rc));
}

/* One HTTP exchange; *status is its HTTP status, call->answer its body. */
static int exchange_once(struct call *call, struct way *way, const char *method, const char *path,
                         const char *text, enum peer_patience patience, long *status, struct ferry_error *err)
{
    struct http_patience waiting = patience_for(call->host, way, patience);
    struct curl_slist *headers = curl_slist_append(NULL, "Expect:");
    CURL *curl = curl_easy_init();
    CURLcode rc = CURLE_OK;
    int result = curl ? 0 : error_set(err, -ENOMEM, "out of memory while calling %s", way->address);

    if (result < 0)
        goto done;
    call->curl = curl;
    set_target(curl, way, path);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_bytes);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, call);
    if (call->take)
        curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, FETCH_BUFFER);
    if (text) {
        headers = curl_slist_append(headers, "Content-Type: application/json");
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, text);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(text));
    }
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    result = http_perform(curl, &waiting, &rc, err);
    if (result != -ENOMEM && (result < 0 || rc != CURLE_OK))
        result = no_answer(way, method, path, result, &waiting, rc, err);
    else if (result == 0)
        curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, status);

done:
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    return result;
}

/* Whether the host at the other end of WAY has shown its certificate; with NOW set: it just has. */
static bool spoke_tls(struct host *host, const struct way *way, bool now)
{
    bool spoke = false;

    host_lock(host);
    for (struct peer *peer = host->peers; peer; peer = peer->next) {
        if (strcmp(peer->name, way->name) == 0) {
            peer->spoke_tls |= now;
            spoke = peer->spoke_tls;
        }
    }
    host_unlock(host);
    return spoke;
}

/* As the host NAME, or who is known there. A host that has a certificate speaks TLS; where --insecure allows
 * it, without TLS to those that cannot, and never could. */
static int exchange(struct call *call, const char *name, const char *address, const char *method,
                    const char *path, json_t *body, enum peer_patience patience, long *status,
                    struct ferry_error *err)
{
    char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    struct way way;
    int result;

    if (body && !text)
        return error_set(err, -ENOMEM, "out of memory while calling %s", address);
    find_way(call->host, name, address, &way);
    if (!way.tls && address[0] != '/' && (call->encrypted || !certificate_clear_allowed(call->host)))
        result = error_set(err, HOST_REFUSED,
                           "host %s has no certificate (Host not licensed) and --require-tls forbids to call "
                           "others without; issue and install one: ferry host certs",
                           call->host->config->name);
    else
        result = exchange_once(call, &way, method, path, text, patience, status, err);
    if (result == 0 && way.tls)
        spoke_tls(call->host, &way, true);
    if (result == -EPROTONOSUPPORT && !call->encrypted && certificate_clear_allowed(call->host) &&
        !spoke_tls(call->host, &way, false)) {
        way.tls = false;
        result = exchange_once(call, &way, method, path, text, patience, status, err);
    }
    credentials_unref(way.https.credentials);
    free(text);
    return result == -EPROTONOSUPPORT ? HOST_REFUSED : result;
}

/* The error of the other host, from {"error": {"class", "message"}}. */
static int their_error(const struct buffer *answer, const char *address, long status, struct ferry_error *err)
{
    json_t *word = fields_parse((const char *)answer->data, answer->size, "the answer", NULL);
    json_t *error = json_object_get(word, "error");
    const char *class = json_string_value(json_object_get(error, "class"));
    const char *message = json_string_value(json_object_get(error, "message"));
    int code = class && message
                   ? error_set(err, api_class_code(class), "%s", message)
                   : error_set(err, HOST_UNREACHABLE, "what answers at %s is not a ferryd (HTTP status %ld)",
                               address, status);

    json_decref(word);
    return code;
}

static int call_as(struct host *host, const char *name, const char *address, const char *method,
                   const char *path, json_t *body, enum peer_patience patience, json_t **answer,
                   struct ferry_error *err)
{
    struct call call = {.host = host, .answer = BUFFER_INIT};
    long status = 0;
    int result = exchange(&call, name, address, method, path, body, patience, &status, err);

    if (answer)
        *answer = NULL;
    if (result == 0 && (status < 200 || status > 299))
        result = their_error(&call.answer, address, status, err);
    else if (result == 0 && answer && call.answer.size > 0) {
        *answer = fields_parse((const char *)call.answer.data, call.answer.size, "the answer", err);
        if (!*answer)
            result = error_prefix(err, HOST_UNREACHABLE, "what answers at %s is not a ferryd", address);
    }
    buffer_free(&call.answer);
    return result;
}

int peer_call(struct host *host, const char *address, const char *method, const char *path, json_t *body,
              enum peer_patience patience, json_t **answer, struct ferry_error *err)
{
    return call_as(host, "", address, method, path, body, patience, answer, err);
}

int peer_fetch(struct host *host, const char *address, const char *path, bool encrypted, peer_take *take,
               void *opaque, struct ferry_error *err)
{
    struct call call = {
        .host = host, .answer = BUFFER_INIT, .encrypted = encrypted, .take = take, .opaque = opaque};
    long status = 0;
    int result = exchange(&call, "", address, "GET", path, NULL, PEER_ENDLESS, &status, err);

    if (call.failed < 0)
        result = error_set(err, call.failed, "%s", call.why.text);
    else if (result == 0 && status != 200)
        result = their_error(&call.answer, address, status, err);
    buffer_free(&call.answer);
    return result;
}

int peer_lines(struct host *host, const char *address, const char *path, enum peer_patience patience,
               json_t **answer, struct ferry_error *err)
{
    struct call call = {.host = host, .answer = BUFFER_INIT};
    long status = 0;
    int result = exchange(&call, "", address, "GET", path, NULL, patience, &status, err);
    size_t start = 0;

    *answer = NULL;
    if (result == 0 && status != 200)
        result = their_error(&call.answer, address, status, err);
    if (result == 0)
        *answer = json_array();
    while (result == 0 && start < call.answer.size) {
        const char *line = (const char *)call.answer.data + start;
        const char *end = memchr(line, '\n', call.answer.size - start);
        size_t size = end ? (size_t)(end - line) : call.answer.size - start;
        json_t *value = fields_parse(line, size, "a line", NULL);

        if (value)
            json_array_append_new(*answer, value);
        start += size + 1;
    }
    buffer_free(&call.answer);
    return result;
}

/* Under the lock: where NAME is or would be in the list. */
static struct peer **locate(struct host *host, const char *name)
{
    struct peer **link = &host->peers;

    while (*link && strcmp((*link)->name, name) < 0)
        link = &(*link)->next;
    return link;
}

static bool is_at(struct peer **link, const char *name)
{
    return *link && strcmp((*link)->name, name) == 0;
}

static int insert(struct host *host, const char *name, const char *address, struct ferry_error *err)
{
    struct peer *peer = calloc(1, sizeof(*peer));
    struct peer **link;
    int result = 0;

    if (!peer)
        return error_set(err, -ENOMEM, "out of memory");
    snprintf(peer->name, sizeof(peer->name), "%s", name);
    snprintf(peer->address, sizeof(peer->address), "%s", address);
    host_lock(host);
    link = locate(host, name);
    if (is_at(link, name)) {
        result = error_set(err, HOST_CONFLICT, "host %s is known already, at %s; remove it first", name,
                           (*link)->address);
    } else {
        peer->next = *link;
        *link = peer;
        peer = NULL;
    }
    host_unlock(host);
    free(peer);
    return result;
}

int peers_load(struct host *host, struct ferry_error *err)
{
    json_t *rows = NULL;
    size_t i;
    json_t *row;
    int result = host->store->ops->host_list(host->store, &rows, err);

    json_array_foreach(rows, i, row)
    {
        if (result == 0)
            result = insert(host, json_string_value(json_object_get(row, "name")),
                            json_string_value(json_object_get(row, "address")), err);
    }
    json_decref(rows);
    return result;
}

void peers_free(struct host *host)
{
    while (host->peers) {
        struct peer *peer = host->peers;

        host->peers = peer->next;
        free(peer);
    }
}

int peers_find(struct host *host, const char *name, char address[static SOCK_ADDRESS_SIZE],
               struct ferry_error *err)
{
    struct peer **link;
    int result = 0;

    host_lock(host);
    link = locate(host, name);
    if (is_at(link, name))
        snprintf(address, SOCK_ADDRESS_SIZE, "%s", (*link)->address);
    else
        result = error_set(err, HOST_NOT_FOUND,
                           "host %s does not know a host %.64s; add it with: ferry host add %.64s ADDR:PORT",
                           host->config->name, name, name);
    host_unlock(host);
    return result;
}

/* "1.2.3.4:7411", "[::1]:7411" or the path of a Unix socket; nothing that could mean more in a URL. */
static bool address_valid(const char *address)
{
    char host_part[SOCK_ADDRESS_SIZE];
    unsigned char binary[16];
    const char *colon = strrchr(address, ':');
    size_t length;
    char *end;
    unsigned long port;

    if (strlen(address) >= SOCK_ADDRESS_SIZE)
        return false;
    if (address[0] == '/')
        return strlen(address) < 108;
    if (!colon || !isdigit((unsigned char)colon[1]))
        return false;
    port = strtoul(colon + 1, &end, 10);
    if (*end || port == 0 || port > 65535)
        return false;
    length = (size_t)(colon - address);
    memcpy(host_part, address, length);
    host_part[length] = '\0';
    if (inet_pton(AF_INET, host_part, binary) == 1)
        return true;
    if (length < 3 || host_part[0] != '[' || host_part[length - 1] != ']')
        return false;
    host_part[length - 1] = '\0';
    return inet_pton(AF_INET6, host_part + 1, binary) == 1;
}

int peers_add(struct host *host, const char *name, const char *address, struct ferry_error *err)
{
    json_t *answer = NULL;
    const char *called = NULL;
    const struct field fields[] = {{"name", FIELD_STRING, true, &called}};
    int result;

    if (!config_name_valid(name))
        return error_set(err, HOST_USAGE, "\"%.80s\" is not a host's name", name);
    if (!address_valid(address))
        return error_set(err, HOST_USAGE,
                         "\"%.128s\" is not the address of a host; write ADDR:PORT with a numeric address",
                         address);
    if (strcmp(name, host->config->name) == 0)
        return error_set(err, HOST_CONFLICT, "%s is this host's own name", name);
    result = call_as(host, name, address, "GET", "/v1/host", NULL, PEER_PROMPT, &answer, err);
    if (result < 0)
        return error_prefix(err, result, "host %s was not added", name);
    result = fields_read(answer, fields, 1, FIELDS_LOOSE, "the answer", err);
    if (result < 0)
        result = error_set(err, HOST_UNREACHABLE, "host %s was not added: what answers at %s is not a ferryd",
                           name, address);
    else if (strcmp(called, name) != 0)
        result = error_set(err, HOST_CONFLICT, "host %s was not added: the host at %s is called %.64s", name,
                           address, called);
    if (result == 0)
        result = cluster_admit(host, name, address, answer, err);
    json_decref(answer);
    if (result == 0)
        result = insert(host, name, address, err);
    if (result == 0) {
        result = host->store->ops->host_put(host->store, name, address, err);
        if (result < 0)
            peers_remove(host, name, NULL);
    }
    return result;
}

int peers_remove(struct host *host, const char *name, struct ferry_error *err)
{
    struct peer *peer = NULL;
    struct peer **link;

    host_lock(host);
    link = locate(host, name);
    if (is_at(link, name)) {
        peer = *link;
        *link = peer->next;
    }
    host_unlock(host);
    if (!peer)
        return error_set(err, HOST_NOT_FOUND, "host %s does not know a host %.64s", host->config->name, name);
    free(peer);
    return host->store->ops->host_delete(host->store, name, err);
}

/* One host being asked whether it answers; each on a thread of its own, which ends by its deadline. */
struct probe {
    struct host *host;
    struct peer peer; /* a copy */
    struct thread thread;
    json_t *object;
};

static void *probe_main(void *opaque)
{
    struct probe *probe = opaque;
    struct ferry_error err = {0};
    json_t *answer = NULL;
    const char *version = "";
    const char *called = NULL;
    const char *status = "";
    const struct field fields[] = {{"name", FIELD_STRING, true, &called},
                                   {"version", FIELD_STRING, true, &version},
                                   {"migration_status", FIELD_STRING, false, &status}};
    int result = call_as(probe->host, probe->peer.name, probe->peer.address, "GET", "/v1/host", NULL,
                         PEER_BRIEF, &answer, &err);

    if (result == 0)
        result = fields_read(answer, fields, 3, FIELDS_LOOSE, "the answer", &err);
    if (result == 0 && strcmp(called, probe->peer.name) != 0)
        result = error_set(&err, HOST_CONFLICT, "the host there is called %.64s now", called);
    probe->object =
        json_pack("{s:s, s:s, s:b, s:s, s:o, s:o}", "name", probe->peer.name, "address", probe->peer.address,
                  "reachable", result == 0, "version", result == 0 ? version : "", "migration_status",
                  fields_text(result == 0 ? status : ""), "why", fields_text(result == 0 ? "" : err.text));
    json_decref(answer);
    return NULL;
}

json_t *peers_list(struct host *host)
{
    json_t *list = json_array();
    struct probe *probes;
    size_t count = 0;

    json_array_append_new(list,
                          json_pack("{s:s, s:s, s:b, s:s, s:s, s:s}", "name", host->config->name, "address",
                                    api_address(host), "reachable", 1, "version", FERRY_VERSION,
                                    "migration_status", certificate_migration_status(host), "why", ""));
    host_lock(host);
    for (struct peer *peer = host->peers; peer; peer = peer->next)
        count++;
    probes = calloc(count + 1, sizeof(*probes));
    count = 0;
    for (struct peer *peer = host->peers; peer && probes; peer = peer->next)
        probes[count++] = (struct probe){.host = host, .peer = *peer};
    host_unlock(host);

    for (size_t i = 0; i < count; i++) {
        if (thread_start(&probes[i].thread, THREAD_GENERAL, "probe", probe_main, &probes[i], NULL) < 0)
            probe_main(&probes[i]);
    }
    for (size_t i = 0; i < count; i++) {
        thread_join(&probes[i].thread);
        json_array_append_new(list, probes[i].object);
    }
    free(probes);
    return list;
}
