#include "host/agreement.h"

#include "base/error.h"
#include "host/events.h"
#include "host/fields.h"
#include "host/peers.h"
#include "host/vm_runnable.h"

#include <stdlib.h>
#include <string.h>

#define RETRY_FIRST_NS NS_PER_S
#define RETRY_LAST_NS  (30 * NS_PER_S)

struct agreement_thread {
    struct thread thread;
};

/* --- words --- */

static const char *known_outcome(const char *text)
{
    static const char *const known[] = {"completed", "failed", "cancelled", "lost", "unknown"};

    for (size_t i = 0; text && i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(text, known[i]) == 0)
            return known[i];
    }
    return NULL;
}

const char *agreement_outcome(const char *text)
{
    const char *known = known_outcome(text);

    return known ? known : "unknown";
}

bool agreement_stayed(const char *outcome)
{
    return strcmp(outcome, "failed") == 0 || strcmp(outcome, "cancelled") == 0;
}

static bool knows(const char *outcome)
{
    return strcmp(outcome, "completed") == 0 || agreement_stayed(outcome);
}

enum agreement agreement_compare(const char *ours, const char *theirs, bool we_are_source)
{
    const char *source = we_are_source ? ours : theirs;
    const char *destination = we_are_source ? theirs : ours;
    bool ours_first;

    if (strcmp(ours, theirs) == 0)
        return AGREEMENT_SAME;
    if (strcmp(source, "completed") == 0 && strcmp(destination, "lost") == 0)
        return we_are_source ? AGREEMENT_THEIRS : AGREEMENT_OURS;
    if (knows(ours) && knows(theirs) && agreement_stayed(ours) != agreement_stayed(theirs))
        return AGREEMENT_CONTRADICTION;
    if (knows(ours) == knows(theirs))
        ours_first = knows(ours) ? we_are_source : strcmp(ours, "lost") == 0;
    else
        ours_first = knows(ours);
    return ours_first ? AGREEMENT_OURS : AGREEMENT_THEIRS;
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

/* WORD: an object with their outcome, cause and error. What is no end is not taken. Under the lock. */
static void note(struct migration *migration, const json_t *word)
{
    const char *outcome = known_outcome(text_of(word, "outcome"));
    const char *error = text_of(word, "error");

    if (!outcome || migration->agreed)
        return;
    migration->their_outcome = outcome;
    migration->their_cause = migration_known_cause(text_of(word, "cause"));
    snprintf(migration->their_error, sizeof(migration->their_error), "%s", error);
    migration->end_told = false;
}

/* Their words, as somebody reads them here. */
static void take_their_error(struct migration *migration)
{
    if (migration->their_error[0])
        snprintf(migration->error, sizeof(migration->error), "%s says: %.*s", migration_peer_name(migration),
                 (int)sizeof(migration->error) - HOST_NAME_SIZE - 8, migration->their_error);
    else
        migration->error[0] = '\0';
}

void agreement_join(struct migration *migration)
{
    const char *theirs = migration->their_outcome;

    if (!theirs)
        return;
    switch (agreement_compare(migration->outcome, theirs, migration->outgoing)) {
    case AGREEMENT_SAME:
        /* It arrived, and did not live long: that is to be known at the source as well. */
        if (!migration->error[0] && strcmp(theirs, "completed") == 0) {
            migration->cause = migration->their_cause;
            take_their_error(migration);
        }
        migration->agreed = !migration->in_doubt;
        break;
    case AGREEMENT_THEIRS:
        migration->outcome = theirs;
        migration->cause = migration->their_cause;
        take_their_error(migration);
        migration->agreed = !migration->in_doubt;
        break;
    case AGREEMENT_OURS:
    case AGREEMENT_CONTRADICTION:
        break;
    }
}

/* --- calls --- */

/* WORD may be NULL. */
static void take_word(struct migration *migration, const json_t *word)
{
    host_lock(migration->host);
    note(migration, word);
    host_unlock(migration->host);
}

static int call_there(struct migration *migration, const char *outcome, const char *cause, const char *error)
{
    struct host *host = migration->host;
    char path[80];
    json_t *answer = NULL;
    json_t *body;
    int result;

    body = json_pack("{s:s, s:s, s:s, s:o}", "host", host->config->name, "outcome", outcome, "cause", cause,
                     "error", fields_text(error));
    snprintf(path, sizeof(path), "/v1/migrations/%s/end", migration->id);
    result = migration_call_peer(migration, "POST", path, body, PEER_PROMPT, &answer, NULL);
    if (result == 0)
        take_word(migration, answer);
    json_decref(body);
    json_decref(answer);
    return result;
}

void agreement_tell(struct migration *migration, const char *outcome, const char *cause, const char *error)
{
    call_there(migration, outcome, cause, error);
}

const char *agreement_ask(struct migration *migration, int64_t wait_ms)
{
    struct host *host = migration->host;
    uint64_t deadline = clock_deadline(wait_ms);
    char path[80];
    json_t *object = NULL;
    const char *outcome;

    host_lock(host);
    outcome = migration->their_outcome;
    host_unlock(host);
    if (outcome && knows(outcome))
        return outcome;
    snprintf(path, sizeof(path), "/v1/migrations/%s?local=1", migration->id);
    if (migration_call_peer(migration, "GET", path, NULL, PEER_PROMPT, &object, NULL) == 0)
        take_word(migration, object);
    else
        deadline = 0;
    json_decref(object);
    host_lock(host);
    while (!migration->their_outcome && !host->stopping) {
        if (!thread_cond_wait_until(&host->changed, &host->lock, deadline))
            break;
    }
    outcome = migration->their_outcome;
    host_unlock(host);
    return outcome;
}

void agreement_await(struct migration *migration)
{
    char path[80];
    json_t *lines = NULL;

    snprintf(path, sizeof(path), "/v1/migrations/%s/watch", migration->id);
    migration_lines_of_peer(migration, path, PEER_PROMPT, &lines);
    if (json_array_size(lines) > 0)
        take_word(migration, json_array_get(lines, json_array_size(lines) - 1));
    json_decref(lines);
}

/* Under the lock: the host called PEER is there. */
static void wake(struct host *host, const char *peer)
{
    for (struct migration *migration = host->migrations; migration; migration = migration->next) {
        if (strcmp(migration_peer_name(migration), peer) == 0)
            migration->agree_at = 0;
    }
    host_changed(host);
}

/* Under the lock: what our record says, or will say in a moment. */
static json_t *our_word(const struct migration *migration)
{
    bool theirs = migration->their_outcome && strcmp(migration->outcome, "none") != 0 &&
                  agreement_compare(migration->outcome, migration->their_outcome, migration->outgoing) ==
                      AGREEMENT_THEIRS;

    return json_pack("{s:s, s:s, s:o}", "outcome", theirs ? migration->their_outcome : migration->outcome,
                     "cause", theirs ? migration->their_cause : migration->cause, "error",
                     fields_text(theirs ? migration->their_error : migration->error));
}

static int not_theirs(const char *id, const char *from, struct ferry_error *err)
{
    return error_set(err, HOST_CONFLICT, "migration %.64s is not one with host %.64s", id, from);
}

/* Those that are settled are in the records only. */
static int recorded_word(struct host *host, const char *id, const char *from, json_t **answer,
                         struct ferry_error *err)
{
    json_t *rows = NULL;
    const json_t *row;
    int result = host->store->ops->migration_find(host->store, id, &rows, err);

    row = json_array_get(rows, 0);
    if (result == 0 && (!row || strcmp(text_of(row, "id"), id) != 0))
        result =
            error_set(err, HOST_NOT_FOUND, "there is no migration %.64s on host %s", id, host->config->name);
    if (result == 0 && strcmp(text_of(row, "source"), from) != 0 &&
        strcmp(text_of(row, "destination"), from) != 0)
        result = not_theirs(id, from, err);
    if (result == 0)
        *answer = json_pack("{s:s, s:s, s:s}", "outcome", text_of(row, "outcome"), "cause",
                            text_of(row, "cause"), "error", text_of(row, "error"));
    json_decref(rows);
    return result;
}

int agreement_told(struct host *host, const char *id, const char *from, const json_t *word, json_t **answer,
                   struct ferry_error *err)
{
    struct migration *migration;
    int result = 0;

    if (!known_outcome(text_of(word, "outcome")))
        return error_set(err, HOST_USAGE, "\"outcome\" says how a migration ended, not \"%.32s\"",
                         text_of(word, "outcome"));
    host_lock(host);
    migration = migration_find(host, id);
    if (migration && strcmp(migration_peer_name(migration), from) != 0) {
        result = not_theirs(id, from, err);
    } else if (migration) {
        note(migration, word);
        *answer = our_word(migration);
        wake(host, from);
    }
    host_unlock(host);
    return migration ? result : recorded_word(host, id, from, answer, err);
}

/* --- the thread --- */

/* The VM that is kept because it was not known how the migration ended follows what is known now. False: it
 * could not yet. */
static bool settle_vm(struct migration *migration, const char *outcome)
{
    struct host *host = migration->host;
    struct vm *vm = vm_get(host, migration->vm_name, NULL);
    struct ferry_error err = {0};
    json_t *answer = NULL;
    bool in_doubt;
    int result;

    if (!vm)
        return true;
    host_lock(host);
    in_doubt = strcmp(vm->ban.migration, migration->id) == 0 &&
               (strcmp(vm->ban.outcome, "unknown") == 0 || strcmp(vm->ban.outcome, "lost") == 0);
    host_unlock(host);
    vm_unref(host, vm);
    if (!in_doubt)
        return true;
    if (!migration->outgoing && agreement_stayed(outcome))
        return migration_drop_remains(host, migration->id);
    result = vms_recover(host, migration->vm_name, RECOVER_ASK, &answer, &err);
    json_decref(answer);
    if (result < 0)
        migration_log(migration, LOG_LEVEL_WARN, "the VM is still to be recovered: %s", err.text);
    return result != -EBUSY && result != HOST_REFUSED;
}

static void tell_change(struct migration *migration, const char *before, const char *outcome)
{
    migration_log(migration, LOG_LEVEL_WARN, "host %s says that the migration ended as %s; here it was %s",
                  migration_peer_name(migration), outcome, before);
    events_emit(migration->host, EVENT_MIGRATION_WARNING, migration->vm_name, migration->machine,
                migration->id, "migration of VM %s from host %s to host %s: %s, as host %s says",
                migration->vm_name, migration->source, migration->destination, outcome,
                migration_peer_name(migration));
}

/* What is known of the two words by now: joins them, and has the record and the VM follow. */
static enum agreement compare(struct migration *migration)
{
    struct host *host = migration->host;
    enum agreement agreement = AGREEMENT_OURS;
    const char *before;
    const char *outcome;
    bool joined, settled;

    host_lock(host);
    before = migration->outcome;
    if (migration->their_outcome)
        agreement = agreement_compare(before, migration->their_outcome, migration->outgoing);
    agreement_join(migration);
    outcome = migration->outcome;
    joined = strcmp(before, outcome) != 0;
    host_unlock(host);
    if (joined) {
        tell_change(migration, before, outcome);
        migration_record(migration);
        agreement = AGREEMENT_SAME;
    }
    settled = knows(outcome) || (migration->outgoing && migration->fetched && strcmp(outcome, "lost") == 0);
    if (agreement == AGREEMENT_SAME && settled && !settle_vm(migration, outcome))
        return AGREEMENT_OURS; /* tried again */
    if (agreement == AGREEMENT_SAME) {
        host_lock(host);
        migration->agreed = true;
        host_unlock(host);
        migration_record(migration);
    }
    return agreement;
}

/* Under the lock. */
static void postpone(struct migration *migration)
{
    uint64_t wait = migration->agree_wait_ns ? 2 * migration->agree_wait_ns : RETRY_FIRST_NS;

    migration->agree_wait_ns = wait < RETRY_LAST_NS ? wait : RETRY_LAST_NS;
    migration->agree_at = clock_now_ns() + migration->agree_wait_ns;
}

/* Under the lock: PEER does not answer, so nothing can be told it now. */
static void postpone_peer(struct host *host, const char *peer)
{
    uint64_t now = clock_now_ns();

    for (struct migration *migration = host->migrations; migration; migration = migration->next) {
        if (migration->ended && !migration->agreed && migration->agree_at <= now &&
            strcmp(migration_peer_name(migration), peer) == 0)
            postpone(migration);
    }
}

/* One attempt. */
static void agree(struct migration *migration)
{
    struct host *host = migration->host;
    enum agreement agreement = compare(migration);
    int result = 0;

    if (agreement == AGREEMENT_OURS) {
        result = call_there(migration, migration->outcome, migration->cause, migration->error);
        if (result == 0)
            agreement = compare(migration);
    }
    if (agreement == AGREEMENT_CONTRADICTION)
        migration_log(migration, LOG_LEVEL_ERROR,
                      "host %s says that the migration ended as %s; here it ended as %s: look on both",
                      migration_peer_name(migration), migration->their_outcome, migration->outcome);
    host_lock(host);
    migration->contradicted = agreement == AGREEMENT_CONTRADICTION;
    if (result == HOST_NOT_FOUND)
        migration->agreed = true;
    else if (agreement == AGREEMENT_OURS && migration->agree_at == UINT64_MAX)
        postpone(migration);
    if (result == HOST_UNREACHABLE)
        postpone_peer(host, migration_peer_name(migration));
    host_unlock(host);
    if (result == HOST_NOT_FOUND)
        migration_record(migration);
}

/* Under the lock: one that is to be tried now, else when (*deadline). */
static struct migration *next_due(struct host *host, uint64_t *deadline)
{
    uint64_t now = clock_now_ns();

    *deadline = UINT64_MAX;
    for (struct migration *migration = host->migrations; migration; migration = migration->next) {
        if (!migration->ended || migration->agreed || migration->contradicted)
            continue;
        if (migration->agree_at <= now)
            return migration;
        if (migration->agree_at < *deadline)
            *deadline = migration->agree_at;
    }
    return NULL;
}

static void *agreement_main(void *opaque)
{
    struct host *host = opaque;

    host_lock(host);
    while (!host->stopping) {
        uint64_t deadline;
        struct migration *migration = next_due(host, &deadline);

        if (!migration) {
            thread_cond_wait_until(&host->changed, &host->lock, deadline);
            continue;
        }
        migration->refs++;
        migration->agree_at = UINT64_MAX; /* unless the other host says something meanwhile */
        host_unlock(host);
        agree(migration);
        migration_unref(migration);
        host_lock(host);
    }
    host_unlock(host);
    return NULL;
}

int agreement_start(struct host *host, struct ferry_error *err)
{
    int result;

    host->agreement = calloc(1, sizeof(*host->agreement));
    if (!host->agreement)
        return error_set(err, -ENOMEM, "out of memory");
    result = thread_start(&host->agreement->thread, THREAD_GENERAL, "agree", agreement_main, host, err);
    if (result < 0) {
        free(host->agreement);
        host->agreement = NULL;
    }
    return result;
}

void agreement_stop(struct host *host)
{
    if (!host->agreement)
        return;
    thread_join(&host->agreement->thread);
    free(host->agreement);
    host->agreement = NULL;
}
