/* The last resort's thread against its makers, its signal and its answers, under TSan; no interpreter runs.
 *
 * TSan does not see the GIL of an interpreter that it did not compile, and would report every access of two threads.  What
 * really runs without the GIL is the code of _core_lastresort.c only, so that is taken alone; the functions of the
 * interpreter stay undefined, for none is called.  The making of a copy is left out: a copied process has no TSan.
 */
#include <pthread.h>
#include <stdio.h>
static int join(pthread_t thread) { return pthread_join(thread, NULL); }
#define pthread_timedjoin_np(thread, result, limit) join(thread)
#include "../../agent/_core_lastresort.c"

int64_t
now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * NS + now.tv_nsec;
}

static void
on_signal(int signum)
{
    (void)signum;
    LastResort_request();
}

static void *
ask(void *argument)
{
    for (int i = 0; i < 20000; i++) {
        LastResort_request();
        if (i % 2) {
            answer(atomic_load(&requests));
            ring();
        }
        if (i % 64 == 0) {
            raise(SIGUSR1);
        }
    }
    return argument;
}

/* What start and stop do, without their arguments. */
static void
start(void)
{
    watch.patience_ns = 3600 * NS;
    uint32_t generation = atomic_fetch_add(&watch.generation, 1) + 1;
    if (pthread_create(&watch.thread, NULL, keep_watch, (void *)(uintptr_t)generation) != 0) {
        perror("pthread_create");
        _exit(2);
    }
}

static void
stop(void)
{
    atomic_fetch_add(&watch.generation, 1);
    ring();
    join(watch.thread);
}

int
main(void)
{
    pthread_t askers[3];
    signal(SIGUSR1, on_signal);
    for (int i = 0; i < 3; i++) {
        pthread_create(&askers[i], NULL, ask, NULL);
    }
    for (int i = 0; i < 2000; i++) {
        start();
        stop();
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(askers[i], NULL);
    }
    printf("ok\n");
    return 0;
}
