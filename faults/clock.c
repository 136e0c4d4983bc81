/* A clock that a test can shift: preloaded, it adds the seconds that the file FAULTS_CLOCK holds (a double, in this
 * machine's byte order) to the time of day, also to that which waits end at. Clocks that measure durations are left alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>

static double shift(void) {
    static const volatile double *seconds;
    if (!seconds) {
        const char *path = getenv("FAULTS_CLOCK");
        int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        void *mapped = file < 0 ? MAP_FAILED : mmap(0, sizeof(double), PROT_READ, MAP_SHARED, file, 0);
        static const double none = 0;
        seconds = mapped == MAP_FAILED ? &none : mapped;
    }
    return *seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += (time_t)shift();
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    int failed = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *result) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (result) *result = exact.tv_sec;
    return exact.tv_sec;
}

/* A wait until a time of day ends when the shifted clock says so, as the kernel would have it after a jump: in slices, of
 * which each may end as a wait may, for no reason; whoever waits looks again. Times below `DAYS` are of a clock that
 * measures durations. */
enum { DAYS = 1000000000, SLICE_NS = 200000000 };

static int wait_until(const struct timespec *until, struct timespec *slice) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (now.tv_sec > until->tv_sec || (now.tv_sec == until->tv_sec && now.tv_nsec >= until->tv_nsec)) return 0;
    double left = (double)(until->tv_sec - now.tv_sec) + (double)(until->tv_nsec - now.tv_nsec) / 1e9;
    long nanoseconds = left * 1e9 < SLICE_NS ? (long)(left * 1e9) : SLICE_NS;
    slice->tv_sec = now.tv_sec - (time_t)shift();
    slice->tv_nsec = now.tv_nsec + nanoseconds;
    if (slice->tv_nsec >= 1000000000) slice->tv_sec++, slice->tv_nsec -= 1000000000;
    return 1;
}

typedef int wait_t(void *, void *, const struct timespec *);

static int wait(wait_t *real, void *condition, void *mutex, const struct timespec *until, int timed_out) {
    struct timespec slice;
    if (until->tv_sec < DAYS) return real(condition, mutex, until);
    if (!wait_until(until, &slice)) return real(condition, mutex, &(struct timespec){0, 0});
    int result = real(condition, mutex, &slice);
    return result == timed_out ? 0 : result;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until) {
    static wait_t *real;
    if (!real) real = (wait_t *)dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2"); /* not the one of old */
    if (!real) real = (wait_t *)dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    return wait(real, condition, mutex, until, ETIMEDOUT);
}

int cnd_timedwait(cnd_t *condition, mtx_t *mutex, const struct timespec *until) {
    static wait_t *real;
    if (!real) real = (wait_t *)dlsym(RTLD_NEXT, "cnd_timedwait");
    return wait(real, condition, mutex, until, thrd_timedout);
}
