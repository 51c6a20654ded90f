/* clockshim: a wall clock that can be set without setting the machine's.
 *
 * Preloaded (LD_PRELOAD) into the pool; every reading of the wall clock gets what the file CHAOS_CLOCK holds added: one
 * double, in seconds, which another process writes. CLOCK_MONOTONIC and its like are left alone, as they are by
 * whoever sets a real clock.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile double *offset;
static int (*real_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CHAOS_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    real_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    if (fd < 0) return;
    void *place = mmap(NULL, sizeof(double), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (place != MAP_FAILED) offset = place;
}

int clock_gettime(clockid_t which, struct timespec *t) {
    int result = real_clock_gettime ? real_clock_gettime(which, t) : (int)syscall(SYS_clock_gettime, which, t);
    if (result || !offset || (which != CLOCK_REALTIME && which != CLOCK_REALTIME_COARSE)) return result;
    double whole = (double)(long)*offset;
    long nanoseconds = t->tv_nsec + (long)((*offset - whole) * 1e9);
    t->tv_sec += (long)whole;
    if (nanoseconds < 0) { nanoseconds += 1000000000; t->tv_sec--; }
    if (nanoseconds >= 1000000000) { nanoseconds -= 1000000000; t->tv_sec++; }
    t->tv_nsec = nanoseconds;
    return 0;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec;
    t->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}
