/* A wrong clock for one process: the time of day is CLOCK_OFFSET_S seconds away from the machine's.
 *
 *     cc -shared -fPIC -o clock.so clock.c -ldl;  LD_PRELOAD=./clock.so CLOCK_OFFSET_S=3600 date
 *
 * Clocks that measure (CLOCK_MONOTONIC) go right, as they do on a machine whose clock was set wrong. Waits until a time of
 * day would end an hour late or at once, as the kernel knows the right one: their deadlines are turned back.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>

static long offset(void) {
    const char *given = getenv("CLOCK_OFFSET_S");
    return given ? atol(given) : 0;
}

static int machine_time(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    return real(clock, now);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = machine_time(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *where) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (where) *where = exact.tv_sec;
    return exact.tv_sec;
}

/* A deadline told in the wrong time is near it; one of a clock that measures is far from either. */
static struct timespec turned_back(const struct timespec *deadline) {
    struct timespec now, right = *deadline;
    machine_time(CLOCK_REALTIME, &now);
    if (labs(deadline->tv_sec - now.tv_sec - offset()) < labs(offset()) / 2) right.tv_sec -= offset();
    return right;
}

int pthread_cond_timedwait(pthread_cond_t *restrict what, pthread_mutex_t *restrict lock,
                           const struct timespec *restrict deadline) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    struct timespec right = turned_back(deadline);
    /* x86-64 keeps an older function of this name, for other condition variables. */
    if (!real) real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!real) real = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    return real(what, lock, &right);
}

int cnd_timedwait(cnd_t *restrict what, mtx_t *restrict lock, const struct timespec *restrict deadline) {
    static int (*real)(cnd_t *, mtx_t *, const struct timespec *);
    struct timespec right = turned_back(deadline);
    if (!real) real = dlsym(RTLD_NEXT, "cnd_timedwait");
    return real(what, lock, &right);
}
