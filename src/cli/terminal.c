#include "cli/terminal.h"

#include <unistd.h>

void terminal_begin(struct terminal *terminal, int fd)
{
    struct termios raw;

    *terminal = (struct terminal){.fd = fd};
    if (!isatty(fd) || tcgetattr(fd, &terminal->before) < 0)
        return;
    raw = terminal->before;
    cfmakeraw(&raw);
    terminal->is_raw = tcsetattr(fd, TCSADRAIN, &raw) == 0;
}

void terminal_end(struct terminal *terminal)
{
    if (terminal->is_raw)
        tcsetattr(terminal->fd, TCSADRAIN, &terminal->before);
    terminal->is_raw = false;
}
