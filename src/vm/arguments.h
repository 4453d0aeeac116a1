/*
 * ferry-vm's command line. What is wrong is said on standard error.
 */
#ifndef FERRY_VM_ARGUMENTS_H
#define FERRY_VM_ARGUMENTS_H

#include "vm/vm.h"

/* OPTIONS has the defaults, FORMER is the directory given to --upgrade; both borrow from ARGV. Returns -1 to
 * go on, else the exit status: 2 for bad usage. */
int arguments_parse(int argc, char **argv, struct vm_options *options, const char **former);

#endif
