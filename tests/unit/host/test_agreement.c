/* Two words about one migration: whose is taken, whichever side asks. */
#include "unit.h"

#include "host/agreement.h"

static const char *const outcomes[] = {"completed", "failed", "cancelled", "lost", "unknown"};

#define OUTCOMES (sizeof(outcomes) / sizeof(outcomes[0]))

static void who_knows_is_believed_by_who_does_not(void **state)
{
    static const char *const known[] = {"completed", "failed", "cancelled"};
    static const char *const unsure[] = {"lost", "unknown"};

    for (size_t i = 0; i < 3; i++) {
        for (size_t j = 0; j < 2; j++) {
            for (int source = 0; source < 2; source++) {
                if (i == 0 && j == 0) /* below */
                    continue;
                assert_int_equal(agreement_compare(known[i], unsure[j], source), AGREEMENT_OURS);
                assert_int_equal(agreement_compare(unsure[j], known[i], source), AGREEMENT_THEIRS);
            }
        }
    }
    assert_int_equal(agreement_compare("lost", "unknown", false), AGREEMENT_OURS);
    assert_int_equal(agreement_compare("unknown", "lost", true), AGREEMENT_THEIRS);
}

/* Quick resume: the destination knows what it lacks; the source may have thought that nothing was. */
static void the_destination_says_that_the_guest_is_lost(void **state)
{
    assert_int_equal(agreement_compare("completed", "lost", true), AGREEMENT_THEIRS);
    assert_int_equal(agreement_compare("lost", "completed", false), AGREEMENT_OURS);
    assert_int_equal(agreement_compare("lost", "completed", true), AGREEMENT_THEIRS);
    assert_int_equal(agreement_compare("completed", "lost", false), AGREEMENT_OURS);
}

static void the_source_says_whether_it_failed_or_was_cancelled(void **state)
{
    assert_int_equal(agreement_compare("failed", "cancelled", true), AGREEMENT_OURS);
    assert_int_equal(agreement_compare("failed", "cancelled", false), AGREEMENT_THEIRS);
}

static void moved_and_stayed_contradict_each_other(void **state)
{
    for (int source = 0; source < 2; source++) {
        assert_int_equal(agreement_compare("completed", "failed", source), AGREEMENT_CONTRADICTION);
        assert_int_equal(agreement_compare("cancelled", "completed", source), AGREEMENT_CONTRADICTION);
    }
}

/* Or they would swap their words for ever. */
static void both_sides_come_to_the_same(void **state)
{
    for (size_t i = 0; i < OUTCOMES; i++) {
        for (size_t j = 0; j < OUTCOMES; j++) {
            enum agreement source = agreement_compare(outcomes[i], outcomes[j], true);
            enum agreement destination = agreement_compare(outcomes[j], outcomes[i], false);

            if (source == AGREEMENT_OURS)
                assert_int_equal(destination, AGREEMENT_THEIRS);
            else if (source == AGREEMENT_THEIRS)
                assert_int_equal(destination, AGREEMENT_OURS);
            else
                assert_int_equal(destination, source);
            assert_int_equal(source == AGREEMENT_SAME, i == j);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_knows_is_believed_by_who_does_not),
        cmocka_unit_test(the_destination_says_that_the_guest_is_lost),
        cmocka_unit_test(the_source_says_whether_it_failed_or_was_cancelled),
        cmocka_unit_test(moved_and_stayed_contradict_each_other),
        cmocka_unit_test(both_sides_come_to_the_same),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
