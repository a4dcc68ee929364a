/* Calls that fail or stall because a test ordered it. They fail before they have done anything: in a driver whose
 * failed calls have done half of their work nobody could say what the caller should do. */
#define _GNU_SOURCE
#include "fault.h"

#include <time.h>
#include <unistd.h>

#include "work.h"

static bool is_meant(const struct fault *fault, enum call call)
{
    bool is_call = fault->call == (int)call || (fault->call == ANY_CALL && call_needs[call] != ALWAYS);
    return fault->times && is_call && (fault->pid == 0 || fault->pid == getpid());
}

/* Counts the call for every order; the order that it is due for, with `times` 0 if there is none. */
static struct fault take_due(enum call call)
{
    struct fault due = {0};
    struct world_state *state = process.world.state;
    world_lock(&process.world);
    for (int i = 0; i < MAX_FAULTS; i++) {
        struct fault *fault = &state->faults[i];
        if (!is_meant(fault, call)) {
            continue;
        }
        if (fault->calls) {
            fault->calls--;
        } else if (!due.times) {
            due = *fault;
            if (fault->times != FOR_GOOD && --fault->times == 0) {
                __atomic_fetch_sub(&state->fault_count, 1, __ATOMIC_RELAXED);
            }
        }
    }
    world_unlock(&process.world);
    return due;
}

static void sleep_ns(uint64_t ns)
{
    struct timespec time = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    nanosleep(&time, NULL);
}

static void stall(uint64_t ns)
{
    if (ns != FOR_GOOD) {
        sleep_ns(ns);
        return;
    }
    struct world_state *state = process.world.state;
    uint32_t before = __atomic_load_n(&state->releases, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&state->stalled, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&state->releases, __ATOMIC_SEQ_CST) == before) {
        sleep_ns(1000000);
    }
    __atomic_fetch_sub(&state->stalled, 1, __ATOMIC_SEQ_CST);
}

CUresult fault_meet(enum call call)
{
    if (!__atomic_load_n(&process.world.state->fault_count, __ATOMIC_RELAXED)) {
        return CUDA_SUCCESS;
    }
    struct fault due = take_due(call);
    if (!due.times) {
        return CUDA_SUCCESS;
    }
    if (due.stall_ns) {
        stall(due.stall_ns);
    }
    if (due.is_sticky) {
        process_lock();
        work_fault((CUresult)due.code);
        process.lost_on_demand = true;
        process_unlock();
    }
    return (CUresult)due.code;
}
