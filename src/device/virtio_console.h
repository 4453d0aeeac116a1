/*
 * virtio-console (virtio 1.2 §5.3) with two ports; section "virtio-consoleN".
 *
 *     port 0  a console, hvc0 in the guest
 *     port 1  "org.ferry.control": a line protocol with an agent in the guest; the VMM sends "shutdown\n" or
 *             "reboot\n", the agent answers "ok\n"
 *
 * Output is delivered on the device's thread ("virtio-consoleN") without a lock held. Input has room for
 * VIRTIO_CONSOLE_INPUT_SIZE bytes a port, which move with the VM.
 */
#ifndef FERRY_DEVICE_VIRTIO_CONSOLE_H
#define FERRY_DEVICE_VIRTIO_CONSOLE_H

#include "device/device.h"

#include <stdbool.h>

#define VIRTIO_CONSOLE_INPUT_SIZE   1024
#define VIRTIO_CONSOLE_LINE_MAX     256 /* longest line from the agent, its newline not counted */
#define VIRTIO_CONSOLE_CONTROL_NAME "org.ferry.control"

/* All run on the device's thread, one at a time; each may be NULL. */
struct virtio_console_options {
    void *opaque;
    void (*output)(void *opaque, const void *data, size_t size); /* port 0 */
    void (*input_ready)(void *opaque);                           /* port 0 has room after a refusal */
    void (*control_line)(void *opaque, const char *line);        /* port 1, without the newline */
};

int virtio_console_create(struct device **out, const struct device_env *env, unsigned index,
                          const struct virtio_console_options *options, struct ferry_error *err);
/* Port 0. Any thread. Returns how many bytes were taken. */
size_t virtio_console_input(struct device *device, const void *data, size_t size);
/* Is there someone in the guest who has the control port open? Any thread. */
bool virtio_console_control_open(struct device *device);
/* Sends LINE (with its newline) to the agent. Any thread. -ENOTCONN when nobody has the port open, -EAGAIN
 * when it does not read. */
int virtio_console_control_send(struct device *device, const char *line, struct ferry_error *err);

#endif
