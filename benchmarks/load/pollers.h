/* Pollers: they read a job that does not change, over and over, on connections that are kept. */
#pragma once
#include "connection.h"

static struct connection *pollers[1000];
static uint64_t next_poll;
static char etag[160];
static bool polling;

static void start_poller(int number)
{
    struct sockaddr_in remote = address(0, options.port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (connect(fd, (void *)&remote, sizeof remote) < 0)
        die("a poller cannot connect");
    pollers[number] = add(POLLER, fd, options.jobs, EPOLLIN);
}

static void poll_once(struct connection *one)
{
    char head[512], known[200] = "";
    if (options.unchanged && etag[0])
        snprintf(known, sizeof known, "If-None-Match: %s\r\n", etag);
    int size = snprintf(head, sizeof head, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%ld\r\nAccept: */*\r\n%s\r\n",
                        path_of("/api/jobs/{id}", one->job), options.port, known);
    one->asked = true;
    one->since = now_ns();
    if (send(one->fd, head, size, MSG_NOSIGNAL) != size)
        die("a poller was cut off");
}

/* How many bytes the answer has; 0 as long as it is not whole. */
static size_t whole_answer(const char *data, size_t size)
{
    const char *end = memmem(data, size, "\r\n\r\n", 4), *length;
    if (!end)
        return 0;
    size_t whole = end + 4 - data;
    if ((length = strcasestr(data, "content-length:")) && length < end)
        whole += atol(length + 15);
    return whole <= size ? whole : 0;
}

static void serve_poller(struct connection *one)
{
    size_t size = one->held_size;
    if (size)
        memcpy(buffer, one->held, size);
    ssize_t more = recv(one->fd, buffer + size, BUFFER - 1 - size, MSG_DONTWAIT);
    if (more <= 0)
        errno = 0, die("a poller was cut off");
    buffer[size += more] = 0;
    if (!whole_answer(buffer, size)) {
        hold(one, 0, buffer, size);
        return;
    }
    one->held_size = 0;
    if (memcmp(buffer, "HTTP/1.1 200", 12) && memcmp(buffer, "HTTP/1.1 304", 12))
        errno = 0, die("a poller was answered: %.200s", buffer);
    const char *found = etag[0] ? 0 : strcasestr(buffer, "etag: ");
    if (found)
        snprintf(etag, sizeof etag, "%.*s", (int)strcspn(found + 6, "\r"), found + 6);
    one->asked = false;
    if (measuring) {
        reads++;
        record(crowding ? &polled_meanwhile : &polled, now_ns() - one->since);
    }
    if (polling && !options.poll_rate)
        poll_once(one);
}

/* The reads that are due, each on a connection that waits for nothing; when the next one is. */
static uint64_t poll_all(uint64_t now)
{
    static long next;
    if (!polling || !options.poll_rate)
        return UINT64_MAX;
    for (; next_poll <= now; next_poll += SECOND / options.poll_rate)
        for (long tried = 0; tried < options.polls; tried++) {
            struct connection *one = pollers[next++ % options.polls];
            if (!one->asked) {
                poll_once(one);
                break;
            }
        }
    return next_poll;
}

static void start_polling(void)
{
    for (long i = 0; i < options.polls; i++)
        start_poller(i);
    next_poll = now_ns();
    polling = options.polls;
    for (long i = 0; i < options.polls && !options.poll_rate; i++)
        poll_once(pollers[i]);
}
