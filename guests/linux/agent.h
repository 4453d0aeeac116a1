/*
 * The guest's side of an orderly stop.
 *
 * The VMM offers a virtio-console port named org.ferry.control (virtio 1.2, 5.3.6.2: port names). The agent
 * waits for it, reads one command a line and answers each with one line:
 *
 *     ping       ok
 *     shutdown   ok, then powers off
 *     reboot     ok, then restarts
 *     other      error unknown command
 *
 * A machine without such a port keeps the agent waiting, which costs nothing.
 */
#ifndef FERRY_GUEST_AGENT_H
#define FERRY_GUEST_AGENT_H

/* Serves the control port until the machine stops. Returns a process exit status, and only on failure. */
int agent_run(void);

#endif
