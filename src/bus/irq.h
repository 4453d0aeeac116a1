/*
 * An interrupt line from a device to whatever interrupt controller the machine has. Level-triggered.
 * Any thread may set a line; setting it to what it is does nothing.
 */
#ifndef FERRY_BUS_IRQ_H
#define FERRY_BUS_IRQ_H

#include <stdbool.h>

struct irq_line {
    void (*set)(void *controller, unsigned number, bool level); /* NULL: not connected */
    void *controller;
    unsigned number;
};

static inline void irq_set(const struct irq_line *line, bool level)
{
    if (line->set)
        line->set(line->controller, line->number, level);
}

#endif
