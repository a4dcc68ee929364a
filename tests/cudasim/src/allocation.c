/* The calls on physical memory: create, release, export, import and their properties.
 *
 * What the real driver does: sizes are multiples of the granularity; the handle types are fixed at creation; each
 * export is a new fd that pins the memory, and an import does not take the fd; fabric handles need an IMEX channel,
 * and there is none here. None of these calls needs a context. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "device.h"
#include "handle.h"
#include "physical.h"

/* CUDA_SUCCESS if `prop` describes memory this device can make. */
static CUresult check_prop(const CUmemAllocationProp *prop)
{
    static const uint8_t zeros[sizeof prop->allocFlags.reserved];
    const uint32_t types = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR | CU_MEM_HANDLE_TYPE_FABRIC;
    if (!prop || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED || prop->win32HandleMetaData) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    uint32_t place = prop->location.type;
    if (place >= CU_MEM_LOCATION_TYPE_HOST && place <= CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT) {
        /* Host memory cannot be shared by handle; without one it is real, but not simulated. */
        return prop->requestedHandleTypes ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_NOT_SUPPORTED;
    }
    if (place != CU_MEM_LOCATION_TYPE_DEVICE) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (device_index(prop->location.id) < 0) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    if (prop->requestedHandleTypes & (CU_MEM_HANDLE_TYPE_WIN32 | CU_MEM_HANDLE_TYPE_WIN32_KMT)) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    if (prop->requestedHandleTypes & ~types) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    /* The device's attributes say that it has neither compression nor RDMA for this memory. */
    if (prop->allocFlags.compressionType || prop->allocFlags.gpuDirectRDMACapable || prop->allocFlags.usage
        || memcmp(prop->allocFlags.reserved, zeros, sizeof zeros)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

static CUresult granularity(size_t *bytes, const CUmemAllocationProp *prop, uint32_t option)
{
    if (!bytes || option > CU_MEM_ALLOC_GRANULARITY_RECOMMENDED) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = check_prop(prop);
    if (!result) {
        *bytes = process.world.state->granularity;
    }
    return result;
}

static CUresult create(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                       uint64_t flags)
{
    if (!handle || flags || size == 0 || size % process.world.state->granularity) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = check_prop(prop);
    if (result) {
        return result;
    }
    if (prop->requestedHandleTypes & CU_MEM_HANDLE_TYPE_FABRIC) {
        return CUDA_ERROR_NOT_PERMITTED;
    }
    uint32_t device = (uint32_t)device_index(prop->location.id), allocation;
    process_lock();
    world_lock(&process.world);
    result = physical_create(&process.world, device, size, prop->requestedHandleTypes, &allocation);
    if (!result) {
        *handle = handle_add(allocation);
        if (!*handle) {
            physical_free_if_unheld(&process.world, allocation);
            result = CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    world_unlock(&process.world);
    process_unlock();
    return result;
}

static CUresult release(CUmemGenericAllocationHandle handle)
{
    process_lock();
    struct handle_entry *entry = handle_find(handle);
    if (!entry) {
        fprintf(stderr,
                "cudasim: cuMemRelease(0x%llx): this process holds no such handle "
                "(released twice, or never created here). The real driver's behaviour is undefined: the process ends.\n",
                (unsigned long long)handle);
        abort();
    }
    entry->references--;
    handle_settle(entry);
    process_unlock();
    return CUDA_SUCCESS;
}

static CUresult export(void *shareable, CUmemGenericAllocationHandle handle, uint32_t type, uint64_t flags)
{
    if (!shareable || flags) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (type == CU_MEM_HANDLE_TYPE_FABRIC) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    process_lock();
    world_lock(&process.world);
    struct handle_entry *entry = handle_find(handle);
    /* Only one type is left, and it must have been asked for when the memory was created. */
    if (entry && type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        && process.world.state->allocations[entry->allocation].handle_types & type) {
        int fd = physical_open(&process.world, entry->allocation, true);
        result = fd < 0 ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_SUCCESS;
        if (!result) {
            *(int *)shareable = fd;
        }
    }
    world_unlock(&process.world);
    process_unlock();
    return result;
}

static CUresult import(CUmemGenericAllocationHandle *handle, void *os_handle, uint32_t type)
{
    if (type == CU_MEM_HANDLE_TYPE_FABRIC) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    if (!handle || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || (uintptr_t)os_handle > INT_MAX) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    process_lock();
    world_lock(&process.world);
    uint32_t allocation = physical_of_descriptor(&process.world, (int)(uintptr_t)os_handle);
    if (allocation && !(process.world.state->allocations[allocation].handle_types & type)) {
        result = CUDA_ERROR_INVALID_VALUE; /* no export of ours: it cannot be exported */
    } else if (allocation && device_ordinal(process.world.state->allocations[allocation].device) < 0) {
        result = CUDA_ERROR_NOT_SUPPORTED; /* memory of a device that this process cannot see */
    } else if (allocation) {
        *handle = handle_add(allocation);
        result = *handle ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    }
    world_unlock(&process.world);
    process_unlock();
    return result;
}

static CUresult properties(CUmemAllocationProp *prop, CUmemGenericAllocationHandle handle)
{
    if (!prop) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    process_lock();
    const struct handle_entry *entry = handle_find(handle);
    if (entry) {
        const struct allocation_record *record = &process.world.state->allocations[entry->allocation];
        *prop = (CUmemAllocationProp){
            .type = CU_MEM_ALLOCATION_TYPE_PINNED,
            .requestedHandleTypes = record->handle_types,
            .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device_ordinal(record->device)},
        };
        result = CUDA_SUCCESS;
    }
    process_unlock();
    return result;
}

EXPORT CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *prop, uint32_t option)
{
    return CALL(cuMemGetAllocationGranularity, granularity(bytes, prop, option));
}

EXPORT CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                            uint64_t flags)
{
    return CALL(cuMemCreate, create(handle, size, prop, flags));
}

EXPORT CUresult cuMemRelease(CUmemGenericAllocationHandle handle)
{
    return CALL(cuMemRelease, release(handle));
}

EXPORT CUresult cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle, uint32_t type,
                                             uint64_t flags)
{
    return CALL(cuMemExportToShareableHandle, export(shareable, handle, type, flags));
}

EXPORT CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *os_handle, uint32_t type)
{
    return CALL(cuMemImportFromShareableHandle, import(handle, os_handle, type));
}

EXPORT CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop, CUmemGenericAllocationHandle handle)
{
    return CALL(cuMemGetAllocationPropertiesFromHandle, properties(prop, handle));
}
