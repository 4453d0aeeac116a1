/*
 * Names and sets of CPU features, generations, and what is known of real CPUs by their recorded CPUID.
 */
#include "unit.h"

#include "base/error.h"
#include "cpu/baseline.h"
#include "cpu/cpu.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct cpu table(const char *name)
{
    char path[512];
    struct ferry_error err = {0};
    struct cpu cpu;

    snprintf(path, sizeof(path), TABLES "/%s.txt", name);
    if (cpu_from_file(&cpu, path, &err) < 0)
        fail_msg("%s", err.text);
    return cpu;
}

static struct cpu_generations *load(void)
{
    struct ferry_error err = {0};
    struct cpu_generations *generations = NULL;

    if (cpu_generations_load(&generations, &err) < 0)
        fail_msg("%s", err.text);
    return generations;
}

static void feature_has_one_name_everywhere(void **state)
{
    struct cpu_features all = {0}, again;
    struct ferry_error err = {0};
    json_t *names;
    char *list;

    for (unsigned i = 0; i < CPU_WORDS; i++)
        all.words[i] = cpu_features_possible(i);
    names = cpu_features_json(&all);
    assert_int_equal(json_array_size(names), cpu_features_count(&all));
    assert_int_equal(cpu_features_from_json(&again, names, "a test", &err), 0);
    assert_memory_equal(&again, &all, sizeof(all));
    list = cpu_features_list(&all);
    assert_int_equal(cpu_features_from_list(&again, list, &err), 0);
    assert_memory_equal(&again, &all, sizeof(all));
    free(list);
    json_decref(names);
}

static void bit_without_a_name_is_called_by_its_place(void **state)
{
    struct cpu_features set = {0};
    struct ferry_error err = {0};
    char text[64];

    assert_int_equal(cpu_features_add(&set, "cpuid-7.0-edx-0", &err), 0);
    cpu_features_text(&set, text, sizeof(text));
    assert_string_equal(text, "cpuid-7.0-edx-0");
    set = (struct cpu_features){0};
    assert_int_equal(cpu_features_add(&set, "msr-10a-eax-9", &err), 0);
    cpu_features_text(&set, text, sizeof(text));
    assert_string_equal(text, "msr-10a-eax-9");
    assert_int_equal(cpu_features_add(&set, "msr-10b-eax-9", &err), -EINVAL);
    assert_int_equal(cpu_features_add(&set, "cpuid-7.0-ecx-32", &err), -EINVAL);
    assert_int_equal(cpu_features_add(&set, "cpuid-7.9-ecx-1", &err), -EINVAL);
    assert_int_equal(cpu_features_add(&set, "avx3", &err), -EINVAL);
    assert_non_null(strstr(err.text, "\"avx3\""));
    /* Ferry's own to give. */
    assert_int_equal(cpu_features_add(&set, "hypervisor", &err), -EINVAL);
    assert_non_null(strstr(err.text, "hypervisor"));
}

/* IA32_ARCH_CAPABILITIES: rdcl_no, rsba, mds_no, its_no. */
static void msr_tells_features_if_cpuid_tells_of_it(void **state)
{
    struct cpu_leaf leaves[2] = {{.leaf = 7, .value = {[CPU_EDX] = UINT32_C(1) << 29}},
                                 cpu_leaf_of_msr(CPU_MSR_ARCH_CAPABILITIES, UINT64_C(0x4000000000000025))};
    char text[128];
    struct cpu cpu;

    cpu_from_leaves(&cpu, leaves, 2);
    cpu_features_text(&cpu.features, text, sizeof(text));
    assert_string_equal(text, "arch_capabilities, rdcl_no, mds_no, its_no");
    leaves[0].value[CPU_EDX] = 0;
    cpu_from_leaves(&cpu, leaves, 2);
    assert_true(cpu_features_empty(&cpu.features));
}

static void text_that_is_too_long_says_how_many_more(void **state)
{
    struct cpu cpu = table("intel-sapphirerapids");
    char text[40];

    cpu_features_text(&cpu.features, text, sizeof(text));
    assert_non_null(strstr(text, " more"));
    for (size_t size = 20; size < 200; size++) {
        char any[200];
        unsigned shown = 1, more = 0;

        cpu_features_text(&cpu.features, any, size);
        assert_true(strlen(any) < size);
        for (const char *at = any; (at = strchr(at, ',')); at++)
            shown++;
        if (sscanf(strstr(any, "and ") ? strstr(any, "and ") : "", "and %u more", &more) == 1)
            shown = strncmp(any, "and ", 4) == 0 ? 0 : shown - 1;
        assert_int_equal(shown + more, cpu_features_count(&cpu.features));
    }
}

static void sets_are_compared_feature_by_feature(void **state)
{
    struct cpu milan = table("amd-milan"), rome = table("amd-rome");
    struct cpu_features lacking = cpu_features_without(&milan.features, &rome.features);
    struct cpu_features both = cpu_features_and(&milan.features, &rome.features);

    assert_true(cpu_features_has(&lacking, "pku"));
    assert_true(cpu_features_has(&lacking, "vaes"));
    assert_false(cpu_features_has(&lacking, "avx2"));
    assert_true(cpu_features_has(&both, "avx2"));
    assert_false(cpu_features_has(&both, "pku"));
    assert_string_equal(milan.vendor, "AuthenticAMD");
}

static void real_cpu_is_of_its_generation(void **state)
{
    static const char *const names[] = {
        "amd-naples",    "amd-rome",          "amd-milan",         "amd-genoa",
        "intel-nehalem", "intel-sandybridge", "intel-haswell",     "intel-broadwell",
        "intel-skylake", "intel-icelake",     "intel-cascadelake", "intel-sapphirerapids",
    };
    struct cpu_generations *generations = load();

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct cpu cpu = table(names[i]);
        const struct cpu_generation *best = cpu_generation_best(generations, cpu.vendor, &cpu.features);

        assert_non_null(best);
        assert_string_equal(best->name, names[i]);
    }
    free(generations);
}

static void generation_has_what_those_before_it_have(void **state)
{
    static const char *const lines[][5] = {
        {"x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v4"},
        {"amd-naples", "amd-rome", "amd-milan", "amd-genoa"},
        {"intel-nehalem", "intel-sandybridge", "intel-haswell", "intel-skylake", "intel-icelake"},
    };
    struct cpu_generations *generations = load();
    struct ferry_error err = {0};

    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        for (size_t k = 1; k < 5 && lines[i][k]; k++) {
            const struct cpu_generation *low = cpu_generation_find(generations, lines[i][k - 1], &err);
            const struct cpu_generation *high = cpu_generation_find(generations, lines[i][k], &err);
            struct cpu_features beyond = cpu_features_without(&low->features, &high->features);

            assert_true(cpu_features_empty(&beyond));
            assert_true(cpu_features_count(&high->features) > cpu_features_count(&low->features));
        }
    }
    assert_null(cpu_generation_find(generations, "amd-paris", &err));
    assert_non_null(strstr(err.text, "amd-milan"));
    free(generations);
}

/* x86-64 psABI, table "Micro-Architecture Levels"; OSXSAVE, which the guest itself turns on, is xsave here.
 */
static void level_is_what_the_psabi_says(void **state)
{
    static const char *const levels[][2] = {
        {"x86-64-v1", "fpu,cmov,cx8,fxsr,mmx,sse,sse2,syscall"},
        {"x86-64-v2", "cx16,lahf_lm,popcnt,pni,sse4_1,sse4_2,ssse3"},
        {"x86-64-v3", "avx,avx2,bmi1,bmi2,f16c,fma,abm,movbe,xsave"},
        {"x86-64-v4", "avx512f,avx512bw,avx512cd,avx512dq,avx512vl"},
    };
    /* What 64-bit mode is entered by, and all its processors have for operating systems. */
    static const char system[] = "lm,pae,msr,pse,pge,de,tsc,apic,sep,mtrr,pat,mce,mca,clflush,nx";
    struct cpu_generations *generations = load();
    struct cpu_features expected;
    struct ferry_error err = {0};

    assert_ok(cpu_features_from_list(&expected, system, &err), err);
    for (size_t i = 0; i < 4; i++) {
        const struct cpu_generation *level = cpu_generation_find(generations, levels[i][0], &err);
        struct cpu_features added;

        assert_non_null(level);
        assert_string_equal(level->vendor, "");
        assert_ok(cpu_features_from_list(&added, levels[i][1], &err), err);
        expected = cpu_features_or(&expected, &added);
        assert_memory_equal(&level->features, &expected, sizeof(expected));
    }
    free(generations);
}

static void bad_data_is_refused_in_words(void **state)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"{\"always\": [], \"generations\": [", "line 1"},
        {"{\"always\": [], \"generations\": []}", "no generations"},
        {"{\"always\": [\"avx3\"], \"generations\": [{\"name\": \"a\", \"features\": []}]}", "avx3"},
        {"{\"always\": [], \"generations\": [{\"features\": []}]}", "number 1"},
        {"{\"always\": [], \"generations\": [{\"name\": \"a\", \"features\": [1]}]}", "a"},
        {"{\"always\": [], \"generations\": [{\"name\": \"a\", \"extends\": \"b\", \"features\": []}]}",
         "extends b"},
        {"{\"always\": [], \"generations\": [{\"name\": \"a\", \"vendor\": \"x\", \"features\": []}]}",
         "\"x\""},
        {"{\"always\": [], \"generations\": [{\"name\": \"a\", \"features\": []}, {\"name\": \"a\", "
         "\"features\": []}]}",
         "twice"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct cpu_generations *generations = NULL;
        struct ferry_error err = {0};

        assert_int_equal(cpu_generations_parse(&generations, cases[i].text, &err), -EINVAL);
        assert_non_null(strstr(err.text, cases[i].says));
    }
}

static void request_is_a_generation_and_what_to_leave_out(void **state)
{
    static const char *const bad[] = {"",          ",",      "a,",         "-avx2,host",
                                      "host,avx2", "host,-", "host,-avx3", "host,,-avx"};
    struct cpu_request request;
    struct ferry_error err = {0};

    assert_int_equal(cpu_request_parse(&request, "x86-64-v3,-avx2,-bmi1", &err), 0);
    assert_string_equal(request.generation, "x86-64-v3");
    assert_int_equal(cpu_features_count(&request.without), 2);
    assert_true(cpu_features_has(&request.without, "bmi1"));
    assert_int_equal(cpu_request_parse(&request, "-avx2", &err), 0);
    assert_string_equal(request.generation, "");
    assert_int_equal(cpu_request_parse(&request, "host", &err), 0);
    assert_true(cpu_features_empty(&request.without));
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(cpu_request_parse(&request, bad[i], &err), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(feature_has_one_name_everywhere),
        cmocka_unit_test(bit_without_a_name_is_called_by_its_place),
        cmocka_unit_test(msr_tells_features_if_cpuid_tells_of_it),
        cmocka_unit_test(text_that_is_too_long_says_how_many_more),
        cmocka_unit_test(sets_are_compared_feature_by_feature),
        cmocka_unit_test(real_cpu_is_of_its_generation),
        cmocka_unit_test(generation_has_what_those_before_it_have),
        cmocka_unit_test(level_is_what_the_psabi_says),
        cmocka_unit_test(bad_data_is_refused_in_words),
        cmocka_unit_test(request_is_a_generation_and_what_to_leave_out),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
