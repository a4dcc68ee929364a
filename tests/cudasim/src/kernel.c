/* A kernel without code: it uses memory for a while. The one call that no real driver has; tests reach it by ctypes.
 *
 * A kernel that reads takes a checksum of its ranges when it starts and again when it ends, one that writes fills them
 * when it starts and looks when it ends. So it notices whatever happens to its memory, through any mapping of it, in
 * any process. What is not mapped when it starts is an illegal address, as in the real driver. */
#include "stream.h"

struct kernel_range {
    CUdeviceptr start;
    uint64_t size;
    uint32_t access; /* CU_MEM_ACCESS_FLAGS_PROT_READ or _READWRITE, which is to write */
    uint32_t byte;   /* what to write */
};

static CUresult launch(CUstream handle, const struct kernel_range *ranges, size_t count, uint64_t duration_ns)
{
    if (!ranges || count == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (size_t i = 0; i < count; i++) {
        bool reads = ranges[i].access == CU_MEM_ACCESS_FLAGS_PROT_READ;
        bool writes = ranges[i].access == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        if ((!reads && !writes) || !ranges[i].size || ranges[i].byte > 255) {
            return CUDA_ERROR_INVALID_VALUE;
        }
    }
    struct stream *stream;
    CUresult result = stream_find_here(handle, &stream);
    if (result) {
        return result;
    }
    process_lock();
    struct work *kernel = work_new(WORK_KERNEL, stream->device, count);
    for (size_t i = 0; kernel && i < count; i++) {
        kernel->ranges[i] = (struct work_range){.start = ranges[i].start, .size = ranges[i].size,
                                                .access = ranges[i].access, .byte = (unsigned char)ranges[i].byte};
    }
    if (kernel) {
        kernel->duration_ns = duration_ns;
        stream_queue(stream, kernel);
    }
    process_unlock();
    return kernel ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

EXPORT CUresult cudasim_launch(CUstream stream, const struct kernel_range *ranges, size_t count, uint64_t duration_ns)
{
    return CALL(cudasim_launch, launch(stream, ranges, count, duration_ns));
}
