#include "guest.h"

#include "base/clock.h"
#include "device/virtio_net.h"

#include <errno.h>
#include <sys/eventfd.h>

#define QUEUE       32
#define RX_SIZE     1526
#define HEADER_SIZE 12
#define SENT_MAX    512

/* A network that keeps what it is sent, and through which a test sends. */
struct fake_backend {
    struct net_backend backend;
    struct guest *guest; /* poked when something was sent */
    pthread_mutex_t lock;
    unsigned starts;
    unsigned stops;
    bool running;
    bool fail_start;
    unsigned sent;
    unsigned sent_stopped;
    size_t size[SENT_MAX];
    uint8_t first[SENT_MAX]; /* byte 14 of each */
    uint8_t announced[6];
};

static struct fake_backend *fake(struct net_backend *backend)
{
    return (struct fake_backend *)backend;
}

static int fake_start(struct net_backend *backend, struct ferry_error *err)
{
    if (fake(backend)->fail_start) {
        *err = (struct ferry_error){.code = -EIO, .text = "no wire"};
        return -EIO;
    }
    fake(backend)->starts++;
    fake(backend)->running = true;
    return 0;
}

static void fake_stop(struct net_backend *backend)
{
    fake(backend)->stops++;
    fake(backend)->running = false;
}

static void fake_send(struct net_backend *backend, const void *packet, size_t size)
{
    struct fake_backend *self = fake(backend);

    pthread_mutex_lock(&self->lock);
    if (!self->running)
        self->sent_stopped++;
    if (self->sent < SENT_MAX) {
        self->size[self->sent] = size;
        self->first[self->sent] = ((const uint8_t *)packet)[14];
        self->sent++;
    }
    pthread_mutex_unlock(&self->lock);
    guest_poke(self->guest);
}

static void fake_announce(struct net_backend *backend, const uint8_t mac[6])
{
    memcpy(fake(backend)->announced, mac, 6);
}

static void fake_destroy(struct net_backend *backend)
{
    pthread_mutex_destroy(&fake(backend)->lock);
    free(backend);
}

static const struct net_backend_ops fake_ops = {
    .name = "fake",
    .start = fake_start,
    .stop = fake_stop,
    .send = fake_send,
    .announce = fake_announce,
    .destroy = fake_destroy,
};

struct setup {
    struct guest *guest;
    struct driver driver;
    struct fake_backend *wire;
    struct device *net;
    uint64_t rx_buffers[QUEUE];
};

static struct device *create(struct guest *guest, struct driver *driver, struct fake_backend **wire,
                             uint8_t last_of_mac)
{
    struct device_env env = guest_env(guest, driver);
    struct virtio_net_options options = {.mac = {0x52, 0x54, 0, 1, 2, last_of_mac}};
    struct ferry_error err = {0};
    struct device *net;

    *wire = calloc(1, sizeof(**wire));
    (*wire)->backend.ops = &fake_ops;
    (*wire)->guest = guest;
    pthread_mutex_init(&(*wire)->lock, NULL);
    options.backend = &(*wire)->backend;
    assert_ok(virtio_net_create(&net, &env, 0, &options, &err), err);
    return net;
}

static int setup(void **state)
{
    struct setup *test = calloc(1, sizeof(*test));

    test->guest = guest_new();
    test->net = create(test->guest, &test->driver, &test->wire, 3);
    *state = test;
    return 0;
}

static int teardown(void **state)
{
    struct setup *test = *state;

    device_stop_and_destroy(test->net);
    guest_free(test->guest);
    free(test);
    return 0;
}

static void begin(struct setup *test)
{
    driver_begin(&test->driver, driver_device_features(&test->driver));
    driver_add_queue(&test->driver, 0, QUEUE);
    driver_add_queue(&test->driver, 1, QUEUE);
    driver_ok(&test->driver);
}

static void offer_receive_buffers(struct setup *test, unsigned count)
{
    struct driver_queue *queue = &test->driver.queues[0];

    for (unsigned i = 0; i < count; i++) {
        struct driver_buffer buffer = {guest_alloc(test->guest, RX_SIZE, 16), RX_SIZE, true};
        uint16_t head = queue_chain(queue, &buffer, 1);

        test->rx_buffers[head] = buffer.addr;
        queue_offer(queue, head);
    }
    queue_publish(queue);
    queue_notify(queue);
}

static void deliver(struct setup *test, unsigned number, size_t size)
{
    uint8_t packet[NET_PACKET_MAX];

    memset(packet, (int)number, sizeof(packet));
    test->wire->backend.receive(test->wire->backend.receiver, packet, size);
}

static void assert_received(struct setup *test, unsigned number, size_t size)
{
    const uint8_t *data;
    uint32_t written;
    uint32_t id;

    queue_wait_used(&test->driver.queues[0], &id, &written);
    assert_int_equal(written, HEADER_SIZE + size);
    data = guest_ptr(test->guest, test->rx_buffers[id], written);
    assert_memory_equal(data, ((const uint8_t[]){0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0}), HEADER_SIZE);
    for (size_t i = 0; i < size; i++)
        assert_int_equal(data[HEADER_SIZE + i], (uint8_t)number);
}

static void send(struct setup *test, unsigned number, uint32_t size)
{
    uint8_t header[HEADER_SIZE] = {0};
    uint8_t packet[65536];
    struct driver_buffer buffers[3];

    assert_true(size <= sizeof(packet));
    memset(packet, (int)number, sizeof(packet));
    buffers[0] = (struct driver_buffer){guest_put(test->guest, header, HEADER_SIZE), HEADER_SIZE, false};
    buffers[1] = (struct driver_buffer){guest_put(test->guest, packet, size), size, false};
    queue_submit(&test->driver.queues[1], buffers, 2);
}

struct sent_wait {
    struct fake_backend *wire;
    unsigned count;
};

static bool sent_enough(void *opaque)
{
    struct sent_wait *wait = opaque;
    bool enough;

    pthread_mutex_lock(&wait->wire->lock);
    enough = wait->wire->sent >= wait->count;
    pthread_mutex_unlock(&wait->wire->lock);
    return enough;
}

static void wait_sent(struct setup *test, unsigned count)
{
    struct sent_wait wait = {test->wire, count};

    guest_wait(test->guest, sent_enough, &wait);
}

static void config_holds_mac_and_link(void **state)
{
    struct setup *test = *state;

    assert_int_equal(driver_read(&test->driver, R_DEVICE_ID), 1);
    assert_int_equal(driver_read(&test->driver, R_CONFIG), 0x01005452);
    assert_int_equal(driver_read(&test->driver, R_CONFIG + 4), 0x00010302);
    assert_int_equal(driver_device_features(&test->driver) & 0xffffff, 1 << 5 | 1 << 16);
    virtio_net_announce(test->net);
    assert_int_equal(test->wire->announced[5], 3);
}

static void packets_are_sent_in_order(void **state)
{
    struct setup *test = *state;

    device_start(test->net);
    begin(test);
    for (unsigned i = 0; i < 200; i++) {
        send(test, i, 60 + i);
        queue_wait_used(&test->driver.queues[1], NULL, NULL);
    }
    wait_sent(test, 200);
    for (unsigned i = 0; i < 200; i++) {
        assert_int_equal(test->wire->first[i], (uint8_t)i);
        assert_int_equal(test->wire->size[i], 60 + i);
    }
}

static void packets_of_impossible_sizes_are_dropped(void **state)
{
    struct setup *test = *state;

    device_start(test->net);
    begin(test);
    send(test, 1, 13);
    send(test, 2, 1515);
    send(test, 3, 65536);
    send(test, 4, 1514);
    send(test, 5, 15);
    for (unsigned i = 0; i < 5; i++)
        queue_wait_used(&test->driver.queues[1], NULL, NULL);
    wait_sent(test, 2);
    assert_int_equal(test->wire->first[0], 4);
    assert_int_equal(test->wire->first[1], 5);
    assert_false(driver_needs_reset(&test->driver));
}

static void packets_are_received_in_order(void **state)
{
    struct setup *test = *state;

    device_start(test->net);
    begin(test);
    for (unsigned round = 0; round < 10; round++) {
        offer_receive_buffers(test, 16);
        for (unsigned i = 0; i < 16; i++)
            deliver(test, i, 60 + 90 * i);
        for (unsigned i = 0; i < 16; i++)
            assert_received(test, i, 60 + 90 * i);
    }
}

static void packets_wait_for_buffers(void **state)
{
    struct setup *test = *state;

    device_start(test->net);
    begin(test);
    for (unsigned i = 0; i < VIRTIO_NET_PENDING_MAX + 50; i++) /* the last 50 are dropped */
        deliver(test, i, 100);
    for (unsigned i = 0; i < VIRTIO_NET_PENDING_MAX; i++) {
        offer_receive_buffers(test, 1);
        assert_received(test, i, 100);
    }
    offer_receive_buffers(test, 1);
    deliver(test, 7, 100);
    assert_received(test, 7, 100);
}

static void nothing_is_delivered_before_the_driver_is_ready(void **state)
{
    struct setup *test = *state;

    deliver(test, 1, 100);
    device_start(test->net);
    deliver(test, 2, 100);
    begin(test);
    offer_receive_buffers(test, 2);
    deliver(test, 3, 100);
    assert_received(test, 3, 100);
}

static void small_receive_buffers_are_a_violation(void **state)
{
    struct setup *test = *state;
    struct driver_buffer buffer = {GUEST_RAM + 0x100000, 1525, true};

    device_start(test->net);
    begin(test);
    queue_submit(&test->driver.queues[0], &buffer, 1);
    deliver(test, 1, 100);
    driver_wait_needs_reset(&test->driver);
    deliver(test, 2, 100);
    begin(test);
    offer_receive_buffers(test, 1);
    deliver(test, 3, 100);
    assert_received(test, 3, 100);
}

static void packets_without_a_header_are_a_violation(void **state)
{
    struct setup *test = *state;
    struct driver_buffer buffer = {GUEST_RAM, 11, false};

    device_start(test->net);
    begin(test);
    queue_submit(&test->driver.queues[1], &buffer, 1);
    driver_wait_needs_reset(&test->driver);
    assert_int_equal(test->wire->sent, 0);
}

static void a_backend_that_cannot_start_is_an_error(void **state)
{
    struct setup *test = *state;
    struct ferry_error err = {0};

    test->wire->fail_start = true;
    assert_int_equal(test->net->ops->start(test->net, &err), -EIO);
    assert_contains(err.text, "virtio-net0: no wire");
}

static void a_quiesced_card_is_silent(void **state)
{
    struct setup *test = *state;

    device_start(test->net);
    begin(test);
    offer_receive_buffers(test, 4);
    device_quiesce(test->net);
    assert_false(test->wire->running);
    deliver(test, 1, 100);
    send(test, 2, 100);
    assert_int_equal(queue_used_idx(&test->driver.queues[0]), 0);
    assert_int_equal(test->wire->sent, 0);
    device_start(test->net);
    wait_sent(test, 1); /* what waited in the ring */
    deliver(test, 3, 100);
    assert_received(test, 3, 100);
    assert_int_equal(test->wire->sent_stopped, 0);
    assert_int_equal(test->wire->starts, 2);
}

static void a_moved_card_goes_on(void **state)
{
    struct setup *test = *state;
    struct guest *guest;
    struct driver driver;
    struct fake_backend *wire;
    struct device *net;

    device_start(test->net);
    begin(test);
    offer_receive_buffers(test, 4);
    deliver(test, 1, 100);
    assert_received(test, 1, 100);
    device_quiesce(test->net);
    send(test, 2, 200); /* notified, not sent */

    guest = guest_clone(test->guest);
    net = create(guest, &driver, &wire, 3);
    device_move(test->net, net);
    test->net->ops->destroy(test->net);
    guest_free(test->guest);
    test->driver = driver_moved(&test->driver, guest);
    for (unsigned i = 0; i < 2; i++)
        test->driver.queues[i].driver = &test->driver;
    test->guest = guest;
    test->net = net;
    test->wire = wire;
    device_start(net);
    wait_sent(test, 1);
    assert_int_equal(wire->size[0], 200);
    deliver(test, 5, 300);
    assert_received(test, 5, 300);
}

static void another_cards_state_is_refused(void **state)
{
    struct setup *test = *state;
    struct fake_backend *wire;
    struct driver driver;
    struct device *other = create(test->guest, &driver, &wire, 4);
    struct buffer section = BUFFER_INIT;
    struct ferry_error err = {0};
    struct reader reader;

    test->net->ops->save(test->net, &section);
    reader = reader_init(section.data, section.size);
    assert_int_equal(other->ops->load(other, 1, &reader, &err), -EINVAL);
    assert_contains(err.text, "mac");
    buffer_free(&section);
    other->ops->destroy(other);
}

/* Threads of both sides at once, while the card is stopped and started. */
struct storm {
    struct setup *test;
    int stop; /* atomic */
};

static void *storm_main(void *opaque)
{
    struct storm *storm = opaque;
    unsigned i = 0;

    while (!__atomic_load_n(&storm->stop, __ATOMIC_ACQUIRE))
        deliver(storm->test, i++, 100);
    return NULL;
}

static void receiving_and_quiescing_do_not_race(void **state)
{
    struct setup *test = *state;
    struct storm storm = {.test = test};
    struct ferry_error err = {0};
    struct thread thread = {0};

    device_start(test->net);
    begin(test);
    assert_ok(thread_start(&thread, THREAD_GENERAL, "storm", storm_main, &storm, &err), err);
    for (unsigned i = 0; i < 50; i++) {
        uint16_t used;

        offer_receive_buffers(test, 4);
        for (unsigned j = 0; j < 4; j++)
            queue_wait_used(&test->driver.queues[0], NULL, NULL);
        offer_receive_buffers(test, 4);
        device_quiesce(test->net);
        used = queue_used_idx(&test->driver.queues[0]);
        send(test, i, 64);
        assert_int_equal(queue_used_idx(&test->driver.queues[0]), used);
        device_start(test->net);
        for (unsigned j = 0; j < 4; j++)
            queue_wait_used(&test->driver.queues[0], NULL, NULL);
        queue_wait_used(&test->driver.queues[1], NULL, NULL);
    }
    __atomic_store_n(&storm.stop, 1, __ATOMIC_RELEASE);
    thread_join(&thread);
}

/* The real thing end to end: a driver's ARP request for the gateway of a user network. */
static void a_user_network_answers_the_driver(void **state)
{
    static const uint8_t request[42] = {
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0,    1,    2,  9, 8, 6, /* Ethernet */
        0,    1,    8,    0,    6,    4,    0,    1,    0x52, 0x54, 0,  1, 2, 9,
        10,   0,    2,    15,   0,    0,    0,    0,    0,    0,    10, 0, 2, 2,
    };
    struct setup *test = *state;
    struct setup user = {.guest = test->guest};
    struct device_env env = guest_env(test->guest, &user.driver);
    struct virtio_net_options options = {.mac = {0x52, 0x54, 0, 1, 2, 9}};
    struct ferry_error err = {0};
    uint8_t header[HEADER_SIZE] = {0};
    struct driver_buffer buffers[2];
    const uint8_t *answer;
    uint32_t written;
    uint32_t id;

    assert_ok(net_backend_new(&options.backend, "user", NULL, &err), err);
    assert_ok(virtio_net_create(&user.net, &env, 1, &options, &err), err);
    device_start(user.net);
    begin(&user);
    offer_receive_buffers(&user, 8);
    buffers[0] = (struct driver_buffer){guest_put(user.guest, header, HEADER_SIZE), HEADER_SIZE, false};
    buffers[1] =
        (struct driver_buffer){guest_put(user.guest, request, sizeof(request)), sizeof(request), false};
    queue_submit(&user.driver.queues[1], buffers, 2);
    queue_wait_used(&user.driver.queues[0], &id, &written);
    assert_true(written >= HEADER_SIZE + 42);
    answer = guest_ptr(user.guest, user.rx_buffers[id] + HEADER_SIZE, 42);
    assert_memory_equal(answer, request + 6, 6);
    assert_int_equal(answer[21], 2);
    device_stop_and_destroy(user.net);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(config_holds_mac_and_link),
        CASE(packets_are_sent_in_order),
        CASE(packets_of_impossible_sizes_are_dropped),
        CASE(packets_are_received_in_order),
        CASE(packets_wait_for_buffers),
        CASE(nothing_is_delivered_before_the_driver_is_ready),
        CASE(small_receive_buffers_are_a_violation),
        CASE(packets_without_a_header_are_a_violation),
        CASE(a_backend_that_cannot_start_is_an_error),
        CASE(a_quiesced_card_is_silent),
        CASE(a_moved_card_goes_on),
        CASE(another_cards_state_is_refused),
        CASE(receiving_and_quiescing_do_not_race),
        CASE(a_user_network_answers_the_driver),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
