/* Joining the world, cuInit, and the gate. What the real driver does: every call before cuInit is NOT_INITIALIZED; no
 * GPU is NO_DEVICE; a child forked after cuInit cannot use CUDA (undefined there, refused here); and after an illegal
 * address all work in the process fails with that error. */
#define _GNU_SOURCE
#include "process.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "device.h"
#include "fault.h"

const enum needs call_needs[CALL_COUNT] = {
#define X(name, exported, needs) needs,
    CALLS(X)
#undef X
};

struct process process = {.mutex = PTHREAD_MUTEX_INITIALIZER};
static pthread_mutex_t joining = PTHREAD_MUTEX_INITIALIZER;
static int join_error = ENOENT;

static void join_world(void)
{
    int pid = getpid();
    if (__atomic_load_n(&process.pid, __ATOMIC_ACQUIRE) == pid || process.initialized) {
        return;
    }
    pthread_mutex_lock(&joining);
    if (process.pid != pid) {
        if (process.file) { /* forked before cuInit, which is legal: leave the parent's place and take an own one */
            world_unmap_process(process.file);
            world_close(&process.world);
            process.file = NULL;
        }
        const char *path = getenv("CUDASIM_WORLD");
        join_error = path ? world_open(&process.world, path) : ENOENT;
        if (!join_error && !(process.file = world_join(&process.world, &process.slot))) {
            join_error = ENOSPC;
            world_close(&process.world);
        }
        if (join_error && path) {
            fprintf(stderr, "cudasim: cannot join CUDASIM_WORLD=%s: %s\n", path, strerror(join_error));
        }
        __atomic_store_n(&process.pid, pid, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&joining);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* When this thread's call began, if it has a latency. */
static _Thread_local uint64_t began_ns;
/* What a test made this thread's call fail with. */
static _Thread_local CUresult failed_on_demand;

/* Make the call last its latency, its own work included. Sleeps through most of a long wait and spins through the
 * rest: a sleep alone oversleeps by some 50 us. No lock is held. */
static void wait_until(uint64_t deadline_ns)
{
    const uint64_t spin_ns = 100000;
    uint64_t now = now_ns();
    if (now + 2 * spin_ns < deadline_ns) {
        uint64_t sleep_ns = deadline_ns - now - spin_ns;
        struct timespec time = {(time_t)(sleep_ns / 1000000000u), (long)(sleep_ns % 1000000000u)};
        nanosleep(&time, NULL);
    }
    while (now_ns() < deadline_ns) {
    }
}

CUresult enter(enum call call)
{
    join_world();
    if (process.file) {
        __atomic_fetch_add(&process.file->calls[call], 1, __ATOMIC_RELAXED);
        if (process.world.state->latency_ns[call]) {
            began_ns = now_ns();
        }
    }
    failed_on_demand = CUDA_SUCCESS;
    if (call_needs[call] != ALWAYS && (!process.initialized || process.pid != getpid())) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    failed_on_demand = process.file ? fault_meet(call) : CUDA_SUCCESS;
    if (failed_on_demand) {
        return failed_on_demand;
    }
    CUresult sticky = (CUresult)__atomic_load_n(&process.sticky, __ATOMIC_RELAXED);
    if (call_needs[call] != WORK || !sticky) {
        return CUDA_SUCCESS;
    }
    failed_on_demand = process.lost_on_demand ? sticky : CUDA_SUCCESS;
    return sticky;
}

CUresult leave(enum call call, CUresult result)
{
    uint64_t latency_ns = process.file ? process.world.state->latency_ns[call] : 0;
    if (latency_ns) {
        wait_until(began_ns + latency_ns);
    }
    if (process.file && result != CUDA_SUCCESS && result != CUDA_ERROR_NOT_READY) {
        uint64_t *counters = failed_on_demand                     ? process.file->injected
                             : result == CUDA_ERROR_OUT_OF_MEMORY ? process.file->exhausted
                                                                  : process.file->refused;
        __atomic_fetch_add(&counters[call], 1, __ATOMIC_RELAXED);
    }
    return result;
}

void process_lock(void)
{
    pthread_mutex_lock(&process.mutex);
}

void process_unlock(void)
{
    pthread_mutex_unlock(&process.mutex);
}

static CUresult init(unsigned int flags)
{
    if (process.initialized && process.pid != getpid()) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    if (flags) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!process.file) {
        return join_error == ENOENT ? CUDA_ERROR_NO_DEVICE : CUDA_ERROR_SYSTEM_DRIVER_MISMATCH;
    }
    if (!device_select_visible()) {
        return CUDA_ERROR_NO_DEVICE;
    }
    process.initialized = true;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuInit(unsigned int flags)
{
    return CALL(cuInit, init(flags));
}
