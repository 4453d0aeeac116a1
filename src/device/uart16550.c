#include "device/uart16550.h"

#include "base/error.h"
#include "device/tables.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIFO_SIZE 16

enum uart_register {
    REG_DATA = 0, /* RBR, THR; DLL with DLAB */
    REG_IER = 1,  /* DLM with DLAB */
    REG_IIR = 2,  /* read */
    REG_FCR = 2,  /* write */
    REG_LCR = 3,
    REG_MCR = 4,
    REG_LSR = 5,
    REG_MSR = 6,
    REG_SCR = 7,
};

enum uart_bits {
    IER_RECEIVE = 0x01,
    IER_TRANSMIT = 0x02,
    IER_LINE = 0x04,
    IER_MODEM = 0x08,
    IER_ALL = 0x0f,

    IIR_NONE = 0x01,
    IIR_MODEM = 0x00,
    IIR_TRANSMIT = 0x02,
    IIR_RECEIVE = 0x04,
    IIR_LINE = 0x06,
    IIR_TIMEOUT = 0x0c,
    IIR_FIFO = 0xc0,

    FCR_ENABLE = 0x01,
    FCR_CLEAR_RECEIVE = 0x02,
    FCR_KEPT = 0xc9, /* enable, DMA mode, trigger level */

    LCR_DLAB = 0x80,

    MCR_DTR = 0x01,
    MCR_RTS = 0x02,
    MCR_OUT1 = 0x04,
    MCR_OUT2 = 0x08,
    MCR_LOOP = 0x10,
    MCR_ALL = 0x1f,

    LSR_DATA = 0x01,
    LSR_OVERRUN = 0x02,
    LSR_TRANSMIT_EMPTY = 0x60, /* THRE and TEMT: what is written is gone at once */

    MSR_CTS = 0x10,
    MSR_DSR = 0x20,
    MSR_RI = 0x40,
    MSR_DCD = 0x80,
    MSR_LINES = 0xf0,
};

struct uart_state {
    uint8_t ier;
    uint8_t fcr;
    uint8_t lcr;
    uint8_t mcr;
    uint8_t lsr_errors; /* cleared by reading LSR */
    uint8_t msr;        /* lines in the high half, changes of them in the low half */
    uint8_t scr;
    uint8_t dll;
    uint8_t dlm;
    bool transmit_pending; /* the THRE interrupt has not been seen yet */
    uint8_t fifo[FIFO_SIZE];
    uint8_t fifo_count;
    uint8_t input[UART_INPUT_SIZE]; /* waits behind the FIFO */
    uint16_t input_count;
};

struct uart {
    struct device device;
    struct device_env env;
    struct uart16550_options options;
    pthread_mutex_t lock; /* guards all below */
    struct uart_state state;
    bool running; /* the interrupt line may be touched */
    bool refused; /* input was turned away; input_ready is due */
};

static const struct state_field uart_fields[] = {
    STATE_FIELD(struct uart_state, ier, STATE_U8, .max = IER_ALL),
    STATE_FIELD(struct uart_state, fcr, STATE_U8, .max = FCR_KEPT),
    STATE_FIELD(struct uart_state, lcr, STATE_U8),
    STATE_FIELD(struct uart_state, mcr, STATE_U8, .max = MCR_ALL),
    STATE_FIELD(struct uart_state, lsr_errors, STATE_U8, .max = LSR_OVERRUN),
    STATE_FIELD(struct uart_state, msr, STATE_U8),
    STATE_FIELD(struct uart_state, scr, STATE_U8),
    STATE_FIELD(struct uart_state, dll, STATE_U8),
    STATE_FIELD(struct uart_state, dlm, STATE_U8),
    STATE_FIELD(struct uart_state, transmit_pending, STATE_BOOL),
    STATE_ARRAY(struct uart_state, fifo, STATE_BYTES),
    STATE_FIELD(struct uart_state, fifo_count, STATE_U8, .max = FIFO_SIZE),
    STATE_ARRAY(struct uart_state, input, STATE_BYTES),
    STATE_FIELD(struct uart_state, input_count, STATE_U16, .max = UART_INPUT_SIZE),
};

const struct state_table uart16550_table = {
    .name = "uart16550",
    .version = 1,
    .fields = uart_fields,
    .field_count = ARRAY_SIZE(uart_fields),
    .object_size = sizeof(struct uart_state),
};

static struct uart *from_device(struct device *device)
{
    return (struct uart *)((char *)device - offsetof(struct uart, device));
}

static unsigned fifo_depth(const struct uart_state *state)
{
    return state->fcr & FCR_ENABLE ? FIFO_SIZE : 1;
}

static unsigned fifo_trigger(const struct uart_state *state)
{
    static const uint8_t levels[4] = {1, 4, 8, 14};

    return state->fcr & FCR_ENABLE ? levels[state->fcr >> 6] : 1;
}

/* The pending interrupt of highest priority, in the order of the data sheet's table. */
static uint8_t pending_interrupt(const struct uart_state *state)
{
    if ((state->ier & IER_LINE) && state->lsr_errors)
        return IIR_LINE;
    if ((state->ier & IER_RECEIVE) && state->fifo_count >= fifo_trigger(state))
        return IIR_RECEIVE;
    /* Nothing more is on the wire when the FIFO was filled, so the character time-out is over at once. */
    if ((state->ier & IER_RECEIVE) && state->fifo_count)
        return IIR_TIMEOUT;
    if ((state->ier & IER_TRANSMIT) && state->transmit_pending)
        return IIR_TRANSMIT;
    if ((state->ier & IER_MODEM) && (state->msr & 0x0f))
        return IIR_MODEM;
    return IIR_NONE;
}

static void update_interrupt(struct uart *uart)
{
    if (uart->running)
        irq_set(&uart->env.irq, pending_interrupt(&uart->state) != IIR_NONE);
}

/* Moves waiting input into the FIFO. In loopback the outside is cut off. */
static void fill_fifo(struct uart_state *state)
{
    unsigned depth = fifo_depth(state);
    unsigned room = state->fifo_count < depth ? depth - state->fifo_count : 0;
    unsigned count = room < state->input_count ? room : state->input_count;

    if (!count || (state->mcr & MCR_LOOP))
        return;
    memcpy(state->fifo + state->fifo_count, state->input, count);
    state->fifo_count += (uint8_t)count;
    state->input_count -= (uint16_t)count;
    memmove(state->input, state->input + count, state->input_count);
}

/* What the modem lines show: a terminal that is always there, or our own outputs in loopback. */
static uint8_t modem_lines(const struct uart_state *state)
{
    if (!(state->mcr & MCR_LOOP))
        return MSR_CTS | MSR_DSR | MSR_DCD;
    return (state->mcr & MCR_RTS ? MSR_CTS : 0) | (state->mcr & MCR_DTR ? MSR_DSR : 0) |
           (state->mcr & MCR_OUT1 ? MSR_RI : 0) | (state->mcr & MCR_OUT2 ? MSR_DCD : 0);
}

static void update_modem(struct uart_state *state)
{
    uint8_t lines = modem_lines(state);
    uint8_t changed = (uint8_t)((state->msr ^ lines) & MSR_LINES);

    if (lines & MSR_RI)
        changed &= (uint8_t)~MSR_RI; /* only its trailing edge counts */
    state->msr = (uint8_t)(lines | (state->msr & 0x0f) | changed >> 4);
}

static uint8_t read_data(struct uart_state *state)
{
    uint8_t value;

    if (!state->fifo_count)
        return 0;
    value = state->fifo[0];
    memmove(state->fifo, state->fifo + 1, --state->fifo_count);
    fill_fifo(state);
    return value;
}

static uint8_t read_register(struct uart_state *state, uint64_t offset)
{
    uint8_t value;

    switch (offset) {
    case REG_DATA:
        return state->lcr & LCR_DLAB ? state->dll : read_data(state);
    case REG_IER:
        return state->lcr & LCR_DLAB ? state->dlm : state->ier;
    case REG_IIR:
        value = pending_interrupt(state);
        if (value == IIR_TRANSMIT)
            state->transmit_pending = false;
        return value | (state->fcr & FCR_ENABLE ? IIR_FIFO : 0);
    case REG_LCR:
        return state->lcr;
    case REG_MCR:
        return state->mcr;
    case REG_LSR:
        value = LSR_TRANSMIT_EMPTY | state->lsr_errors | (state->fifo_count ? LSR_DATA : 0);
        state->lsr_errors = 0;
        return value;
    case REG_MSR:
        value = state->msr;
        state->msr &= MSR_LINES;
        return value;
    case REG_SCR:
        return state->scr;
    default:
        return 0;
    }
}

static uint64_t uart_read(void *opaque, uint64_t offset, unsigned size)
{
    struct uart *uart = opaque;
    bool ready = false;
    uint8_t value;

    pthread_mutex_lock(&uart->lock);
    value = read_register(&uart->state, offset);
    update_interrupt(uart);
    if (uart->refused && uart->state.input_count < UART_INPUT_SIZE / 2) {
        uart->refused = false;
        ready = true;
    }
    pthread_mutex_unlock(&uart->lock);
    if (ready && uart->options.input_ready)
        uart->options.input_ready(uart->options.opaque);
    return value;
}

static void write_data(struct uart *uart, uint8_t value)
{
    struct uart_state *state = &uart->state;

    state->transmit_pending = true; /* sent, empty again */
    if (!(state->mcr & MCR_LOOP)) {
        if (uart->options.output)
            uart->options.output(uart->options.opaque, &value, 1);
    } else if (state->fifo_count < fifo_depth(state)) {
        state->fifo[state->fifo_count++] = value;
    } else {
        state->lsr_errors |= LSR_OVERRUN;
    }
}

static void write_fcr(struct uart_state *state, uint8_t value)
{
    /* Switching the FIFOs on or off empties them; so does asking for it while they are on. */
    if (((state->fcr ^ value) & FCR_ENABLE) || ((value & FCR_ENABLE) && (value & FCR_CLEAR_RECEIVE)))
        state->fifo_count = 0;
    state->fcr = value & FCR_ENABLE ? value & FCR_KEPT : 0;
    fill_fifo(state);
}

static void write_register(struct uart *uart, uint64_t offset, uint8_t value)
{
    struct uart_state *state = &uart->state;

    switch (offset) {
    case REG_DATA:
        if (state->lcr & LCR_DLAB)
            state->dll = value;
        else
            write_data(uart, value);
        break;
    case REG_IER:
        if (state->lcr & LCR_DLAB) {
            state->dlm = value;
            break;
        }
        if (value & ~state->ier & IER_TRANSMIT)
            state->transmit_pending = true; /* it is empty, and now that is of interest */
        state->ier = value & IER_ALL;
        break;
    case REG_FCR:
        write_fcr(state, value);
        break;
    case REG_LCR:
        state->lcr = value;
        break;
    case REG_MCR:
        state->mcr = value & MCR_ALL;
        update_modem(state);
        fill_fifo(state);
        break;
    case REG_SCR:
        state->scr = value;
        break;
    default:
        break; /* LSR and MSR are read-only */
    }
}

static void uart_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct uart *uart = opaque;

    pthread_mutex_lock(&uart->lock);
    write_register(uart, offset, (uint8_t)value);
    update_interrupt(uart);
    pthread_mutex_unlock(&uart->lock);
}

static const struct mmio_ops uart_mmio_ops = {
    .read = uart_read,
    .write = uart_write,
};

size_t uart16550_input(struct device *device, const void *data, size_t size)
{
    struct uart *uart = from_device(device);
    struct uart_state *state = &uart->state;
    size_t room;
    size_t taken;

    pthread_mutex_lock(&uart->lock);
    room = UART_INPUT_SIZE - state->input_count;
    taken = size < room ? size : room;
    memcpy(state->input + state->input_count, data, taken);
    state->input_count += (uint16_t)taken;
    uart->refused = uart->refused || taken < size;
    fill_fifo(state);
    update_interrupt(uart);
    pthread_mutex_unlock(&uart->lock);
    return taken;
}

static void reset_state(struct uart_state *state)
{
    *state = (struct uart_state){.dll = 0x0c};
    state->msr = modem_lines(state);
}

static void uart_reset(struct device *device)
{
    struct uart *uart = from_device(device);

    pthread_mutex_lock(&uart->lock);
    reset_state(&uart->state);
    pthread_mutex_unlock(&uart->lock);
}

static int uart_start(struct device *device, struct ferry_error *err)
{
    struct uart *uart = from_device(device);

    pthread_mutex_lock(&uart->lock);
    uart->running = true;
    update_interrupt(uart);
    pthread_mutex_unlock(&uart->lock);
    return 0;
}

static int uart_quiesce(struct device *device, uint64_t deadline_ns, struct ferry_error *err)
{
    struct uart *uart = from_device(device);

    pthread_mutex_lock(&uart->lock);
    uart->running = false;
    pthread_mutex_unlock(&uart->lock);
    return 0;
}

static void uart_save(struct device *device, struct buffer *out)
{
    struct uart *uart = from_device(device);

    pthread_mutex_lock(&uart->lock); /* input may come at any time */
    state_save(&uart16550_table, &uart->state, out);
    pthread_mutex_unlock(&uart->lock);
}

static int uart_load(struct device *device, uint32_t version, struct reader *in, struct ferry_error *err)
{
    struct uart *uart = from_device(device);
    int result;

    pthread_mutex_lock(&uart->lock);
    result = state_load(&uart16550_table, device->name, version, &uart->state, in, err);
    pthread_mutex_unlock(&uart->lock);
    return result;
}

static void uart_destroy(struct device *device)
{
    struct uart *uart = from_device(device);

    pthread_mutex_destroy(&uart->lock);
    free(uart);
}

static const struct device_ops uart_ops = {
    .reset = uart_reset,
    .start = uart_start,
    .quiesce = uart_quiesce,
    .save = uart_save,
    .load = uart_load,
    .destroy = uart_destroy,
};

int uart16550_create(struct device **out, const struct device_env *env, unsigned index,
                     const struct uart16550_options *options, struct ferry_error *err)
{
    struct uart *uart = calloc(1, sizeof(*uart));
    int result;

    if (!uart)
        return error_set(err, -ENOMEM, "out of memory while adding uart%u", index);
    uart->device.ops = &uart_ops;
    uart->device.state = &uart16550_table;
    snprintf(uart->device.name, sizeof(uart->device.name), "uart%u", index);
    uart->env = *env;
    uart->options = *options;
    pthread_mutex_init(&uart->lock, NULL);
    reset_state(&uart->state);
    result =
        mmio_bus_add(env->bus, uart->device.name, env->mmio_addr, UART_MMIO_SIZE, &uart_mmio_ops, uart, err);
    if (result < 0) {
        uart_destroy(&uart->device);
        return result;
    }
    *out = &uart->device;
    return 0;
}
