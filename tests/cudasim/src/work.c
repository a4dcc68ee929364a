/* What the real driver does: it hands work to the device and returns; what is unmapped under running or queued work is
 * a fault of the device (Xid 31), because unmapping waits for nothing. There are no such faults here that a program
 * could survive: it dies at the call that would have caused one, with the names of both on stderr.
 *
 * One thread plays all devices. It sleeps until the next piece is over, so kernels cost time but no processor, and it
 * touches memory without the lock, as a device does. */
#define _GNU_SOURCE
#include "work.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "address_space.h"

static struct work *unfinished, **unfinished_end = &unfinished; /* in the order of queueing; each holds a reference */
static struct work *in_use; /* with ranges and not proven, in no order; each holds a reference */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static bool worker_started;
static uint64_t last_number;

static const char *const kind_names[] = {"mark", "fill", "copy", "kernel"};

struct work *work_new(enum work_kind kind, uint32_t device, size_t range_count)
{
    struct work *work = calloc(1, sizeof *work + range_count * sizeof *work->ranges);
    if (work) {
        work->kind = kind;
        work->device = device;
        work->number = ++last_number;
        work->references = 1;
        work->range_count = range_count;
    }
    return work;
}

struct work *work_keep(struct work *work)
{
    work->references++;
    return work;
}

/* Long chains of work end here, so this does not call itself. */
void work_drop(struct work *work)
{
    struct work *dead = NULL;
    if (work && --work->references == 0) {
        dead = work;
    }
    while (dead) {
        work = dead;
        dead = work->next_dead;
        for (size_t i = 0; i < work->awaited_count; i++) {
            struct work *earlier = work->awaited[i];
            if (--earlier->references == 0) {
                earlier->next_dead = dead;
                dead = earlier;
            }
        }
        free(work->awaited);
        free(work);
    }
}

void work_await(struct work *work, struct work *earlier)
{
    if (!earlier || earlier->proven) {
        return;
    }
    struct work **awaited = realloc(work->awaited, (work->awaited_count + 1) * sizeof *awaited);
    if (!awaited) {
        fprintf(stderr, "cudasim: out of memory\n");
        abort();
    }
    work->awaited = awaited;
    work->awaited[work->awaited_count++] = work_keep(earlier);
}

/* ---- the device ---- */

static uint64_t checksum(const struct work_range *range)
{
    const unsigned char *bytes = (const unsigned char *)range->start;
    uint64_t sum = 0xcbf29ce484222325u;
    size_t at = 0;
    for (; at + sizeof sum <= range->size; at += sizeof sum) {
        uint64_t word;
        memcpy(&word, bytes + at, sizeof word);
        sum = (sum ^ word) * 0x100000001b3u;
        sum ^= sum >> 32;
    }
    for (; at < range->size; at++) {
        sum = (sum ^ bytes[at]) * 0x100000001b3u;
    }
    return sum;
}

static bool holds_only(const struct work_range *range)
{
    const unsigned char *bytes = (const unsigned char *)range->start;
    return range->size == 0 || (bytes[0] == range->byte && !memcmp(bytes, bytes + 1, range->size - 1));
}

static bool writes(const struct work_range *range)
{
    return range->access == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
}

static void print_range(const struct work *work, const struct work_range *range)
{
    fprintf(stderr, "%s %llu, which %s [0x%llx, 0x%llx)", kind_names[work->kind], (unsigned long long)work->number,
            writes(range) ? "writes" : "reads", (unsigned long long)range->start,
            (unsigned long long)(range->start + range->size));
}

static bool can_reach(const struct work *work)
{
    for (size_t i = 0; i < work->range_count; i++) {
        const struct work_range *range = &work->ranges[i];
        if (range->size && address_reach(range->start, range->size, work->device, range->access) != REACH_ALL) {
            fprintf(stderr, "cudasim: illegal address: ");
            print_range(work, range);
            fprintf(stderr, ", cannot reach it\n");
            return false;
        }
    }
    return true;
}

static void start_body(struct work *work)
{
    struct work_range *first = &work->ranges[0];
    if (work->kind == WORK_COPY) {
        bool to_device = writes(&work->ranges[work->range_count - 1]);
        void *to = to_device ? (void *)work->ranges[work->range_count - 1].start : work->host;
        const void *from = to_device && work->range_count == 1 ? work->host : (const void *)first->start;
        memmove(to, from, first->size);
        return;
    }
    for (size_t i = 0; i < work->range_count; i++) {
        struct work_range *range = &work->ranges[i];
        if (writes(range)) {
            memset((void *)range->start, range->byte, range->size);
        } else {
            range->checksum = checksum(range);
        }
    }
}

/* A kernel owns what it uses until it ends. If that is not so, somebody overwrote or recycled its memory. */
static void end_body(struct work *work)
{
    for (size_t i = 0; work->kind == WORK_KERNEL && i < work->range_count; i++) {
        const struct work_range *range = &work->ranges[i];
        if (writes(range) ? !holds_only(range) : checksum(range) != range->checksum) {
            fprintf(stderr, "cudasim: ");
            print_range(work, range);
            fprintf(stderr, ", found other bytes there when it ended: its memory was overwritten or recycled while it "
                            "ran. The process ends.\n");
            abort();
        }
    }
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void start(struct work *work)
{
    work->state = WORK_RUNNING;
    if (!can_reach(work)) {
        work_fault(CUDA_ERROR_ILLEGAL_ADDRESS);
        return;
    }
    process_unlock();
    work->end_ns = now_ns() + work->duration_ns;
    start_body(work);
    process_lock();
}

static void finish(struct work *work)
{
    process_unlock();
    end_body(work);
    process_lock();
    if (work->state == WORK_DONE) {
        return; /* a fault ended it meanwhile */
    }
    struct work **link = &unfinished;
    while (*link != work) {
        link = &(*link)->next_unfinished;
    }
    *link = work->next_unfinished;
    if (!*link) {
        unfinished_end = link;
    }
    work->state = WORK_DONE;
    work->end_ns = now_ns();
    pthread_cond_broadcast(&changed);
    work_drop(work);
}

static bool may_start(const struct work *work)
{
    for (size_t i = 0; i < work->awaited_count; i++) {
        if (work->awaited[i]->state != WORK_DONE) {
            return false;
        }
    }
    return true;
}

/* One step of the first work that can take one. False: there is none before `*wake_ns`. */
static bool step(uint64_t *wake_ns)
{
    uint64_t now = now_ns();
    *wake_ns = UINT64_MAX;
    for (struct work *work = unfinished; work; work = work->next_unfinished) {
        if (work->state == WORK_QUEUED ? !may_start(work) : now < work->end_ns) {
            if (work->state == WORK_RUNNING && work->end_ns < *wake_ns) {
                *wake_ns = work->end_ns;
            }
            continue;
        }
        work_keep(work);
        (work->state == WORK_QUEUED ? start : finish)(work);
        work_drop(work);
        return true;
    }
    return false;
}

static void *play_devices(void *unused)
{
    process_lock();
    for (;;) {
        uint64_t wake_ns;
        if (step(&wake_ns)) {
            continue;
        }
        if (wake_ns == UINT64_MAX) {
            pthread_cond_wait(&changed, &process.mutex);
        } else {
            struct timespec wake = {(time_t)(wake_ns / 1000000000u), (long)(wake_ns % 1000000000u)};
            pthread_cond_clockwait(&changed, &process.mutex, CLOCK_MONOTONIC, &wake);
        }
    }
    return unused;
}

/* Started by the first work, so never before a legal fork. Detached: it does not keep the process from exiting. It
 * takes no signal, for those are the program's. */
static void start_worker(void)
{
    if (worker_started) {
        return;
    }
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread, NULL, play_devices, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) {
        fprintf(stderr, "cudasim: no thread to play the devices: %s\n", strerror(error));
        abort();
    }
    pthread_detach(thread);
    worker_started = true;
}

/* ---- the program ---- */

void work_queue(struct work *work)
{
    if (work->kind == WORK_MARK && may_start(work)) {
        work->state = WORK_DONE;
        work->end_ns = now_ns();
        return;
    }
    start_worker();
    *unfinished_end = work_keep(work);
    unfinished_end = &work->next_unfinished;
    if (work->range_count) {
        work->next_in_use = in_use;
        work->link_in_use = &in_use;
        if (in_use) {
            in_use->link_in_use = &work->next_in_use;
        }
        in_use = work_keep(work);
    }
    pthread_cond_broadcast(&changed);
}

CUresult work_wait(struct work *work)
{
    work_keep(work);
    while (work->state != WORK_DONE) {
        pthread_cond_wait(&changed, &process.mutex);
    }
    work_drop(work);
    return (CUresult)__atomic_load_n(&process.sticky, __ATOMIC_RELAXED);
}

static void push_proven(struct work **stack, struct work *work)
{
    if (work->proven) {
        work_drop(work);
        return;
    }
    work->proven = true;
    work->next_proven = *stack;
    *stack = work;
}

void work_prove(struct work *work)
{
    struct work *stack = NULL;
    push_proven(&stack, work_keep(work));
    while (stack) {
        work = stack;
        stack = work->next_proven;
        for (size_t i = 0; i < work->awaited_count; i++) {
            push_proven(&stack, work->awaited[i]);
        }
        work->awaited_count = 0;
        if (work->link_in_use) {
            *work->link_in_use = work->next_in_use;
            if (work->next_in_use) {
                work->next_in_use->link_in_use = work->link_in_use;
            }
            work->link_in_use = NULL;
            work_drop(work);
        }
        work_drop(work);
    }
}

void work_fault(CUresult code)
{
    __atomic_store_n(&process.sticky, code, __ATOMIC_RELAXED);
    while (unfinished) {
        struct work *work = unfinished;
        unfinished = work->next_unfinished;
        work->state = WORK_DONE;
        work_drop(work);
    }
    unfinished_end = &unfinished;
    pthread_cond_broadcast(&changed);
}

void work_must_not_use(const char *call, CUdeviceptr start, size_t size, uint32_t device)
{
    static const char *const states[] = {
        [WORK_QUEUED] = "is queued",
        [WORK_RUNNING] = "is running",
        [WORK_DONE] = "may be running for all that this process has asked",
    };
    for (const struct work *work = in_use; work; work = work->next_in_use) {
        for (size_t i = 0; i < work->range_count; i++) {
            const struct work_range *range = &work->ranges[i];
            bool overlaps = range->start < start + size && start < range->start + range->size;
            if (!overlaps || (device != ANY_DEVICE && device != work->device)) {
                continue;
            }
            fprintf(stderr, "cudasim: %s(0x%llx, %zu): ", call, (unsigned long long)start, size);
            print_range(work, range);
            fprintf(stderr, ", %s. The real driver does not wait for it and the device would fault (Xid 31): the "
                            "process ends.\n", states[work->state]);
            abort();
        }
    }
}
