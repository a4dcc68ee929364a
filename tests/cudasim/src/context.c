/* What the real driver does: a primary context per device and process, counted by retain and release, costs device
 * memory of its own (hundreds of MiB); a thread has one current context, and memory queries, copies and fills need
 * it.
 *
 * Streams and events belong to a context and go with it. What becomes of work when its context is released is
 * undocumented; here it is waited for.
 *
 * The memory is charged at the first retain and stays charged until the process ends. Only primary contexts exist:
 * PyTorch and the daemon use no others. */
#include "context.h"

#include "device.h"
#include "event.h"
#include "stream.h"

struct CUctx_st {
    int retains;
};

/* By index into the world's devices. */
static struct CUctx_st primary[MAX_DEVICES];
static _Thread_local CUcontext current;

static bool is_context(CUcontext context)
{
    for (int device = 0; device < MAX_DEVICES; device++) {
        if (context == &primary[device]) {
            return true;
        }
    }
    return false;
}

/* Needs the process lock. */
static CUresult check_live(CUcontext context)
{
    if (!is_context(context)) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    return context->retains ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

CUresult context_device(CUcontext context, uint32_t *device)
{
    process_lock();
    CUresult result = check_live(context);
    process_unlock();
    if (!result) {
        *device = (uint32_t)(context - primary);
    }
    return result;
}

CUcontext context_of(uint32_t device)
{
    return &primary[device];
}

CUresult context_current_device(uint32_t *device)
{
    return context_device(current, device);
}

static CUresult retain(CUcontext *context, CUdevice ordinal)
{
    if (!context) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    int device = device_index(ordinal);
    if (device < 0) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    CUresult result = CUDA_SUCCESS;
    process_lock();
    world_lock(&process.world);
    if (!(process.file->charged_devices & 1u << device)) {
        if (world_charge(&process.world, (uint32_t)device, process.world.state->context_bytes)) {
            process.file->charged_devices |= 1u << device;
        } else {
            result = CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    world_unlock(&process.world);
    if (!result) {
        primary[device].retains++;
        *context = &primary[device];
    }
    process_unlock();
    return result;
}

static CUresult release(CUdevice ordinal)
{
    int device = device_index(ordinal);
    if (device < 0) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    process_lock();
    CUresult result = primary[device].retains ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
    if (!result && --primary[device].retains == 0) {
        stream_wait_all((uint32_t)device);
        if (!primary[device].retains) { /* it may have been retained meanwhile */
            event_forget_all((uint32_t)device);
            stream_forget_all((uint32_t)device);
        }
    }
    process_unlock();
    return result;
}

static CUresult set_current(CUcontext context)
{
    process_lock();
    CUresult result = context ? check_live(context) : CUDA_SUCCESS;
    process_unlock();
    if (!result) {
        current = context;
    }
    return result;
}

static CUresult get_current(CUcontext *context)
{
    if (!context) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *context = current;
    return CUDA_SUCCESS;
}

static CUresult get_device(CUdevice *ordinal)
{
    uint32_t device;
    CUresult result = ordinal ? context_current_device(&device) : CUDA_ERROR_INVALID_VALUE;
    if (!result) {
        *ordinal = device_ordinal(device);
    }
    return result;
}

static CUresult synchronize(void)
{
    uint32_t device;
    CUresult result = context_current_device(&device);
    if (!result) {
        process_lock();
        result = stream_wait_all(device);
        process_unlock();
    }
    return result;
}

static CUresult get_info(size_t *free, size_t *total)
{
    uint32_t device;
    CUresult result = free && total ? context_current_device(&device) : CUDA_ERROR_INVALID_VALUE;
    if (!result) {
        const struct device_record *record = &process.world.state->devices[device];
        world_lock(&process.world);
        world_sweep(&process.world);
        *total = record->total_bytes;
        *free = record->total_bytes - record->used_bytes;
        world_unlock(&process.world);
    }
    return result;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    return CALL(cuDevicePrimaryCtxRetain, retain(context, device));
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
    return CALL(cuDevicePrimaryCtxRelease, release(device));
}

EXPORT CUresult cuDevicePrimaryCtxRelease(CUdevice device)
{
    return cuDevicePrimaryCtxRelease_v2(device);
}

EXPORT CUresult cuCtxSetCurrent(CUcontext context)
{
    return CALL(cuCtxSetCurrent, set_current(context));
}

EXPORT CUresult cuCtxGetCurrent(CUcontext *context)
{
    return CALL(cuCtxGetCurrent, get_current(context));
}

EXPORT CUresult cuCtxGetDevice(CUdevice *device)
{
    return CALL(cuCtxGetDevice, get_device(device));
}

EXPORT CUresult cuCtxSynchronize(void)
{
    return CALL(cuCtxSynchronize, synchronize());
}

EXPORT CUresult cuMemGetInfo_v2(size_t *free, size_t *total)
{
    return CALL(cuMemGetInfo, get_info(free, total));
}
