/* The least that any program could do about a panic, as a reference: floor DIRECTORY COUNT
 *
 * Connects to the fleet's monitors and writes system_reset and cont as soon as a panic's bytes are
 * there. It decides nothing, waits for no answer and keeps no record.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static const char NEGOTIATE[] = "{\"execute\": \"qmp_capabilities\"}";
static const char ARM[] = "{\"execute\": \"set-action\", \"arguments\": {\"panic\": \"pause\"}}";
static const char RESTART[] = "{\"execute\": \"system_reset\"}{\"execute\": \"cont\"}";

static void say(int fd, const char *text) {
    if (send(fd, text, strlen(text), MSG_NOSIGNAL) < 0) exit(1);
}

int main(int argc, char **argv) {
    int poller = epoll_create1(EPOLL_CLOEXEC), count = argc == 3 ? atoi(argv[2]) : 0;
    alarm(3600);
    for (int i = 0; i < count; i++) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        struct epoll_event event = {.events = EPOLLIN};
        snprintf(address.sun_path, sizeof address.sun_path, "%s/vm-%05d.qmp", argv[1], i);
        event.data.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(event.data.fd, (struct sockaddr *)&address, sizeof address)) return 1;
        epoll_ctl(poller, EPOLL_CTL_ADD, event.data.fd, &event);
        say(event.data.fd, NEGOTIATE);
        say(event.data.fd, ARM);
    }
    for (;;) {
        struct epoll_event events[256];
        int ready = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            char text[16384];
            ssize_t size = read(events[i].data.fd, text, sizeof text - 1);
            if (size <= 0) return 0;
            text[size] = 0;
            if (strstr(text, "\"GUEST_PANICKED\"")) say(events[i].data.fd, RESTART);
        }
    }
}
