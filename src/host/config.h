/*
 * What ferryd was told by its command line and its configuration file.
 *
 * The file has lines "key = value", '#' begins a comment; keys are the long options' names. The command line
 * wins over the file. One table in config.c describes every key, for both.
 */
#ifndef FERRY_HOST_CONFIG_H
#define FERRY_HOST_CONFIG_H

#include "base/sock.h"

#include <ferry/error.h>

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define HOST_NAME_SIZE 64 /* a host's or a VM's name with its NUL */

#define CONFIG_CERTIFICATE "certificate.pem" /* in the state directory (certificate.h) */
#define CONFIG_DELTA_CACHE (64u << 20)       /* unless said otherwise */

struct config {
    char state_dir[PATH_MAX];                /* absolute */
    char name[HOST_NAME_SIZE];               /* this host's name */
    char listen[SOCK_ADDRESS_SIZE];          /* "ADDR:PORT", empty: no TCP */
    char migrate_address[SOCK_ADDRESS_SIZE]; /* numeric address without a port; where moving VMs connect to */
    char lock_dir[PATH_MAX];                 /* empty: none */
    char cpu_table[PATH_MAX];   /* says what the CPU is, instead of the CPU; empty: the CPU does */
    char lock_wait[8];          /* seconds, in digits; empty: ferry-vm's default */
    char seccomp[8];            /* "on", "log", "off": ferry-vm's system call filters */
    uint64_t peer_timeout_ns;   /* another host that says nothing for so long is dead */
    uint64_t vm_timeout_ns;     /* and so is a VM's process, or it does not end when told to */
    uint64_t reconnect_ns;      /* quick resume: how long a lost connection is tried again by itself */
    uint64_t start_timeout_ns;  /* to get a VM's memory, or give it back, here or on another host */
    char vm_program[PATH_MAX];  /* the ferry-vm to start */
    bool insecure;              /* addresses other than loopback are allowed, and TCP without TLS */
    bool require_tls;           /* no TCP, and no migration, without TLS */
    uint64_t migrate_bandwidth; /* bytes/s all VMs that leave may take together; 0: no limit */
    unsigned migrate_max;       /* VMs that leave at once; 0: no limit */
    uint64_t delta_cache;       /* bytes a VM that leaves may keep of what was sent of it */
    uint64_t log_size;          /* bytes; ferryd.log is rotated when it is larger */
    uint64_t vm_log_size;       /* bytes; and each VM's vm.log */
    unsigned log_files;         /* older ones that are kept, of each */
    uint64_t memory_limit;      /* bytes all VMs together may have; 0: what the machine has */
};

enum config_action {
    CONFIG_RUN = 1,
    CONFIG_HELP,
    CONFIG_VERSION,
};

/* Reads the command line and, when named there, the file. -EINVAL: bad usage, err says what. */
int config_read(struct config *config, int argc, char **argv, enum config_action *action,
                struct ferry_error *err);
void config_usage(FILE *stream);

/* 1 to 63 of [A-Za-z0-9._-], beginning with a letter or a digit. */
bool config_name_valid(const char *name);

/* "125M", "1G" bytes a second, or "10Gbit", "100Mbit" bits a second in powers of 1000; to bytes a second. */
int config_parse_rate(const char *text, uint64_t *bytes_per_s, struct ferry_error *err);

/* "256M", "4GiB", "1048576" to bytes. -EINVAL when it is none or does not fit. */
int config_parse_size(const char *text, uint64_t *bytes, struct ferry_error *err);

#endif
