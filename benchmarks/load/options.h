/* What the command line says, as name=value. */
#pragma once
#include "figures.h"

#define NUMBERS(X) \
    X(port) X(jobs) X(watchers) /* of all jobs together */ \
    X(idle) X(idle_jobs)        /* how many jobs the idle ones and the crowd watch */ \
    X(crowd)                    /* watchers that connect all at once in the steady phase */ \
    X(hello)                    /* 1: a watcher of the crowd is served once it has read `hello`, else its first message */ \
    X(stalled) X(slow)          /* watchers that never read; that read 100 kbit/s */ \
    X(rate)                     /* events a second over all jobs; 0: as fast as the server takes them */ \
    X(burst)                    /* of them are written at the same moment, by as many producers */ \
    X(size)                     /* bytes of an event, padded; 0: as short as it is */ \
    X(http)                     /* 1: events are POSTed to `publish`, else written to the Unix socket `producer` */ \
    X(snapshot)                 /* 1: the server greets a watcher with a message */ \
    X(finish)                   /* 1: complete the jobs in the end, and see what the slow ones get */ \
    X(polls) X(poll_rate)       /* connections that read a job; reads a second, 0: as fast as they are answered */ \
    X(unchanged)                /* 1: they know the job already, and are answered 304 */ \
    X(warmup_ms) X(steady_ms)
#define TEXTS(X) \
    X(producer) X(watch) X(publish) X(servers) \
    X(crowd_watch) /* what the crowd watches; `watch` by default */ \
    X(crowd_since) /* a query that every second one of the crowd adds */

#define NUMBER(name) long name;
#define TEXT(name) const char *name;
static struct {
    NUMBERS(NUMBER) TEXTS(TEXT)
} options = {.jobs = 1, .idle_jobs = 1, .burst = 1, .warmup_ms = 1000, .steady_ms = 3000};

static void read_options(int count, char **arguments)
{
#define READ_NUMBER(name) if (!strcmp(key, #name)) { options.name = atol(value); continue; }
#define READ_TEXT(name) if (!strcmp(key, #name)) { options.name = value; continue; }
    for (int i = 1; i < count; i++) {
        char *value = arguments[i], *key = strsep(&value, "=");
        if (value) {
            NUMBERS(READ_NUMBER) TEXTS(READ_TEXT)
        }
        errno = 0, die("unknown option %s", key);
    }
    for (char *list = strdup(options.servers); list && server_count < 64;)
        servers[server_count++] = atoi(strsep(&list, ","));
}
