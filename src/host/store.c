#include "host/store.h"

void store_close(struct store *store)
{
    if (store)
        store->ops->close(store);
}
