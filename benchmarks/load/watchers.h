/* Watchers: the handshake, the frames, and what is in them. */
#pragma once
#include "connection.h"

static void start_watcher(enum role role, int job)
{
    struct sockaddr_in local = address(started++ / PORTS, 0), remote = address(0, options.port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), yes = 1, small = 8192, segment = 1460;
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes);
    if (role == STALLED || role == SLOW) {
        /* As on a real link: with loopback's segments of 64 KiB the kernel would take megabytes in for them. */
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
        setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment);
    }
    if (fd < 0 || bind(fd, (void *)&local, sizeof local) < 0)
        die("no socket (see ulimit -n)");
    if (connect(fd, (void *)&remote, sizeof remote) < 0 && errno != EINPROGRESS)
        die("connect");
    struct connection *one = add(role, fd, job, EPOLLOUT);
    one->since = now_ns();
    if (role == STALLED || role == SLOW) {
        one->newest = calloc(options.jobs, sizeof *one->newest);
        slow_ones[slow_count++] = one;
    }
}

static void ask(struct connection *one)
{
    static long crowd;
    char head[512];
    bool crowded = one->role == CROWD;
    one->resumes = crowded && options.crowd_since && crowd++ % 2;
    const char *path = path_of(crowded && options.crowd_watch ? options.crowd_watch : options.watch, one->job);
    int size = sprintf(head,
                       "GET %s%s HTTP/1.1\r\nHost: 127.0.0.1:%ld\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                       "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                       path, one->resumes ? options.crowd_since : "", options.port);
    one->asked = true;
    if (send(one->fd, head, size, MSG_NOSIGNAL) != size)
        die("a handshake failed");
    wait_for(one, EPOLLIN);
}

/* How many bytes the head of the answer takes; 0 as long as it is not whole. */
static size_t handshake(struct connection *one, const char *data, size_t size)
{
    const char *end = memmem(data, size, "\r\n\r\n", 4);
    if (end && memcmp(data + 8, " 101", 4))
        errno = 0, die("a watcher was answered: %.*s", (int)size, data);
    if (!end)
        return 0;
    one->open = true;
    opened[one->role]++;
    if (one->newest)
        wait_for(one, 0); /* it reads when `read_slowly` says so, or never */
    return end + 4 - data;
}

static void greet(struct connection *one, uint64_t now)
{
    one->greeted = true;
    greeted[one->role]++;
    if (one->role == CROWD)
        record(one->resumes ? &resumed : &served, now - one->since);
}

static void message(struct connection *one, const char *text, size_t size, uint64_t now)
{
    static const char hello[] = "{\"type\":\"hello\"";
    if (one->role == CROWD && options.hello) { /* thousands of messages each: only `hello` counts */
        if (!one->greeted && size >= sizeof hello && !memcmp(text, hello, sizeof hello - 1))
            greet(one, now);
        return;
    }
    const char *mark = memchr(text, '@', size), *id;
    uint64_t then = 0;
    for (int i = 1; mark && i <= 16; i++)
        then = then * 10 + (mark[i] - '0');
    if (!one->greeted)
        greet(one, now);
    one->messages++;
    if (one->newest) {
        one->ends += memmem(text, size, "\"completed\"", 11) != 0;
        if (mark && (id = memmem(text, size, "-4000-8000-", 11)))
            one->newest[atoi(id + 11)] = then;
    }
    if (mark && measuring) {
        deliveries++;
        bytes += size + 4;
        if (one->role == WATCHER)
            record(crowding ? &meanwhile : &usual, now - then);
    }
}

/* Takes the frames that are whole; how many bytes they are. Servers do not mask them (RFC 6455 §5.2). */
static size_t frames(struct connection *one, char *data, size_t size, uint64_t now)
{
    size_t at = 0;
    while (size - at >= 2) {
        unsigned char *frame = (unsigned char *)data + at, opcode = frame[0] & 15;
        size_t length = frame[1] & 127, head = length == 126 ? 4 : 2;
        if (length == 127)
            errno = 0, die("a frame of more than 64 KiB");
        if (length == 126 && size - at >= head)
            length = frame[2] << 8 | frame[3];
        if (size - at < head + length)
            break;
        if (opcode == 1)
            message(one, (char *)frame + head, length, now);
        else if (opcode == 8)
            one->close_code = length < 2 ? 1005 : frame[2] << 8 | frame[3];
        at += head + length;
        if (opcode == 9) {
            char pong[140] = {(char)0x8a, (char)(0x80 | length)}; /* masked with zeros */
            memcpy(pong + 6, frame + head, length);
            send(one->fd, pong, 6 + length, MSG_NOSIGNAL | MSG_DONTWAIT);
        }
    }
    return at;
}

static void receive(struct connection *one, size_t most)
{
    size_t size = one->held_size, used = 0;
    if (size)
        memcpy(buffer, one->held, size);
    ssize_t more = recv(one->fd, buffer + size, most - size, MSG_DONTWAIT);
    if (more < 0 && errno == EAGAIN)
        return;
    if (more <= 0) {
        lost++;
        close(one->fd);
        one->fd = -1;
        return;
    }
    uint64_t now = now_ns();
    size += more;
    if (!one->open)
        used = handshake(one, buffer, size);
    if (one->open)
        used += frames(one, buffer + used, size - used, now);
    hold(one, 0, buffer + used, size - used);
}

static void read_slowly(void)
{
    for (int i = 0; i < slow_count; i++)
        if (slow_ones[i]->role == SLOW && slow_ones[i]->open && slow_ones[i]->fd >= 0)
            receive(slow_ones[i], slow_ones[i]->held_size + SLOW_BYTES);
}
