/* Preloaded into a daemon (LD_PRELOAD): records its changes of the disk, lets them fail, and shifts its clock.

   TORTURE_DISK  the directory to record; all other files are unaffected
   TORTURE_LOG   receives a record of each change below that directory and of each sync, in order; see disk.py
   TORTURE_CONTROL  a shared file of int64 values; see `control`

   Inodes identify files, and paths identify directories: no directory is ever renamed. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct control {
    int64_t write_errno; /* the error of each write; 0: none */
    int64_t sync_errno;  /* the error of fsync and fdatasync */
    int64_t open_errno;  /* the error of creating a file */
    int64_t clock_shift; /* seconds added to the time of day */
    int64_t failed;      /* number of failed calls */
    int64_t recorded;    /* number of changes and syncs */
    int64_t die_after;   /* the daemon kills itself after so many of its own changes and syncs; 0: never */
    int64_t log_errno;   /* the error of syncing a write-ahead log, but no other file */
};

static const char mark[8] = "\x93torture";

struct __attribute__((packed)) record {
    char mark[8]; /* to find the next record after one that a kill truncated */
    char what;
    uint64_t inode;
    uint64_t offset;
    uint32_t length; /* of the data that follow: content, a path, or two paths separated by a zero */
};

static struct control nothing, *control = &nothing;
static char root[PATH_MAX];
static size_t root_length;
static int log_fd = -1;
static pid_t mortal; /* the daemon, but not its children */
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void) {
    const char *disk = getenv("TORTURE_DISK"), *log = getenv("TORTURE_LOG"), *path = getenv("TORTURE_CONTROL");
    if (disk)
        root_length = snprintf(root, sizeof root, "%s", disk);
    if (log)
        log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd >= 0) { /* tests count the low descriptors */
        int high = fcntl(log_fd, F_DUPFD_CLOEXEC, 1000);
        if (high >= 0) {
            syscall(SYS_close, log_fd);
            log_fd = high;
        }
    }
    int fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC) : -1;
    if (fd >= 0) {
        void *shared = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (shared != MAP_FAILED)
            control = shared;
        syscall(SYS_close, fd);
    }
}

/* A forked daemon calls this once its environment names its disk. */
void torture_begin(void) {
    begin();
    mortal = getpid();
}

static int inside(const char *path) {
    return root_length && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || !path[root_length]);
}

/* Write the absolute path of `path` in `directory`, without resolving links. Return 0 if it is outside the disk. */
static int absolute(int directory, const char *path, char *out) {
    if (!root_length || !path)
        return 0;
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return inside(out);
    }
    char link[64], base[PATH_MAX];
    if (directory == AT_FDCWD)
        snprintf(link, sizeof link, "/proc/self/cwd");
    else
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t length = readlink(link, base, sizeof base - 1);
    if (length < 0)
        return 0;
    base[length] = 0;
    if (snprintf(out, PATH_MAX, "%s/%s", base, path) >= PATH_MAX)
        return 0;
    return inside(out);
}

/* Return whether the descriptor is a file or directory of the disk. */
static int ours(int fd, struct stat *found, char *path) {
    if (!root_length || fstat(fd, found) || !(S_ISREG(found->st_mode) || S_ISDIR(found->st_mode)))
        return 0;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return inside(path);
}

static void record(char what, uint64_t inode, uint64_t offset, const void *data, size_t length) {
    if (log_fd < 0)
        return;
    struct record head = {.what = what, .inode = inode, .offset = offset, .length = length};
    memcpy(head.mark, mark, sizeof mark);
    struct iovec parts[] = {{&head, sizeof head}, {(void *)data, length}};
    if (syscall(SYS_writev, log_fd, parts, 2) != (ssize_t)(sizeof head + length))
        abort();
    __atomic_fetch_add(&control->recorded, 1, __ATOMIC_RELAXED);
    if (getpid() == mortal && control->die_after && __atomic_sub_fetch(&control->die_after, 1, __ATOMIC_RELAXED) == 0)
        kill(getpid(), SIGKILL);
}

static void record_path(char what, uint64_t inode, const char *path) { record(what, inode, 0, path, strlen(path)); }

static void record_two(char what, const char *from, const char *to) {
    char both[2 * PATH_MAX];
    size_t first = strlen(from) + 1, length = first + strlen(to);
    memcpy(both, from, first);
    memcpy(both + first, to, length - first);
    record(what, 0, 0, both, length);
}

static int fails(int64_t code) {
    if (!code)
        return 0;
    __atomic_fetch_add(&control->failed, 1, __ATOMIC_RELAXED);
    errno = (int)code;
    return 1;
}

#define ORDERED(expression)            \
    pthread_mutex_lock(&order);        \
    expression;                        \
    {                                  \
        int saved = errno;             \
        pthread_mutex_unlock(&order);  \
        errno = saved;                 \
    }

/* Creating and opening */

static int open_file(int directory, const char *path, int flags, mode_t mode) {
    char whole[PATH_MAX];
    if (!(flags & (O_CREAT | O_TRUNC)) || !absolute(directory, path, whole))
        return syscall(SYS_openat, directory, path, flags, mode);
    int fd;
    struct stat found;
    ORDERED({
        int there = fstatat(AT_FDCWD, whole, &found, 0) == 0;
        if (!there && fails(control->open_errno)) {
            fd = -1;
        } else {
            fd = syscall(SYS_openat, directory, path, flags, mode);
            if (fd >= 0 && fstat(fd, &found) == 0) {
                if (!there)
                    record_path('C', found.st_ino, whole);
                else if (flags & O_TRUNC)
                    record('T', found.st_ino, 0, NULL, 0);
            }
        }
    })
    return fd;
}

#define MODE(flags)                                 \
    mode_t mode = 0;                                \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {        \
        va_list arguments;                          \
        va_start(arguments, flags);                 \
        mode = va_arg(arguments, mode_t);           \
        va_end(arguments);                          \
    }

int open(const char *path, int flags, ...) { MODE(flags) return open_file(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_file(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int fd, const char *path, int flags, ...) { MODE(flags) return open_file(fd, path, flags, mode); }
int openat64(int fd, const char *path, int flags, ...) { MODE(flags) return open_file(fd, path, flags | O_LARGEFILE, mode); }
int creat(const char *path, mode_t mode) { return open_file(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

static int make_directory(int directory, const char *path, mode_t mode) {
    char whole[PATH_MAX];
    int mine = absolute(directory, path, whole), result;
    struct stat found;
    ORDERED({
        result = mine && fails(control->open_errno) ? -1 : (int)syscall(SYS_mkdirat, directory, path, mode);
        if (mine && result == 0 && fstatat(AT_FDCWD, whole, &found, 0) == 0)
            record_path('M', found.st_ino, whole);
    })
    return result;
}

int mkdir(const char *path, mode_t mode) { return make_directory(AT_FDCWD, path, mode); }
int mkdirat(int fd, const char *path, mode_t mode) { return make_directory(fd, path, mode); }

/* Writing */

static ssize_t written(int fd, const void *data, size_t length, off_t at) {
    struct stat found;
    char path[PATH_MAX];
    if (!ours(fd, &found, path))
        return at < 0 ? syscall(SYS_write, fd, data, length) : syscall(SYS_pwrite64, fd, data, length, at);
    ssize_t result;
    ORDERED({
        if (fails(control->write_errno)) {
            result = -1;
        } else {
            result = at < 0 ? syscall(SYS_write, fd, data, length) : syscall(SYS_pwrite64, fd, data, length, at);
            if (result > 0)
                record('W', found.st_ino, at < 0 ? lseek(fd, 0, SEEK_CUR) - result : at, data, result);
        }
    })
    return result;
}

ssize_t write(int fd, const void *data, size_t length) { return written(fd, data, length, -1); }
ssize_t pwrite(int fd, const void *data, size_t length, off_t at) { return written(fd, data, length, at); }
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at) { return written(fd, data, length, at); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    struct stat found;
    char path[PATH_MAX];
    if (!ours(fd, &found, path))
        return syscall(SYS_writev, fd, parts, count);
    return written(fd, parts[0].iov_base, parts[0].iov_len, -1); /* a short write is allowed */
}

/* Copying within the kernel is not supported: callers fall back to reading and writing. */
ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t length, unsigned flags) {
    struct stat found;
    char path[PATH_MAX];
    if (!ours(out, &found, path))
        return syscall(SYS_copy_file_range, in, in_at, out, out_at, length, flags);
    errno = ENOSYS;
    return -1;
}

int ioctl(int fd, unsigned long request, ...) {
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    struct stat found;
    char path[PATH_MAX];
    if (request == FICLONE && ours(fd, &found, path)) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return (int)syscall(SYS_ioctl, fd, request, argument);
}

static int cut(int fd, off_t length) {
    struct stat found;
    char path[PATH_MAX];
    int mine = ours(fd, &found, path), result;
    ORDERED({
        result = mine && fails(control->write_errno) ? -1 : (int)syscall(SYS_ftruncate, fd, length);
        if (mine && result == 0)
            record('T', found.st_ino, length, NULL, 0);
    })
    return result;
}

int ftruncate(int fd, off_t length) { return cut(fd, length); }
int ftruncate64(int fd, off64_t length) { return cut(fd, length); }

/* Names */

static int linked(int from_fd, const char *from, int to_fd, const char *to, int flags) {
    char whole[PATH_MAX];
    int mine = absolute(to_fd, to, whole), result;
    struct stat found;
    ORDERED({
        result = mine && fails(control->open_errno) ? -1 : (int)syscall(SYS_linkat, from_fd, from, to_fd, to, flags);
        if (mine && result == 0 && fstatat(AT_FDCWD, whole, &found, AT_SYMLINK_NOFOLLOW) == 0)
            record_path('L', found.st_ino, whole);
    })
    return result;
}

int link(const char *from, const char *to) { return linked(AT_FDCWD, from, AT_FDCWD, to, 0); }
int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags) {
    return linked(from_fd, from, to_fd, to, flags);
}

static int renamed(int from_fd, const char *from, int to_fd, const char *to) {
    char old[PATH_MAX], new[PATH_MAX];
    int mine = absolute(from_fd, from, old) && absolute(to_fd, to, new), result;
    struct stat found;
    ORDERED({
        if (mine && fstatat(AT_FDCWD, old, &found, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(found.st_mode))
            abort(); /* paths identify directories */
        result = (int)syscall(SYS_renameat, from_fd, from, to_fd, to);
        if (mine && result == 0)
            record_two('R', old, new);
    })
    return result;
}

int rename(const char *from, const char *to) { return renamed(AT_FDCWD, from, AT_FDCWD, to); }
int renameat(int from_fd, const char *from, int to_fd, const char *to) { return renamed(from_fd, from, to_fd, to); }

static int removed(int directory, const char *path, int flags) {
    char whole[PATH_MAX];
    int mine = absolute(directory, path, whole), result;
    ORDERED({
        result = (int)syscall(SYS_unlinkat, directory, path, flags);
        if (mine && result == 0)
            record_path(flags & AT_REMOVEDIR ? 'D' : 'U', 0, whole);
    })
    return result;
}

int unlink(const char *path) { return removed(AT_FDCWD, path, 0); }
int unlinkat(int fd, const char *path, int flags) { return removed(fd, path, flags); }
int rmdir(const char *path) { return removed(AT_FDCWD, path, AT_REMOVEDIR); }

/* Syncing */

static int synced(int fd, int number) {
    struct stat found;
    char path[PATH_MAX];
    if (!ours(fd, &found, path))
        return (int)syscall(number, fd);
    int result = 0; /* the real disk is not synced: only the record counts */
    ORDERED({
        size_t length = strlen(path);
        int is_log = length > 4 && strcmp(path + length - 4, "-wal") == 0;
        if (fails(control->sync_errno) || (is_log && fails(control->log_errno))) {
            result = -1;
            if (!S_ISDIR(found.st_mode))
                record('F', found.st_ino, 0, NULL, 0);
            errno = (int)(control->sync_errno ? control->sync_errno : control->log_errno);
        } else if (S_ISDIR(found.st_mode))
            record_path('Y', found.st_ino, path);
        else
            record('S', found.st_ino, 0, NULL, 0);
    })
    return result;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

/* The time of day */

int clock_gettime(clockid_t which, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, which, now);
    if (result == 0 && which == CLOCK_REALTIME)
        now->tv_sec += control->clock_shift;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int result = (int)syscall(SYS_gettimeofday, now, zone);
    if (result == 0)
        now->tv_sec += control->clock_shift;
    return result;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}
