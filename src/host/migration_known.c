/* What records of earlier migrations tell about the next one. */
#include "host/migration.h"

#include <string.h>

#define LOOK_BACK 100 /* records */

static bool text_is(const json_t *object, const char *key, const char *value)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text && strcmp(text, value) == 0;
}

json_t *migration_known_costs(struct host *host, const char *vm, const char *destination)
{
    json_t *rows = NULL;
    const json_t *found = NULL;
    json_t *known = NULL;
    json_t *row;
    size_t i;
    struct ferry_error err;

    if (host->store->ops->migration_list(host->store, STORE_VIEW_HISTORY, LOOK_BACK, &rows, &err) < 0)
        host_record_failed(host, &err);
    json_array_foreach(rows, i, row)
    {
        if (!text_is(row, "outcome", "completed") || !text_is(row, "side", "source") ||
            text_is(row, "kind", "upgrade"))
            continue;
        if (text_is(row, "vm", vm)) {
            found = row;
            break;
        }
        if (!found && text_is(row, "destination", destination))
            found = row;
    }
    if (json_is_object(json_object_get(found, "downtime_parts"))) {
        known = json_object();
        json_object_set(known, "downtime_parts", json_object_get(found, "downtime_parts"));
        /* Another VM's devices and console are not this one's. */
        if (text_is(found, "vm", vm) && json_is_integer(json_object_get(found, "state_bytes")))
            json_object_set(known, "state_bytes", json_object_get(found, "state_bytes"));
    }
    json_decref(rows);
    return known;
}
