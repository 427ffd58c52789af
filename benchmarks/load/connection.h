/* A connection of a watcher or a producer, and all that is counted. */
#pragma once
#include "options.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#define JOB_ID "00000000-0000-4000-8000-%012d"

enum {
    READY = 128,           /* sockets served before the clock is read again, because an event may be due */
    BUFFER = 1 << 18,      /* bytes read at once */
    LINES = 64,            /* events written at once by a producer that goes as fast as it can */
    AT_ONCE = 64,          /* handshakes under way, except for the crowd */
    PORTS = 10000,         /* connections from one source address; then the next one, 127.0.0.2 and so on */
    CONNECT_SECONDS = 180, /* for all connections of a kind */
    CROWD_SECONDS = 60,    /* for the crowd */
    CROWD_BUFFER = 1 << 16, /* read at once by one of the crowd: the others are read in between */
    SLOW_BYTES = 125,      /* every 10 ms: 100 kbit/s */
    JOBS_MOST = 10000
};

enum role { WATCHER, IDLE, CROWD, STALLED, SLOW, PRODUCER, POLLER, ROLES };

struct connection {
    int fd, job, close_code; /* fd: -1 once it is closed */
    enum role role;
    bool asked, open, greeted, resumes;
    char *held; /* the start of a frame; of a producer: what the socket did not take */
    size_t held_size;
    uint64_t *newest; /* of a slow watcher: the time of the newest progress it has, by job */
    uint64_t since; /* of a poller: when it asked; of the crowd: when it connected */
    long messages, ends;
};

static int epoll_fd;
static struct connection *producers[JOBS_MOST], *slow_ones[64];
static long started, slow_count, opened[ROLES], greeted[ROLES], events, deliveries, reads, lost, errors;
static uint64_t next_due, newest_of_job[JOBS_MOST], bytes;
static bool producing, measuring, crowding;
static struct latencies usual, polled, meanwhile, polled_meanwhile; /* meanwhile: while the crowd connects */
static struct latencies served, resumed; /* of the crowd, and of those with a cursor: from the connect until served */
static char buffer[BUFFER];

static struct connection *add(enum role role, int fd, int job, uint32_t what)
{
    struct connection *one = calloc(1, sizeof *one);
    struct epoll_event event = {.events = what, .data.ptr = one};
    if (!one || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        die("epoll_ctl");
    one->fd = fd, one->role = role, one->job = job;
    return one;
}

static void wait_for(struct connection *one, uint32_t what)
{
    struct epoll_event event = {.events = what, .data.ptr = one};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, one->fd, &event) < 0)
        die("epoll_ctl");
}

static void hold(struct connection *one, size_t already, const char *data, size_t size)
{
    if (already + size && !(one->held = realloc(one->held, already + size)))
        die("memory");
    if (size)
        memcpy(one->held + already, data, size);
    one->held_size = already + size;
}

/* `template` with the job's id in the place of {id}. */
static const char *path_of(const char *template, int job)
{
    static char path[256];
    const char *place = strstr(template, "{id}");
    if (place)
        snprintf(path, sizeof path, "%.*s" JOB_ID "%s", (int)(place - template), template, job, place + 4);
    return place ? path : template;
}

static struct sockaddr_in address(long host, long port)
{
    return (struct sockaddr_in){AF_INET, htons(port), {htonl(INADDR_LOOPBACK + host)}, {0}};
}
