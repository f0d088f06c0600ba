/* The last resort for a GIL that nobody gives up.
 *
 * A report asked for by a signal is made by the monitor, in Python.  If some C code keeps the GIL the monitor never
 * runs, and that is when somebody wants to know.  So a thread of the operating system, without a Python state, waits
 * for requests that stay unanswered, and then writes the stacks of all threads.
 *
 * Nobody can read frames safely without the GIL: they may change meanwhile, and a crash would take the program along.
 * So the thread makes a copy of the process, and the copy reads.  There nothing changes any more, and what goes wrong
 * goes wrong there.  What reads is `Py_FatalError`: it is public in every version, needs neither GIL nor allocation,
 * and ends with abort(), which is all right for a copy.
 *
 * The program must not notice the copy.  It is made by clone(2) itself, without handlers of pthread_atfork and without
 * SIGCHLD, so waitpid(-1) does not find it; it leaves no core file; its output goes to memory that it shares with the
 * thread, so that no descriptor is needed in the program, which may have closed ours or used up all.
 *
 * The thread sleeps in futex(2) until the signal comes, or the end: no descriptor, no tick.  It takes no lock and
 * allocates nothing, so a fork beside it is harmless; the child has to forget it (last_resort_after_fork).  All signals
 * but faults of its own are blocked in it: a program's handlers expect a thread that Python knows.
 *
 * Assumes  Linux, for clone and futex; glibc, whose abort() asks the kernel which thread it runs in (musl's would kill
 *          the original).  Elsewhere there is no last resort.
 * Limits   CPython shows 100 frames of 100 threads; a process that cannot be copied (no memory, no process left) shows
 *          none.
 */
#include "_core.h"
#include <stdatomic.h>

static _Atomic uint32_t requests; /* signals that came; both counters may wrap */
static _Atomic uint32_t answers;  /* the value of `requests` up to which there has been an answer */

/* last_resort_requests() */
PyObject *
core_last_resort_requests(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromUnsignedLong(atomic_load(&requests));
}

#if defined(__linux__) && defined(__GLIBC__)
#  include <errno.h>
#  include <fcntl.h>
#  include <limits.h>
#  include <linux/futex.h>
#  include <poll.h>
#  include <pthread.h>
#  include <signal.h>
#  include <stdio.h>
#  include <sys/mman.h>
#  include <sys/prctl.h>
#  include <sys/syscall.h>
#  include <sys/time.h>
#  include <sys/wait.h>
#  include <time.h>

#  define NS 1000000000LL
#  define STACK_BYTES (256 * 1024)
#  define TEXT_BYTES (4 * 1024 * 1024) /* 100 threads of 100 frames with long paths; untouched pages cost nothing */
#  define HEADING_BYTES 2048
#  define SLICE_MS 10      /* between two looks whether to stop, while there is something to do */
#  define COPY_SECONDS 5   /* for the copy to read, and for a reader of ours to take what we write */
#  define PIECE_BYTES 4096 /* PIPE_BUF: a pipe that is ready takes so many without blocking */

/* What the copy leaves behind. */
typedef struct {
    size_t size;
    int crashed;
    char text[TEXT_BYTES + 1];
} Found;

static _Atomic uint32_t bell; /* changes whenever the thread should look */

static struct {
    int running; /* with the GIL held */
    pthread_t thread;
    _Atomic uint32_t generation; /* a thread whose generation is over ends, if not at once, then later */
    _Atomic int native_id;
    /* Written before the thread starts. */
    int64_t patience_ns;
    int to_stderr;
    char heading[HEADING_BYTES];
    char directory[PATH_MAX]; /* empty: no file */
} watch;

static void
ring(void)
{
    atomic_fetch_add(&bell, 1);
    syscall(SYS_futex, &bell, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Sleep while the bell is as it was `seen`, at most so long; for ever if that is below 0. */
static void
sleep_ns(uint32_t seen, int64_t ns)
{
    struct timespec left = {(time_t)(ns / NS), (long)(ns % NS)};
    syscall(SYS_futex, &bell, FUTEX_WAIT_PRIVATE, seen, ns < 0 ? NULL : &left, NULL, 0);
}

static inline int
is_over(uint32_t generation)
{
    return atomic_load(&watch.generation) != generation;
}

static inline int
is_open(uint32_t number)
{
    return (int32_t)(number - atomic_load(&answers)) > 0;
}

static void
answer(uint32_t number)
{
    if (is_open(number)) {
        atomic_store(&answers, number);
    }
}

/* -- in the copy -- */

static Found *found_by_copy;

/* End the copy and leave what it wrote: at its regular end (SIGABRT), when it hangs, and when it crashes. */
static void
end_copy(int signum)
{
    Found *found = found_by_copy;
    while (found->size < TEXT_BYTES) {
        ssize_t got = pread(STDERR_FILENO, found->text + found->size, TEXT_BYTES - found->size, (off_t)found->size);
        if (got <= 0) {
            break;
        }
        found->size += (size_t)got;
    }
    found->crashed = signum != SIGABRT && signum != SIGALRM;
    _exit(0);
}

static void
read_stacks(Found *found)
{
    static const int ends[] = {SIGABRT, SIGALRM, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    struct itimerval limit = {{0, 0}, {COPY_SECONDS, 0}};
    struct sigaction action;
    sigset_t mask;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_DUMPABLE, 0);
    int memory = (int)syscall(SYS_memfd_create, "concagent", 0);
    int number = fileno(stderr); /* where Py_FatalError writes, mostly 2 */
    if (memory < 0 || number < 0 || dup2(memory, number) < 0 || dup2(memory, STDERR_FILENO) < 0) {
        _exit(1);
    }
    found_by_copy = found;
    memset(&action, 0, sizeof action);
    action.sa_handler = end_copy;
    sigfillset(&action.sa_mask);
    sigfillset(&mask);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        sigaction(ends[i], &action, NULL);
        sigdelset(&mask, ends[i]);
    }
    setitimer(ITIMER_REAL, &limit, NULL); /* it may want to end a thread of faulthandler's, which is not here */
    sigprocmask(SIG_SETMASK, &mask, NULL);
    Py_FatalError("a copy of the process reads the stacks");
}

/* -- in the thread -- */

/* Make a copy and wait for what it leaves: NULL, or why there is nothing. */
static const char *
read_from_a_copy(Found *found, uint32_t generation)
{
    int64_t limit = now_ns() + 2 * COPY_SECONDS * NS;
    long pid = syscall(SYS_clone, 0, 0, 0, 0, 0); /* machines differ in the order of arguments; here all are 0 */
    if (pid < 0) {
        return errno == ENOMEM ? "no memory for a copy of the process" : "the process cannot be copied";
    }
    if (pid == 0) {
        read_stacks(found);
    }
    for (;;) {
        pid_t done = waitpid((pid_t)pid, NULL, __WCLONE | WNOHANG);
        if (done == pid || (done < 0 && errno != EINTR)) {
            break;
        }
        if (is_over(generation) || now_ns() > limit) {
            kill((pid_t)pid, SIGKILL);
        }
        poll(NULL, 0, SLICE_MS);
    }
    return found->size == 0 ? "the copy of the process left nothing" : NULL;
}

/* Write all of it, unless nobody reads for too long: standard error may be a pipe. */
static void
write_patiently(int fd, const char *text, size_t size, uint32_t generation)
{
    int64_t limit = now_ns() + COPY_SECONDS * NS;
    while (size > 0 && !is_over(generation) && now_ns() < limit) {
        struct pollfd ready = {fd, POLLOUT, 0};
        if (poll(&ready, 1, SLICE_MS) <= 0) {
            continue;
        }
        ssize_t done = write(fd, text, size < PIECE_BYTES ? size : PIECE_BYTES);
        if (done < 0 && (errno == EINTR || errno == EAGAIN)) {
            continue;
        }
        if (done <= 0) {
            return;
        }
        text += done;
        size -= (size_t)done;
        limit = now_ns() + COPY_SECONDS * NS;
    }
}

/* The stacks in what Py_FatalError wrote, without what it says of a crash; NULL if there are none. */
static const char *
stacks_in(const char *text, size_t *size)
{
    const char *begin = strstr(text, "\nThread 0x"), *current = strstr(text, "\nCurrent thread 0x");
    if (begin == NULL || (current != NULL && current < begin)) {
        begin = current;
    }
    if (begin != NULL) {
        const char *end = strstr(begin, "\n\nExtension modules: ");
        *size = end != NULL ? (size_t)(end + 1 - begin) : strlen(begin);
    }
    return begin;
}

static void
write_found(int fd, const Found *found, const char *missing, uint32_t generation)
{
    static const char end[] = "\n== end of last resort ==\n", torn[] = "\n(reading them crashed here)\n";
    size_t size = 0;
    const char *stacks = missing == NULL ? stacks_in(found->text, &size) : NULL;
    write_patiently(fd, watch.heading, strlen(watch.heading), generation);
    if (stacks != NULL) {
        write_patiently(fd, stacks, size, generation);
    }
    else {
        char line[160];
        snprintf(line, sizeof line, "\nThe stacks cannot be read: %s.\n",
                 missing != NULL ? missing : "the interpreter shows none");
        write_patiently(fd, line, strlen(line), generation);
    }
    if (found->crashed) {
        write_patiently(fd, torn, sizeof torn - 1, generation);
    }
    write_patiently(fd, end, sizeof end - 1, generation);
}

/* Write a file as ReportDirectory does: 0600, and whole before it has its name. */
static int
write_file(const Found *found, const char *missing, uint32_t generation, char *path, size_t path_size)
{
    char temporary[PATH_MAX + 64];
    int pid = (int)getpid(), number = 0;
    snprintf(temporary, sizeof temporary, "%s/.last-resort-%d.tmp", watch.directory, pid);
    unlink(temporary); /* only a process of this id that was killed while writing can have left it */
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) {
        return -1;
    }
    write_found(fd, found, missing, generation);
    close(fd);
    do {
        snprintf(path, path_size, "%s/last-resort-%d-%06d.txt", watch.directory, pid, ++number);
    } while (access(path, F_OK) == 0);
    if (rename(temporary, path) < 0) {
        unlink(temporary);
        return -1;
    }
    return 0;
}

static void
tell(uint32_t generation)
{
    char path[PATH_MAX + 64];
    Found *found = mmap(NULL, sizeof *found, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) {
        return;
    }
    const char *missing = read_from_a_copy(found, generation);
    int in_file = !is_over(generation) && watch.directory[0] != 0 &&
                  write_file(found, missing, generation, path, sizeof path) == 0;
    if (watch.to_stderr || !in_file) {
        write_found(STDERR_FILENO, found, missing, generation);
    }
    else {
        char line[sizeof path + 64];
        snprintf(line, sizeof line, "concagent: last resort written to %s\n", path);
        write_patiently(STDERR_FILENO, line, strlen(line), generation);
    }
    munmap(found, sizeof *found);
}

static void *
keep_watch(void *argument)
{
    uint32_t generation = (uint32_t)(uintptr_t)argument;
    atomic_store(&watch.native_id, (int)syscall(SYS_gettid));
    prctl(PR_SET_NAME, "concagent");
    while (!is_over(generation)) {
        uint32_t seen = atomic_load(&bell); /* before anything is looked at: what changes afterwards rings again */
        uint32_t asked = atomic_load(&requests);
        if (is_over(generation)) {
            break;
        }
        if (!is_open(asked)) {
            sleep_ns(seen, -1);
            continue;
        }
        int64_t until = now_ns() + watch.patience_ns;
        while (!is_over(generation) && is_open(asked)) {
            seen = atomic_load(&bell);
            int64_t left = until - now_ns();
            if (left <= 0) {
                asked = atomic_load(&requests); /* those that came meanwhile are told the same */
                tell(generation);
                answer(asked);
            }
            else if (!is_over(generation) && is_open(asked)) {
                sleep_ns(seen, left);
            }
        }
    }
    return NULL;
}

/* -- with the GIL, but for the first -- */

/* In the signal's handler: one more request. */
void
LastResort_request(void)
{
    atomic_fetch_add(&requests, 1);
    ring();
}

/* last_resort_answer(requests): there has been an answer to all requests up to this number. */
PyObject *
core_last_resort_answer(PyObject *Py_UNUSED(module), PyObject *number)
{
    unsigned long value = PyLong_AsUnsignedLong(number);
    if (value == (unsigned long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    answer((uint32_t)value);
    ring();
    Py_RETURN_NONE;
}

/* last_resort_start(patience_seconds, heading, to_stderr, directory): False if it runs. */
PyObject *
core_last_resort_start(PyObject *Py_UNUSED(module), PyObject *args)
{
    double seconds;
    int to_stderr;
    const char *heading, *directory;
    if (!PyArg_ParseTuple(args, "dypy:last_resort_start", &seconds, &heading, &to_stderr, &directory)) {
        return NULL;
    }
    if (watch.running) {
        Py_RETURN_FALSE;
    }
    if (strlen(heading) >= sizeof watch.heading || strlen(directory) >= sizeof watch.directory || !(seconds > 0)) {
        PyErr_SetString(PyExc_ValueError, "the text or the path is too long, or the time too short");
        return NULL;
    }
    watch.patience_ns = seconds < 9e9 ? (int64_t)(seconds * 1e9) : INT64_MAX / 2;
    watch.to_stderr = to_stderr;
    strcpy(watch.heading, heading);
    strcpy(watch.directory, directory);
    atomic_store(&watch.native_id, 0);
    uint32_t generation = atomic_fetch_add(&watch.generation, 1) + 1;
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS}; /* as in _real.py */
    sigset_t all, before;
    pthread_attr_t attributes;
    sigfillset(&all);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        sigdelset(&all, faults[i]);
    }
    pthread_sigmask(SIG_SETMASK, &all, &before); /* inherited */
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    int failed = pthread_create(&watch.thread, &attributes, keep_watch, (void *)(uintptr_t)generation);
    if (failed == EINVAL) { /* a program whose libraries have many thread-locals, for which each stack has the room */
        failed = pthread_create(&watch.thread, NULL, keep_watch, (void *)(uintptr_t)generation);
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        errno = failed;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    watch.running = 1;
    Py_RETURN_TRUE;
}

/* last_resort_stop(): end the thread; its native id, 0 if it did not run.
 *
 * It ends at once but for two cases: it writes to where nobody reads, and somebody filled that pipe in between; the
 * kernel takes long to copy a big process.  Then it is left to end by itself. */
PyObject *
core_last_resort_stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    if (!watch.running) {
        return PyLong_FromLong(0);
    }
    watch.running = 0;
    pthread_t thread = watch.thread;
    atomic_fetch_add(&watch.generation, 1);
    ring();
    Py_BEGIN_ALLOW_THREADS
    struct timespec limit;
    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec++;
    if (pthread_timedjoin_np(thread, NULL, &limit) != 0) {
        pthread_detach(thread);
    }
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(atomic_load(&watch.native_id));
}

/* last_resort_after_fork(): a fork's child has no such thread, and what was asked was asked of its parent. */
PyObject *
core_last_resort_after_fork(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    watch.running = 0;
    atomic_store(&answers, atomic_load(&requests));
    Py_RETURN_NONE;
}

/* last_resort_threads(): how many threads of the process are ours and unknown to Python. */
PyObject *
core_last_resort_threads(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromLong(watch.running);
}

#else

void
LastResort_request(void)
{
    atomic_fetch_add(&requests, 1);
}

PyObject *
core_last_resort_answer(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(number))
{
    Py_RETURN_NONE;
}

PyObject *
core_last_resort_start(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    PyErr_SetString(PyExc_NotImplementedError, "this system has no last resort");
    return NULL;
}

PyObject *
core_last_resort_stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromLong(0);
}

PyObject *
core_last_resort_after_fork(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    Py_RETURN_NONE;
}

PyObject *
core_last_resort_threads(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromLong(0);
}

#endif
