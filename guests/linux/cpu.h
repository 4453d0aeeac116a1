/* The CPU speed loops of common/loops.h as a Linux process; prints the lines that the bare-metal program
 * prints. */
#ifndef FERRY_GUEST_CPU_H
#define FERRY_GUEST_CPU_H

/* TEXT is "int|mem|fp[,iterations=N][,seconds=N]": with seconds, whole runs until they are over. Returns an
 * exit status. */
int cpu_run(const char *text);

#endif
