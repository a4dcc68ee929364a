/* The calls on what is mapped: map, unmap and access.
 *
 * What the real driver does: a map attaches one whole allocation to free, reserved addresses and gives no access;
 * access is set for whole mappings without a gap; an unmap takes whole mappings and the range is reserved again.
 * Nothing is synchronised: to take away what the device still uses is a fault, and the end of the process here.
 *
 * Here a mapping is the allocation's file, so touching it after an unmap, or writing what is read-only, is a real
 * SIGSEGV. Mappings are MADV_DONTFORK because CUDA's do not survive a fork. Where docs and drivers leave a doubt
 * (holes in an unmapped range, ranges across reservations) it is refused. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "address_space.h"
#include "ballast.h"
#include "device.h"
#include "physical.h"
#include "work.h"

/* The reservation whose mappings make up exactly [start, start + size): no gap, no part of a mapping; else NULL. */
static struct reservation *whole_mappings(CUdeviceptr start, size_t size)
{
    struct reservation *r = reservation_at(start);
    if (!r || size == 0 || size > r->size - (start - r->start)) {
        return NULL;
    }
    CUdeviceptr at = start, end = start + size;
    while (at < end) {
        const struct mapping *m = *granule_at(r, at);
        if (!m || m->start != at || m->size > end - at) {
            return NULL;
        }
        at += m->size;
    }
    return r;
}

enum reach address_reach(CUdeviceptr start, size_t size, uint32_t device, uint32_t access)
{
    struct reservation *r = reservation_at(start);
    if (!r) {
        return REACH_NOWHERE;
    }
    if (size > r->size - (start - r->start)) {
        return REACH_FAULT;
    }
    for (CUdeviceptr at = start; at - start < size;) {
        const struct mapping *m = *granule_at(r, at);
        if (!m || (m->access[device] & access) != access) {
            return REACH_FAULT;
        }
        at = m->start + m->size;
    }
    return REACH_ALL;
}

static bool is_unmapped(const struct reservation *r, CUdeviceptr start, size_t size)
{
    for (size_t offset = 0; offset < size; offset += granule_bytes()) {
        if (*granule_at(r, start + offset)) {
            return false;
        }
    }
    return true;
}

static CUresult attach_file(CUdeviceptr start, size_t size, uint32_t allocation)
{
    if (!keep_ballast()) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    int fd = physical_open(&process.world, allocation, false);
    if (fd < 0) {
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    void *at = mmap((void *)start, size, PROT_NONE, MAP_SHARED | MAP_FIXED, fd, 0);
    close(fd);
    if (at == MAP_FAILED || madvise(at, size, MADV_DONTFORK)) {
        make_reserved(start, size);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    return CUDA_SUCCESS;
}

static CUresult map_locked(CUdeviceptr start, size_t size, CUmemGenericAllocationHandle value)
{
    struct handle_entry *handle = handle_find(value);
    struct reservation *r = reservation_at(start);
    if (!handle || !r || size != process.world.state->allocations[handle->allocation].size || start % granule_bytes()
        || size > r->size - (start - r->start) || !is_unmapped(r, start, size)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct mapping *m = calloc(1, sizeof *m);
    CUresult result = m ? attach_file(start, size, handle->allocation) : CUDA_ERROR_OUT_OF_MEMORY;
    if (result) {
        free(m);
        return result;
    }
    m->start = start;
    m->size = size;
    m->handle = handle;
    handle->mappings++;
    for (size_t offset = 0; offset < size; offset += granule_bytes()) {
        *granule_at(r, start + offset) = m;
    }
    r->mapping_count++;
    return CUDA_SUCCESS;
}

static CUresult map(CUdeviceptr start, size_t size, size_t offset, CUmemGenericAllocationHandle value, uint64_t flags)
{
    if (offset || flags) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    process_lock();
    CUresult result = map_locked(start, size, value);
    process_unlock();
    return result;
}

static CUresult unmap(CUdeviceptr start, size_t size)
{
    process_lock();
    struct reservation *r = whole_mappings(start, size);
    if (r) {
        work_must_not_use("cuMemUnmap", start, size, ANY_DEVICE);
        make_reserved(start, size);
        for (CUdeviceptr at = start; at < start + size;) {
            struct mapping *m = *granule_at(r, at);
            memset(granule_at(r, at), 0, m->size / granule_bytes() * sizeof m);
            r->mapping_count--;
            m->handle->mappings--;
            handle_settle(m->handle);
            at += m->size;
            free(m);
        }
    }
    process_unlock();
    return r ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* ---- access ---- */

static bool is_access(const CUmemAccessDesc *desc)
{
    return desc->location.type == CU_MEM_LOCATION_TYPE_DEVICE && device_index(desc->location.id) >= 0
           && (desc->flags == CU_MEM_ACCESS_FLAGS_PROT_NONE || desc->flags == CU_MEM_ACCESS_FLAGS_PROT_READ
               || desc->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
}

/* What a CPU may do is what any device may do: the CPU plays all devices. */
static int protection(const struct mapping *m)
{
    uint32_t access = 0;
    for (int device = 0; device < MAX_DEVICES; device++) {
        access |= m->access[device];
    }
    return access == CU_MEM_ACCESS_FLAGS_PROT_READWRITE ? PROT_READ | PROT_WRITE : access ? PROT_READ : PROT_NONE;
}

static CUresult set_access(CUdeviceptr start, size_t size, const CUmemAccessDesc *descs, size_t count)
{
    if (!descs || count == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (size_t i = 0; i < count; i++) {
        if (!is_access(&descs[i])) {
            return CUDA_ERROR_INVALID_VALUE;
        }
    }
    process_lock();
    struct reservation *r = whole_mappings(start, size);
    for (CUdeviceptr at = start; r && at < start + size;) {
        struct mapping *m = *granule_at(r, at);
        for (size_t i = 0; i < count; i++) {
            uint32_t device = (uint32_t)device_index(descs[i].location.id);
            if (m->access[device] & ~descs[i].flags) {
                work_must_not_use("cuMemSetAccess", m->start, m->size, device);
            }
            m->access[device] = (uint8_t)descs[i].flags;
        }
        mprotect((void *)m->start, m->size, protection(m)); /* a whole kernel mapping: nothing to split, cannot fail */
        at += m->size;
    }
    process_unlock();
    return r ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult get_access(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr address)
{
    if (!flags || !location || location->type != CU_MEM_LOCATION_TYPE_DEVICE || device_index(location->id) < 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    process_lock();
    const struct mapping *m = mapping_at(address);
    if (m) {
        *flags = m->access[device_index(location->id)];
    }
    process_unlock();
    return m ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult retain(CUmemGenericAllocationHandle *handle, void *address)
{
    if (!handle) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    process_lock();
    const struct mapping *m = mapping_at((CUdeviceptr)address);
    if (m) {
        m->handle->references++;
        *handle = m->handle->value;
    }
    process_unlock();
    return m ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

EXPORT CUresult cuMemMap(CUdeviceptr start, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                         uint64_t flags)
{
    return CALL(cuMemMap, map(start, size, offset, handle, flags));
}

EXPORT CUresult cuMemUnmap(CUdeviceptr start, size_t size)
{
    return CALL(cuMemUnmap, unmap(start, size));
}

EXPORT CUresult cuMemSetAccess(CUdeviceptr start, size_t size, const CUmemAccessDesc *descs, size_t count)
{
    return CALL(cuMemSetAccess, set_access(start, size, descs, count));
}

EXPORT CUresult cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr address)
{
    return CALL(cuMemGetAccess, get_access(flags, location, address));
}

EXPORT CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address)
{
    return CALL(cuMemRetainAllocationHandle, retain(handle, address));
}
