#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PORT_NAME  "org.ferry.control"
#define PORT_CLASS "/sys/class/virtio-ports"
#define PORT_LINK  "/dev/virtio-ports/" PORT_NAME

static const struct timespec grace = {.tv_nsec = 200 * 1000 * 1000};

/* Writes the device name ("vport0p1") of the control port to NAME; false while there is none. */
static bool port_find(char *name, size_t size)
{
    DIR *dir = opendir(PORT_CLASS);
    struct dirent *entry;
    bool found = false;

    if (!dir)
        return false;
    while (!found && (entry = readdir(dir))) {
        char path[320], text[64] = "";
        FILE *file;

        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof(path), PORT_CLASS "/%s/name", entry->d_name);
        file = fopen(path, "re");
        if (!file)
            continue;
        if (fgets(text, sizeof(text), file) && strcmp(strtok(text, "\n"), PORT_NAME) == 0) {
            snprintf(name, size, "%s", entry->d_name);
            found = true;
        }
        fclose(file);
    }
    closedir(dir);
    return found;
}

/* Waits until the control port exists and opens it; a negative number when it cannot be waited for. */
static int port_open(void)
{
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = 1};
    char name[256], device[300];
    int events = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
    int fd;

    if (events < 0 || bind(events, (struct sockaddr *)&address, sizeof(address)) < 0) {
        perror("ferry-work agent: kernel events");
        if (events >= 0)
            close(events);
        return -1;
    }
    /* Subscribed before the first look, so a port that appears in between is not missed. */
    while (!port_find(name, sizeof(name))) {
        char event[4096];

        if (recv(events, event, sizeof(event), 0) < 0 && errno != EINTR && errno != ENOBUFS)
            break;
    }
    close(events);
    snprintf(device, sizeof(device), "/dev/%s", name);
    mkdir("/dev/virtio-ports", 0755);
    unlink(PORT_LINK);
    if (symlink(device, PORT_LINK) < 0)
        perror("ferry-work agent: " PORT_LINK);
    fd = open(device, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        perror("ferry-work agent: control port");
    return fd;
}

/* Stops everything, as init would, and then the machine. */
static void machine_stop(int how, const char *word)
{
    printf("FERRY-GUEST STOP %s\n", word);
    kill(-1, SIGTERM);
    nanosleep(&grace, NULL);
    kill(-1, SIGKILL);
    sync();
    reboot(how);
    perror("ferry-work agent: reboot(2)");
}

static void answer(int fd, const char *text)
{
    if (write(fd, text, strlen(text)) < 0)
        perror("ferry-work agent: answer");
}

static void obey(int fd, const char *line)
{
    if (strcmp(line, "ping") == 0) {
        answer(fd, "ok\n");
    } else if (strcmp(line, "shutdown") == 0) {
        answer(fd, "ok\n");
        machine_stop(RB_POWER_OFF, line);
    } else if (strcmp(line, "reboot") == 0) {
        answer(fd, "ok\n");
        machine_stop(RB_AUTOBOOT, line);
    } else {
        answer(fd, "error unknown command\n");
    }
}

int agent_run(void)
{
    struct timespec recheck = {.tv_sec = 1};
    char line[128];
    size_t length = 0;
    sigset_t connected;
    int fd;

    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    sigemptyset(&connected);
    sigaddset(&connected, SIGIO);
    sigprocmask(SIG_BLOCK, &connected, NULL);
    fd = port_open();
    if (fd < 0)
        return 1;
    /* The driver sends SIGIO when the host opens or closes its end. */
    fcntl(fd, F_SETOWN, getpid());
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_ASYNC);
    for (;;) {
        char c;
        ssize_t got = read(fd, &c, 1);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            /* Nobody at the other end: the driver answers end-of-file until there is. */
            length = 0;
            sigtimedwait(&connected, NULL, &recheck);
        } else if (c == '\n') {
            line[length < sizeof(line) ? length : 0] = '\0';
            length = 0;
            obey(fd, line);
        } else if (length < sizeof(line)) {
            /* An overlong line ends up as an empty, and so unknown, command. */
            line[length++] = c;
            if (length == sizeof(line))
                line[0] = '\0';
        }
    }
}
