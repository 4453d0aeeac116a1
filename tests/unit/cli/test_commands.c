#include "unit.h"

#include "cli/command.h"

#include <errno.h>
#include <string.h>

static void every_command_is_complete(void **state)
{
    (void)state;
    for (size_t i = 0; i < command_count; i++) {
        const struct command *command = commands[i];
        bool optional = false;

        assert_non_null(command->run);
        assert_non_null(command->summary);
        assert_ptr_equal(command_find(command->name), command);
        if (command->group)
            assert_non_null(command->examples);
        for (const struct operand *operand = command->operands; operand && operand->name; operand++) {
            assert_false(optional && !operand->optional);
            optional = operand->optional;
            assert_true(operand->kind != VALUE_CHOICE || operand->choices);
        }
        for (const struct option *option = command->options; option && option->name; option++) {
            assert_non_null(option->help);
            assert_true(option->kind == VALUE_NONE || option->value_name);
            assert_true(option->kind != VALUE_CHOICE || option->choices);
            for (const struct option *other = common_options; other->name; other++) {
                assert_string_not_equal(option->name, other->name);
                assert_true(!option->letter || option->letter != other->letter);
            }
        }
    }
}

static void the_longest_name_is_the_command(void **state)
{
    char *show[] = {"migrations", "show", "1b4e"}, *list[] = {"migrations", "active"}, *host[] = {"host"};
    int used;

    (void)state;
    assert_string_equal(command_match(show, 3, &used)->name, "migrations show");
    assert_int_equal(used, 2);
    assert_string_equal(command_match(list, 2, &used)->name, "migrations");
    assert_int_equal(used, 1);
    assert_null(command_match(host, 1, &used));
    assert_null(command_match(host, 0, &used));
}

static void hidden_commands_are_not_suggested(void **state)
{
    char *words[] = {"__complet"};
    struct ferry_error err;

    (void)state;
    assert_int_equal(command_refuse(words, 1, &err), -EINVAL);
    assert_null(strstr(err.text, "did you mean"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_command_is_complete),
        cmocka_unit_test(the_longest_name_is_the_command),
        cmocka_unit_test(hidden_commands_are_not_suggested),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
