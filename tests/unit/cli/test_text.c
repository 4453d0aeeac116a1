#include "unit.h"

#include "cli/text.h"

#include <locale.h>
#include <string.h>

static void width_counts_columns_not_bytes(void **state)
{
    (void)state;
    assert_int_equal(text_width(""), 0);
    assert_int_equal(text_width("web"), 3);
    assert_int_equal(text_width("wäb"), 3);
    assert_int_equal(text_width("日本"), 4);
    assert_int_equal(text_width("e\xcc\x81"), 1); /* a combining accent */
}

static void cut_never_splits_a_character(void **state)
{
    (void)state;
    assert_int_equal(text_cut("wäb", 2), 3);
    assert_int_equal(text_cut("日本", 3), 3);
    assert_int_equal(text_cut("日本", 1), 0);
    assert_int_equal(text_cut("abc", 10), 3);
}

static void assert_clean(const char *dirty, const char *wanted)
{
    char text[64];

    strcpy(text, dirty);
    text_clean(text);
    assert_string_equal(text, wanted);
}

static void clean_leaves_nothing_that_commands_a_terminal(void **state)
{
    (void)state;
    assert_clean("wäb 日本", "wäb 日本");
    assert_clean("\033[2J\r\n\a\x7f", "?[2J????");
    assert_clean("\xc2\x9b", "?");       /* CSI as one character */
    assert_clean("a\xff\xc3", "a??");    /* not UTF-8, and cut short */
    assert_clean("\xc0\xaf", "??");      /* overlong */
    assert_clean("\xed\xa0\x80", "???"); /* a surrogate */
}

static const char *const words[] = {"migrate", "migrations", "list", "logs", "run", "rm"};

static const char *closest(const char *word)
{
    return text_closest(word, words, sizeof(words) / sizeof(words[0]));
}

static void closest_finds_what_was_meant(void **state)
{
    (void)state;
    assert_string_equal(closest("migrat"), "migrate");
    assert_string_equal(closest("migrtae"), "migrate");
    assert_string_equal(closest("mirgations"), "migrations");
    assert_string_equal(closest("lst"), "list");
    assert_string_equal(closest("migr"), "migrate");
}

static void closest_does_not_guess_wildly(void **state)
{
    char endless[400];

    (void)state;
    memset(endless, 'x', sizeof(endless) - 1);
    endless[sizeof(endless) - 1] = '\0';
    assert_null(closest("frobnicate"));
    assert_null(closest("suspend"));
    assert_null(closest(endless));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(width_counts_columns_not_bytes),
        cmocka_unit_test(cut_never_splits_a_character),
        cmocka_unit_test(clean_leaves_nothing_that_commands_a_terminal),
        cmocka_unit_test(closest_finds_what_was_meant),
        cmocka_unit_test(closest_does_not_guess_wildly),
    };

    setlocale(LC_CTYPE, "C.UTF-8");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
