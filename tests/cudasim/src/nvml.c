/* libnvidia-ml.so.1: device memory as NVML tells it, for those who must ask without a CUDA context.
 *
 * What the real library does: it numbers all devices whatever CUDA_VISIBLE_DEVICES says, answers UNINITIALIZED before
 * nvmlInit and DRIVER_NOT_LOADED where there is no driver, and sees the memory of all processes. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "cuda_abi.h"
#include "world.h"

typedef enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_DRIVER_NOT_LOADED = 9,
    NVML_ERROR_FUNCTION_NOT_FOUND = 13,
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25,
} nvmlReturn_t;

typedef const struct device_record *nvmlDevice_t;
typedef struct {
    unsigned long long total, free, used;
} nvmlMemory_t;
typedef struct {
    unsigned int version;
    unsigned long long total, reserved, free, used;
} nvmlMemory_v2_t;

typedef struct {
    unsigned int pid;
    unsigned long long used_gpu_memory;
    unsigned int gpu_instance_id, compute_instance_id;
} nvmlProcessInfo_t;

/* As the real library has them for a device whose slices it does not tell apart. */
static const unsigned long long not_available = ~0ull;
static const unsigned int no_instance = ~0u;

/* The slices of each device, where CUDASIM_MIG says how many: a record each, so that a handle is one of its own. */
enum { MAX_MIG = 7 };
static struct device_record slices[MAX_DEVICES][MAX_MIG];

static const unsigned int memory_v2_version = sizeof(nvmlMemory_v2_t) | 2u << 24;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct world world;
static int init_count;

EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    nvmlReturn_t result = NVML_SUCCESS;
    pthread_mutex_lock(&mutex);
    if (!world.state) {
        const char *path = getenv("CUDASIM_WORLD");
        result = path && world_open(&world, path) == 0 ? NVML_SUCCESS : NVML_ERROR_DRIVER_NOT_LOADED;
    }
    init_count += result == NVML_SUCCESS;
    pthread_mutex_unlock(&mutex);
    return result;
}

EXPORT nvmlReturn_t nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

/* The world stays open after the last shutdown: another thread may be using it. */
EXPORT nvmlReturn_t nvmlShutdown(void)
{
    pthread_mutex_lock(&mutex);
    nvmlReturn_t result = init_count ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
    init_count -= init_count != 0;
    pthread_mutex_unlock(&mutex);
    return result;
}

static nvmlReturn_t check_initialized(void)
{
    pthread_mutex_lock(&mutex);
    nvmlReturn_t result = init_count ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
    pthread_mutex_unlock(&mutex);
    return result;
}

static bool is_slice(nvmlDevice_t device)
{
    return device >= &slices[0][0] && device <= &slices[MAX_DEVICES - 1][MAX_MIG - 1];
}

static nvmlReturn_t check_device(nvmlDevice_t device, const void *answer)
{
    nvmlReturn_t result = check_initialized();
    if (result) {
        return result;
    }
    const struct device_record *devices = world.state->devices;
    bool known = is_slice(device) || (device >= devices && device < devices + world.state->device_count);
    return known && answer ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

EXPORT const char *nvmlErrorString(nvmlReturn_t result)
{
    switch (result) {
    case NVML_SUCCESS: return "Success";
    case NVML_ERROR_UNINITIALIZED: return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT: return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
    case NVML_ERROR_NOT_FOUND: return "Not Found";
    case NVML_ERROR_INSUFFICIENT_SIZE: return "Insufficient Size";
    case NVML_ERROR_DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case NVML_ERROR_FUNCTION_NOT_FOUND: return "Function Not Found";
    case NVML_ERROR_ARGUMENT_VERSION_MISMATCH: return "Argument Version Mismatch";
    }
    return "Unknown Error";
}

static nvmlReturn_t put(char *to, unsigned int length, const char *text)
{
    return (unsigned int)snprintf(to, length, "%s", text) < length ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    nvmlReturn_t result = check_initialized();
    return result ? result : version ? put(version, length, "580.0.cudasim") : NVML_ERROR_INVALID_ARGUMENT;
}

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
    nvmlReturn_t result = check_initialized();
    if (!result && !count) {
        result = NVML_ERROR_INVALID_ARGUMENT;
    }
    if (!result) {
        *count = world.state->device_count;
    }
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    nvmlReturn_t result = check_initialized();
    if (!result && (!device || index >= world.state->device_count)) {
        result = NVML_ERROR_INVALID_ARGUMENT;
    }
    if (!result) {
        *device = &world.state->devices[index];
    }
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    nvmlReturn_t result = check_initialized();
    if (result || !uuid || !device) {
        return result ? result : NVML_ERROR_INVALID_ARGUMENT;
    }
    for (uint32_t i = 0; i < world.state->device_count; i++) {
        char text[UUID_TEXT];
        world_format_uuid(&world.state->devices[i], text);
        if (!strcasecmp(text, uuid)) {
            *device = &world.state->devices[i];
            return NVML_SUCCESS;
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    nvmlReturn_t result = check_device(device, uuid);
    if (result) {
        return result;
    }
    char text[UUID_TEXT];
    world_format_uuid(device, text);
    if (is_slice(device)) {
        memcpy(text, "MIG", 3);
    }
    return put(uuid, length, text);
}

EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
    nvmlReturn_t result = check_device(device, name);
    return result ? result : put(name, length, device->name);
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    nvmlReturn_t result = check_device(device, memory);
    if (!result) {
        world_lock(&world);
        world_sweep(&world);
        memory->total = device->total_bytes;
        memory->used = device->used_bytes;
        memory->free = device->total_bytes - device->used_bytes;
        world_unlock(&world);
    }
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    nvmlReturn_t result = check_device(device, memory);
    if (!result && memory->version != memory_v2_version) {
        result = NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    }
    nvmlMemory_t plain;
    if (!result) {
        result = nvmlDeviceGetMemoryInfo(device, &plain);
    }
    if (!result) {
        memory->total = plain.total;
        memory->reserved = 0;
        memory->free = plain.free;
        memory->used = plain.used;
    }
    return result;
}

/* Of the processes that compute, those with a context: what each uses is not told, as under WDDM or in a container. */
EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                            nvmlProcessInfo_t *infos)
{
    nvmlReturn_t result = check_device(device, count);
    if (result) {
        return result;
    }
    unsigned int found = 0, room = infos ? *count : 0;
    world_lock(&world);
    world_sweep(&world);
    for (uint32_t slot = 0; !is_slice(device) && slot < world.state->process_count; slot++) {
        struct process_file *file =
            world.state->processes[slot].state == PROCESS_ALIVE ? world_map_process(&world, slot) : NULL;
        if (file && file->charged_devices & 1u << (device - world.state->devices)) {
            if (found < room) {
                infos[found] = (nvmlProcessInfo_t){(unsigned int)file->pid, not_available, no_instance, no_instance};
            }
            found++;
        }
        if (file) {
            world_unmap_process(file);
        }
    }
    world_unlock(&world);
    *count = found;
    return found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
    nvmlReturn_t result = check_device(device, current);
    if (result || is_slice(device) || !pending) {
        return result ? result : NVML_ERROR_INVALID_ARGUMENT;
    }
    *current = *pending = getenv("CUDASIM_MIG") != NULL;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count)
{
    nvmlReturn_t result = check_device(device, count);
    if (!result) {
        *count = MAX_MIG;
    }
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *slice)
{
    nvmlReturn_t result = check_device(device, slice);
    const char *mig = getenv("CUDASIM_MIG");
    if (result || is_slice(device) || index >= MAX_MIG) {
        return result ? result : NVML_ERROR_INVALID_ARGUMENT;
    }
    if (!mig || index >= strtoul(mig, NULL, 10)) {
        return NVML_ERROR_NOT_FOUND;
    }
    struct device_record *own = &slices[device - world.state->devices][index];
    *own = *device;
    own->uuid[15] ^= (uint8_t)(index + 1);
    *slice = own;
    return NVML_SUCCESS;
}
