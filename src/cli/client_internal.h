/* What client.c shares with client_stream.c; nobody else includes it. */
#ifndef FERRY_CLI_CLIENT_INTERNAL_H
#define FERRY_CLI_CLIENT_INTERNAL_H

#include "base/http.h"
#include "cli/client.h"

/* Resets CURL and gives it all that requests to this host have in common. */
void client_set_up(struct client *client, CURL *curl, const char *path);
/* How long this host is waited for. */
struct http_patience client_patience(const struct client *client);
/* The sentence for a host that fell silent. Returns CODE. */
int client_explain_silence(const struct client *client, int code, struct ferry_error *err);
/* The sentence and code for a request that got no answer. */
int client_explain(const struct client *client, CURL *curl, CURLcode code, struct ferry_error *err);
/* The sentence and code for an answer that is an error. */
int client_explain_answer(const struct client *client, long status, const char *text, size_t size,
                          struct ferry_error *err);

#endif
