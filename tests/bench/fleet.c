/* QMP servers in one process, light enough not to be what is measured: fleet DIRECTORY FIRST COUNT
 *
 * Serves COUNT machines of a QEMU 7.2 on DIRECTORY/vm-NNNNN.qmp, from number FIRST on, each true in
 * its run state. There are as few to a process as a QEMU has descriptors. On standard input it is told, a line each, and answers each with a line of JSON:
 *
 *     heard COMMAND       wait until every machine was sent COMMAND; when the first one was connected,
 *                         and when that was
 *     panic FIRST COUNT   have machines panic; microseconds from before the event was written until
 *                         system_reset or quit was read, of each, once all of them run again
 *
 * Every answer has the CPU time that this process took meanwhile. It ends with its input, and after
 * an hour whatever happens. Its timing is of CLOCK_MONOTONIC.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 16384, HEARD = 64 };

struct machine {
    int number, listener, client, file;
    const char *state;
    bool pauses, acted;
    double panicked, reacted;
    char input[BUFFER], heard[HEARD];
    size_t held;
};

static struct machine *machines;
static int count, poller;
static double first_connect;
static char command[256]; /* what standard input asked for last; empty: nothing */

static void fail(const char *what) {
    fprintf(stderr, "fleet: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static double cpu(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void watch(int fd, void *data) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = data};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
}

static void say(struct machine *m, const char *text) {
    size_t size = strlen(text);
    if (m->client >= 0 && send(m->client, text, size, MSG_NOSIGNAL) != (ssize_t)size && errno != EPIPE)
        fail("a client does not read");
}

static void tell(struct machine *m, const char *event, const char *data) {
    char line[512];
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    snprintf(line, sizeof line,
             "{\"timestamp\": {\"seconds\": %ld, \"microseconds\": %ld}, \"event\": \"%s\"%s%s}\r\n",
             (long)t.tv_sec, t.tv_nsec / 1000, event, *data ? ", \"data\": " : "", data);
    say(m, line);
}

static void hang_up(struct machine *m) {
    if (m->client >= 0) close(m->client);
    if (m->file >= 0) close(m->file);
    m->client = m->file = -1;
    m->held = 0;
    m->heard[0] = 0;
}

static void panic(struct machine *m) {
    m->acted = false;
    m->panicked = now();
    tell(m, "GUEST_PANICKED", m->pauses ? "{\"action\": \"pause\"}" : "{\"action\": \"run\"}");
    if (m->pauses) {
        m->state = "guest-panicked";
        tell(m, "STOP", "");
    }
}

/* The value of a string member, such as "execute"; good enough for what panicd sends. */
static void member(const char *message, const char *key, char *value, size_t size) {
    const char *at = strstr(message, key);
    value[0] = 0;
    if (!at || !(at = strchr(at + strlen(key), '"'))) return;
    size_t length = strcspn(++at, "\"");
    snprintf(value, size, "%.*s", (int)length, at);
}

static const char PNG[] = "\x89PNG\r\n\x1a\n";

static const char *answer(struct machine *m, const char *name, const char *message) {
    static char text[256];
    if (!strcmp(name, "query-status")) {
        bool runs = !strcmp(m->state, "running");
        snprintf(text, sizeof text, "{\"status\": \"%s\", \"singlestep\": false, \"running\": %s}",
                 m->state, runs ? "true" : "false");
        return text;
    }
    if (!strcmp(name, "query-name")) {
        snprintf(text, sizeof text, "{\"name\": \"vm-%05d\"}", m->number);
        return text;
    }
    if (!strcmp(name, "query-uuid")) {
        snprintf(text, sizeof text, "{\"UUID\": \"00000000-0000-4000-8000-%012d\"}", m->number);
        return text;
    }
    if (!strcmp(name, "qom-list")) {
        if (strstr(message, "peripheral\""))
            return "[{\"name\": \"pvpanic\", \"type\": \"child<pvpanic>\"}]";
        return "[{\"name\": \"type\", \"type\": \"string\"}]";
    }
    if (!strcmp(name, "query-dump-guest-memory-capability"))
        return "{\"formats\": [\"elf\", \"kdump-zlib\", \"kdump-lzo\", \"kdump-snappy\"]}";
    if (!strcmp(name, "query-block-jobs") || !strcmp(name, "query-jobs")) return "[]";
    if (!strcmp(name, "query-dump"))
        return "{\"status\": \"none\", \"completed\": 0, \"total\": 0}";
    if (!strcmp(name, "add-fd")) return "{\"fdset-id\": 1, \"fd\": 20}";
    if (!strcmp(name, "human-monitor-command")) return "\"CPU#0\\r\\nRAX=0\\r\\n\"";
    if (!strcmp(name, "screendump")) {
        if (m->file < 0 || write(m->file, PNG, sizeof PNG - 1) < 0) return NULL;
        return "{}";
    }
    if (!strcmp(name, "remove-fd")) {
        close(m->file);
        m->file = -1;
        return "{}";
    }
    static const char *const EMPTY[] = {"qmp_capabilities", "set-action", "query-migrate",
                                        "migrate-set-capabilities", "stop", "system_reset", "cont",
                                        "quit"};
    for (size_t i = 0; i < sizeof EMPTY / sizeof *EMPTY; i++)
        if (!strcmp(name, EMPTY[i])) return "{}";
    return NULL;
}

static void execute(struct machine *m, const char *message) {
    char name[HEARD], id[64], line[1024], setting[32];
    member(message, "\"execute\"", name, sizeof name);
    member(message, "\"id\"", id, sizeof id);
    if ((!strcmp(name, "system_reset") || !strcmp(name, "quit")) && !m->acted) {
        m->reacted = now();
        m->acted = true;
    }
    if (!strcmp(name, "set-action")) {
        member(message, "\"panic\"", setting, sizeof setting);
        m->pauses = !strcmp(setting, "pause");
    }
    const char *value = answer(m, name, message);
    if (value)
        snprintf(line, sizeof line, "{\"return\": %s%s%s%s}\r\n", value, *id ? ", \"id\": \"" : "",
                 id, *id ? "\"" : "");
    else
        snprintf(line, sizeof line,
                 "{\"id\": \"%s\", \"error\": {\"class\": \"GenericError\", \"desc\": \"not here\"}}\r\n",
                 id);
    say(m, line);
    if (strcmp(name, "query-status")) /* asked now and then, of whoever is idle */
        snprintf(m->heard, sizeof m->heard, "%s", name);
    if (!strcmp(name, "system_reset")) {
        tell(m, "RESET", "{\"guest\": false, \"reason\": \"host-qmp-system-reset\"}");
        if (strcmp(m->state, "running")) m->state = "prelaunch";
    } else if (!strcmp(name, "cont") && strcmp(m->state, "running")) {
        m->state = "running";
        tell(m, "RESUME", "");
    } else if (!strcmp(name, "stop") && !strcmp(m->state, "running")) {
        m->state = "paused";
        tell(m, "STOP", "");
    } else if (!strcmp(name, "quit")) {
        tell(m, "SHUTDOWN", "{\"guest\": false, \"reason\": \"host-qmp-quit\"}");
        hang_up(m);
        m->state = "running"; /* another one takes its place */
    }
}

/* Messages follow each other without a newline: one ends where its outermost brace does. */
static void take(struct machine *m) {
    for (;;) {
        int depth = 0;
        bool quoted = false;
        size_t end = 0;
        for (size_t i = 0; i < m->held && !end; i++) {
            char c = m->input[i];
            if (quoted) {
                if (c == '\\') i++;
                else if (c == '"') quoted = false;
            } else if (c == '"') quoted = true;
            else if (c == '{') depth++;
            else if (c == '}' && --depth == 0) end = i + 1;
        }
        if (!end) return;
        char message[BUFFER];
        memcpy(message, m->input, end);
        message[end] = 0;
        memmove(m->input, m->input + end, m->held -= end);
        execute(m, message);
        if (m->client < 0) return;
    }
}

static void receive(struct machine *m) {
    char control[CMSG_SPACE(sizeof(int))];
    struct iovec part = {m->input + m->held, sizeof m->input - 1 - m->held};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                            .msg_controllen = sizeof control};
    ssize_t size = recvmsg(m->client, &header, MSG_CMSG_CLOEXEC);
    if (size < 0 && errno == EAGAIN) return;
    if (size <= 0) {
        hang_up(m);
        return;
    }
    struct cmsghdr *passed = CMSG_FIRSTHDR(&header);
    if (passed && passed->cmsg_type == SCM_RIGHTS) {
        if (m->file >= 0) close(m->file);
        memcpy(&m->file, CMSG_DATA(passed), sizeof m->file);
    }
    m->held += size;
    take(m);
}

static void greet(struct machine *m) {
    int client = accept4(m->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (client < 0) fail("accept");
    if (m->client >= 0) { /* as QEMU does, one client at a time: the fleet just refuses */
        close(client);
        return;
    }
    if (!first_connect) first_connect = now();
    m->client = client;
    watch(client, m);
    say(m, "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, "
           "\"package\": \"fleet\"}, \"capabilities\": [\"oob\"]}}\r\n");
}

static void serve(struct machine *m, const char *directory, int number) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    *m = (struct machine){.number = number, .client = -1, .file = -1, .state = "running", .pauses = true};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/vm-%05d.qmp", directory, number);
    m->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (m->listener < 0 || bind(m->listener, (struct sockaddr *)&address, sizeof address) ||
        listen(m->listener, 4))
        fail(address.sun_path);
    watch(m->listener, (char *)m + 1); /* an odd address: the listener's, not the client's */
}

/* Whether what was asked for has come; then it is answered. */
static void report(void) {
    static double began, used;
    char what[32], name[HEARD] = "";
    int first = 0, many = 0;
    if (!command[0]) return;
    sscanf(command, "%31s", what);
    if (!strcmp(what, "heard")) {
        sscanf(command, "%*s %63s", name);
        for (int i = 0; i < count; i++)
            if (strcmp(machines[i].heard, name)) return;
        printf("{\"began\": %.6f, \"ended\": %.6f, \"cpu\": %.6f}\n", first_connect, now(), cpu());
    } else if (!strcmp(what, "drop")) {
        for (int i = 0; i < count; i++) hang_up(&machines[i]);
        first_connect = 0;
        printf("{}\n");
    } else {
        sscanf(command, "%*s %d %d", &first, &many);
        if (!began) {
            began = now();
            used = cpu();
            for (int i = first; i < first + many; i++) panic(&machines[i]);
        }
        for (int i = first; i < first + many; i++)
            if (!machines[i].acted || strcmp(machines[i].state, "running")) return;
        printf("{\"began\": %.6f, \"ended\": %.6f, \"cpu\": %.6f, \"microseconds\": [", began, now(),
               cpu() - used);
        for (int i = first; i < first + many; i++)
            printf("%s%.1f", i > first ? ", " : "",
                   (machines[i].reacted - machines[i].panicked) * 1e6);
        printf("]}\n");
        began = 0;
    }
    fflush(stdout);
    command[0] = 0;
}

int main(int argc, char **argv) {
    if (argc != 4) return fprintf(stderr, "usage: fleet DIRECTORY FIRST COUNT\n"), 2;
    alarm(3600);
    int first = atoi(argv[2]);
    count = atoi(argv[3]);
    machines = calloc(count, sizeof *machines);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (!machines || poller < 0) fail("start");
    for (int i = 0; i < count; i++) serve(&machines[i], argv[1], first + i);
    watch(STDIN_FILENO, NULL);
    printf("{}\n");
    fflush(stdout);
    for (;;) {
        struct epoll_event events[256];
        int ready = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            char *data = events[i].data.ptr;
            if (!data) {
                if (!fgets(command, sizeof command, stdin)) return 0;
            } else if ((size_t)data & 1)
                greet((struct machine *)(data - 1));
            else if (((struct machine *)data)->client >= 0)
                receive((struct machine *)data);
        }
        report();
    }
}
