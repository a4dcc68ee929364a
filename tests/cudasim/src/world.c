/* The shared state: making and opening it, its lock, and taking back what dead processes held. See world.h. */
#define _GNU_SOURCE
#include "world.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "physical.h"

const char *const call_names[CALL_COUNT] = {
#define X(name, exported, needs) #name,
    CALLS(X)
#undef X
};

static void *map_shared(int fd, size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static int open_in(const struct world *world, const char *name, int flags)
{
    char path[PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/%s", world->path, name);
    return open(path, flags | O_CLOEXEC, 0600);
}

static int map_state(struct world *world, const char *path, int flags)
{
    /* The kernel reports a file's canonical path, and imports are recognised by it. */
    if (!realpath(path, world->path)) {
        return errno;
    }
    int fd = open_in(world, "world", flags | O_RDWR);
    if (fd < 0) {
        return errno;
    }
    struct stat file;
    int error = 0;
    if (flags & O_CREAT && ftruncate(fd, sizeof *world->state)) {
        error = errno;
    } else if (fstat(fd, &file)) {
        error = errno;
    } else if ((size_t)file.st_size != sizeof *world->state) {
        error = EPROTO;
    } else if (!(world->state = map_shared(fd, sizeof *world->state))) {
        error = errno;
    }
    close(fd);
    return error;
}

int world_create(struct world *world, const char *path)
{
    int error = map_state(world, path, O_CREAT | O_EXCL);
    if (error) {
        return error;
    }
    struct world_state *state = world->state;
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&state->mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
    state->allocation_high = 1;
    state->fresh_byte = -1;
    state->version = WORLD_VERSION;
    state->magic = WORLD_MAGIC;
    return 0;
}

int world_open(struct world *world, const char *path)
{
    int error = map_state(world, path, 0);
    if (!error && (world->state->magic != WORLD_MAGIC || world->state->version != WORLD_VERSION)) {
        world_close(world);
        error = EPROTO;
    }
    return error;
}

void world_close(struct world *world)
{
    munmap(world->state, sizeof *world->state);
    world->state = NULL;
}

void world_format_uuid(const struct device_record *device, char text[UUID_TEXT])
{
    const uint8_t *u = device->uuid;
    const char *format = "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x";
    snprintf(text, UUID_TEXT, format, u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12],
             u[13], u[14], u[15]);
}

/* ---- processes ---- */

struct process_file *world_map_process(struct world *world, uint32_t slot)
{
    char name[32];
    snprintf(name, sizeof name, "process-%u", slot);
    int fd = open_in(world, name, O_RDWR);
    if (fd < 0) {
        return NULL;
    }
    struct process_file *file = map_shared(fd, sizeof *file);
    close(fd);
    return file;
}

void world_unmap_process(struct process_file *file)
{
    munmap(file, sizeof *file);
}

struct process_file *world_join(struct world *world, uint32_t *slot)
{
    struct process_file *file = NULL;
    world_lock(world);
    struct world_state *state = world->state;
    if (state->process_count < MAX_PROCESSES) {
        char name[32];
        snprintf(name, sizeof name, "process-%u", state->process_count);
        int fd = open_in(world, name, O_RDWR | O_CREAT);
        if (fd >= 0) {
            /* The mapping, not the descriptor, keeps the lock: a program may close every fd it does not know. */
            if (!ftruncate(fd, sizeof *file) && !flock(fd, LOCK_SH | LOCK_NB)) {
                file = map_shared(fd, sizeof *file);
            }
            close(fd);
        }
    }
    if (file) {
        *slot = state->process_count;
        file->pid = getpid();
        file->handle_high = 1;
        state->processes[*slot] = (struct process_record){.state = PROCESS_ALIVE, .pid = file->pid};
        state->process_count++;
    }
    world_unlock(world);
    return file;
}

static bool is_dead(struct world *world, uint32_t slot)
{
    char name[32];
    snprintf(name, sizeof name, "process-%u", slot);
    int fd = open_in(world, name, O_RDWR);
    if (fd < 0) {
        return false; /* out of descriptors proves nothing */
    }
    bool dead = flock(fd, LOCK_EX | LOCK_NB) == 0;
    close(fd);
    return dead;
}

static void bury(struct world *world, uint32_t slot)
{
    struct world_state *state = world->state;
    struct process_file *file = world_map_process(world, slot);
    if (!file) {
        return;
    }
    for (uint32_t i = 1; i < file->handle_high; i++) {
        if (file->handles[i].allocation) {
            state->allocations[file->handles[i].allocation].references--;
            file->handles[i].allocation = 0;
        }
    }
    for (uint32_t device = 0; device < state->device_count; device++) {
        if (file->charged_devices & 1u << device) {
            state->devices[device].used_bytes -= state->context_bytes;
        }
    }
    file->charged_devices = 0;
    state->processes[slot].state = PROCESS_BURIED;
    world_unmap_process(file);
}

void world_sweep(struct world *world)
{
    struct world_state *state = world->state;
    for (uint32_t slot = 0; slot < state->process_count; slot++) {
        if (state->processes[slot].state == PROCESS_ALIVE && is_dead(world, slot)) {
            bury(world, slot);
        }
    }
    for (uint32_t index = 1; index < state->allocation_high; index++) {
        physical_free_if_unheld(world, index);
    }
}

bool world_charge(struct world *world, uint32_t device, uint64_t bytes)
{
    struct device_record *record = &world->state->devices[device];
    if (bytes > record->total_bytes) {
        return false;
    }
    if (record->used_bytes > record->total_bytes - bytes) {
        world_sweep(world);
    }
    if (record->used_bytes > record->total_bytes - bytes) {
        return false;
    }
    record->used_bytes += bytes;
    return true;
}

/* ---- the lock ---- */

/* Compute again all that is derived, after a process died in the middle of changing it. */
static void repair(struct world *world)
{
    struct world_state *state = world->state;
    for (uint32_t device = 0; device < state->device_count; device++) {
        state->devices[device].used_bytes = 0;
    }
    state->free_head = 0;
    for (uint32_t index = 1; index < state->allocation_high; index++) {
        struct allocation_record *record = &state->allocations[index];
        record->references = 0;
        if (record->used) {
            state->devices[record->device].used_bytes += record->size;
        } else {
            record->next_free = state->free_head;
            state->free_head = index;
        }
    }
    for (uint32_t slot = 0; slot < state->process_count; slot++) {
        struct process_file *file =
            state->processes[slot].state == PROCESS_ALIVE ? world_map_process(world, slot) : NULL;
        if (!file) {
            continue;
        }
        for (uint32_t i = 1; i < file->handle_high; i++) {
            state->allocations[file->handles[i].allocation].references++; /* those of record 0 mean nothing */
        }
        for (uint32_t device = 0; device < state->device_count; device++) {
            if (file->charged_devices & 1u << device) {
                state->devices[device].used_bytes += state->context_bytes;
            }
        }
        world_unmap_process(file);
    }
}

void world_lock(struct world *world)
{
    int error = pthread_mutex_lock(&world->state->mutex);
    if (error == EOWNERDEAD) {
        repair(world);
        error = pthread_mutex_consistent(&world->state->mutex);
    }
    if (error) {
        fprintf(stderr, "cudasim: the lock of %s is lost: %s\n", world->path, strerror(error));
        abort();
    }
}

void world_unlock(struct world *world)
{
    pthread_mutex_unlock(&world->state->mutex);
}
