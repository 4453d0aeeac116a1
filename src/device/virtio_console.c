#include "device/virtio_console.h"

#include "base/error.h"
#include "device/tables.h"
#include "device/virtio_mmio.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define QUEUE_SIZE  64
#define PORTS       2
#define QUEUES      6
#define OUTPUT_MAX  65536 /* of one chain; a driver sends no more, what is above is dropped */
#define OUTPUT_PART 4096

enum console_port_id {
    PORT_CONSOLE = 0,
    PORT_CONTROL = 1,
};

enum console_queue { /* §5.3.2 */
                     QUEUE_CONTROL_IN = 2,
                     QUEUE_CONTROL_OUT = 3,
};

#define CONSOLE_F_MULTIPORT (UINT64_C(1) << 1)

enum console_event { /* §5.3.6.2 */
                     EVENT_DEVICE_READY = 0,
                     EVENT_DEVICE_ADD = 1,
                     EVENT_PORT_READY = 3,
                     EVENT_CONSOLE_PORT = 4,
                     EVENT_PORT_OPEN = 6,
                     EVENT_PORT_NAME = 7,
};

/* Control messages the guest is still to get, sent in this order. */
enum console_pending {
    PENDING_ADD = 1,
    PENDING_CONSOLE = 2,
    PENDING_NAME = 4,
    PENDING_OPEN = 8,
    PENDING_ALL = 15,
};

struct console_config { /* §5.3.4; guest's view, little-endian */
    uint16_t cols;
    uint16_t rows;
    uint32_t max_ports;
    uint32_t emergency_write;
} __attribute__((packed));

struct console_message { /* §5.3.6.2 */
    uint32_t id;
    uint16_t event;
    uint16_t value;
};

struct console_port {
    bool guest_open;
    uint8_t pending;
    uint16_t input_count;
    uint8_t input[VIRTIO_CONSOLE_INPUT_SIZE];
};

struct console_state {
    struct virtio_state virtio;
    struct console_port ports[PORTS];
    /* The line from the agent that has no end yet. */
    uint16_t line_count;
    bool line_overflow; /* too long; dropped up to its newline */
    uint8_t line[VIRTIO_CONSOLE_LINE_MAX];
};

struct virtio_console {
    struct device device;
    struct virtio virtio;
    struct console_state state;
    struct console_config config;
    struct virtio_console_options options;
    bool refused;                 /* input was turned away; input_ready is due */
    struct virtqueue_chain chain; /* the worker's, while it looks at one */
};

#define PORT_FIELDS(index)                                                                                   \
    STATE_FIELD(struct console_state, ports[index].guest_open, STATE_BOOL),                                  \
        STATE_FIELD(struct console_state, ports[index].pending, STATE_U8, .max = PENDING_ALL),               \
        STATE_FIELD(struct console_state, ports[index].input_count, STATE_U16,                               \
                    .max = VIRTIO_CONSOLE_INPUT_SIZE),                                                       \
        STATE_ARRAY(struct console_state, ports[index].input, STATE_BYTES)

static const struct state_field console_fields[] = {
    VIRTIO_STATE_FIELDS(struct console_state, virtio),
    VIRTQUEUE_STATE_FIELDS(struct console_state, virtio.queues[0]),
    VIRTQUEUE_STATE_FIELDS(struct console_state, virtio.queues[1]),
    VIRTQUEUE_STATE_FIELDS(struct console_state, virtio.queues[2]),
    VIRTQUEUE_STATE_FIELDS(struct console_state, virtio.queues[3]),
    VIRTQUEUE_STATE_FIELDS(struct console_state, virtio.queues[4]),
    VIRTQUEUE_STATE_FIELDS(struct console_state, virtio.queues[5]),
    PORT_FIELDS(0),
    PORT_FIELDS(1),
    STATE_FIELD(struct console_state, line_count, STATE_U16, .max = VIRTIO_CONSOLE_LINE_MAX),
    STATE_FIELD(struct console_state, line_overflow, STATE_BOOL),
    STATE_ARRAY(struct console_state, line, STATE_BYTES),
};

const struct state_table virtio_console_table = {
    .name = "virtio-console",
    .version = 1,
    .fields = console_fields,
    .field_count = ARRAY_SIZE(console_fields),
    .object_size = sizeof(struct console_state),
};

static struct virtio_console *from_virtio(struct virtio *virtio)
{
    return (struct virtio_console *)((char *)virtio - offsetof(struct virtio_console, virtio));
}

static struct virtio_console *from_device(struct device *device)
{
    return (struct virtio_console *)((char *)device - offsetof(struct virtio_console, device));
}

/* Queues of a port (§5.3.2): the control queues lie between port 0's and the others'. */
static unsigned input_queue(unsigned port)
{
    return port == 0 ? 0 : 2 * port + 2;
}

static unsigned output_queue(unsigned port)
{
    return input_queue(port) + 1;
}

/* Runs STEP for up to QUEUE_SIZE chains of a queue, and again soon when there are more. */
static void serve_queue(struct virtio_console *console, unsigned queue,
                        void (*step)(struct virtio_console *console, unsigned queue))
{
    struct virtio *virtio = &console->virtio;

    for (unsigned i = 0; i < QUEUE_SIZE && virtio_pop(virtio, queue, &console->chain); i++)
        step(console, queue);
    virtio_signal(virtio, queue);
    if (virtio_live(virtio) && virtqueue_listen(&virtio->queues[queue]))
        virtio_wake(virtio);
}

/* What the driver says about itself and its ports. Nonsense is ignored. */
static void handle_message(struct virtio_console *console, const struct console_message *message)
{
    struct console_port *ports = console->state.ports;

    if (message->event == EVENT_DEVICE_READY && message->value) {
        for (unsigned i = 0; i < PORTS; i++)
            ports[i].pending |= PENDING_ADD;
        return;
    }
    if (message->id >= PORTS)
        return;
    if (message->event == EVENT_PORT_READY && message->value)
        ports[message->id].pending |=
            PENDING_OPEN | (message->id == PORT_CONSOLE ? PENDING_CONSOLE : PENDING_NAME);
    if (message->event != EVENT_PORT_OPEN)
        return;
    ports[message->id].guest_open = message->value;
    if (message->id == PORT_CONTROL && !message->value) {
        ports[PORT_CONTROL].input_count = 0;
        console->state.line_count = 0;
        console->state.line_overflow = false;
    }
}

static void take_message(struct virtio_console *console, unsigned queue)
{
    struct virtqueue_chain *chain = &console->chain;
    struct console_message message;

    if (virtqueue_read_segments(chain->segments, chain->out_count, 0, &message, sizeof(message)) ==
        sizeof(message)) {
        message.id = le32toh(message.id);
        message.event = le16toh(message.event);
        message.value = le16toh(message.value);
        handle_message(console, &message);
    }
    virtio_push(&console->virtio, queue, chain->head, NULL, 0, 0);
}

/* The next message a port is to get; false when there is none. */
static bool next_message(struct console_port *port, unsigned id, struct console_message *message,
                         const char **name)
{
    static const struct {
        enum console_pending pending;
        enum console_event event;
    } order[] = {
        {PENDING_ADD, EVENT_DEVICE_ADD},
        {PENDING_CONSOLE, EVENT_CONSOLE_PORT},
        {PENDING_NAME, EVENT_PORT_NAME},
        {PENDING_OPEN, EVENT_PORT_OPEN},
    };

    for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
        if (!(port->pending & order[i].pending))
            continue;
        port->pending &= (uint8_t)~order[i].pending;
        *name = order[i].event == EVENT_PORT_NAME ? VIRTIO_CONSOLE_CONTROL_NAME : "";
        message->id = htole32(id);
        message->event = htole16(order[i].event);
        message->value = htole16(1);
        return true;
    }
    return false;
}

/* Tells the driver what there is to tell, as far as it offers buffers. */
static void send_messages(struct virtio_console *console)
{
    struct virtio *virtio = &console->virtio;
    struct virtqueue_chain *chain = &console->chain;

    for (unsigned i = 0; i < PORTS; i++) {
        while (console->state.ports[i].pending && virtio_pop(virtio, QUEUE_CONTROL_IN, chain)) {
            struct virtqueue_segment *in = chain->segments + chain->out_count;
            struct console_message message = {0};
            const char *name = "";
            size_t size = sizeof(message);

            (void)next_message(&console->state.ports[i], i, &message, &name);
            virtqueue_write_segments(in, chain->in_count, 0, &message, sizeof(message));
            size += strlen(name);
            virtqueue_write_segments(in, chain->in_count, sizeof(message), name, strlen(name));
            if (size > chain->in_size)
                size = chain->in_size;
            virtio_push(virtio, QUEUE_CONTROL_IN, chain->head, in, chain->in_count, (uint32_t)size);
        }
    }
    virtio_signal(virtio, QUEUE_CONTROL_IN);
    if (virtio_live(virtio) && virtqueue_listen(&virtio->queues[QUEUE_CONTROL_IN]) &&
        (console->state.ports[0].pending || console->state.ports[1].pending))
        virtio_wake(virtio);
}

/* Output of the control port, byte by byte into lines. Lock not held; LINE is worker's own until it is back.
 */
static void collect_line(struct virtio_console *console, const uint8_t *data, size_t size)
{
    struct console_state *state = &console->state;

    for (size_t i = 0; i < size; i++) {
        if (data[i] == '\n') {
            char line[VIRTIO_CONSOLE_LINE_MAX + 1];

            memcpy(line, state->line, state->line_count);
            line[state->line_count] = '\0';
            if (!state->line_overflow && console->options.control_line)
                console->options.control_line(console->options.opaque, line);
            state->line_count = 0;
            state->line_overflow = false;
        } else if (state->line_count < VIRTIO_CONSOLE_LINE_MAX) {
            state->line[state->line_count++] = data[i];
        } else {
            state->line_overflow = true;
        }
    }
}

/*
 * Passes a chain's bytes on. The lock is free meanwhile, the chain outstanding: a reset waits for it, and
 * only the worker, we, touches the line being collected.
 */
static void take_output(struct virtio_console *console, unsigned queue)
{
    struct virtqueue_chain *chain = &console->chain;
    uint8_t part[OUTPUT_PART];
    size_t size;

    pthread_mutex_unlock(&console->virtio.lock);
    for (uint64_t offset = 0; offset < OUTPUT_MAX; offset += size) {
        size = virtqueue_read_segments(chain->segments, chain->out_count, offset, part, sizeof(part));
        if (!size)
            break;
        if (queue == output_queue(PORT_CONTROL))
            collect_line(console, part, size);
        else if (console->options.output)
            console->options.output(console->options.opaque, part, size);
    }
    pthread_mutex_lock(&console->virtio.lock);
    virtio_push(&console->virtio, queue, chain->head, NULL, 0, 0);
}

static void give_input(struct virtio_console *console, unsigned id)
{
    struct virtio *virtio = &console->virtio;
    struct virtqueue_chain *chain = &console->chain;
    struct console_port *port = &console->state.ports[id];
    unsigned queue = input_queue(id);

    while (port->input_count && virtio_pop(virtio, queue, chain)) {
        struct virtqueue_segment *in = chain->segments + chain->out_count;
        size_t size = virtqueue_write_segments(in, chain->in_count, 0, port->input, port->input_count);

        virtio_push(virtio, queue, chain->head, in, chain->in_count, (uint32_t)size);
        port->input_count -= (uint16_t)size;
        memmove(port->input, port->input + size, port->input_count);
    }
    virtio_signal(virtio, queue);
    if (virtio_live(virtio) && virtqueue_listen(&virtio->queues[queue]) && port->input_count)
        virtio_wake(virtio);
}

static void console_process(struct virtio *virtio)
{
    struct virtio_console *console = from_virtio(virtio);
    bool multiport = virtio_has(virtio, CONSOLE_F_MULTIPORT);
    bool ready;

    if (multiport) {
        serve_queue(console, QUEUE_CONTROL_OUT, take_message);
        send_messages(console);
        serve_queue(console, output_queue(PORT_CONTROL), take_output);
        give_input(console, PORT_CONTROL);
    }
    serve_queue(console, output_queue(PORT_CONSOLE), take_output);
    give_input(console, PORT_CONSOLE);
    ready =
        console->refused && console->state.ports[PORT_CONSOLE].input_count < VIRTIO_CONSOLE_INPUT_SIZE / 2;
    if (!ready)
        return;
    console->refused = false;
    pthread_mutex_unlock(&virtio->lock);
    if (console->options.input_ready)
        console->options.input_ready(console->options.opaque);
    pthread_mutex_lock(&virtio->lock);
}

static void console_virtio_reset(struct virtio *virtio)
{
    struct virtio_console *console = from_virtio(virtio);

    /* What was typed stays for the next driver; the rest was for the old one. */
    for (unsigned i = 0; i < PORTS; i++) {
        console->state.ports[i].guest_open = false;
        console->state.ports[i].pending = 0;
    }
    console->state.ports[PORT_CONTROL].input_count = 0;
    console->state.line_count = 0;
    console->state.line_overflow = false;
}

static const struct virtio_ops console_virtio_ops = {
    .worker = THREAD_IO,
    .device_id = 3,
    .queue_count = QUEUES,
    .queue_size = QUEUE_SIZE,
    .process = console_process,
    .reset = console_virtio_reset,
};

static void console_reset(struct device *device)
{
    virtio_reset(&from_device(device)->virtio);
}

static int console_start(struct device *device, struct ferry_error *err)
{
    virtio_start(&from_device(device)->virtio);
    return 0;
}

static int console_quiesce(struct device *device, uint64_t deadline_ns, struct ferry_error *err)
{
    return virtio_quiesce(&from_device(device)->virtio, deadline_ns, err);
}

static void console_save(struct device *device, struct buffer *out)
{
    struct virtio_console *console = from_device(device);

    pthread_mutex_lock(&console->virtio.lock); /* input may come at any time */
    state_save(&virtio_console_table, &console->state, out);
    pthread_mutex_unlock(&console->virtio.lock);
}

static int console_load(struct device *device, uint32_t version, struct reader *in, struct ferry_error *err)
{
    struct virtio_console *console = from_device(device);
    struct console_state loaded = console->state;
    int result = state_load(&virtio_console_table, device->name, version, &loaded, in, err);

    if (result == 0) {
        result = virtio_state_check(&console->virtio, &loaded.virtio, err);
        if (result < 0)
            error_prefix(err, result, "state section %s", device->name);
    }
    if (result < 0)
        return result;
    pthread_mutex_lock(&console->virtio.lock);
    console->state = loaded;
    pthread_mutex_unlock(&console->virtio.lock);
    virtio_loaded(&console->virtio);
    return 0;
}

static void console_destroy(struct device *device)
{
    struct virtio_console *console = from_device(device);

    virtio_destroy(&console->virtio);
    free(console);
}

static const struct device_ops console_device_ops = {
    .reset = console_reset,
    .start = console_start,
    .quiesce = console_quiesce,
    .save = console_save,
    .load = console_load,
    .destroy = console_destroy,
};

int virtio_console_create(struct device **out, const struct device_env *env, unsigned index,
                          const struct virtio_console_options *options, struct ferry_error *err)
{
    struct virtio_console *console = calloc(1, sizeof(*console));
    int result;

    if (!console)
        return error_set(err, -ENOMEM, "out of memory while adding virtio-console%u", index);
    console->device.ops = &console_device_ops;
    console->device.state = &virtio_console_table;
    snprintf(console->device.name, sizeof(console->device.name), "virtio-console%u", index);
    console->options = *options;
    console->config.max_ports = htole32(PORTS);
    result = virtio_init(&console->virtio, &console_virtio_ops, &console->state.virtio, CONSOLE_F_MULTIPORT,
                         &console->config, sizeof(console->config), console->device.name, env, err);
    if (result < 0) {
        free(console);
        return result;
    }
    result = virtio_mmio_add(&console->virtio, err);
    if (result < 0) {
        console_destroy(&console->device);
        return result;
    }
    *out = &console->device;
    return 0;
}

/* Appends what there is room for; lock held. */
static size_t append_input(struct console_port *port, const void *data, size_t size)
{
    size_t room = sizeof(port->input) - port->input_count;
    size_t taken = size < room ? size : room;

    memcpy(port->input + port->input_count, data, taken);
    port->input_count += (uint16_t)taken;
    return taken;
}

size_t virtio_console_input(struct device *device, const void *data, size_t size)
{
    struct virtio_console *console = from_device(device);
    size_t taken;

    pthread_mutex_lock(&console->virtio.lock);
    taken = append_input(&console->state.ports[PORT_CONSOLE], data, size);
    console->refused = console->refused || taken < size;
    pthread_mutex_unlock(&console->virtio.lock);
    virtio_wake(&console->virtio);
    return taken;
}

bool virtio_console_control_open(struct device *device)
{
    struct virtio_console *console = from_device(device);
    bool open;

    pthread_mutex_lock(&console->virtio.lock);
    open = console->state.ports[PORT_CONTROL].guest_open;
    pthread_mutex_unlock(&console->virtio.lock);
    return open;
}

int virtio_console_control_send(struct device *device, const char *line, struct ferry_error *err)
{
    struct virtio_console *console = from_device(device);
    struct console_port *port = &console->state.ports[PORT_CONTROL];
    size_t size = strlen(line);
    int result = 0;

    pthread_mutex_lock(&console->virtio.lock);
    if (!port->guest_open)
        result = error_set(err, -ENOTCONN, "no agent in the guest listens on its control port");
    else if (size > sizeof(port->input) - port->input_count)
        result = error_set(err, -EAGAIN, "the agent in the guest does not read its control port");
    else
        append_input(port, line, size);
    pthread_mutex_unlock(&console->virtio.lock);
    virtio_wake(&console->virtio);
    return result;
}
