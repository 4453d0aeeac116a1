/*
 * Writes ACPI machine language, as much as describing devices takes (ACPI 6.4 §20.2 for AML, §6.4 for
 * resources). What has a body takes it as a buffer of its own, because its length comes first; the body is
 * freed. A buffer that fails makes those it goes into fail (base/buffer.h).
 */
#ifndef FERRY_MACHINE_X86_64_AML_H
#define FERRY_MACHINE_X86_64_AML_H

#include "base/buffer.h"

#include <stdint.h>

/* NAME: four characters, with a leading backslash for the root; an integer, a text, an EISA id ("PNP0501").
 */
void aml_name_integer(struct buffer *out, const char *name, uint64_t value);
void aml_name_string(struct buffer *out, const char *name, const char *value);
void aml_name_eisa_id(struct buffer *out, const char *name, const char *id);
/* A package of COUNT integers. */
void aml_name_package(struct buffer *out, const char *name, const uint64_t *values, uint8_t count);
/* RESOURCES without their end tag. */
void aml_name_resources(struct buffer *out, const char *name, struct buffer *resources);

void aml_scope(struct buffer *out, const char *name, struct buffer *body);
void aml_device(struct buffer *out, const char *name, struct buffer *body);

/* A piece of what memory accesses reach, and in it a field of 32 bits, OFFSET bytes from its start. */
void aml_region(struct buffer *out, const char *name, uint32_t addr, uint32_t size);
void aml_field(struct buffer *out, const char *region, const char *name, uint32_t offset);
/* BODY is made of the two below. */
void aml_method(struct buffer *out, const char *name, uint8_t arguments, struct buffer *body);
void aml_read(struct buffer *out, const char *name); /* a field, for the sake of reading it */
void aml_notify(struct buffer *out, const char *device, uint8_t value);

void aml_resource_memory(struct buffer *out, uint32_t addr, uint32_t size);
/* Level-triggered, active high, not shared. */
void aml_resource_interrupt(struct buffer *out, uint32_t gsi);
void aml_resource_ports(struct buffer *out, uint16_t port, uint8_t count);
/* An ISA interrupt: edge-triggered, active high. */
void aml_resource_isa_irq(struct buffer *out, unsigned irq);

#endif
