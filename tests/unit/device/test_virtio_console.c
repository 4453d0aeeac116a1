#include "guest.h"

#include "base/clock.h"
#include "device/virtio_console.h"

#include <errno.h>

#define QUEUE       16
#define BUFFER      64
#define MULTIPORT   (UINT64_C(1) << 1)
#define OUTPUT_SIZE 65536

enum { EV_READY = 0, EV_ADD = 1, EV_PORT_READY = 3, EV_CONSOLE = 4, EV_OPEN = 6, EV_NAME = 7 };

struct message {
    uint32_t id;
    uint16_t event;
    uint16_t value;
};

struct setup {
    struct guest *guest;
    struct driver driver;
    struct device *console;
    uint64_t buffers[VIRTIO_QUEUES_MAX][QUEUE];
    pthread_mutex_t lock; /* what the device's thread told */
    char output[OUTPUT_SIZE];
    size_t output_size;
    char lines[16][VIRTIO_CONSOLE_LINE_MAX + 1];
    unsigned line_count;
    unsigned ready;
};

static void on_output(void *opaque, const void *data, size_t size)
{
    struct setup *test = opaque;

    pthread_mutex_lock(&test->lock);
    if (size > OUTPUT_SIZE - test->output_size)
        size = OUTPUT_SIZE - test->output_size;
    memcpy(test->output + test->output_size, data, size);
    test->output_size += size;
    pthread_mutex_unlock(&test->lock);
    guest_poke(test->guest);
}

static void on_ready(void *opaque)
{
    struct setup *test = opaque;

    pthread_mutex_lock(&test->lock);
    test->ready++;
    pthread_mutex_unlock(&test->lock);
    guest_poke(test->guest);
}

static void on_line(void *opaque, const char *line)
{
    struct setup *test = opaque;

    pthread_mutex_lock(&test->lock);
    if (test->line_count < 16)
        snprintf(test->lines[test->line_count++], sizeof(test->lines[0]), "%s", line);
    pthread_mutex_unlock(&test->lock);
    guest_poke(test->guest);
}

static struct device *create(struct setup *test, struct guest *guest, struct driver *driver)
{
    struct device_env env = guest_env(guest, driver);
    struct virtio_console_options options = {
        .opaque = test, .output = on_output, .input_ready = on_ready, .control_line = on_line};
    struct ferry_error err = {0};
    struct device *console;

    assert_ok(virtio_console_create(&console, &env, 0, &options, &err), err);
    return console;
}

static int setup(void **state)
{
    struct setup *test = calloc(1, sizeof(*test));

    pthread_mutex_init(&test->lock, NULL);
    test->guest = guest_new();
    test->console = create(test, test->guest, &test->driver);
    *state = test;
    return 0;
}

static int teardown(void **state)
{
    struct setup *test = *state;

    device_stop_and_destroy(test->console);
    guest_free(test->guest);
    pthread_mutex_destroy(&test->lock);
    free(test);
    return 0;
}

static void offer_buffers(struct setup *test, unsigned index, unsigned count, uint32_t size)
{
    struct driver_queue *queue = &test->driver.queues[index];

    for (unsigned i = 0; i < count; i++) {
        struct driver_buffer buffer = {guest_alloc(test->guest, size, 16), size, true};
        uint16_t head = queue_chain(queue, &buffer, 1);

        test->buffers[index][head] = buffer.addr;
        queue_offer(queue, head);
    }
    queue_publish(queue);
    queue_notify(queue);
}

static void begin(struct setup *test, uint64_t features)
{
    driver_begin(&test->driver, features | VIRTIO_F_EVENT_IDX);
    for (unsigned i = 0; i < (features & MULTIPORT ? 6 : 2); i++)
        driver_add_queue(&test->driver, i, QUEUE);
    driver_ok(&test->driver);
}

static void send(struct setup *test, unsigned index, const void *data, uint32_t size)
{
    struct driver_buffer buffer = {guest_put(test->guest, data, size), size, false};

    queue_submit(&test->driver.queues[index], &buffer, 1);
    queue_wait_used(&test->driver.queues[index], NULL, NULL);
}

static void send_message(struct setup *test, uint32_t id, uint16_t event, uint16_t value)
{
    struct message message = {id, event, value};

    send(test, 3, &message, sizeof(message));
}

static const uint8_t *receive(struct setup *test, unsigned index, uint32_t *size)
{
    uint32_t id;

    queue_wait_used(&test->driver.queues[index], &id, size);
    assert_true(id < QUEUE);
    return guest_ptr(test->guest, test->buffers[index][id], *size);
}

static void assert_message(struct setup *test, uint32_t id, uint16_t event, const char *name)
{
    uint32_t size;
    const uint8_t *data = receive(test, 2, &size);
    struct message message;

    memcpy(&message, data, sizeof(message));
    assert_int_equal(message.id, id);
    assert_int_equal(message.event, event);
    assert_int_equal(message.value, 1);
    assert_int_equal(size, sizeof(message) + strlen(name));
    assert_memory_equal(data + sizeof(message), name, strlen(name));
}

/* What Linux's driver does from probe to an agent that has opened the control port. */
static void bring_up(struct setup *test)
{
    begin(test, MULTIPORT);
    for (unsigned i = 0; i < 6; i += 2)
        offer_buffers(test, i, 8, BUFFER);
    send_message(test, 0, EV_READY, 1);
    assert_message(test, 0, EV_ADD, "");
    assert_message(test, 1, EV_ADD, "");
    send_message(test, 0, EV_PORT_READY, 1);
    assert_message(test, 0, EV_CONSOLE, "");
    assert_message(test, 0, EV_OPEN, "");
    send_message(test, 1, EV_PORT_READY, 1);
    assert_message(test, 1, EV_NAME, "org.ferry.control");
    assert_message(test, 1, EV_OPEN, "");
    assert_false(virtio_console_control_open(test->console));
    send_message(test, 1, EV_OPEN, 1);
    assert_true(virtio_console_control_open(test->console));
}

struct wait {
    struct setup *test;
    size_t output;
    unsigned lines;
    unsigned ready;
};

static bool told_enough(void *opaque)
{
    struct wait *wait = opaque;
    bool enough;

    pthread_mutex_lock(&wait->test->lock);
    enough = wait->test->output_size >= wait->output && wait->test->line_count >= wait->lines &&
             wait->test->ready >= wait->ready;
    pthread_mutex_unlock(&wait->test->lock);
    return enough;
}

static void wait_told(struct setup *test, size_t output, unsigned lines, unsigned ready)
{
    struct wait wait = {test, output, lines, ready};

    guest_wait(test->guest, told_enough, &wait);
}

static void ports_are_announced_as_linux_expects(void **state)
{
    struct setup *test = *state;

    device_start(test->console);
    assert_int_equal(driver_read(&test->driver, R_DEVICE_ID), 3);
    assert_int_equal(driver_read(&test->driver, R_CONFIG + 4), 2);
    bring_up(test);
}

static void console_output_arrives_in_order(void **state)
{
    struct setup *test = *state;

    device_start(test->console);
    bring_up(test);
    for (unsigned i = 0; i < 100; i++)
        send(test, 1, "0123456789", 10);
    wait_told(test, 1000, 0, 0);
    for (unsigned i = 0; i < 1000; i++)
        assert_int_equal(test->output[i], '0' + i % 10);
}

static void a_plain_console_works_without_multiport(void **state)
{
    struct setup *test = *state;
    const uint8_t *data;
    uint32_t size;

    device_start(test->console);
    begin(test, 0);
    offer_buffers(test, 0, 4, BUFFER);
    send(test, 1, "hello", 5);
    wait_told(test, 5, 0, 0);
    assert_memory_equal(test->output, "hello", 5);
    assert_int_equal(virtio_console_input(test->console, "typed", 5), 5);
    data = receive(test, 0, &size);
    assert_int_equal(size, 5);
    assert_memory_equal(data, "typed", 5);
}

static void console_input_pushes_back(void **state)
{
    struct setup *test = *state;
    uint8_t text[3000];
    size_t taken;
    size_t got = 0;
    unsigned rounds = 0;

    for (unsigned i = 0; i < sizeof(text); i++)
        text[i] = (uint8_t)(i % 251);
    device_start(test->console);
    begin(test, 0);
    taken = virtio_console_input(test->console, text, sizeof(text));
    assert_int_equal(taken, VIRTIO_CONSOLE_INPUT_SIZE);
    assert_int_equal(virtio_console_input(test->console, text, 1), 0);
    while (got < sizeof(text)) {
        const uint8_t *data;
        uint32_t size;

        offer_buffers(test, 0, 1, 100);
        data = receive(test, 0, &size);
        assert_memory_equal(data, text + got, size);
        got += size;
        if (taken < sizeof(text) && taken - got < VIRTIO_CONSOLE_INPUT_SIZE / 2) {
            wait_told(test, 0, 0, ++rounds); /* room again, and we are told */
            taken += virtio_console_input(test->console, text + taken, sizeof(text) - taken);
        }
    }
    assert_int_equal(got, sizeof(text));
}

static void the_agent_is_spoken_to_by_lines(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};
    const uint8_t *data;
    uint32_t size;

    device_start(test->console);
    assert_int_equal(virtio_console_control_send(test->console, "shutdown\n", &err), -ENOTCONN);
    assert_contains(err.text, "agent");
    bring_up(test);
    assert_ok(virtio_console_control_send(test->console, "shutdown\n", &err), err);
    data = receive(test, 4, &size);
    assert_int_equal(size, 9);
    assert_memory_equal(data, "shutdown\n", 9);
    send(test, 5, "o", 1);
    send(test, 5, "k\nsecond\nthi", 12);
    wait_told(test, 0, 2, 0);
    assert_string_equal(test->lines[0], "ok");
    assert_string_equal(test->lines[1], "second");
    send(test, 5, "rd\n", 3);
    wait_told(test, 0, 3, 0);
    assert_string_equal(test->lines[2], "third");
}

static void overlong_lines_are_dropped(void **state)
{
    struct setup *test = *state;
    char text[VIRTIO_CONSOLE_LINE_MAX + 5];

    device_start(test->console);
    bring_up(test);
    memset(text, 'x', sizeof(text));
    send(test, 5, text, sizeof(text));
    send(test, 5, "\nok\n", 4);
    wait_told(test, 0, 1, 0);
    assert_string_equal(test->lines[0], "ok");
}

static void a_closed_control_port_forgets(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};

    device_start(test->console);
    bring_up(test);
    send(test, 5, "half", 4);
    send_message(test, 1, EV_OPEN, 0);
    assert_false(virtio_console_control_open(test->console));
    assert_int_equal(virtio_console_control_send(test->console, "reboot\n", &err), -ENOTCONN);
    send_message(test, 1, EV_OPEN, 1);
    send(test, 5, "ok\n", 3);
    wait_told(test, 0, 1, 0);
    assert_string_equal(test->lines[0], "ok");
}

static void an_agent_that_does_not_read_is_noticed(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};
    unsigned sent = 0;
    int result;

    device_start(test->console);
    bring_up(test);
    while ((result = virtio_console_control_send(test->console, "shutdown\n", &err)) == 0)
        assert_true(++sent < 1000);
    assert_int_equal(result, -EAGAIN);
}

static void nonsense_on_the_control_queue_is_ignored(void **state)
{
    struct setup *test = *state;

    device_start(test->console);
    bring_up(test);
    send_message(test, 77, EV_PORT_READY, 1);
    send_message(test, UINT32_MAX, EV_OPEN, 1);
    send_message(test, 0, 999, 1);
    send(test, 3, "short", 5);
    send_message(test, 1, EV_OPEN, 1);
    assert_false(driver_needs_reset(&test->driver));
    send(test, 1, "alive", 5);
    wait_told(test, 5, 0, 0);
}

static void both_ports_move_with_what_waits_in_them(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};
    struct guest *guest;
    struct driver driver;
    struct device *console;
    const uint8_t *data;
    uint32_t size;

    device_start(test->console);
    bring_up(test);
    send(test, 5, "spl", 3);
    device_quiesce(test->console);
    assert_ok(virtio_console_control_send(test->console, "reboot\n", &err), err);
    assert_int_equal(virtio_console_input(test->console, "typed", 5), 5);

    guest = guest_clone(test->guest);
    console = create(test, guest, &driver);
    device_move(test->console, console);
    test->console->ops->destroy(test->console);
    guest_free(test->guest);
    test->driver = driver_moved(&test->driver, guest);
    for (unsigned i = 0; i < 6; i++)
        test->driver.queues[i].driver = &test->driver;
    test->guest = guest;
    test->console = console;
    assert_true(virtio_console_control_open(console));
    device_start(console);
    data = receive(test, 4, &size);
    assert_memory_equal(data, "reboot\n", 7);
    data = receive(test, 0, &size);
    assert_memory_equal(data, "typed", 5);
    send(test, 5, "it\n", 3);
    wait_told(test, 0, 1, 0);
    assert_string_equal(test->lines[0], "split");
}

static void a_reset_forgets_the_agent(void **state)
{
    struct setup *test = *state;

    device_start(test->console);
    bring_up(test);
    driver_write(&test->driver, R_STATUS, 0);
    assert_false(virtio_console_control_open(test->console));
    bring_up(test);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(ports_are_announced_as_linux_expects),
        CASE(console_output_arrives_in_order),
        CASE(a_plain_console_works_without_multiport),
        CASE(console_input_pushes_back),
        CASE(the_agent_is_spoken_to_by_lines),
        CASE(overlong_lines_are_dropped),
        CASE(a_closed_control_port_forgets),
        CASE(an_agent_that_does_not_read_is_noticed),
        CASE(nonsense_on_the_control_queue_is_ignored),
        CASE(both_ports_move_with_what_waits_in_them),
        CASE(a_reset_forgets_the_agent),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
