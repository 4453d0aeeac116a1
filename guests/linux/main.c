/*
 * ferry-work: everything the test guest does beside what busybox can, one subcommand each. See
 * guests/README.md.
 */
#include "agent.h"
#include "cpu.h"
#include "disk.h"
#include "echo.h"
#include "timeserver.h"
#include "work.h"

#include <stdio.h>
#include <string.h>

struct command {
    const char *name;
    const char *argument; /* What its argument is called; NULL when it has none. */
    int (*run)(const char *argument);
};

static int command_agent(const char *argument)
{
    (void)argument;
    return agent_run();
}

static const struct command commands[] = {
    {"agent", NULL, command_agent},     {"clock", "ADDRESS:PORT", timeserver_ask},
    {"cpu", "LOOP[,OPTIONS]", cpu_run}, {"disk", "DEVICE[,OPTIONS]", disk_run},
    {"echo", "PORT", echo_run},         {"run", "OPTIONS", work_run},
    {"time", "PORT", timeserver_run},
};

#define COMMAND_COUNT (sizeof(commands) / sizeof(commands[0]))

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; i < COMMAND_COUNT && argc >= 2; i++) {
        if (strcmp(argv[1], commands[i].name) != 0 || argc != (commands[i].argument ? 3 : 2))
            continue;
        return commands[i].run(argc > 2 ? argv[2] : NULL);
    }
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        fprintf(stderr, "usage: ferry-work %s %s\n", commands[i].name,
                commands[i].argument ? commands[i].argument : "");
    return 2;
}
