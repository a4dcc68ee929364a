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

/* Adds up the counters of one pid, or of every process there was if `pid` is 0. Each array has a place per call. */
EXPORT void cudasim_counters(struct world *world, int pid, uint64_t *calls, uint64_t *refused, uint64_t *exhausted)
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
