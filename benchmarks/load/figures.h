/* What is measured: time, the servers' CPU and memory, latencies; and how it is reported, one "name value" a line. */
#pragma once
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000ull
#define MILLISECOND 1000000ull

static int servers[64], server_count; /* process ids */

static void die(const char *format, ...)
{
    va_list arguments;
    int error = errno;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, error ? ": %s\n" : "\n", strerror(error));
    exit(1);
}

static void report(const char *name, double value) { printf("%s %.6f\n", name, value); }

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec time;
    if (clock_gettime(clock, &time) < 0)
        die("a server has died");
    return time.tv_sec * SECOND + time.tv_nsec;
}

static uint64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static uint64_t own_cpu(void) { return clock_ns(CLOCK_PROCESS_CPUTIME_ID); }

/* User and system time of all threads of the servers: utime + stime of /proc/PID/stat, but in ns, not in ticks. */
static uint64_t server_cpu(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < server_count; i++) {
        clockid_t clock;
        if (clock_getcpuclockid(servers[i], &clock))
            die("the server %d has died", servers[i]);
        sum += clock_ns(clock);
    }
    return sum;
}

/* Resident bytes of the servers. */
static int64_t server_memory(void)
{
    int64_t sum = 0;
    for (int i = 0; i < server_count; i++) {
        char path[64];
        long resident = 0;
        snprintf(path, sizeof path, "/proc/%d/statm", servers[i]);
        FILE *file = fopen(path, "r");
        if (!file || fscanf(file, "%*d %ld", &resident) != 1)
            die("%s", path);
        fclose(file);
        sum += resident * sysconf(_SC_PAGESIZE);
    }
    return sum;
}

/* All of them, in µs. Those that no longer fit are only counted; the pages are touched as they fill. */
struct latencies {
    size_t count;
    uint32_t us[1 << 24];
};

static void record(struct latencies *to, uint64_t ns)
{
    if (to->count < sizeof to->us / sizeof *to->us)
        to->us[to->count++] = ns / 1000 < UINT32_MAX ? ns / 1000 : UINT32_MAX;
}

static int by_size(const void *one, const void *other)
{
    uint32_t left = *(const uint32_t *)one, right = *(const uint32_t *)other;
    return (left > right) - (left < right);
}

static void report_latencies(const char *name, struct latencies *of)
{
    if (!of->count)
        return;
    qsort(of->us, of->count, sizeof *of->us, by_size);
    printf("%s_p50_ms %.3f\n", name, of->us[of->count / 2] / 1e3);
    printf("%s_p99_ms %.3f\n", name, of->us[of->count * 99 / 100] / 1e3);
    printf("%s_max_ms %.3f\n", name, of->us[of->count - 1] / 1e3);
}
