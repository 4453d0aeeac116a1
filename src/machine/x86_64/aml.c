#include "machine/x86_64/aml.h"

#include <assert.h>
#include <string.h>

/* ACPI 6.4 §20.2.1 to §20.2.5 */
#define OP_ZERO        0x00
#define OP_ONE         0x01
#define OP_NAME        0x08
#define PREFIX_BYTE    0x0a
#define PREFIX_WORD    0x0b
#define PREFIX_DWORD   0x0c
#define PREFIX_STRING  0x0d
#define PREFIX_QWORD   0x0e
#define OP_SCOPE       0x10
#define OP_BUFFER      0x11
#define OP_PACKAGE     0x12
#define OP_METHOD      0x14
#define PREFIX_EXT     0x5b
#define EXT_REGION     0x80
#define EXT_FIELD      0x81
#define EXT_DEVICE     0x82
#define OP_LOCAL0      0x60
#define OP_STORE       0x70
#define OP_NOTIFY      0x86
#define REGION_MEMORY  0
#define FIELD_RESERVED 0
#define FIELD_DWORDS   0x03 /* accessed so, without a lock, other bits kept */
#define DWORD_BITS     32

/* §6.4.2, §6.4.3 */
#define RESOURCE_IRQ       0x22
#define RESOURCE_PORTS     0x47
#define RESOURCE_END       0x79
#define RESOURCE_MEMORY    0x86
#define RESOURCE_INTERRUPT 0x89
#define PORTS_DECODE_16    0x01
#define MEMORY_WRITABLE    0x01
#define INTERRUPT_CONSUMER 0x01

static void put_name(struct buffer *out, const char *name)
{
    assert(strlen(name) == (name[0] == '\\' ? 5 : 4));
    buffer_put(out, name, strlen(name));
}

static void put_integer(struct buffer *out, uint64_t value)
{
    if (value <= 1) {
        buffer_put_u8(out, value ? OP_ONE : OP_ZERO);
    } else if (value <= UINT8_MAX) {
        buffer_put_u8(out, PREFIX_BYTE);
        buffer_put_u8(out, (uint8_t)value);
    } else if (value <= UINT16_MAX) {
        buffer_put_u8(out, PREFIX_WORD);
        buffer_put_u16(out, (uint16_t)value);
    } else if (value <= UINT32_MAX) {
        buffer_put_u8(out, PREFIX_DWORD);
        buffer_put_u32(out, (uint32_t)value);
    } else {
        buffer_put_u8(out, PREFIX_QWORD);
        buffer_put_u64(out, value);
    }
}

/*
 * PkgLength (§20.2.4): one byte up to 63; else the low four bits in the first byte, which also says how many
 * bytes FOLLOW, eight bits each.
 */
static void put_length(struct buffer *out, size_t length, unsigned follow)
{
    assert(length <= 0xfffffff);
    if (!follow) {
        buffer_put_u8(out, (uint8_t)length);
        return;
    }
    buffer_put_u8(out, (uint8_t)(follow << 6 | (length & 0x0f)));
    for (unsigned i = 0; i < follow; i++)
        buffer_put_u8(out, (uint8_t)(length >> (4 + 8 * i)));
}

/* Of a package it counts itself. */
static void put_package_length(struct buffer *out, size_t body)
{
    unsigned follow = body + 1 <= 0x3f ? 0 : body + 2 <= 0xfff ? 1 : body + 3 <= 0xfffff ? 2 : 3;

    put_length(out, body + 1 + follow, follow);
}

/* Of a field it is its bits. */
static void put_field_length(struct buffer *out, size_t bits)
{
    put_length(out, bits, bits <= 0x3f ? 0 : bits <= 0xfff ? 1 : bits <= 0xfffff ? 2 : 3);
}

/* Moves BODY behind its length. */
static void put_body(struct buffer *out, struct buffer *body)
{
    put_package_length(out, body->size);
    buffer_put(out, body->data, body->size);
    out->failed = out->failed || buffer_failed(body);
    buffer_free(body);
}

void aml_name_integer(struct buffer *out, const char *name, uint64_t value)
{
    buffer_put_u8(out, OP_NAME);
    put_name(out, name);
    put_integer(out, value);
}

void aml_name_string(struct buffer *out, const char *name, const char *value)
{
    buffer_put_u8(out, OP_NAME);
    put_name(out, name);
    buffer_put_u8(out, PREFIX_STRING);
    buffer_put(out, value, strlen(value) + 1);
}

static unsigned hex_digit(char c)
{
    return c <= '9' ? (unsigned)(c - '0') : (unsigned)(c - 'A') + 10;
}

/* §19.3.4: three letters of five bits, four hexadecimal digits, big-endian. */
void aml_name_eisa_id(struct buffer *out, const char *name, const char *id)
{
    uint16_t letters, number = 0;

    assert(strlen(id) == 7);
    letters = (uint16_t)((id[0] - 0x40) << 10 | (id[1] - 0x40) << 5 | (id[2] - 0x40));
    for (unsigned i = 3; i < 7; i++)
        number = (uint16_t)(number << 4 | hex_digit(id[i]));
    buffer_put_u8(out, OP_NAME);
    put_name(out, name);
    buffer_put_u8(out, PREFIX_DWORD);
    buffer_put_u16(out, (uint16_t)(letters >> 8 | letters << 8));
    buffer_put_u16(out, (uint16_t)(number >> 8 | number << 8));
}

void aml_name_package(struct buffer *out, const char *name, const uint64_t *values, uint8_t count)
{
    struct buffer body = BUFFER_INIT;

    buffer_put_u8(&body, count);
    for (unsigned i = 0; i < count; i++)
        put_integer(&body, values[i]);
    buffer_put_u8(out, OP_NAME);
    put_name(out, name);
    buffer_put_u8(out, OP_PACKAGE);
    put_body(out, &body);
}

void aml_name_resources(struct buffer *out, const char *name, struct buffer *resources)
{
    struct buffer body = BUFFER_INIT;

    buffer_put_u8(resources, RESOURCE_END);
    buffer_put_u8(resources, 0); /* no checksum */
    put_integer(&body, resources->size);
    buffer_put(&body, resources->data, resources->size);
    body.failed = body.failed || buffer_failed(resources);
    buffer_free(resources);
    buffer_put_u8(out, OP_NAME);
    put_name(out, name);
    buffer_put_u8(out, OP_BUFFER);
    put_body(out, &body);
}

/* NAME and then BODY, as one body. */
static void put_named_body(struct buffer *out, const char *name, struct buffer *body)
{
    struct buffer all = BUFFER_INIT;

    put_name(&all, name);
    buffer_put(&all, body->data, body->size);
    all.failed = all.failed || buffer_failed(body);
    buffer_free(body);
    put_body(out, &all);
}

void aml_scope(struct buffer *out, const char *name, struct buffer *body)
{
    buffer_put_u8(out, OP_SCOPE);
    put_named_body(out, name, body);
}

void aml_device(struct buffer *out, const char *name, struct buffer *body)
{
    buffer_put_u8(out, PREFIX_EXT);
    buffer_put_u8(out, EXT_DEVICE);
    put_named_body(out, name, body);
}

void aml_region(struct buffer *out, const char *name, uint32_t addr, uint32_t size)
{
    buffer_put_u8(out, PREFIX_EXT);
    buffer_put_u8(out, EXT_REGION);
    put_name(out, name);
    buffer_put_u8(out, REGION_MEMORY);
    put_integer(out, addr);
    put_integer(out, size);
}

void aml_field(struct buffer *out, const char *region, const char *name, uint32_t offset)
{
    struct buffer body = BUFFER_INIT;

    buffer_put_u8(&body, FIELD_DWORDS);
    buffer_put_u8(&body, FIELD_RESERVED);
    put_field_length(&body, (size_t)offset * 8);
    put_name(&body, name);
    put_field_length(&body, DWORD_BITS);
    buffer_put_u8(out, PREFIX_EXT);
    buffer_put_u8(out, EXT_FIELD);
    put_named_body(out, region, &body);
}

void aml_method(struct buffer *out, const char *name, uint8_t arguments, struct buffer *body)
{
    struct buffer all = BUFFER_INIT;

    assert(arguments <= 7);
    buffer_put_u8(&all, arguments);
    buffer_put(&all, body->data, body->size);
    all.failed = all.failed || buffer_failed(body);
    buffer_free(body);
    buffer_put_u8(out, OP_METHOD);
    put_named_body(out, name, &all);
}

void aml_read(struct buffer *out, const char *name)
{
    buffer_put_u8(out, OP_STORE);
    put_name(out, name);
    buffer_put_u8(out, OP_LOCAL0);
}

void aml_notify(struct buffer *out, const char *device, uint8_t value)
{
    buffer_put_u8(out, OP_NOTIFY);
    put_name(out, device);
    put_integer(out, value);
}

void aml_resource_memory(struct buffer *out, uint32_t addr, uint32_t size)
{
    buffer_put_u8(out, RESOURCE_MEMORY);
    buffer_put_u16(out, 9);
    buffer_put_u8(out, MEMORY_WRITABLE);
    buffer_put_u32(out, addr);
    buffer_put_u32(out, size);
}

void aml_resource_interrupt(struct buffer *out, uint32_t gsi)
{
    buffer_put_u8(out, RESOURCE_INTERRUPT);
    buffer_put_u16(out, 6);
    buffer_put_u8(out, INTERRUPT_CONSUMER);
    buffer_put_u8(out, 1);
    buffer_put_u32(out, gsi);
}

void aml_resource_ports(struct buffer *out, uint16_t port, uint8_t count)
{
    buffer_put_u8(out, RESOURCE_PORTS);
    buffer_put_u8(out, PORTS_DECODE_16);
    buffer_put_u16(out, port);
    buffer_put_u16(out, port);
    buffer_put_u8(out, 1);
    buffer_put_u8(out, count);
}

void aml_resource_isa_irq(struct buffer *out, unsigned irq)
{
    buffer_put_u8(out, RESOURCE_IRQ);
    buffer_put_u16(out, (uint16_t)(1u << irq));
}
