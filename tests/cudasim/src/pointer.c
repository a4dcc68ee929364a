/* What the driver tells about an address.
 *
 * What the real driver does: one attribute of an unknown address is INVALID_VALUE, the plural call succeeds with
 * zeros instead. Whether addresses that are reserved but not mapped count as device memory is undocumented: here they
 * are known as a range and as not mapped, and all else about them fails. */
#include <string.h>

#include "address_space.h"
#include "device.h"

static size_t size_of(int attribute)
{
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
        return sizeof(uint64_t);
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
        return sizeof(uint32_t);
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
    case CU_POINTER_ATTRIBUTE_MAPPED:
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
        return sizeof(uint8_t);
    default:
        return 0; /* not simulated */
    }
}

static bool mapped_value(int attribute, CUdeviceptr address, const struct mapping *m, uint64_t *value)
{
    const struct allocation_record *record = &process.world.state->allocations[m->handle->allocation];
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: /* such memory belongs to no context */
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
        *value = 0;
        return true;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *value = CU_MEMORYTYPE_DEVICE;
        return true;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        *value = address;
        return true;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        *value = (uint64_t)device_ordinal(record->device);
        return true;
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
        *value = record->handle_types;
        return true;
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS: /* of the device it lies on: no context says another */
        *value = m->access[record->device];
        return true;
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
        *value = m->size;
        return true;
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
        *value = m->start;
        return true;
    default:
        return false; /* HOST_POINTER: the CPU cannot see it */
    }
}

/* Needs the process lock. */
static CUresult get_locked(void *data, int attribute, CUdeviceptr address)
{
    const struct reservation *r = reservation_at(address);
    const struct mapping *m = mapping_at(address);
    uint64_t value = 0;
    bool known = true;
    if (!r) {
        known = false;
    } else if (attribute == CU_POINTER_ATTRIBUTE_RANGE_START_ADDR) {
        value = r->start;
    } else if (attribute == CU_POINTER_ATTRIBUTE_RANGE_SIZE) {
        value = r->size;
    } else if (attribute == CU_POINTER_ATTRIBUTE_MAPPED) {
        value = m != NULL;
    } else {
        known = m && mapped_value(attribute, address, m, &value);
    }
    memcpy(data, &value, size_of(attribute));
    return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult get(void *data, int attribute, CUdeviceptr address)
{
    if (!data || !size_of(attribute)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    process_lock();
    CUresult result = get_locked(data, attribute, address);
    process_unlock();
    return result;
}

static CUresult get_many(unsigned int count, const int *attributes, void **data, CUdeviceptr address)
{
    if (!count || !attributes || !data) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (unsigned int i = 0; i < count; i++) {
        if (!data[i] || !size_of(attributes[i])) {
            return CUDA_ERROR_INVALID_VALUE;
        }
    }
    process_lock();
    for (unsigned int i = 0; i < count; i++) {
        get_locked(data[i], attributes[i], address);
    }
    process_unlock();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuPointerGetAttribute(void *data, int attribute, CUdeviceptr address)
{
    return CALL(cuPointerGetAttribute, get(data, attribute, address));
}

EXPORT CUresult cuPointerGetAttributes(unsigned int count, int *attributes, void **data, CUdeviceptr address)
{
    return CALL(cuPointerGetAttributes, get_many(count, attributes, data, address));
}
