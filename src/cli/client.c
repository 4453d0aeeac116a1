#include "cli/client.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "cli/certs.h"
#include "cli/client_internal.h"
#include "cli/memory.h"
#include "cli/object.h"
#include "cli/units.h"
#include "tls/https.h"

#include <assert.h>
#include <errno.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define SOCKET_NAME "ferryd.sock"

struct error_class {
    const char *name;
    int code;
};

static const struct error_class error_classes[] = {
    {"usage", -EINVAL},  {"not_found", -ENOENT}, {"conflict", -EBUSY},
    {"refused", -EPERM}, {"failed", -EIO},       {"unreachable", -EHOSTUNREACH},
};

/* "127.0.0.1:7001", "[::1]:7001", "b.example:7001" and no file of that name. */
static bool is_address(const char *target)
{
    const char *colon = strrchr(target, ':');

    return colon && colon != target && colon[1] && strspn(colon + 1, "0123456789") == strlen(colon + 1) &&
           !strchr(target, '/');
}

static int set_socket(struct client *client, const char *target, struct ferry_error *err)
{
    size_t length = strlen(target);
    struct stat info;
    bool is_directory = stat(target, &info) == 0 ? S_ISDIR(info.st_mode)
                                                 : length < 5 || strcmp(target + length - 5, ".sock") != 0;

    while (length > 1 && target[length - 1] == '/')
        length--;
    client->socket_path =
        is_directory ? memory_format("%.*s/%s", (int)length, target, SOCKET_NAME) : memory_copy_text(target);
    client->base_url = memory_copy_text("http://localhost");
    if (strlen(client->socket_path) >= sizeof(((struct sockaddr_un *)NULL)->sun_path))
        return error_set(err, -EINVAL,
                         "the socket's path %s is too long (%zu characters at most); use a shorter path",
                         client->socket_path, sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1);
    return 0;
}

/* The user's certificate, or none. */
static int load_user_certificate(struct ferry_credentials **out, struct ferry_error *err)
{
    const char *named = getenv("FERRY_CERTIFICATE");
    CLEANUP_FREE char *path =
        named && *named ? memory_copy_text(named) : certs_user_path(CERTS_USER_FILE, NULL);
    int result = path ? credentials_load(out, path, err) : -ENOENT;

    return result == -ENOENT && !(named && *named) ? 0 : result;
}

/* What BY shows, or that of the host whose state directory it uses, or none: that is another user's mostly.
 */
static void load_host_certificate(const struct client *by, struct ferry_credentials **out)
{
    CLEANUP_FREE char *path = NULL;
    const char *slash = by->socket_path ? strrchr(by->socket_path, '/') : NULL;

    if (by->https)
        *out = credentials_ref(by->https->credentials);
    if (!slash)
        return;
    path = memory_format("%.*s/%s", (int)(slash - by->socket_path), by->socket_path, CERTS_USER_FILE);
    credentials_load(out, path, NULL);
}

static int set_tls(struct client *client, struct ferry_credentials *credentials, const char *target,
                   struct ferry_error *err)
{
    if (!credentials)
        return error_set(
            err, -EINVAL,
            "%s needs a certificate to show: ferry host certs issue NAME --person makes one, ferry "
            "host certs install --user takes it",
            target);
    client->https = memory_resize(NULL, sizeof(*client->https));
    *client->https = (struct https){.credentials = credentials, .peer = client->peer};
    return 0;
}

static int set_address(struct client *client, const char *target, const struct client *by,
                       struct ferry_error *err)
{
    bool is_url = strstr(target, "://") != NULL;
    bool clear = strncmp(target, "http://", 7) == 0;
    struct ferry_credentials *credentials = NULL;
    int result = clear ? 0 : load_user_certificate(&credentials, err);

    if (result == 0 && !clear && !credentials && by)
        load_host_certificate(by, &credentials);
    if (result == 0 && (credentials || (is_url && !clear)))
        result = set_tls(client, credentials, target, err);
    client->base_url = is_url ? memory_copy_text(target)
                              : memory_format("%s://%s", client->https ? "https" : "http", target);
    return result;
}

/* BY may be NULL. */
static int open_target(struct client *client, const char *target, const struct client *by,
                       struct ferry_error *err)
{
    struct stat info;
    size_t length;
    int result;

    if (strncmp(target, "http://", 7) == 0 || strncmp(target, "https://", 8) == 0)
        result = set_address(client, target, by, err);
    else if (strstr(target, "://"))
        result = error_set(err, -EINVAL,
                           "%s is not a URL that ferry can use; it begins with http:// or https://", target);
    else if (is_address(target) && stat(target, &info) < 0)
        result = set_address(client, target, by, err);
    else
        result = set_socket(client, target, err);
    if (result == 0) {
        length = strlen(client->base_url);
        while (length > 0 && client->base_url[length - 1] == '/')
            client->base_url[--length] = '\0';
        client->curl = curl_easy_init();
        if (!client->curl)
            result = error_set(err, -ENOMEM, "cannot prepare a connection to %s", target);
    }
    if (result < 0)
        client_close(client);
    return result;
}

int client_open(struct client *client, const char *target, bool raw, unsigned timeout_ms,
                struct ferry_error *err)
{
    *client = (struct client){.target = memory_copy_text(target), .raw = raw, .timeout_ms = timeout_ms};
    return open_target(client, target, NULL, err);
}

int client_open_host(struct client *client, const struct client *by, const char *host, const char *address,
                     struct ferry_error *err)
{
    *client = (struct client){
        .target = memory_copy_text(address),
        .raw = by->raw,
        .timeout_ms = by->timeout_ms,
        .peer = memory_copy_text(host),
    };
    return open_target(client, address, by, err);
}

void client_close(struct client *client)
{
    if (client->curl)
        curl_easy_cleanup(client->curl);
    if (client->https)
        credentials_unref(client->https->credentials);
    free(client->https);
    free(client->peer);
    free(client->target);
    free(client->socket_path);
    free(client->base_url);
    *client = (struct client){0};
}

bool client_is_local(const struct client *client)
{
    return client->socket_path != NULL;
}

/* Appends one segment, percent-encoded but for what is safe everywhere. */
static void append_escaped(FILE *out, const char *segment)
{
    for (; *segment; segment++) {
        unsigned char byte = (unsigned char)*segment;

        if ((byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') || (byte >= '0' && byte <= '9') ||
            strchr("-_.~", byte))
            fputc(byte, out);
        else
            fprintf(out, "%%%02X", byte);
    }
}

char *client_path(const char *format, ...)
{
    char *path = NULL;
    size_t size;
    FILE *out = open_memstream(&path, &size);
    va_list args;

    if (!out)
        return memory_copy_text("");
    va_start(args, format);
    for (; *format; format++) {
        if (*format != '%') {
            fputc(*format, out);
            continue;
        }
        format++;
        assert(*format == 's');
        append_escaped(out, va_arg(args, const char *));
    }
    va_end(args);
    fclose(out);
    return path;
}

/* Why the Unix socket could not be reached, in words that say what to do. */
static int explain_socket(const struct client *client, struct ferry_error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char *directory = memory_copy_text(client->socket_path);
    char *slash = strrchr(directory, '/');
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct stat info;
    int code = 0;

    memcpy(address.sun_path, client->socket_path, strlen(client->socket_path));
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        code = errno;
    if (slash && slash != directory)
        *slash = '\0';
    if (code == ENOENT || code == ENOTDIR) {
        error_set(err, -ECONNREFUSED,
                  "cannot reach ferryd at %s: no such socket; is it running? start it with: ferryd "
                  "--state-dir %s",
                  client->socket_path, directory);
    } else if (code == EACCES) {
        struct passwd *owner = stat(client->socket_path, &info) == 0 ? getpwuid(info.st_uid) : NULL;

        error_set(err, -ECONNREFUSED,
                  "cannot reach ferryd at %s: permission denied; its owner%s%s or root may command this host",
                  client->socket_path, owner ? " " : "", owner ? owner->pw_name : "");
    } else if (code == ECONNREFUSED) {
        error_set(err, -ECONNREFUSED,
                  "cannot reach ferryd at %s: nobody answers there, it has ended; start it with: ferryd "
                  "--state-dir %s",
                  client->socket_path, directory);
    } else {
        error_set(err, -ECONNREFUSED, "cannot reach ferryd at %s: %s", client->socket_path,
                  code ? strerror(code) : "the connection broke");
    }
    free(directory);
    return -ECONNREFUSED;
}

int client_explain_silence(const struct client *client, int code, struct ferry_error *err)
{
    char timeout[UNITS_TEXT_SIZE];

    units_format_duration(client->timeout_ms * NS_PER_MS, timeout);
    return error_set(err, code,
                     "ferryd at %s has said nothing for %s; what it was asked may be done all the same",
                     client->socket_path ? client->socket_path : client->base_url, timeout);
}

int client_explain(const struct client *client, CURL *curl, CURLcode code, struct ferry_error *err)
{
    const char *where = client->socket_path ? client->socket_path : client->base_url;
    long os_errno = 0;
    CLEANUP_FREE char *who = memory_format("ferryd at %s", where);
    int refused = client->https ? https_explain(client->https, code, who, err) : 0;

    if (refused < 0)
        return -EPERM; /* a certificate said no, on either side */
    switch (code) {
    case CURLE_COULDNT_CONNECT:
        if (client->socket_path)
            return explain_socket(client, err);
        curl_easy_getinfo(curl, CURLINFO_OS_ERRNO, &os_errno);
        return error_set(err, -ECONNREFUSED,
                         "cannot reach ferryd at %s: %s; does it run there with --listen?", where,
                         os_errno ? strerror((int)os_errno) : "no connection");
    case CURLE_COULDNT_RESOLVE_HOST:
        return error_set(err, -ECONNREFUSED, "cannot reach ferryd at %s: no host has that name", where);
    case CURLE_OPERATION_TIMEDOUT:
        return client_explain_silence(client, -ECONNREFUSED, err);
    case CURLE_URL_MALFORMAT:
        return error_set(err, -EINVAL, "%s is not a URL", where);
    case CURLE_GOT_NOTHING:
    case CURLE_RECV_ERROR:
    case CURLE_SEND_ERROR:
    case CURLE_PARTIAL_FILE:
        return error_set(err, -EPIPE, "ferryd at %s closed the connection before it had answered", where);
    default:
        return error_set(err, -EIO, "talking to ferryd at %s failed: %s", where, curl_easy_strerror(code));
    }
}

int client_explain_answer(const struct client *client, long status, const char *text, size_t size,
                          struct ferry_error *err)
{
    const char *where = client->socket_path ? client->socket_path : client->base_url;
    json_t *answer = json_loadb(text, size, 0, NULL);
    json_t *clean = answer ? object_clean(answer) : NULL;
    const char *class = object_text(clean, "error.class");
    const char *message = object_text(clean, "error.message");
    int code = -EIO;

    for (size_t i = 0; i < sizeof(error_classes) / sizeof(error_classes[0]); i++) {
        if (strcmp(error_classes[i].name, class) == 0)
            code = error_classes[i].code;
    }
    if (*message)
        error_set(err, code, "%s", message);
    else
        error_set(err, code, "%s answered with HTTP status %ld and no reason; is it a ferryd?", where,
                  status);
    json_decref(clean);
    json_decref(answer);
    return code;
}

void client_set_up(struct client *client, CURL *curl, const char *path)
{
    CLEANUP_FREE char *url = memory_format("%s%s", client->base_url, path);

    curl_easy_reset(curl);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    if (client->socket_path)
        curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, client->socket_path);
    if (client->https)
        https_set_up(curl, client->https);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
    /* A VM called ".." is the host's to refuse, not another path. */
    curl_easy_setopt(curl, CURLOPT_PATH_AS_IS, 1L);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, (long)client->timeout_ms);
    http_tune(curl, &client->timeout_ms);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "ferry/" FERRY_VERSION);
}

static void ask_for_life(const void *opaque, CURL *curl)
{
    client_set_up((struct client *)opaque, curl, "/v1/host");
}

struct http_patience client_patience(const struct client *client)
{
    return (struct http_patience){
        .silence_ms = client->timeout_ms,
        .cancel_fd = -1,
        .set_up_question = ask_for_life,
        .opaque = client,
    };
}

struct answer {
    char *text;
    size_t size;
};

static size_t collect(char *data, size_t unit, size_t count, void *opaque)
{
    struct answer *answer = opaque;
    size_t size = unit * count;

    if (size > CLIENT_ANSWER_MAX - answer->size)
        return 0;
    answer->text = memory_resize(answer->text, answer->size + size + 1);
    memcpy(answer->text + answer->size, data, size);
    answer->size += size;
    answer->text[answer->size] = '\0';
    return size;
}

static int read_answer(const struct client *client, const struct answer *raw, json_t **answer,
                       struct ferry_error *err)
{
    json_error_t where;
    json_t *value;

    *answer = NULL;
    if (raw->size == 0)
        return 0;
    value = json_loadb(raw->text, raw->size, JSON_DECODE_ANY, &where);
    if (!value)
        return error_set(err, -EPROTO, "%s did not answer in JSON (%s); is it a ferryd?", client->target,
                         where.text);
    if (client->raw) {
        *answer = value;
    } else {
        *answer = object_clean(value);
        json_decref(value);
    }
    return 0;
}

static void set_body(CURL *curl, const char *method, const char *text, struct curl_slist **headers)
{
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    if (!text)
        return;
    *headers = curl_slist_append(*headers, "Content-Type: application/json");
    *headers = curl_slist_append(*headers, "Expect:");
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, text);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, *headers);
}

int client_request(struct client *client, const char *method, const char *path, json_t *body, json_t **answer,
                   struct ferry_error *err)
{
    CLEANUP_FREE char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    struct http_patience patience = client_patience(client);
    struct curl_slist *headers = NULL;
    struct answer raw = {0};
    json_t *value = NULL;
    long status = 0;
    CURLcode code;
    int result;

    if (body && !text)
        return error_set(err, -EINVAL, "an argument is not UTF-8 text");
    client_set_up(client, client->curl, path);
    set_body(client->curl, method, text, &headers);
    curl_easy_setopt(client->curl, CURLOPT_WRITEFUNCTION, collect);
    curl_easy_setopt(client->curl, CURLOPT_WRITEDATA, &raw);
    result = http_perform(client->curl, &patience, &code, err);
    curl_slist_free_all(headers);
    curl_easy_getinfo(client->curl, CURLINFO_RESPONSE_CODE, &status);
    if (result == HTTP_SILENT)
        result = client_explain_silence(client, -ECONNREFUSED, err);
    else if (result == 0 && code != CURLE_OK)
        result = client_explain(client, client->curl, code, err);
    else if (result == 0 && (status < 200 || status >= 300))
        result = client_explain_answer(client, status, raw.text, raw.size, err);
    else if (result == 0)
        result = read_answer(client, &raw, &value, err);
    free(raw.text);
    if (result == 0 && answer)
        *answer = value;
    else
        json_decref(value);
    return result;
}

int client_get(struct client *client, const char *path, json_t **answer, struct ferry_error *err)
{
    return client_request(client, "GET", path, NULL, answer, err);
}
