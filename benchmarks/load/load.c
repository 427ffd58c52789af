/*
 * load: the watchers and the producers of one benchmark run; one thread, epoll, raw sockets, no library.
 *
 *     load port=8080 producer=/tmp/ingest.sock watch=/ws/jobs/{id} watchers=500 rate=100 servers=1234,1235
 *
 * It connects the watchers of each job, then the idle ones (of other jobs), then the slow ones; starts one producer a
 * job; and measures from the end of the warm-up to the end of the steady phase. Every event carries the time at which
 * its producer wrote it, "@" and 16 digits of nanoseconds, and every watcher looks for it in what it reads. All phases
 * are bounded in time, and all addresses are loopback ones.
 */
#define _GNU_SOURCE
#include "pollers.h"
#include "producers.h"
#include "watchers.h"

#include <sys/prctl.h>

/* One round: the events that are due, then whatever can be read; waits until `deadline` at most. */
static void turn(uint64_t deadline)
{
    static uint64_t next_read;
    static int next_job;
    struct epoll_event ready[READY];
    uint64_t now = now_ns();
    for (; producing && options.rate && next_due <= now; next_due += options.burst * SECOND / options.rate)
        for (int i = 0; i < options.burst; i++)
            produce(next_job++ % options.jobs, 1);
    if (producing && options.rate && next_due < deadline)
        deadline = next_due;
    if (slow_count && next_read <= now) {
        read_slowly();
        next_read = now + 10 * MILLISECOND;
    }
    if (slow_count && next_read < deadline)
        deadline = next_read;
    uint64_t next_read_due = poll_all(now_ns());
    if (next_read_due < deadline)
        deadline = next_read_due;
    now = now_ns();
    uint64_t rest = deadline > now ? deadline - now : 0;
    int count = epoll_pwait2(epoll_fd, ready, READY, &(struct timespec){rest / SECOND, rest % SECOND}, 0);
    for (int i = 0; i < count; i++) {
        struct connection *one = ready[i].data.ptr;
        if (one->role == PRODUCER)
            serve_producer(one, ready[i].events);
        else if (one->role == POLLER)
            serve_poller(one);
        else if (!one->asked)
            ask(one);
        else if (one->fd >= 0)
            receive(one, one->role == CROWD ? CROWD_BUFFER : BUFFER);
    }
}

static void run_until(uint64_t deadline)
{
    while (now_ns() < deadline)
        turn(deadline);
}

static void connect_all(enum role role, long count, long first_job, long jobs)
{
    uint64_t limit = now_ns() + CONNECT_SECONDS * SECOND;
    for (long asked = 0; opened[role] < count;) {
        for (; asked < count && asked - opened[role] < AT_ONCE; asked++)
            start_watcher(role, first_job + asked % jobs);
        turn(now_ns() + 10 * MILLISECOND);
        if (lost || now_ns() > limit)
            errno = 0, die("only %ld of %ld watchers were let in", opened[role], count);
    }
}

/* A crowd connects all at once: how long until all were let in, and greeted where the server does that? */
static void crowd_in(void)
{
    uint64_t start = now_ns(), let_in = 0, cpu = server_cpu();
    crowding = true;
    for (int i = 0; i < options.crowd; i++)
        start_watcher(CROWD, options.jobs + i % options.idle_jobs);
    while (!let_in || (options.snapshot && greeted[CROWD] < options.crowd)) {
        turn(now_ns() + MILLISECOND);
        if (!let_in && opened[CROWD] == options.crowd)
            let_in = now_ns();
        if (now_ns() > start + CROWD_SECONDS * SECOND)
            errno = 0, die("only %ld of the crowd were let in, %ld greeted", opened[CROWD], greeted[CROWD]);
    }
    crowding = false;
    report("crowd_let_in_ms", (let_in - start) / 1e6);
    report("crowd_served_ms", (now_ns() - start) / 1e6);
    report("crowd_cpu_ms", (server_cpu() - cpu) / 1e6);
}

static void measure(void)
{
    uint64_t start = now_ns(), cpu = server_cpu(), own = own_cpu();
    int64_t memory = server_memory();
    events = 0;
    measuring = true;
    if (options.crowd) {
        run_until(start + SECOND / 2);
        crowd_in();
    }
    run_until(start + options.steady_ms * MILLISECOND);
    measuring = false;
    report("server_cpu_us", (server_cpu() - cpu) / 1e3);
    report("client_cpu_us", (own_cpu() - own) / 1e3);
    report("seconds", (now_ns() - start) / 1e9);
    report("memory_growth_bytes", server_memory() - memory);
    report("events", events);
    report("deliveries", deliveries);
    report("bytes", bytes);
    report("reads", reads);
}

/* Complete every job, and let the slow ones read: do they get every end, and the newest progress before it? */
static void finish(void)
{
    for (int job = 0; job < options.jobs; job++) {
        char line[256];
        int size = sprintf(line, "{\"type\":\"completed\",\"job_id\":\"" JOB_ID "\",\"data\":{}}\n", job);
        write_out(producers[job], line, size);
    }
    run_until(now_ns() + SECOND / 2);
    for (int i = 0; i < slow_count; i++)
        if (slow_ones[i]->fd >= 0)
            wait_for(slow_ones[i], EPOLLIN);
    run_until(now_ns() + 2 * SECOND);
}

static void report_slow(const struct connection *one)
{
    int newest = 0;
    for (int job = 0; job < options.jobs; job++)
        newest += one->newest[job] == newest_of_job[job];
    const char *name = one->role == SLOW ? "slow" : "stalled";
    printf("%s_messages %ld\n%s_ends %ld\n", name, one->messages, name, one->ends);
    printf("%s_newest %d\n%s_close_code %d\n", name, newest, name, one->close_code);
}

int main(int count, char **arguments)
{
    read_options(count, arguments);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    prctl(PR_SET_TIMERSLACK, 1);
    connect_all(WATCHER, options.watchers, 0, options.jobs);
    run_until(now_ns() + SECOND / 5);
    uint64_t cpu = server_cpu();
    int64_t memory = server_memory();
    connect_all(IDLE, options.idle, options.jobs, options.idle_jobs);
    report("idle_cpu_us", (server_cpu() - cpu) / 1e3);
    run_until(now_ns() + (options.idle ? SECOND : 0));
    report("idle_memory_bytes", server_memory() - memory);
    connect_all(STALLED, options.stalled, 0, options.jobs);
    connect_all(SLOW, options.slow, 0, options.jobs);
    for (int job = 0; job < options.jobs; job++)
        start_producer(job);
    start_polling();
    producing = true;
    next_due = now_ns();
    run_until(now_ns() + options.warmup_ms * MILLISECOND);
    measure();
    producing = false;
    run_until(now_ns() + SECOND / 5);
    if (options.finish)
        finish();
    for (int i = 0; i < slow_count; i++)
        report_slow(slow_ones[i]);
    report_latencies("usual", &usual);
    report_latencies("crowd", &meanwhile);
    report_latencies("crowd_read", &polled_meanwhile);
    report_latencies("served", &served);
    report_latencies("resumed", &resumed);
    report_latencies("read", &polled);
    report("lost", lost);
    report("errors", errors);
    return 0;
}
