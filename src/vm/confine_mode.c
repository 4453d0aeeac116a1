#include "vm/confine.h"

#include <stddef.h>
#include <string.h>

static const char *const mode_names[] = {
    [CONFINE_OFF] = "off",
    [CONFINE_LOG] = "log",
    [CONFINE_ON] = "on",
};

enum confine_mode confine_mode_named(const char *name)
{
    for (unsigned mode = CONFINE_OFF; mode <= CONFINE_ON; mode++)
        if (strcmp(mode_names[mode], name) == 0)
            return (enum confine_mode)mode;
    return 0;
}

const char *confine_mode_name(enum confine_mode mode)
{
    return mode_names[mode];
}

enum confine_mode confine_mode_default(void)
{
#ifdef FERRY_SECCOMP
    return CONFINE_ON;
#else
    return CONFINE_OFF;
#endif
}
