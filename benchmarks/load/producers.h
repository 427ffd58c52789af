/* Producers: one a job, writing lines to a Unix socket, or POSTing on a connection that is kept. */
#pragma once
#include "connection.h"

static void start_producer(int job)
{
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct sockaddr_in remote = address(0, options.port);
    int fd = socket(options.http ? AF_INET : AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;
    if (options.http)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    else
        strncpy(local.sun_path, options.producer, sizeof local.sun_path - 1);
    if (connect(fd, options.http ? (void *)&remote : (void *)&local, options.http ? sizeof remote : sizeof local) < 0)
        die("a producer cannot connect");
    producers[job] = add(PRODUCER, fd, job, options.rate ? EPOLLIN : EPOLLIN | EPOLLOUT);
}

static void write_out(struct connection *one, const char *data, size_t size)
{
    ssize_t sent = one->held_size ? 0 : send(one->fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN)
        die("a producer was cut off");
    sent = sent < 0 ? 0 : sent;
    if ((size_t)sent < size) {
        hold(one, one->held_size, data + sent, size - sent);
        wait_for(one, EPOLLIN | EPOLLOUT);
    }
}

static void produce(int job, int count)
{
    static char out[LINES * 4096], text[2048];
    size_t size = 0;
    for (; count; count--, events++) {
        newest_of_job[job] = now_ns();
        int length = sprintf(text,
                             "{\"type\":\"progress\",\"job_id\":\"" JOB_ID "\",\"data\":{\"current_step\":500,"
                             "\"total_steps\":1000,\"step_name\":\"@%016" PRIu64 "\"",
                             job, newest_of_job[job]);
        int padding = options.size - length - strlen(",\"note\":\"\"}}");
        if (padding > 0)
            length += sprintf(text + length, ",\"note\":\"%0*d\"", padding, 0);
        length += sprintf(text + length, "}}");
        if (options.http)
            size += sprintf(out + size,
                            "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                            "Content-Length: %d\r\n\r\n%s",
                            path_of(options.publish, job), length, text);
        else
            size += sprintf(out + size, "%s\n", text);
    }
    write_out(producers[job], out, size);
}

static void serve_producer(struct connection *one, uint32_t what)
{
    if (what & EPOLLIN) {
        ssize_t size = recv(one->fd, buffer, BUFFER - 1, 0);
        buffer[size > 0 ? size : 0] = 0;
        if (strstr(buffer, options.http ? "HTTP/1.1 4" : "\"ok\":false") && !errors++)
            fprintf(stderr, "a producer was answered: %.300s\n", buffer);
        if (size <= 0)
            die("a producer was cut off");
    }
    if (what & EPOLLOUT && one->held_size) {
        ssize_t sent = send(one->fd, one->held, one->held_size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0)
            memmove(one->held, one->held + sent, one->held_size -= sent);
    } else if (what & EPOLLOUT && producing && !options.rate) {
        produce(one->job, LINES);
    } else if (what & EPOLLOUT) {
        wait_for(one, EPOLLIN);
    }
}
