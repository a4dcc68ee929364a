/* libcudasim.so: how the tests make, set up and look into a world.
 *
 * Why a library of its own: it has no CUDA symbol, so the test process can load it and hold many worlds, while the
 * programs under test load libcuda.so.1 and live in one. And the shared layout stays known to C only. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_abi.h"
#include "world.h"

/* NULL and errno on failure. */
static struct world *start(int (*how)(struct world *, const char *), const char *path)
{
    struct world *world = calloc(1, sizeof *world);
    int error = world ? how(world, path) : ENOMEM;
    if (error) {
        free(world);
        errno = error;
        return NULL;
    }
    return world;
}

EXPORT struct world *cudasim_create(const char *path, uint64_t granularity, uint64_t context_bytes, int fresh_byte)
{
    struct world *world = start(world_create, path);
    if (world) {
        world->state->granularity = granularity;
        world->state->context_bytes = context_bytes;
        world->state->fresh_byte = fresh_byte;
    }
    return world;
}

EXPORT struct world *cudasim_open(const char *path)
{
    return start(world_open, path);
}

EXPORT void cudasim_close(struct world *world)
{
    world_close(world);
    free(world);
}

EXPORT int cudasim_add_device(struct world *world, const char *name, const uint8_t *uuid, uint64_t total_bytes)
{
    if (world->state->device_count == MAX_DEVICES) {
        return -1;
    }
    struct device_record *device = &world->state->devices[world->state->device_count++];
    strncpy(device->name, name, sizeof device->name - 1);
    memcpy(device->uuid, uuid, sizeof device->uuid);
    device->total_bytes = total_bytes;
    return 0;
}

EXPORT int cudasim_call_count(void)
{
    return CALL_COUNT;
}

EXPORT const char *cudasim_call_name(int call)
{
    return call_names[call];
}

EXPORT void cudasim_set_latency_ns(struct world *world, int call, uint64_t ns)
{
    world->state->latency_ns[call] = ns;
}

/* See struct fault. Returns 0, or -1 where there is no place left. */
EXPORT int cudasim_add_fault(struct world *world, int call, int pid, uint64_t calls, uint64_t times, int code,
                             int is_sticky, uint64_t stall_ns)
{
    int result = -1;
    world_lock(world);
    for (int i = 0; i < MAX_FAULTS && result; i++) {
        if (world->state->faults[i].times == 0) {
            world->state->faults[i] =
                (struct fault){call, pid, calls, times, code, (uint32_t)(is_sticky != 0), stall_ns};
            world->state->fault_count++;
            result = 0;
        }
    }
    world_unlock(world);
    return result;
}

/* No more calls fail or stall. How many orders had not been met to the end. */
EXPORT int cudasim_clear_faults(struct world *world)
{
    world_lock(world);
    int left = (int)world->state->fault_count;
    memset(world->state->faults, 0, sizeof world->state->faults);
    world->state->fault_count = 0;
    world_unlock(world);
    return left;
}

/* How many calls wait until they are released. */
EXPORT int cudasim_stalled(struct world *world)
{
    return (int)__atomic_load_n(&world->state->stalled, __ATOMIC_SEQ_CST);
}

EXPORT void cudasim_release_stalled(struct world *world)
{
    __atomic_fetch_add(&world->state->releases, 1, __ATOMIC_SEQ_CST);
}

/* What living processes of one pid hold: handles, their references and mappings, reservations and their bytes. */
EXPORT void cudasim_holdings(struct world *world, int pid, uint64_t holdings[5])
{
    world_lock(world);
    world_sweep(world);
    for (uint32_t slot = 0; slot < world->state->process_count; slot++) {
        const struct process_record *record = &world->state->processes[slot];
        struct process_file *file =
            record->state == PROCESS_ALIVE && record->pid == pid ? world_map_process(world, slot) : NULL;
        if (!file) {
            continue;
        }
        for (uint32_t i = 1; i < file->handle_high; i++) {
            if (file->handles[i].allocation) {
                holdings[0]++;
                holdings[1] += file->handles[i].references;
                holdings[2] += file->handles[i].mappings;
            }
        }
        holdings[3] += file->reservations;
        holdings[4] += file->reserved_bytes;
        world_unmap_process(file);
    }
    world_unlock(world);
}

/* Adds up the counters of one pid, or of every process there was if `pid` is 0. Each array has a place per call. */
EXPORT void cudasim_counters(struct world *world, int pid, uint64_t *calls, uint64_t *refused, uint64_t *exhausted,
                             uint64_t *injected)
{
    world_lock(world);
    for (uint32_t slot = 0; slot < world->state->process_count; slot++) {
        struct process_file *file =
            pid == 0 || world->state->processes[slot].pid == pid ? world_map_process(world, slot) : NULL;
        if (!file) {
            continue;
        }
        for (int call = 0; call < CALL_COUNT; call++) {
            calls[call] += file->calls[call];
            refused[call] += file->refused[call];
            exhausted[call] += file->exhausted[call];
            injected[call] += file->injected[call];
        }
        world_unmap_process(file);
    }
    world_unlock(world);
}

EXPORT uint64_t cudasim_used_bytes(struct world *world, int device)
{
    world_lock(world);
    world_sweep(world);
    uint64_t bytes = world->state->devices[device].used_bytes;
    world_unlock(world);
    return bytes;
}

EXPORT int cudasim_allocation_count(struct world *world)
{
    int count = 0;
    world_lock(world);
    world_sweep(world);
    for (uint32_t index = 1; index < world->state->allocation_high; index++) {
        count += world->state->allocations[index].used != 0;
    }
    world_unlock(world);
    return count;
}

/* Takes the lock and keeps it: what a process killed in the middle of a driver call leaves behind. */
EXPORT void cudasim_hold_lock(struct world *world)
{
    world_lock(world);
}
