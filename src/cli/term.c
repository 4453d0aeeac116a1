#include "cli/term.h"

#include <langinfo.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static bool is_dumb(void)
{
    const char *kind = getenv("TERM");

    return !kind || !*kind || strcmp(kind, "dumb") == 0;
}

void term_init(struct term *term, FILE *out)
{
    const char *no_color = getenv("NO_COLOR");
    locale_t locale = newlocale(LC_CTYPE_MASK, "", (locale_t)0);

    *term = (struct term){.bold = "", .dim = "", .red = "", .green = "", .yellow = "", .reset = ""};
    if (locale != (locale_t)0) {
        term->utf8 = strcmp(nl_langinfo_l(CODESET, locale), "UTF-8") == 0;
        freelocale(locale);
    }
    term->is_terminal = isatty(fileno(out)) && !is_dumb();
    if (term->is_terminal && !(no_color && *no_color)) {
        term->bold = "\033[1m";
        term->dim = "\033[2m";
        term->red = "\033[31m";
        term->green = "\033[32m";
        term->yellow = "\033[33m";
        term->reset = "\033[0m";
    }
}

size_t term_width(FILE *out)
{
    struct winsize size;

    if (ioctl(fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
        return size.ws_col;
    return 80;
}
