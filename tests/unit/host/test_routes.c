/* A path finds its handler, and what its pattern left open. */
#include "unit.h"

#include "host/api.h"

static int nothing(struct api_request *request)
{
    return 0;
}

static const struct api_route table[] = {
    {"GET", "/v1/vms", nothing},
    {"POST", "/v1/vms", nothing},
    {"GET", "/v1/vms/*", nothing},
    {"POST", "/v1/vms/*/start", nothing},
    {"GET", "/v1/vms/*/console/log", nothing},
};

static enum api_match find(const char *method, const char *path, const struct api_route **route,
                           char arguments[API_ARGUMENTS_MAX][API_SEGMENT_SIZE])
{
    *route = NULL;
    memset(arguments, 0, API_ARGUMENTS_MAX * API_SEGMENT_SIZE);
    return api_match_route(table, sizeof(table) / sizeof(table[0]), method, path, route, arguments);
}

static void path_and_method_choose_the_row(void **state)
{
    char arguments[API_ARGUMENTS_MAX][API_SEGMENT_SIZE];
    const struct api_route *route;

    assert_int_equal(find("GET", "/v1/vms", &route, arguments), API_MATCH_FOUND);
    assert_ptr_equal(route, &table[0]);
    assert_int_equal(find("POST", "/v1/vms", &route, arguments), API_MATCH_FOUND);
    assert_ptr_equal(route, &table[1]);
    assert_int_equal(find("GET", "/v1/vms/web", &route, arguments), API_MATCH_FOUND);
    assert_ptr_equal(route, &table[2]);
    assert_string_equal(arguments[0], "web");
    assert_int_equal(find("GET", "/v1/vms/web/console/log", &route, arguments), API_MATCH_FOUND);
    assert_ptr_equal(route, &table[4]);
    assert_string_equal(arguments[0], "web");
}

static void other_method_is_told_apart_from_other_path(void **state)
{
    char arguments[API_ARGUMENTS_MAX][API_SEGMENT_SIZE];
    const struct api_route *route;

    assert_int_equal(find("DELETE", "/v1/vms", &route, arguments), API_MATCH_NO_METHOD);
    assert_int_equal(find("GET", "/v1/vms/web/start", &route, arguments), API_MATCH_NO_METHOD);
    assert_int_equal(find("GET", "/v1/cats", &route, arguments), API_MATCH_NO_PATH);
}

static void near_misses_are_misses(void **state)
{
    static const char *const paths[] = {"",
                                        "/",
                                        "/v1",
                                        "/v1/vm",
                                        "/v1/vmss",
                                        "/v1/vms/",
                                        "/v1/vms//",
                                        "/v1/vms/web/",
                                        "v1/vms",
                                        "//v1/vms",
                                        "/v1/vms/a/b",
                                        "/v1/vms//start",
                                        "/v1/vms/web/console/log/x"};
    char arguments[API_ARGUMENTS_MAX][API_SEGMENT_SIZE];
    const struct api_route *route;

    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
        if (find("GET", paths[i], &route, arguments) != API_MATCH_NO_PATH)
            fail_msg("%s was found", paths[i]);
    }
}

static void segment_that_does_not_fit_is_a_miss(void **state)
{
    char arguments[API_ARGUMENTS_MAX][API_SEGMENT_SIZE];
    const struct api_route *route;
    char path[API_SEGMENT_SIZE + 32] = "/v1/vms/";

    memset(path + 8, 'a', API_SEGMENT_SIZE - 1);
    assert_int_equal(find("GET", path, &route, arguments), API_MATCH_FOUND);
    path[8 + API_SEGMENT_SIZE - 1] = 'a';
    assert_int_equal(find("GET", path, &route, arguments), API_MATCH_NO_PATH);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(path_and_method_choose_the_row),
        cmocka_unit_test(other_method_is_told_apart_from_other_path),
        cmocka_unit_test(near_misses_are_misses),
        cmocka_unit_test(segment_that_does_not_fit_is_a_miss),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
