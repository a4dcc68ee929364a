/* Fills and copies: what makes a device touch its memory.
 *
 * What the real driver does: they need a current context; an access to unmapped memory, or a write without READWRITE
 * access, is an illegal address, after which all work in the process fails with that code; an address that the driver
 * never gave out is refused without a fault. They are done without a lock held, as a GPU does: unmapping meanwhile is
 * a real SIGSEGV.
 *
 * Only the NULL stream exists, and it is done at once. Streams, events and kernels will go through `touch` too. */
#include <string.h>

#include "address_space.h"
#include "context.h"

static CUresult touch(CUdeviceptr address, size_t size, uint32_t access)
{
    uint32_t device;
    CUresult result = context_current_device(&device);
    if (result || size == 0) {
        return result;
    }
    process_lock();
    enum reach reach = address_reach(address, size, device, access);
    process_unlock();
    if (reach == REACH_FAULT) {
        __atomic_store_n(&process.sticky, CUDA_ERROR_ILLEGAL_ADDRESS, __ATOMIC_RELAXED);
        return CUDA_ERROR_ILLEGAL_ADDRESS;
    }
    return reach == REACH_ALL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult fill(CUdeviceptr address, unsigned char byte, size_t count, CUstream stream)
{
    if (stream) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    CUresult result = touch(address, count, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    if (!result) {
        memset((void *)address, byte, count);
    }
    return result;
}

static CUresult to_device(CUdeviceptr address, const void *host, size_t count)
{
    if (!host && count) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = touch(address, count, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    if (!result && count) {
        memcpy((void *)address, host, count);
    }
    return result;
}

static CUresult to_host(void *host, CUdeviceptr address, size_t count)
{
    if (!host && count) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = touch(address, count, CU_MEM_ACCESS_FLAGS_PROT_READ);
    if (!result && count) {
        memcpy(host, (const void *)address, count);
    }
    return result;
}

EXPORT CUresult cuMemsetD8_v2(CUdeviceptr address, unsigned char byte, size_t count)
{
    return CALL(cuMemsetD8, fill(address, byte, count, NULL));
}

EXPORT CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char byte, size_t count, CUstream stream)
{
    return CALL(cuMemsetD8Async, fill(address, byte, count, stream));
}

EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr address, const void *host, size_t count)
{
    return CALL(cuMemcpyHtoD, to_device(address, host, count));
}

EXPORT CUresult cuMemcpyDtoH_v2(void *host, CUdeviceptr address, size_t count)
{
    return CALL(cuMemcpyDtoH, to_host(host, address, count));
}
