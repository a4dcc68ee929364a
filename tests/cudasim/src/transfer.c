/* Fills and copies: what makes a device touch its memory.
 *
 * What the real driver does: they need a current context; an access to unmapped memory, or a write without READWRITE
 * access, is an illegal address, after which all work in the process fails with that code; an address that the driver
 * never gave out is refused without a fault. Without a stream they go through the NULL stream. Fills, and copies on
 * the device, return before the device has done them, with or without Async in the name; copies from and to the host
 * return afterwards.
 *
 * Here an illegal address is told by the call itself, which is sooner than by the real driver. */
#include <string.h>

#include "address_space.h"
#include "context.h"
#include "stream.h"

/* Needs the process lock. */
static CUresult touch(const struct work_range *range, uint32_t device)
{
    enum reach reach = address_reach(range->start, range->size, device, range->access);
    if (reach == REACH_FAULT) {
        work_fault(CUDA_ERROR_ILLEGAL_ADDRESS);
        return CUDA_ERROR_ILLEGAL_ADDRESS;
    }
    return reach == REACH_ALL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* `host` is where a copy from or to the host has its other end; else NULL. */
static CUresult transfer(enum work_kind kind, void *host, const struct work_range *ranges, size_t count,
                         CUstream handle)
{
    struct stream *stream;
    CUresult result = stream_find_here(handle, &stream);
    if (result || ranges->size == 0) {
        return result;
    }
    process_lock();
    for (size_t i = 0; !result && i < count; i++) {
        result = touch(&ranges[i], stream->device);
    }
    struct work *work = result ? NULL : work_new(kind, stream->device, count);
    if (work) {
        work->host = host;
        memcpy(work->ranges, ranges, count * sizeof *ranges);
        stream_queue(stream, work_keep(work));
        if (host) {
            result = work_wait(work);
            work_prove(work);
        }
        work_drop(work);
    } else {
        result = result ?: CUDA_ERROR_OUT_OF_MEMORY;
    }
    process_unlock();
    return result;
}

static struct work_range reads(CUdeviceptr start, size_t size)
{
    return (struct work_range){.start = start, .size = size, .access = CU_MEM_ACCESS_FLAGS_PROT_READ};
}

static struct work_range writes(CUdeviceptr start, size_t size, unsigned char byte)
{
    return (struct work_range){
        .start = start, .size = size, .access = CU_MEM_ACCESS_FLAGS_PROT_READWRITE, .byte = byte};
}

static CUresult fill(CUdeviceptr address, unsigned char byte, size_t count, CUstream stream)
{
    const struct work_range range = writes(address, count, byte);
    return transfer(WORK_FILL, NULL, &range, 1, stream);
}

static CUresult copy(CUdeviceptr to, CUdeviceptr from, size_t count, CUstream stream)
{
    const struct work_range ranges[] = {reads(from, count), writes(to, count, 0)};
    return transfer(WORK_COPY, NULL, ranges, 2, stream);
}

static CUresult copy_host(void *host, struct work_range range)
{
    if (!host && range.size) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return transfer(WORK_COPY, host, &range, 1, NULL);
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
    return CALL(cuMemcpyHtoD, copy_host((void *)host, writes(address, count, 0)));
}

EXPORT CUresult cuMemcpyDtoH_v2(void *host, CUdeviceptr address, size_t count)
{
    return CALL(cuMemcpyDtoH, copy_host(host, reads(address, count)));
}

EXPORT CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t count)
{
    return CALL(cuMemcpyDtoD, copy(to, from, count, NULL));
}

EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t count, CUstream stream)
{
    return CALL(cuMemcpyDtoDAsync, copy(to, from, count, stream));
}
