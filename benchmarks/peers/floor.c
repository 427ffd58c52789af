/*
 * The floor: what the kernel takes for the bytes, and nothing else. One thread sends each line it is given, in a frame,
 * to every connection there is, one send() each; no server could do with less. It answers any handshake the same way
 * and reads nothing from watchers. Arguments: PORT SOCKET.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { MOST = 20000, LINE = 4096 };

static int watchers[MOST], watcher_count;

static void admit(int fd)
{
    static const char answer[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    char head[LINE];
    int yes = 1;
    if (watcher_count == MOST || read(fd, head, sizeof head) <= 0) {
        close(fd); /* a check whether the server is up */
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    send(fd, answer, sizeof answer - 1, MSG_NOSIGNAL);
    watchers[watcher_count++] = fd;
}

static void send_to_all(const char *line, size_t size)
{
    unsigned char frame[LINE + 4] = {0x81, 126, size >> 8, size & 255}; /* lines have 126 bytes and more */
    memcpy(frame + 4, line, size);
    for (int i = 0; i < watcher_count; i++)
        send(watchers[i], frame, size + 4, MSG_NOSIGNAL);
}

static int serve_producer(int fd)
{
    static char buffer[1 << 16];
    static size_t held; /* of a line that is not whole yet; the loads with a floor have one producer */
    ssize_t size = read(fd, buffer + held, sizeof buffer - held);
    char *line = buffer, *end;
    if (size <= 0)
        return -1;
    held += size;
    for (; (end = memchr(line, '\n', buffer + held - line)); line = end + 1)
        send_to_all(line, end - line);
    held -= line - buffer;
    memmove(buffer, line, held);
    return 0;
}

int main(int count, char **arguments)
{
    struct sockaddr_in tcp = {AF_INET, htons(atoi(arguments[1])), {htonl(INADDR_LOOPBACK)}, {0}};
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    strncpy(local.sun_path, arguments[count - 1], sizeof local.sun_path - 1);
    static struct pollfd polled[1000];
    int size = 2;
    polled[0].fd = socket(AF_INET, SOCK_STREAM, 0);
    polled[1].fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(polled[1].fd, (void *)&local, sizeof local) || listen(polled[1].fd, 128) ||
        bind(polled[0].fd, (void *)&tcp, sizeof tcp) || listen(polled[0].fd, 4096)) {
        perror("floor");
        return 1;
    }
    for (;;) {
        for (int i = 0; i < size; i++)
            polled[i].events = POLLIN;
        if (poll(polled, size, -1) < 0)
            return 1;
        if (polled[0].revents)
            admit(accept(polled[0].fd, 0, 0));
        if (polled[1].revents && size < 1000)
            polled[size++].fd = accept(polled[1].fd, 0, 0);
        for (int i = 2; i < size; i++)
            if (polled[i].revents && serve_producer(polled[i].fd) < 0)
                polled[i].fd = -1;
    }
}
