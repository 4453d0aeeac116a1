#include "unit.h"

#include "cli/guest_output.h"

#include <stdlib.h>
#include <string.h>

static struct guest_output after_writing(struct cli *cli, const char *const *pieces)
{
    struct guest_output output;

    guest_output_init(&output, cli, "web");
    for (; *pieces; pieces++)
        assert_int_equal(guest_output_write(&output, *pieces, strlen(*pieces)), 0);
    return output;
}

static int open_null(void **state)
{
    static struct cli cli;

    cli.out = fopen("/dev/null", "w");
    *state = &cli;
    return cli.out ? 0 : -1;
}

static int close_null(void **state)
{
    struct cli *cli = *state;

    return fclose(cli->out);
}

static void the_place_is_the_end_of_what_was_written(void **state)
{
    struct guest_output output = after_writing(*state, (const char *const[]){"tick 1\n", "tick 2\n", NULL});
    const char *history = "tick 1\ntick 2\ntick 3\n";

    assert_int_equal(guest_output_find(&output, history, strlen(history)), 14);
}

static void repeated_text_is_told_apart_by_its_count(void **state)
{
    struct guest_output output = after_writing(*state, (const char *const[]){"aaaa", NULL});

    assert_int_equal(guest_output_find(&output, "aaaaaaaa", 8), 4);
}

static void a_history_cut_at_its_beginning_is_searched(void **state)
{
    struct guest_output output = after_writing(*state, (const char *const[]){"12345tick 1\n", NULL});

    memcpy(output.tail, "tick 1\n", 7);
    output.tail_size = 7;
    assert_int_equal(guest_output_find(&output, "45tick 1\ntick 2\n", 16), 9);
}

static void an_unknown_history_is_shown_from_its_beginning(void **state)
{
    struct guest_output output = after_writing(*state, (const char *const[]){"something", NULL});
    struct guest_output nothing;

    guest_output_init(&nothing, *state, "web");
    assert_int_equal(guest_output_find(&output, "else", 4), 0);
    assert_int_equal(guest_output_find(&output, "", 0), 0);
    assert_int_equal(guest_output_find(&nothing, "else", 4), 0);
}

static void only_the_tail_is_kept(void **state)
{
    struct guest_output output;
    char data[3 * GUEST_OUTPUT_TAIL];

    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (char)('a' + i * 7 % 26);
    guest_output_init(&output, *state, "web");
    for (size_t i = 0; i < sizeof(data); i += 100)
        guest_output_write(&output, data + i, i + 100 > sizeof(data) ? sizeof(data) - i : 100);
    assert_int_equal(output.count, sizeof(data));
    assert_int_equal(output.tail_size, GUEST_OUTPUT_TAIL);
    assert_memory_equal(output.tail, data + sizeof(data) - GUEST_OUTPUT_TAIL, GUEST_OUTPUT_TAIL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_place_is_the_end_of_what_was_written),
        cmocka_unit_test(repeated_text_is_told_apart_by_its_count),
        cmocka_unit_test(a_history_cut_at_its_beginning_is_searched),
        cmocka_unit_test(an_unknown_history_is_shown_from_its_beginning),
        cmocka_unit_test(only_the_tail_is_kept),
    };

    return cmocka_run_group_tests(tests, open_null, close_null);
}
