/* Every driver call cudasim knows, with what it needs before it may run.
 *
 *   ALWAYS  works even before cuInit
 *   INIT    needs cuInit; a fact about devices, so it still works after a sticky error
 *   WORK    needs cuInit, and returns the sticky error once there is one: after an illegal address the real driver
 *           answers every further piece of work with the same code until the process ends
 *
 * The enum, the names, cuGetProcAddress_v2's table and the counters all come from this one list.
 * EXPORTED is the versioned symbol in the real libcuda where it differs from the name given to cuGetProcAddress.
 * No real driver has cudasim_launch (kernel.c). */
#ifndef CUDASIM_CALLS_H
#define CUDASIM_CALLS_H

/*    name                                      exported                                  needs */
#define CALLS(X)                                                                                 \
    X(cuInit,                                   cuInit,                                   ALWAYS) \
    X(cuDriverGetVersion,                       cuDriverGetVersion,                       ALWAYS) \
    X(cuGetErrorName,                           cuGetErrorName,                           ALWAYS) \
    X(cuGetErrorString,                         cuGetErrorString,                         ALWAYS) \
    X(cuDeviceGet,                              cuDeviceGet,                              INIT)   \
    X(cuDeviceGetCount,                         cuDeviceGetCount,                         INIT)   \
    X(cuDeviceGetName,                          cuDeviceGetName,                          INIT)   \
    X(cuDeviceGetUuid,                          cuDeviceGetUuid_v2,                       INIT)   \
    X(cuDeviceGetAttribute,                     cuDeviceGetAttribute,                     INIT)   \
    X(cuDeviceTotalMem,                         cuDeviceTotalMem_v2,                      INIT)   \
    X(cuDevicePrimaryCtxRetain,                 cuDevicePrimaryCtxRetain,                 WORK)   \
    X(cuDevicePrimaryCtxRelease,                cuDevicePrimaryCtxRelease_v2,             INIT)   \
    X(cuCtxSetCurrent,                          cuCtxSetCurrent,                          INIT)   \
    X(cuCtxGetCurrent,                          cuCtxGetCurrent,                          INIT)   \
    X(cuCtxGetDevice,                           cuCtxGetDevice,                           INIT)   \
    X(cuCtxSynchronize,                         cuCtxSynchronize,                         WORK)   \
    X(cuCtxRecordEvent,                         cuCtxRecordEvent,                         WORK)   \
    X(cuStreamCreate,                           cuStreamCreate,                           WORK)   \
    X(cuStreamCreateWithPriority,               cuStreamCreateWithPriority,               WORK)   \
    X(cuStreamDestroy,                          cuStreamDestroy_v2,                       WORK)   \
    X(cuStreamSynchronize,                      cuStreamSynchronize,                      WORK)   \
    X(cuStreamQuery,                            cuStreamQuery,                            WORK)   \
    X(cuStreamWaitEvent,                        cuStreamWaitEvent,                        WORK)   \
    X(cuStreamGetCtx,                           cuStreamGetCtx,                           WORK)   \
    X(cuStreamIsCapturing,                      cuStreamIsCapturing,                      WORK)   \
    X(cuThreadExchangeStreamCaptureMode,        cuThreadExchangeStreamCaptureMode,        WORK)   \
    X(cuEventCreate,                            cuEventCreate,                            WORK)   \
    X(cuEventDestroy,                           cuEventDestroy_v2,                        WORK)   \
    X(cuEventRecord,                            cuEventRecord,                            WORK)   \
    X(cuEventQuery,                             cuEventQuery,                             WORK)   \
    X(cuEventSynchronize,                       cuEventSynchronize,                       WORK)   \
    X(cuEventElapsedTime,                       cuEventElapsedTime_v2,                    WORK)   \
    X(cudasim_launch,                           cudasim_launch,                           WORK)   \
    X(cuMemGetInfo,                             cuMemGetInfo_v2,                          WORK)   \
    X(cuMemsetD8,                               cuMemsetD8_v2,                            WORK)   \
    X(cuMemsetD8Async,                          cuMemsetD8Async,                          WORK)   \
    X(cuMemcpyHtoD,                             cuMemcpyHtoD_v2,                          WORK)   \
    X(cuMemcpyDtoH,                             cuMemcpyDtoH_v2,                          WORK)   \
    X(cuMemcpyDtoD,                             cuMemcpyDtoD_v2,                          WORK)   \
    X(cuMemcpyDtoDAsync,                        cuMemcpyDtoDAsync_v2,                     WORK)   \
    X(cuMemGetAllocationGranularity,            cuMemGetAllocationGranularity,            WORK)   \
    X(cuMemCreate,                              cuMemCreate,                              WORK)   \
    X(cuMemRelease,                             cuMemRelease,                             WORK)   \
    X(cuMemAddressReserve,                      cuMemAddressReserve,                      WORK)   \
    X(cuMemAddressFree,                         cuMemAddressFree,                         WORK)   \
    X(cuMemMap,                                 cuMemMap,                                 WORK)   \
    X(cuMemUnmap,                               cuMemUnmap,                               WORK)   \
    X(cuMemSetAccess,                           cuMemSetAccess,                           WORK)   \
    X(cuMemGetAccess,                           cuMemGetAccess,                           WORK)   \
    X(cuMemExportToShareableHandle,             cuMemExportToShareableHandle,             WORK)   \
    X(cuMemImportFromShareableHandle,           cuMemImportFromShareableHandle,           WORK)   \
    X(cuMemRetainAllocationHandle,              cuMemRetainAllocationHandle,              WORK)   \
    X(cuMemGetAllocationPropertiesFromHandle,   cuMemGetAllocationPropertiesFromHandle,   WORK)   \
    X(cuPointerGetAttribute,                    cuPointerGetAttribute,                    WORK)   \
    X(cuPointerGetAttributes,                   cuPointerGetAttributes,                   WORK)

enum call {
#define X(name, exported, needs) CALL_##name,
    CALLS(X)
#undef X
    CALL_COUNT,
};

#endif
