/* Facts about devices: an Ampere card with virtual memory management and POSIX handles, without fabric and without
 * GPUDirect RDMA on such memory. An attribute that is not in the table is refused rather than guessed. */
#define _GNU_SOURCE
#include "device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static int visible[MAX_DEVICES];
static int visible_count;

/* "GPU-" and any unambiguous start of the UUID, as the driver accepts it. */
static int index_of_uuid(const char *name)
{
    int found = -1;
    for (uint32_t i = 0; i < process.world.state->device_count; i++) {
        char uuid[UUID_TEXT];
        world_format_uuid(&process.world.state->devices[i], uuid);
        if (strlen(name) > 4 && !strncasecmp(uuid, name, strlen(name))) {
            if (found >= 0) {
                return -1;
            }
            found = (int)i;
        }
    }
    return found;
}

/* As the driver reads it: the list ends at the first entry that names no device. */
int device_select_visible(void)
{
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    int count = (int)process.world.state->device_count;
    visible_count = 0;
    if (!list) {
        while (visible_count < count) {
            visible[visible_count] = visible_count;
            visible_count++;
        }
        return visible_count;
    }
    char copy[1024], *rest = copy, *name;
    snprintf(copy, sizeof copy, "%s", list);
    while ((name = strsep(&rest, ",")) && visible_count < MAX_DEVICES) {
        char *end;
        long number = strtol(name, &end, 10);
        int index = end != name && !*end && number >= 0 && number < count ? (int)number : index_of_uuid(name);
        for (int i = 0; i < visible_count; i++) {
            if (visible[i] == index) {
                return visible_count = 0; /* a device named twice hides all */
            }
        }
        if (index < 0) {
            break;
        }
        visible[visible_count++] = index;
    }
    return visible_count;
}

int device_count(void)
{
    return visible_count;
}

int device_index(CUdevice ordinal)
{
    return ordinal >= 0 && ordinal < visible_count ? visible[ordinal] : -1;
}

CUdevice device_ordinal(uint32_t index)
{
    for (int i = 0; i < visible_count; i++) {
        if (visible[i] == (int)index) {
            return i;
        }
    }
    return -1;
}

static const struct device_record *record(CUdevice ordinal)
{
    int index = device_index(ordinal);
    return index < 0 ? NULL : &process.world.state->devices[index];
}

static const struct {
    int attribute;
    int value;
} attributes[] = {
    {1, 1024},   /* MAX_THREADS_PER_BLOCK */
    {10, 32},    /* WARP_SIZE */
    {16, 108},   /* MULTIPROCESSOR_COUNT */
    {18, 0},     /* INTEGRATED */
    {19, 1},     /* CAN_MAP_HOST_MEMORY */
    {20, 0},     /* COMPUTE_MODE: default */
    {31, 1},     /* CONCURRENT_KERNELS */
    {39, 2048},  /* MAX_THREADS_PER_MULTIPROCESSOR */
    {41, 1},     /* UNIFIED_ADDRESSING */
    {75, 8},     /* COMPUTE_CAPABILITY_MAJOR */
    {76, 0},     /* COMPUTE_CAPABILITY_MINOR */
    {83, 1},     /* MANAGED_MEMORY */
    {102, 1},    /* VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED */
    {103, 1},    /* HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED */
    {104, 0},    /* HANDLE_TYPE_WIN32_HANDLE_SUPPORTED */
    {105, 0},    /* HANDLE_TYPE_WIN32_KMT_HANDLE_SUPPORTED */
    {107, 0},    /* GENERIC_COMPRESSION_SUPPORTED */
    {110, 0},    /* GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED */
    {115, 0},    /* MEMORY_POOLS_SUPPORTED */
    {116, 0},    /* GPU_DIRECT_RDMA_SUPPORTED */
    {119, 0},    /* MEMPOOL_SUPPORTED_HANDLE_TYPES */
    {128, 0},    /* HANDLE_TYPE_FABRIC_SUPPORTED */
    {132, 0},    /* MULTICAST_SUPPORTED */
};

/* Whether this process reaches the devices through an MPS server: the one attribute that is not the device's. */
enum { MPS_ENABLED = 133 };

/* CUDASIM_ATTRIBUTES, "102=0,103=0": what a test says of all devices instead of the table. */
static bool is_told(int attribute, int *value)
{
    const char *at = getenv("CUDASIM_ATTRIBUTES");
    while (at && *at) {
        char *end;
        long number = strtol(at, &end, 10);
        if (*end != '=') {
            return false;
        }
        long told = strtol(end + 1, &end, 10);
        if (number == attribute) {
            *value = (int)told;
            return true;
        }
        at = *end == ',' ? end + 1 : NULL;
    }
    return false;
}

static CUresult get_attribute(int *value, int attribute, CUdevice device)
{
    if (!value) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!record(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    if (is_told(attribute, value)) {
        return CUDA_SUCCESS;
    }
    if (attribute == MPS_ENABLED) {
        const char *mps = getenv("CUDASIM_MPS");
        *value = mps && *mps == '1';
        return CUDA_SUCCESS;
    }
    for (size_t i = 0; i < sizeof attributes / sizeof *attributes; i++) {
        if (attributes[i].attribute == attribute) {
            *value = attributes[i].value;
            return CUDA_SUCCESS;
        }
    }
    return CUDA_ERROR_INVALID_VALUE;
}

static CUresult get(CUdevice *device, int ordinal)
{
    if (!device) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!record(ordinal)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *device = ordinal;
    return CUDA_SUCCESS;
}

static CUresult get_count(int *count)
{
    if (!count) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *count = visible_count;
    return CUDA_SUCCESS;
}

static CUresult get_name(char *name, int length, CUdevice device)
{
    if (!name || length < 1) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!record(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    snprintf(name, (size_t)length, "%s", record(device)->name);
    return CUDA_SUCCESS;
}

static CUresult get_uuid(CUuuid *uuid, CUdevice device)
{
    if (!uuid) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!record(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    memcpy(uuid, record(device)->uuid, sizeof *uuid);
    return CUDA_SUCCESS;
}

static CUresult total_mem(size_t *bytes, CUdevice device)
{
    if (!bytes) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!record(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *bytes = record(device)->total_bytes;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    return CALL(cuDeviceGet, get(device, ordinal));
}

EXPORT CUresult cuDeviceGetCount(int *count)
{
    return CALL(cuDeviceGetCount, get_count(count));
}

EXPORT CUresult cuDeviceGetName(char *name, int length, CUdevice device)
{
    return CALL(cuDeviceGetName, get_name(name, length, device));
}

EXPORT CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
    return CALL(cuDeviceGetUuid, get_uuid(uuid, device));
}

EXPORT CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device)
{
    return CALL(cuDeviceGetAttribute, get_attribute(value, attribute, device));
}

/* The real library has this name too, for callers that link instead of asking cuGetProcAddress. */
EXPORT CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device)
{
    return cuDeviceGetUuid_v2(uuid, device);
}

EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
    return CALL(cuDeviceTotalMem, total_mem(bytes, device));
}
