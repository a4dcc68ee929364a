/* Physical allocations as files. What the real driver does: memory is released when no handle refers to it, nothing
 * maps it and every exported fd is closed, in whatever process, and not before. */
#define _GNU_SOURCE
#include "physical.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_PREFIX "/allocation-"

static void path_of(const struct world *world, uint32_t index, uint64_t serial, char path[PATH_MAX + 64])
{
    snprintf(path, PATH_MAX + 64, "%s" FILE_PREFIX "%u-%llu", world->path, index, (unsigned long long)serial);
}

/* Fresh memory of a real device holds whatever its last owner left there. */
static int fill(int fd, uint64_t size, int byte)
{
    char *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (bytes == MAP_FAILED) {
        return -1;
    }
    memset(bytes, byte, size);
    return munmap(bytes, size);
}

CUresult physical_create(struct world *world, uint32_t device, uint64_t size, uint32_t handle_types, uint32_t *index)
{
    struct world_state *state = world->state;
    if (!world_charge(world, device, size)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    uint32_t free = state->free_head ? state->free_head : state->allocation_high;
    uint64_t serial = ++state->next_serial;
    char path[PATH_MAX + 64];
    path_of(world, free, serial, path);
    int fd = free < MAX_ALLOCATIONS ? open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600) : -1;
    struct stat file = {0};
    bool made = fd >= 0 && !ftruncate(fd, (off_t)size) && !fstat(fd, &file)
                && (state->fresh_byte < 0 || !fill(fd, size, state->fresh_byte));
    if (fd >= 0) {
        close(fd);
    }
    if (!made) {
        fprintf(stderr, "cudasim: cannot make %s: %s\n", path, free < MAX_ALLOCATIONS ? strerror(errno) : "world full");
        unlink(path);
        state->devices[device].used_bytes -= size;
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    struct allocation_record *record = &state->allocations[free];
    if (free == state->free_head) {
        state->free_head = record->next_free;
    } else {
        state->allocation_high++;
    }
    *record = (struct allocation_record){
        .device = device, .size = size, .serial = serial, .inode = file.st_ino, .handle_types = handle_types};
    __atomic_store_n(&record->used, 1, __ATOMIC_RELEASE);
    *index = free;
    return CUDA_SUCCESS;
}

int physical_open(struct world *world, uint32_t index, bool hold)
{
    char path[PATH_MAX + 64];
    path_of(world, index, world->state->allocations[index].serial, path);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd >= 0 && hold && flock(fd, LOCK_SH | LOCK_NB)) {
        close(fd);
        return -1;
    }
    return fd;
}

uint32_t physical_of_descriptor(struct world *world, int fd)
{
    char link[48], path[PATH_MAX], expected[PATH_MAX + 64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = fd < 0 ? -1 : readlink(link, path, sizeof path - 1);
    size_t directory = strlen(world->path);
    if (length <= (ssize_t)directory) {
        return 0;
    }
    path[length] = '\0';
    uint32_t index;
    unsigned long long serial;
    if (sscanf(path + directory, FILE_PREFIX "%u-%llu", &index, &serial) != 2 || index >= MAX_ALLOCATIONS) {
        return 0;
    }
    const struct allocation_record *record = &world->state->allocations[index];
    struct stat file;
    path_of(world, index, serial, expected);
    bool ours = record->used && record->serial == serial && !strcmp(path, expected) && !fstat(fd, &file)
                && file.st_ino == record->inode;
    return ours ? index : 0;
}

void physical_free_if_unheld(struct world *world, uint32_t index)
{
    struct world_state *state = world->state;
    struct allocation_record *record = &state->allocations[index];
    if (!record->used || record->references) {
        return;
    }
    int fd = physical_open(world, index, false);
    if (fd < 0) {
        return; /* out of descriptors proves nothing: a later sweep will ask again */
    }
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
        char path[PATH_MAX + 64];
        path_of(world, index, record->serial, path);
        __atomic_store_n(&record->used, 0, __ATOMIC_RELEASE);
        unlink(path);
        state->devices[record->device].used_bytes -= record->size;
        record->next_free = state->free_head;
        state->free_head = index;
    }
    close(fd);
}
