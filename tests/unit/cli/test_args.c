#include "unit.h"

#include "cli/args.h"

#include <errno.h>
#include <string.h>

static const char *const kinds[] = {"hot", "cold", NULL};

static const struct option options[] = {
    {.name = "kernel", .kind = VALUE_FILE, .value_name = "FILE"},
    {.name = "cmdline", .kind = VALUE_TEXT, .value_name = "TEXT"},
    {.name = "memory", .letter = 'm', .kind = VALUE_SIZE, .value_name = "SIZE"},
    {.name = "kind", .kind = VALUE_CHOICE, .value_name = "KIND", .choices = kinds},
    {.name = "quick", .kind = VALUE_CHOICE, .value_name = "cold", .choices = kinds, .bare = "hot"},
    {.name = "disk", .kind = VALUE_FILE, .value_name = "PATH", .repeats = true},
    {.name = "detach", .letter = 'd'},
    {.name = NULL},
};

static const struct option common[] = {
    {.name = "verbose", .letter = 'v'},
    {.name = NULL},
};

static const struct operand operands[] = {
    {.name = "VM", .kind = VALUE_VM},
    {.name = "VIEW", .kind = VALUE_CHOICE, .optional = true, .choices = kinds},
    {.name = NULL},
};

#define PARSE(out, err, ...)                                                                                 \
    ({                                                                                                       \
        char *words_[] = {__VA_ARGS__};                                                                      \
        *(out) = (struct args){0};                                                                           \
        args_parse((out), options, common, operands, false, (int)(sizeof(words_) / sizeof(words_[0])),       \
                   words_, (err));                                                                           \
    })

static void options_and_operands_may_be_mixed(void **state)
{
    struct args args;

    (void)state;
    assert_int_equal(PARSE(&args, NULL, "--kernel", "Image", "web", "--memory=1K", "hot", "-dv"), 6);
    assert_string_equal(args_text(&args, "kernel", ""), "Image");
    assert_int_equal(args_number(&args, "memory", 0), 1024);
    assert_true(args_has(&args, "detach"));
    assert_true(args_has(&args, "verbose"));
    assert_false(args_has(&args, "cmdline"));
    assert_int_equal(args_number(&args, "none", 7), 7);
    assert_string_equal(args_operand(&args, 0), "web");
    assert_string_equal(args_operand(&args, 1), "hot");
    assert_null(args_operand(&args, 2));
    assert_int_equal(args_check_operands(&args, operands, NULL), 0);
}

static void a_value_may_be_left_out_where_one_is_meant_without(void **state)
{
    struct ferry_error err = {0};
    struct args args;

    (void)state;
    assert_int_equal(PARSE(&args, NULL, "--quick", "cold"), 2);
    assert_string_equal(args_text(&args, "quick", ""), "hot");
    assert_string_equal(args_operand(&args, 0), "cold");
    assert_int_equal(PARSE(&args, NULL, "--quick=cold", "web"), 2);
    assert_string_equal(args_text(&args, "quick", ""), "cold");
    assert_int_equal(PARSE(&args, &err, "--quick=soon"), -EINVAL);
}

static void a_value_may_look_like_an_option_and_be_empty_text(void **state)
{
    struct args args;

    (void)state;
    assert_int_equal(PARSE(&args, NULL, "--cmdline", "--quiet", "-m4K"), 3);
    assert_string_equal(args_text(&args, "cmdline", ""), "--quiet");
    assert_int_equal(args_number(&args, "memory", 0), 4096);
    assert_int_equal(PARSE(&args, NULL, "--cmdline="), 1);
    assert_string_equal(args_text(&args, "cmdline", "none"), "");
}

static void two_dashes_end_the_options(void **state)
{
    struct args args;

    (void)state;
    assert_int_equal(PARSE(&args, NULL, "--", "--kernel"), 2);
    assert_string_equal(args_operand(&args, 0), "--kernel");
    assert_int_equal(PARSE(&args, NULL, "-"), 1);
    assert_string_equal(args_operand(&args, 0), "-");
}

static void a_repeated_option_keeps_its_order(void **state)
{
    struct args args;

    (void)state;
    assert_int_equal(PARSE(&args, NULL, "--disk", "a", "-d", "--disk=b"), 4);
    assert_string_equal(args_text_at(&args, "disk", 0), "a");
    assert_string_equal(args_text_at(&args, "disk", 1), "b");
    assert_null(args_text_at(&args, "disk", 2));
}

#define ASSERT_REFUSED(sentence, ...)                                                                        \
    do {                                                                                                     \
        struct ferry_error err_ = {0};                                                                       \
        struct args args_;                                                                                   \
        assert_int_equal(PARSE(&args_, &err_, __VA_ARGS__), -EINVAL);                                        \
        assert_string_equal(err_.text, sentence);                                                            \
    } while (0)

static void what_makes_no_sense_is_refused_with_a_sentence(void **state)
{
    (void)state;
    ASSERT_REFUSED("there is no option --kernal; did you mean --kernel?", "--kernal=x");
    ASSERT_REFUSED("there is no option --frobnicate", "--frobnicate");
    ASSERT_REFUSED("there is no option -x", "-dx");
    ASSERT_REFUSED("--kernel needs a value: --kernel FILE", "--kernel");
    ASSERT_REFUSED("--kernel: its value is empty", "--kernel=");
    ASSERT_REFUSED("--detach takes no value", "--detach=yes");
    ASSERT_REFUSED("--kernel is given twice", "--kernel", "a", "--kernel", "b");
    ASSERT_REFUSED("--kind: its value is hot or cold, not 'warm'", "--kind", "warm");
    ASSERT_REFUSED("'three' is one argument too many", "one", "hot", "three");
}

static void operands_that_are_missing_or_no_choice_are_refused(void **state)
{
    struct ferry_error err;
    struct args args;

    (void)state;
    assert_int_equal(PARSE(&args, NULL, "-d"), 1);
    assert_int_equal(args_check_operands(&args, operands, &err), -EINVAL);
    assert_string_equal(err.text, "VM is missing");
    assert_int_equal(PARSE(&args, NULL, ""), 1);
    assert_int_equal(args_check_operands(&args, operands, &err), -EINVAL);
    assert_string_equal(err.text, "VM is empty");
    assert_int_equal(PARSE(&args, NULL, "web", "warm"), 2);
    assert_int_equal(args_check_operands(&args, operands, &err), -EINVAL);
    assert_string_equal(err.text, "VIEW is hot or cold, not 'warm'");
}

static void more_options_than_there_is_room_for_are_refused(void **state)
{
    char *words[100];
    struct args args = {0};

    (void)state;
    for (size_t i = 0; i < 100; i++)
        words[i] = "--disk=x";
    assert_int_equal(args_parse(&args, options, common, operands, false, 100, words, NULL), -EINVAL);
}

static void parsing_can_end_at_the_first_operand(void **state)
{
    char *words[] = {"-v", "list", "--nonsense"};
    struct args args = {0};

    (void)state;
    assert_int_equal(args_parse(&args, NULL, common, NULL, true, 3, words, NULL), 1);
    assert_true(args_has(&args, "verbose"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_and_operands_may_be_mixed),
        cmocka_unit_test(a_value_may_be_left_out_where_one_is_meant_without),
        cmocka_unit_test(a_value_may_look_like_an_option_and_be_empty_text),
        cmocka_unit_test(two_dashes_end_the_options),
        cmocka_unit_test(a_repeated_option_keeps_its_order),
        cmocka_unit_test(what_makes_no_sense_is_refused_with_a_sentence),
        cmocka_unit_test(operands_that_are_missing_or_no_choice_are_refused),
        cmocka_unit_test(more_options_than_there_is_room_for_are_refused),
        cmocka_unit_test(parsing_can_end_at_the_first_operand),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
