#include "cli/signals.h"

#include <sys/signalfd.h>
#include <unistd.h>

void signals_begin(struct signals *signals, const int *numbers)
{
    sigset_t set;

    sigemptyset(&set);
    for (; *numbers; numbers++)
        sigaddset(&set, *numbers);
    sigprocmask(SIG_BLOCK, &set, &signals->before);
    signals->fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals->fd < 0)
        sigprocmask(SIG_SETMASK, &signals->before, NULL);
}

int signals_next(struct signals *signals)
{
    struct signalfd_siginfo info;

    if (signals->fd < 0 || read(signals->fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
        return 0;
    return (int)info.ssi_signo;
}

void signals_end(struct signals *signals)
{
    if (signals->fd < 0)
        return;
    close(signals->fd);
    signals->fd = -1;
    sigprocmask(SIG_SETMASK, &signals->before, NULL);
}
