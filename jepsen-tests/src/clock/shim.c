/* Shows one process another wall clock, by LD_PRELOAD. The machine's clock stays as it is.
 *
 * Where JEPSEN_CLOCK names a file (see mod.rs for its fields), wall time is the machine's plus what the file says now.
 * Monotonic time is left alone, and so are sleeps: a wait until a moment of wall time is told the machine's moment. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Written by the harness, but for `seen`. A writer changes `change` last. */
struct shown {
    int64_t offset_ns;
    int64_t drift_ppm;
    int64_t drift_since_ns; /* monotonic */
    uint64_t change;
    uint64_t seen; /* the newest `change` by which this process told a time */
};

#define SECOND 1000000000LL
/* Later than any moment of monotonic time, earlier than any of wall time: condition variables have either. */
#define WALL_FROM 1000000000LL

static struct shown *shown;
static int (*real_gettime)(clockid_t, struct timespec *);
static int (*real_timedwait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
static int (*real_clockwait)(pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *);

__attribute__((constructor)) static void begin(void) {
    real_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    /* The default version is not always the one that dlsym gives. */
    real_timedwait = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!real_timedwait) real_timedwait = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    real_clockwait = dlsym(RTLD_NEXT, "pthread_cond_clockwait");
    const char *path = getenv("JEPSEN_CLOCK");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *map = mmap(NULL, sizeof(struct shown), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (map != MAP_FAILED) shown = map;
}

static int gettime(clockid_t clock, struct timespec *time) {
    if (real_gettime) return real_gettime(clock, time);
    return (int)syscall(SYS_clock_gettime, clock, time);
}

/* What is added to wall time now. */
static int64_t added(void) {
    if (!shown) return 0;
    uint64_t change = __atomic_load_n(&shown->change, __ATOMIC_ACQUIRE);
    int64_t offset = __atomic_load_n(&shown->offset_ns, __ATOMIC_RELAXED);
    int64_t ppm = __atomic_load_n(&shown->drift_ppm, __ATOMIC_RELAXED);
    if (ppm) {
        struct timespec now;
        if (gettime(CLOCK_MONOTONIC, &now) == 0) {
            int64_t since = now.tv_sec * SECOND + now.tv_nsec - __atomic_load_n(&shown->drift_since_ns, __ATOMIC_RELAXED);
            offset += since / 1000000 * ppm;
        }
    }
    if (__atomic_load_n(&shown->seen, __ATOMIC_RELAXED) != change) __atomic_store_n(&shown->seen, change, __ATOMIC_RELAXED);
    return offset;
}

static void add(struct timespec *time, int64_t ns) {
    int64_t all = time->tv_nsec + ns % SECOND;
    time->tv_sec += ns / SECOND;
    if (all < 0) { all += SECOND; time->tv_sec -= 1; }
    if (all >= SECOND) { all -= SECOND; time->tv_sec += 1; }
    time->tv_nsec = all;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int failed = gettime(clock, time);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) add(time, added());
    return failed;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    if (zone) memset(zone, 0, sizeof(struct timezone));
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now)) return (time_t)-1;
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

int timespec_get(struct timespec *time, int base) {
    return base == TIME_UTC && clock_gettime(CLOCK_REALTIME, time) == 0 ? base : 0;
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex, const struct timespec *restrict until) {
    struct timespec real = *until;
    if (real.tv_sec >= WALL_FROM) add(&real, -added());
    return real_timedwait(cond, mutex, &real);
}

int pthread_cond_clockwait(pthread_cond_t *cond, pthread_mutex_t *mutex, clockid_t clock, const struct timespec *until) {
    struct timespec real = *until;
    if (!real_clockwait) return ENOSYS;
    if (clock == CLOCK_REALTIME) add(&real, -added());
    return real_clockwait(cond, mutex, clock, &real);
}
