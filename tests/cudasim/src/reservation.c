/* The calls on addresses alone: reserve and free, and finding what lies where.
 *
 * What the real driver does: a reservation is addresses and nothing else, of any size; only a whole one can be freed,
 * and only while nothing is mapped in it. Here it is PROT_NONE memory, so touching it is a SIGSEGV. */
#define _GNU_SOURCE
#include "address_space.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static struct reservation *reservations;

static size_t granule_count(size_t size)
{
    return size / granule_bytes() + (size % granule_bytes() != 0);
}

struct reservation *reservation_at(CUdeviceptr address)
{
    struct reservation *r = reservations;
    while (r && (address < r->start || address - r->start >= r->size)) {
        r = r->next;
    }
    return r;
}

struct mapping **granule_at(const struct reservation *r, CUdeviceptr address)
{
    return &r->granules[(address - r->start) / granule_bytes()];
}

struct mapping *mapping_at(CUdeviceptr address)
{
    const struct reservation *r = reservation_at(address);
    return r ? *granule_at(r, address) : NULL;
}

static void *try_hint(CUdeviceptr hint, size_t size)
{
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
    void *at = hint ? mmap((void *)hint, size, PROT_NONE, flags, -1, 0) : MAP_FAILED;
    if (at != MAP_FAILED && at != (void *)hint) { /* a kernel that does not know MAP_FIXED_NOREPLACE */
        munmap(at, size);
        at = MAP_FAILED;
    }
    return at;
}

static void *map_aligned(size_t size, size_t alignment)
{
    size_t room = size + alignment;
    if (room < size) {
        return MAP_FAILED;
    }
    char *at = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        return at;
    }
    size_t before = (alignment - (uintptr_t)at % alignment) % alignment;
    if (before) {
        munmap(at, before);
    }
    if (room - before > size) {
        munmap(at + before + size, room - before - size);
    }
    return at + before;
}

static CUresult reserve(CUdeviceptr *start, size_t size, size_t alignment, CUdeviceptr hint, uint64_t flags)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t aligned = alignment > granule_bytes() ? alignment : granule_bytes();
    if (!start || flags || size == 0 || size % page || alignment & (alignment - 1) || hint % aligned) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct reservation *r = malloc(sizeof *r);
    struct mapping **granules = mmap(NULL, granule_count(size) * sizeof *granules, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    void *at = granules == MAP_FAILED ? MAP_FAILED : try_hint(hint, size);
    if (granules != MAP_FAILED && at == MAP_FAILED) {
        at = map_aligned(size, aligned);
    }
    if (!r || at == MAP_FAILED) {
        if (granules != MAP_FAILED) {
            munmap(granules, granule_count(size) * sizeof *granules);
        }
        free(r);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *start = (CUdeviceptr)at;
    process_lock();
    *r = (struct reservation){.start = *start, .size = size, .granules = granules, .next = reservations};
    reservations = r;
    process.file->reservations++;
    process.file->reserved_bytes += size;
    process_unlock();
    return CUDA_SUCCESS;
}

static CUresult free_reservation(CUdeviceptr start, size_t size)
{
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    process_lock();
    struct reservation **link = &reservations;
    while (*link && (*link)->start != start) {
        link = &(*link)->next;
    }
    struct reservation *r = *link;
    if (r && r->size == size && r->mapping_count == 0) {
        *link = r->next;
        process.file->reservations--;
        process.file->reserved_bytes -= size;
        munmap((void *)start, size);
        munmap(r->granules, granule_count(size) * sizeof *r->granules);
        free(r);
        result = CUDA_SUCCESS;
    }
    process_unlock();
    return result;
}

EXPORT CUresult cuMemAddressReserve(CUdeviceptr *start, size_t size, size_t alignment, CUdeviceptr hint, uint64_t flags)
{
    return CALL(cuMemAddressReserve, reserve(start, size, alignment, hint, flags));
}

EXPORT CUresult cuMemAddressFree(CUdeviceptr start, size_t size)
{
    return CALL(cuMemAddressFree, free_reservation(start, size));
}
