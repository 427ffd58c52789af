/*
 * load: the watchers and the producers of one benchmark run; one thread, epoll, raw sockets, no library.
 *
 *     load port=8080 producer=/tmp/ingest.sock watch=/ws/jobs/{id} jobs=1 watchers=500 rate=100 pids=1234
 *
 * It connects the watchers of each job, then the idle ones (of other jobs), then the slow ones; starts one producer a
 * job; and measures between the end of the warm-up and the end of the steady phase. Every event carries the time at
 * which its producer wrote it, "@" and 16 digits of nanoseconds, and every watcher looks for it in what it reads.
 * The servers' CPU is read here (clock_getcpuclockid), so that it is that of the steady phase and nothing else.
 * The result is one JSON object on stdout. Phases and connecting are bounded in time; every address is a loopback one.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define JOB_ID "00000000-0000-4000-8000-%012d"
#define SECOND 1000000000ull
#define MILLISECOND 1000000ull

enum {
    EVENTS = 128,             /* taken from epoll at once: few, lest an event that is due has to wait */
    BUFFER = 1 << 18,         /* bytes read at once */
    LINES = 64,               /* events written at once by a producer that goes as fast as it can */
    AT_ONCE = 64,             /* handshakes under way, except for the crowd */
    PORTS = 10000,            /* connections from one source address; then the next one, 127.0.0.2 and so on */
    CONNECT_SECONDS = 180,    /* for all connections of a kind */
    CROWD_SECONDS = 20,       /* for the crowd */
    SLOW_BYTES_PER_TICK = 125 /* every 10 ms: 100 kbit/s */
};

static struct {
    long port, jobs, watchers, idle, idle_jobs, crowd, stalled, slow, rate, size, warmup_ms, steady_ms, http, snapshot,
        finish;
    const char *producer, *watch, *publish, *pids;
} options = {.jobs = 1, .idle_jobs = 100, .warmup_ms = 1000, .steady_ms = 3000};

static const struct {
    const char *name;
    long *number;
    const char **text;
} known_options[] = {
    {"port", &options.port, 0},           {"jobs", &options.jobs, 0},
    {"watchers", &options.watchers, 0},   /* of each job */
    {"idle", &options.idle, 0},           {"idle_jobs", &options.idle_jobs, 0}, /* that the idle ones and the crowd watch */
    {"crowd", &options.crowd, 0},         /* watchers that connect all at once in the steady phase */
    {"stalled", &options.stalled, 0},     /* watchers that never read */
    {"slow", &options.slow, 0},           /* watchers that read 100 kbit/s */
    {"rate", &options.rate, 0},           /* events a second over all jobs; 0: as fast as the server takes them */
    {"size", &options.size, 0},           /* bytes of an event, padded; 0: as short as it is */
    {"warmup_ms", &options.warmup_ms, 0}, {"steady_ms", &options.steady_ms, 0},
    {"http", &options.http, 0},           /* 1: events are POSTed to `publish`, else lines on the Unix socket `producer` */
    {"snapshot", &options.snapshot, 0},   /* 1: the server greets a watcher with a message */
    {"finish", &options.finish, 0},       /* 1: complete the jobs in the end, and see what the slow ones get */
    {"producer", 0, &options.producer},   {"watch", 0, &options.watch},
    {"publish", 0, &options.publish},     {"pids", 0, &options.pids},
};

enum role { WATCHER, IDLE, CROWD, STALLED, SLOW, PRODUCER, ROLES };

struct connection {
    int fd, job, close_code;
    enum role role;
    bool asked, open, greeted;
    char *held; /* a frame that is not whole yet; of a producer: what the socket did not take */
    size_t held_size;
    uint64_t *newest; /* of a slow watcher: time of the newest progress it has, by job */
    long messages, ends;
};

struct latencies {
    uint64_t count[8192], total, max;
};

static int epoll_fd, pids[64], pid_count;
static struct connection *producers[100000], *slow_ones[64];
static int slow_count, source_count;
static long opened[ROLES], greeted[ROLES];
static long events, deliveries, lost, refused, errors;
static uint64_t bytes, next_due, newest_of_job[100000];
static bool producing, measuring, crowding;
static struct latencies usual, meanwhile; /* meanwhile: while the crowd connects */
static char buffer[BUFFER];

static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "%s%s\n", errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec time;
    if (clock_gettime(clock, &time) < 0)
        die("a server has died");
    return time.tv_sec * SECOND + time.tv_nsec;
}

static uint64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

/* User and system time of all threads of the servers, in ns: what /proc/PID/stat gives in steps of 10 ms. */
static uint64_t server_cpu(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < pid_count; i++) {
        clockid_t clock;
        if (clock_getcpuclockid(pids[i], &clock))
            die("the server %d has died", pids[i]);
        sum += clock_ns(clock);
    }
    return sum;
}

static uint64_t server_memory(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < pid_count; i++) {
        char path[64];
        long size, resident = 0;
        snprintf(path, sizeof path, "/proc/%d/statm", pids[i]);
        FILE *file = fopen(path, "r");
        if (!file || fscanf(file, "%ld %ld", &size, &resident) != 2)
            die("%s", path);
        fclose(file);
        sum += resident * sysconf(_SC_PAGESIZE);
    }
    return sum;
}

/* Buckets of 1/128 of their value, so a percentile is right to 0.8 %. */
static void record(struct latencies *to, uint64_t ns)
{
    int shift = ns < 256 ? 0 : 56 - __builtin_clzll(ns);
    to->count[(shift << 7) + (ns >> shift)]++;
    to->total++;
    if (ns > to->max)
        to->max = ns;
}

static double percentile_ms(const struct latencies *of, double share)
{
    uint64_t below = 0;
    for (int i = 0; i < 8192; i++) {
        below += of->count[i];
        if (below && below >= share * of->total) {
            int shift = i < 256 ? 0 : (i >> 7) - 1;
            return ((uint64_t)(i - (shift << 7)) << shift) / 1e6;
        }
    }
    return 0;
}

static void listen_for(struct connection *one, uint32_t what)
{
    struct epoll_event event = {.events = what, .data.ptr = one};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, one->fd, &event) < 0)
        die("epoll_ctl");
}

static void hold(struct connection *one, const char *data, size_t size)
{
    if (size && !(one->held = realloc(one->held, size)))
        die("memory");
    memmove(one->held, data, size);
    one->held_size = size;
}

static struct connection *add(enum role role, int fd, int job, uint32_t what)
{
    struct connection *one = calloc(1, sizeof *one);
    struct epoll_event event = {.events = what, .data.ptr = one};
    if (!one || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        die("epoll_ctl");
    one->fd = fd, one->role = role, one->job = job;
    return one;
}

/* `template` with each job's id in the place of {id}. */
static const char *path_of(const char *template, int job)
{
    static char path[256];
    const char *place = strstr(template, "{id}");
    if (place)
        snprintf(path, sizeof path, "%.*s" JOB_ID "%s", (int)(place - template), template, job, place + 4);
    return place ? path : template;
}

/* ---- producers ---- */

static void send_out(struct connection *one, const char *data, size_t size)
{
    ssize_t sent = one->held_size ? 0 : send(one->fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN)
        die("a producer was cut off");
    if (sent < 0)
        sent = 0;
    if ((size_t)sent == size)
        return;
    if (!(one->held = realloc(one->held, one->held_size + size - sent)))
        die("memory");
    memcpy(one->held + one->held_size, data + sent, size - sent);
    one->held_size += size - sent;
    listen_for(one, EPOLLIN | EPOLLOUT);
}

static int event_text(char *text, int job)
{
    uint64_t now = now_ns();
    int length = sprintf(text,
                         "{\"type\":\"progress\",\"job_id\":\"" JOB_ID "\",\"data\":{\"current_step\":500,"
                         "\"total_steps\":1000,\"step_name\":\"@%016" PRIu64 "\"",
                         job, now);
    int padding = options.size - length - 12;
    if (padding > 0)
        length += sprintf(text + length, ",\"note\":\"%0*d\"", padding, 0);
    newest_of_job[job] = now;
    events++;
    return length + sprintf(text + length, "}}");
}

static void produce(int job, int count)
{
    static char out[LINES * 4096];
    char text[2048];
    size_t size = 0;
    while (count--) {
        int length = event_text(text, job);
        if (options.http)
            size += sprintf(out + size,
                            "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                            "Content-Length: %d\r\n\r\n%s",
                            path_of(options.publish, job), length, text);
        else
            size += sprintf(out + size, "%s\n", text);
    }
    send_out(producers[job], out, size);
}

static void complete(int job)
{
    char line[256];
    int length = sprintf(line, "{\"type\":\"completed\",\"job_id\":\"" JOB_ID "\",\"data\":{}}\n", job);
    send_out(producers[job], line, length);
}

static void serve_producer(struct connection *one, uint32_t what)
{
    if (what & EPOLLIN) {
        ssize_t size = recv(one->fd, buffer, BUFFER - 1, 0);
        buffer[size > 0 ? size : 0] = 0;
        if (size <= 0 || strstr(buffer, options.http ? "HTTP/1.1 4" : "\"ok\":false"))
            if (!errors++)
                fprintf(stderr, "a producer was answered: %.300s\n", buffer);
        if (size <= 0)
            die("a producer was cut off");
    }
    if (!(what & EPOLLOUT))
        return;
    if (one->held_size) {
        ssize_t sent = send(one->fd, one->held, one->held_size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0)
            memmove(one->held, one->held + sent, one->held_size -= sent);
    } else if (producing && !options.rate) {
        produce(one->job, LINES);
    } else {
        listen_for(one, EPOLLIN);
    }
}

static void start_producer(int job)
{
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct sockaddr_in remote = {AF_INET, htons(options.port), {htonl(INADDR_LOOPBACK)}, {0}};
    strncpy(local.sun_path, options.producer ? options.producer : "", sizeof local.sun_path - 1);
    int fd = socket(options.http ? AF_INET : AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;
    if (options.http)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (connect(fd, options.http ? (void *)&remote : (void *)&local, options.http ? sizeof remote : sizeof local) < 0)
        die("a producer cannot connect");
    producers[job] = add(PRODUCER, fd, job, options.rate ? EPOLLIN : EPOLLIN | EPOLLOUT);
}

/* ---- watchers ---- */

static void start_watcher(enum role role, int job)
{
    struct sockaddr_in remote = {AF_INET, htons(options.port), {htonl(INADDR_LOOPBACK)}, {0}};
    struct sockaddr_in local = {AF_INET, 0, {htonl(INADDR_LOOPBACK + source_count++ / PORTS)}, {0}};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), yes = 1, small = 8192;
    if (fd < 0)
        die("socket (see ulimit -n)");
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes);
    if (role == STALLED || role == SLOW) /* what the kernel would take in for them is not theirs yet */
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    if (bind(fd, (void *)&local, sizeof local) < 0)
        die("bind");
    if (connect(fd, (void *)&remote, sizeof remote) < 0 && errno != EINPROGRESS)
        die("connect");
    struct connection *one = add(role, fd, job, EPOLLOUT);
    if (role == STALLED || role == SLOW) {
        one->newest = calloc(options.jobs, sizeof *one->newest);
        slow_ones[slow_count++] = one;
    }
}

static void ask(struct connection *one)
{
    char head[512];
    int size = sprintf(head,
                       "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%ld\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                       "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                       path_of(options.watch, one->job), options.port);
    one->asked = true;
    if (send(one->fd, head, size, MSG_NOSIGNAL) != size)
        die("a handshake failed");
    listen_for(one, EPOLLIN);
}

static void gone(struct connection *one)
{
    lost++;
    refused += !one->open;
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, one->fd, 0);
    close(one->fd);
    one->fd = -1;
}

/* How many bytes the head of the answer takes; 0 as long as it is not whole. */
static size_t handshake(struct connection *one, const char *data, size_t size)
{
    const char *end = memmem(data, size, "\r\n\r\n", 4);
    if (!end)
        return 0;
    if (memcmp(data + 8, " 101", 4)) {
        if (!refused)
            fprintf(stderr, "a watcher was answered: %.*s\n", (int)size, data);
        gone(one);
        return size;
    }
    one->open = true;
    opened[one->role]++;
    if (one->role == STALLED || one->role == SLOW)
        listen_for(one, 0); /* from here on it reads as `read_slowly` says */
    return end + 4 - data;
}

static void message(struct connection *one, const char *text, size_t size, uint64_t now)
{
    one->messages++;
    if (!one->greeted) {
        one->greeted = true;
        greeted[one->role]++;
    }
    const char *mark = memchr(text, '@', size);
    uint64_t then = 0;
    for (int i = 1; mark && i <= 16; i++)
        then = then * 10 + (mark[i] - '0');
    if (one->newest) {
        const char *id = memmem(text, size, "-4000-8000-", 11);
        if (mark && id)
            one->newest[atoi(id + 11)] = then;
        one->ends += memmem(text, size, "\"completed\"", 11) != 0;
    }
    if (!mark || !measuring)
        return;
    deliveries++;
    bytes += size + 4;
    if (one->role == WATCHER)
        record(crowding ? &meanwhile : &usual, now - then);
}

/* Takes the whole frames; how many bytes they are. Servers send them unmasked (RFC 6455 §5.2). */
static size_t frames(struct connection *one, char *data, size_t size, uint64_t now)
{
    size_t at = 0;
    while (size - at >= 2) {
        unsigned char *frame = (unsigned char *)data + at;
        size_t head = 2, length = frame[1] & 127;
        if (length == 126 && size - at >= (head = 4))
            length = frame[2] << 8 | frame[3];
        else if (length == 127)
            die("a frame of more than 64 KiB");
        if (size - at < head + length)
            break;
        if ((frame[0] & 15) == 1)
            message(one, (char *)frame + head, length, now);
        else if ((frame[0] & 15) == 8)
            one->close_code = length >= 2 ? frame[2] << 8 | frame[3] : 1005;
        else if ((frame[0] & 15) == 9) {
            char pong[140] = {(char)0x8a, (char)(0x80 | length)}; /* masked with zeros */
            memcpy(pong + 6, frame + head, length);
            send(one->fd, pong, 6 + length, MSG_NOSIGNAL | MSG_DONTWAIT);
        }
        at += head + length;
    }
    return at;
}

static void receive(struct connection *one, size_t most)
{
    size_t size = one->held_size, used = 0;
    memcpy(buffer, one->held, size);
    ssize_t more = recv(one->fd, buffer + size, most - size, MSG_DONTWAIT);
    if (more <= 0) {
        if (more == 0 || errno != EAGAIN)
            gone(one);
        return;
    }
    uint64_t now = now_ns();
    size += more;
    if (!one->open)
        used = handshake(one, buffer, size);
    if (one->open)
        used += frames(one, buffer + used, size - used, now);
    hold(one, buffer + used, size - used);
}

static void read_slowly(void)
{
    for (int i = 0; i < slow_count; i++)
        if (slow_ones[i]->role == SLOW && slow_ones[i]->open && slow_ones[i]->fd >= 0)
            receive(slow_ones[i], slow_ones[i]->held_size + SLOW_BYTES_PER_TICK);
}

/* ---- phases ---- */

/* One round: the events that are due, then whatever can be read, waiting until `deadline` at most. */
static void turn(uint64_t deadline)
{
    static uint64_t next_tick;
    static int next_job;
    uint64_t now = now_ns(), wake = deadline;
    if (producing && options.rate) {
        for (; next_due <= now; next_due += SECOND / options.rate)
            produce(next_job++ % options.jobs, 1);
        wake = next_due < wake ? next_due : wake;
    }
    if (slow_count) {
        if (next_tick <= now) {
            read_slowly();
            next_tick = now + 10 * MILLISECOND;
        }
        wake = next_tick < wake ? next_tick : wake;
    }
    struct epoll_event ready[EVENTS];
    now = now_ns();
    uint64_t rest = wake > now ? wake - now : 0;
    struct timespec timeout = {rest / SECOND, rest % SECOND};
    int count = epoll_pwait2(epoll_fd, ready, EVENTS, &timeout, 0);
    for (int i = 0; i < count; i++) {
        struct connection *one = ready[i].data.ptr;
        if (one->role == PRODUCER)
            serve_producer(one, ready[i].events);
        else if (!one->asked)
            ask(one);
        else if (one->fd >= 0)
            receive(one, BUFFER);
    }
}

static void run_until(uint64_t deadline)
{
    while (now_ns() < deadline)
        turn(deadline);
}

static void run_for(uint64_t ns) { run_until(now_ns() + ns); }

static void connect_all(enum role role, long count, int first_job, long jobs)
{
    uint64_t limit = now_ns() + CONNECT_SECONDS * SECOND;
    for (long started = 0; opened[role] < count;) {
        for (; started < count && started - opened[role] < AT_ONCE; started++)
            start_watcher(role, first_job + started % jobs);
        turn(now_ns() + 10 * MILLISECOND);
        if (lost || now_ns() > limit)
            die("only %ld of %ld watchers were let in", opened[role], count);
    }
}

/* All at once, in the midst of the steady phase; prints how long it took until all were let in, and greeted. */
static void crowd_in(void)
{
    uint64_t start = now_ns(), limit = start + CROWD_SECONDS * SECOND, let_in = 0, cpu = server_cpu();
    crowding = true;
    for (int i = 0; i < options.crowd; i++)
        start_watcher(CROWD, options.jobs + i % options.idle_jobs);
    while (now_ns() < limit && (opened[CROWD] < options.crowd || (options.snapshot && greeted[CROWD] < options.crowd))) {
        turn(now_ns() + MILLISECOND);
        if (!let_in && opened[CROWD] == options.crowd)
            let_in = now_ns();
    }
    crowding = false;
    printf("\"crowd_let_in_ms\":%.3f,\"crowd_served_ms\":%.3f,\"crowd_cpu_ns\":%" PRIu64 ",\"crowd_missing\":%ld,",
           ((let_in ? let_in : now_ns()) - start) / 1e6, (now_ns() - start) / 1e6, server_cpu() - cpu,
           options.crowd - opened[CROWD]);
}

/* Complete every job, and let the slow ones read: do they get every end, and the newest progress before it? */
static void finish(void)
{
    for (int job = 0; job < options.jobs; job++)
        complete(job);
    run_for(SECOND / 2);
    for (int i = 0; i < slow_count; i++)
        if (slow_ones[i]->fd >= 0)
            listen_for(slow_ones[i], EPOLLIN);
    run_for(2 * SECOND);
}

static void print_slow(void)
{
    printf("\"slow\":[");
    for (int i = 0; i < slow_count; i++) {
        struct connection *one = slow_ones[i];
        int newest = 0;
        for (int job = 0; job < options.jobs; job++)
            newest += one->newest[job] == newest_of_job[job];
        printf("%s{\"stalled\":%d,\"messages\":%ld,\"ends\":%ld,\"newest\":%d,\"close_code\":%d,\"lost\":%d}",
               i ? "," : "", one->role == STALLED, one->messages, one->ends, newest, one->close_code, one->fd < 0);
    }
    printf("],");
}

static void measure(void)
{
    uint64_t start = now_ns(), cpu = server_cpu(), own = clock_ns(CLOCK_PROCESS_CPUTIME_ID), memory = server_memory();
    events = 0;
    measuring = true;
    if (options.crowd) {
        run_for(SECOND / 2);
        crowd_in();
    }
    run_until(start + options.steady_ms * MILLISECOND);
    measuring = false;
    cpu = server_cpu() - cpu;
    own = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - own;
    printf("\"seconds\":%.6f,\"server_cpu_ns\":%" PRIu64 ",\"client_cpu_ns\":%" PRIu64 ",\"events\":%ld,"
           "\"deliveries\":%ld,\"bytes\":%" PRIu64 ",\"memory_growth\":%" PRId64 ",",
           (now_ns() - start) / 1e9, cpu, own, events, deliveries, bytes, (int64_t)(server_memory() - memory));
}

static void read_options(int count, char **arguments)
{
    for (int i = 1; i < count; i++) {
        char *value = strchr(arguments[i], '=');
        size_t known = 0, size = sizeof known_options / sizeof *known_options;
        while (known < size && value && strncmp(arguments[i], known_options[known].name, value - arguments[i]))
            known++;
        if (!value || known == size)
            die("unknown option %s", arguments[i]);
        if (known_options[known].number)
            *known_options[known].number = atol(value + 1);
        else
            *known_options[known].text = value + 1;
    }
    for (const char *pid = options.pids; pid && *pid && pid_count < 64; pid = strchr(pid, ',') ? strchr(pid, ',') + 1 : "")
        pids[pid_count++] = atoi(pid);
}

int main(int count, char **arguments)
{
    read_options(count, arguments);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    prctl(PR_SET_TIMERSLACK, 1);
    printf("{");
    connect_all(WATCHER, options.jobs * options.watchers, 0, options.jobs);
    run_for(SECOND / 5);
    uint64_t memory = server_memory(), cpu = server_cpu(), start = now_ns();
    connect_all(IDLE, options.idle, options.jobs, options.idle_jobs);
    printf("\"idle_cpu_ns\":%" PRIu64 ",\"idle_seconds\":%.3f,", server_cpu() - cpu, (now_ns() - start) / 1e9);
    run_for(options.idle ? SECOND : 0);
    printf("\"idle_memory\":%" PRId64 ",", (int64_t)(server_memory() - memory));
    connect_all(STALLED, options.stalled, 0, options.jobs);
    connect_all(SLOW, options.slow, 0, options.jobs);
    for (int job = 0; job < options.jobs; job++)
        start_producer(job);
    producing = true;
    next_due = now_ns();
    run_for(options.warmup_ms * MILLISECOND);
    measure();
    producing = false;
    run_for(SECOND / 5);
    if (options.finish)
        finish();
    print_slow();
    printf("\"p50_ms\":%.4f,\"p99_ms\":%.4f,\"max_ms\":%.4f,", percentile_ms(&usual, 0.5), percentile_ms(&usual, 0.99),
           usual.max / 1e6);
    printf("\"crowd_p99_ms\":%.4f,\"crowd_max_ms\":%.4f,\"lost\":%ld,\"errors\":%ld}\n",
           percentile_ms(&meanwhile, 0.99), meanwhile.max / 1e6, lost, errors);
    return 0;
}
