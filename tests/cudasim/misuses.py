"""The table of misuses: what the real driver refuses, and with which code."""

from dataclasses import dataclass

INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED, INVALID_DEVICE, INVALID_CONTEXT = 1, 2, 3, 101, 201
OPERATING_SYSTEM, INVALID_HANDLE, ILLEGAL_ADDRESS, CONTEXT_IS_DESTROYED = 304, 400, 700, 709
NOT_PERMITTED, NOT_SUPPORTED = 800, 801


@dataclass(frozen=True, slots=True)
class Misuse:
    """`call` is made by `expression`, after the statements in `before`, and must give `code`."""

    sentence: str
    call: str
    expression: str
    code: int = INVALID_VALUE
    before: str = ""


# Each misuse runs in a process of its own, with this state: `r` is a reservation of 8 pages. Page 0 maps `h`, pages 2
# and 3 map `double` (one allocation of two pages), both READWRITE; all else is unmapped. `private` cannot be exported.
SETUP = """
from kernel import *
ok(cu.cuInit(0))
h, double, spare = create(), create(2 * PAGE), create()
private = int(ok(cu.cuMemCreate(PAGE, prop(cu.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_NONE), 0)))
r = reserve(8 * PAGE)
attach(r, h)
attach(r + 2 * PAGE, double, 2 * PAGE)
hole = r + 5 * PAGE
def edited(**changes):
    p = prop()
    for name, value in changes.items():
        setattr(p.allocFlags if hasattr(p.allocFlags, name) else p, name, value)
    return p
def pointer(name, address):
    return cu.cuPointerGetAttribute(getattr(cu.CUpointer_attribute, "CU_POINTER_ATTRIBUTE_" + name), address)
def attribute(number, device):
    return cu.cuDeviceGetAttribute(cu.CUdevice_attribute(number), device)
libcuda = ctypes.CDLL("libcuda.so.1")
u64, NULL = ctypes.c_uint64, None
out = u64()
WIN32 = cu.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_WIN32
"""

MISUSES = [
    # Creating
    Misuse("create of no bytes", "cuMemCreate", "cu.cuMemCreate(0, prop(), 0)"),
    Misuse("create of half a granule", "cuMemCreate", "cu.cuMemCreate(PAGE // 2, prop(), 0)"),
    Misuse("create of a granule and a byte", "cuMemCreate", "cu.cuMemCreate(PAGE + 1, prop(), 0)"),
    Misuse("create with flags", "cuMemCreate", "cu.cuMemCreate(PAGE, prop(), 1)"),
    Misuse("create without properties", "cuMemCreate", "cu.cuMemCreate(PAGE, cu.CUmemAllocationProp(), 0)"),
    Misuse("create of managed memory", "cuMemCreate",
           "cu.cuMemCreate(PAGE, edited(type=cu.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_MANAGED), 0)"),
    Misuse("create with a NULL handle", "cuMemCreate",
           "(libcuda.cuMemCreate(NULL, u64(PAGE), ctypes.c_void_p(prop().getPtr()), u64(0)),)"),
    Misuse("create with NULL properties", "cuMemCreate",
           "(libcuda.cuMemCreate(ctypes.byref(out), u64(PAGE), NULL, u64(0)),)"),
    Misuse("create on a device that is not there", "cuMemCreate", "cu.cuMemCreate(PAGE, prop(device=1), 0)",
           INVALID_DEVICE),
    Misuse("create on a negative device", "cuMemCreate", "cu.cuMemCreate(PAGE, prop(device=-1), 0)", INVALID_DEVICE),
    Misuse("create of host memory with a handle type", "cuMemCreate",
           "cu.cuMemCreate(PAGE, prop(location=HOST), 0)"),
    Misuse("create of host memory, which is not modelled", "cuMemCreate",
           "cu.cuMemCreate(PAGE, prop(cu.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_NONE, location=HOST), 0)",
           NOT_SUPPORTED),
    Misuse("create with win32 meta data", "cuMemCreate",
           "cu.cuMemCreate(PAGE, edited(win32HandleMetaData=PAGE), 0)"),
    Misuse("create with a win32 handle type", "cuMemCreate", "cu.cuMemCreate(PAGE, prop(WIN32), 0)", NOT_SUPPORTED),
    Misuse("create with a fabric handle type", "cuMemCreate", "cu.cuMemCreate(PAGE, prop(FABRIC), 0)", NOT_PERMITTED),
    Misuse("create for RDMA", "cuMemCreate", "cu.cuMemCreate(PAGE, edited(gpuDirectRDMACapable=1), 0)"),
    Misuse("create of compressed memory", "cuMemCreate", "cu.cuMemCreate(PAGE, edited(compressionType=1), 0)"),
    Misuse("create with a usage", "cuMemCreate", "cu.cuMemCreate(PAGE, edited(usage=1), 0)"),
    Misuse("create beyond what is free", "cuMemCreate", "cu.cuMemCreate(1020 << 20, prop(), 0)", OUT_OF_MEMORY),
    Misuse("create beyond the device", "cuMemCreate", "cu.cuMemCreate(1 << 50, prop(), 0)", OUT_OF_MEMORY),
    Misuse("granularity on a device that is not there", "cuMemGetAllocationGranularity",
           "cu.cuMemGetAllocationGranularity(prop(device=7), MINIMUM)", INVALID_DEVICE),
    Misuse("granularity without properties", "cuMemGetAllocationGranularity",
           "cu.cuMemGetAllocationGranularity(cu.CUmemAllocationProp(), MINIMUM)"),
    Misuse("granularity of an unknown kind", "cuMemGetAllocationGranularity",
           "(libcuda.cuMemGetAllocationGranularity(ctypes.byref(out), ctypes.c_void_p(prop().getPtr()), 2),)"),
    # Handles
    Misuse("export of a type not requested", "cuMemExportToShareableHandle",
           "cu.cuMemExportToShareableHandle(private, FD, 0)"),
    Misuse("export of no type", "cuMemExportToShareableHandle",
           "cu.cuMemExportToShareableHandle(h, cu.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_NONE, 0)"),
    Misuse("export as a win32 handle", "cuMemExportToShareableHandle",
           "cu.cuMemExportToShareableHandle(h, WIN32, 0)"),
    Misuse("export as a fabric handle", "cuMemExportToShareableHandle",
           "cu.cuMemExportToShareableHandle(h, FABRIC, 0)", NOT_SUPPORTED),
    Misuse("export with flags", "cuMemExportToShareableHandle", "cu.cuMemExportToShareableHandle(h, FD, 1)"),
    Misuse("export of a released handle", "cuMemExportToShareableHandle",
           "cu.cuMemExportToShareableHandle(spare, FD, 0)", before="ok(cu.cuMemRelease(spare))"),
    Misuse("export of a released handle that is still mapped", "cuMemExportToShareableHandle",
           "cu.cuMemExportToShareableHandle(h, FD, 0)", before="ok(cu.cuMemRelease(h))"),
    Misuse("export of a made-up handle", "cuMemExportToShareableHandle", "cu.cuMemExportToShareableHandle(1, FD, 0)"),
    Misuse("export without a free descriptor", "cuMemExportToShareableHandle",
           "cu.cuMemExportToShareableHandle(h, FD, 0)", OPERATING_SYSTEM,
           before="import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))"),
    Misuse("import of a closed descriptor", "cuMemImportFromShareableHandle",
           "cu.cuMemImportFromShareableHandle(999, FD)"),
    Misuse("import of a negative descriptor", "cuMemImportFromShareableHandle",
           "(libcuda.cuMemImportFromShareableHandle(ctypes.byref(out), ctypes.c_void_p(2**64 - 1), 1),)"),
    Misuse("import of a pipe", "cuMemImportFromShareableHandle", "cu.cuMemImportFromShareableHandle(os.pipe()[0], FD)"),
    Misuse("import of a memfd", "cuMemImportFromShareableHandle",
           "cu.cuMemImportFromShareableHandle(os.memfd_create('x'), FD)"),
    Misuse("import of a file beside the allocations", "cuMemImportFromShareableHandle",
           "cu.cuMemImportFromShareableHandle(os.open(os.environ['CUDASIM_WORLD'] + '/world', os.O_RDWR), FD)"),
    Misuse("import of memory that was not made shareable", "cuMemImportFromShareableHandle",
           "cu.cuMemImportFromShareableHandle(os.open(newest, os.O_RDWR), FD)",
           before="import glob; files = glob.glob(os.environ['CUDASIM_WORLD'] + '/allocation-*');"
                  "newest = max(files, key=lambda path: int(path.split('-')[-1]))  # of `private`"),
    Misuse("import as no type", "cuMemImportFromShareableHandle",
           "cu.cuMemImportFromShareableHandle(export(h), cu.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_NONE)"),
    Misuse("import of a fabric handle", "cuMemImportFromShareableHandle",
           "cu.cuMemImportFromShareableHandle(bytes(64), FABRIC)", NOT_SUPPORTED),
    Misuse("properties of a released handle", "cuMemGetAllocationPropertiesFromHandle",
           "cu.cuMemGetAllocationPropertiesFromHandle(spare)", before="ok(cu.cuMemRelease(spare))"),
    Misuse("retain of an unmapped address", "cuMemRetainAllocationHandle", "cu.cuMemRetainAllocationHandle(hole)"),
    Misuse("retain of a host address", "cuMemRetainAllocationHandle", "cu.cuMemRetainAllocationHandle(id(h))"),
    # Reservations
    Misuse("reservation of no bytes", "cuMemAddressReserve", "cu.cuMemAddressReserve(0, 0, 0, 0)"),
    Misuse("reservation of half a host page", "cuMemAddressReserve", "cu.cuMemAddressReserve(2048, 0, 0, 0)"),
    Misuse("reservation with an odd alignment", "cuMemAddressReserve", "cu.cuMemAddressReserve(PAGE, 3 * PAGE, 0, 0)"),
    Misuse("reservation with a misaligned hint", "cuMemAddressReserve",
           "cu.cuMemAddressReserve(PAGE, 0, (1 << 40) + 4096, 0)"),
    Misuse("reservation with a hint below its alignment", "cuMemAddressReserve",
           "cu.cuMemAddressReserve(PAGE, 4 * PAGE, (1 << 40) + PAGE, 0)"),
    Misuse("reservation with flags", "cuMemAddressReserve", "cu.cuMemAddressReserve(PAGE, 0, 0, 1)"),
    Misuse("reservation of more addresses than there are", "cuMemAddressReserve",
           "cu.cuMemAddressReserve(1 << 50, 0, 0, 0)", OUT_OF_MEMORY),
    Misuse("reservation whose size overflows", "cuMemAddressReserve",
           "cu.cuMemAddressReserve(2**64 - 4096, 0, 0, 0)", OUT_OF_MEMORY),
    Misuse("free of a mapped reservation", "cuMemAddressFree", "cu.cuMemAddressFree(r, 8 * PAGE)"),
    Misuse("free of part of a reservation", "cuMemAddressFree", "cu.cuMemAddressFree(other, PAGE)",
           before="other = reserve(2 * PAGE)"),
    Misuse("free from inside a reservation", "cuMemAddressFree", "cu.cuMemAddressFree(other + PAGE, PAGE)",
           before="other = reserve(2 * PAGE)"),
    Misuse("free of more than a reservation", "cuMemAddressFree", "cu.cuMemAddressFree(other, 4 * PAGE)",
           before="other = reserve(2 * PAGE)"),
    Misuse("free of a reservation twice", "cuMemAddressFree", "cu.cuMemAddressFree(other, PAGE)",
           before="other = reserve(PAGE); ok(cu.cuMemAddressFree(other, PAGE))"),
    Misuse("free of nothing", "cuMemAddressFree", "cu.cuMemAddressFree(0, PAGE)"),
    # Mapping
    Misuse("map at an offset", "cuMemMap", "cu.cuMemMap(hole, PAGE, PAGE, double, 0)"),
    Misuse("map of less than the allocation", "cuMemMap", "cu.cuMemMap(hole, PAGE, 0, double, 0)"),
    Misuse("map of more than the allocation", "cuMemMap", "cu.cuMemMap(hole, 2 * PAGE, 0, spare, 0)"),
    Misuse("map of no bytes", "cuMemMap", "cu.cuMemMap(hole, 0, 0, spare, 0)"),
    Misuse("map with flags", "cuMemMap", "cu.cuMemMap(hole, PAGE, 0, spare, 1)"),
    Misuse("map at a misaligned address", "cuMemMap", "cu.cuMemMap(hole + 4096, PAGE, 0, spare, 0)"),
    Misuse("map over a mapping", "cuMemMap", "cu.cuMemMap(r, PAGE, 0, spare, 0)"),
    Misuse("map of a handle over itself", "cuMemMap", "cu.cuMemMap(r, PAGE, 0, h, 0)"),
    Misuse("map that ends in a mapping", "cuMemMap", "cu.cuMemMap(r + PAGE, 2 * PAGE, 0, other, 0)",
           before="other = create(2 * PAGE)"),
    Misuse("map past the end of a reservation", "cuMemMap", "cu.cuMemMap(r + 7 * PAGE, 2 * PAGE, 0, double, 0)"),
    Misuse("map outside any reservation", "cuMemMap", "cu.cuMemMap(other, PAGE, 0, spare, 0)",
           before="other = reserve(PAGE); ok(cu.cuMemAddressFree(other, PAGE))"),
    Misuse("map of a released handle", "cuMemMap", "cu.cuMemMap(hole, PAGE, 0, spare, 0)",
           before="ok(cu.cuMemRelease(spare))"),
    Misuse("map of a released handle that is still mapped", "cuMemMap", "cu.cuMemMap(hole, PAGE, 0, h, 0)",
           before="ok(cu.cuMemRelease(h))"),
    Misuse("map of a made-up handle", "cuMemMap", "cu.cuMemMap(hole, PAGE, 0, 12345, 0)"),
    # Access
    Misuse("access for nobody", "cuMemSetAccess", "cu.cuMemSetAccess(r, PAGE, [], 0)"),
    Misuse("access of no bytes", "cuMemSetAccess", "cu.cuMemSetAccess(r, 0, [access()], 1)"),
    Misuse("access over a gap", "cuMemSetAccess", "cu.cuMemSetAccess(r, 4 * PAGE, [access()], 1)"),
    Misuse("access to a hole", "cuMemSetAccess", "cu.cuMemSetAccess(hole, PAGE, [access()], 1)"),
    Misuse("access to the first half of a mapping", "cuMemSetAccess",
           "cu.cuMemSetAccess(r + 2 * PAGE, PAGE, [access()], 1)"),
    Misuse("access to the second half of a mapping", "cuMemSetAccess",
           "cu.cuMemSetAccess(r + 3 * PAGE, PAGE, [access()], 1)"),
    Misuse("access at a misaligned address", "cuMemSetAccess", "cu.cuMemSetAccess(r + 4096, PAGE, [access()], 1)"),
    Misuse("access past the end of a reservation", "cuMemSetAccess",
           "cu.cuMemSetAccess(r + 7 * PAGE, 2 * PAGE, [access()], 1)", before="attach(r + 7 * PAGE, spare)"),
    Misuse("access for a device that is not there", "cuMemSetAccess",
           "cu.cuMemSetAccess(r, PAGE, [access(device=1)], 1)"),
    Misuse("access for the host", "cuMemSetAccess", "cu.cuMemSetAccess(r, PAGE, [access(location=HOST)], 1)"),
    Misuse("access to write only", "cuMemSetAccess",
           "(libcuda.cuMemSetAccess(u64(r), u64(PAGE), (ctypes.c_uint * 3)(1, 0, 2), u64(1)),)"),
    Misuse("query of access to a hole", "cuMemGetAccess", "cu.cuMemGetAccess(access().location, hole)"),
    Misuse("query of access by a device that is not there", "cuMemGetAccess",
           "cu.cuMemGetAccess(access(device=1).location, r)"),
    # Unmapping
    Misuse("unmap of no bytes", "cuMemUnmap", "cu.cuMemUnmap(r, 0)"),
    Misuse("unmap of the first half of a mapping", "cuMemUnmap", "cu.cuMemUnmap(r + 2 * PAGE, PAGE)"),
    Misuse("unmap of the second half of a mapping", "cuMemUnmap", "cu.cuMemUnmap(r + 3 * PAGE, PAGE)"),
    Misuse("unmap over a hole", "cuMemUnmap", "cu.cuMemUnmap(r, 4 * PAGE)"),
    Misuse("unmap of a hole", "cuMemUnmap", "cu.cuMemUnmap(hole, PAGE)"),
    Misuse("unmap twice", "cuMemUnmap", "cu.cuMemUnmap(r, PAGE)", before="ok(cu.cuMemUnmap(r, PAGE))"),
    Misuse("unmap at a misaligned address", "cuMemUnmap", "cu.cuMemUnmap(r + 4096, PAGE)"),
    Misuse("unmap past the end of a reservation", "cuMemUnmap", "cu.cuMemUnmap(r + 7 * PAGE, 2 * PAGE)",
           before="attach(r + 7 * PAGE, spare)"),
    Misuse("unmap outside any reservation", "cuMemUnmap", "cu.cuMemUnmap(0, PAGE)"),
    # Pointers
    Misuse("memory type of a hole", "cuPointerGetAttribute", "pointer('MEMORY_TYPE', hole)"),
    Misuse("device of a hole", "cuPointerGetAttribute", "pointer('DEVICE_ORDINAL', hole)"),
    Misuse("range of a host address", "cuPointerGetAttribute", "pointer('RANGE_SIZE', id(h))"),
    Misuse("host pointer of device memory", "cuPointerGetAttribute", "pointer('HOST_POINTER', r)"),
    # Devices and contexts
    Misuse("init with flags", "cuInit", "cu.cuInit(1)"),
    Misuse("a device that is not there", "cuDeviceGet", "cu.cuDeviceGet(1)", INVALID_DEVICE),
    Misuse("total memory of a device that is not there", "cuDeviceTotalMem", "cu.cuDeviceTotalMem(1)", INVALID_DEVICE),
    Misuse("UUID of a device that is not there", "cuDeviceGetUuid", "cu.cuDeviceGetUuid(1)", INVALID_DEVICE),
    Misuse("an attribute that is not modelled", "cuDeviceGetAttribute", "attribute(150, 0)"),
    Misuse("a context of a device that is not there", "cuDevicePrimaryCtxRetain", "cu.cuDevicePrimaryCtxRetain(1)",
           INVALID_DEVICE),
    Misuse("release of a context never retained", "cuDevicePrimaryCtxRelease", "cu.cuDevicePrimaryCtxRelease(0)",
           INVALID_CONTEXT),
    Misuse("a made-up context", "cuCtxSetCurrent", "cu.cuCtxSetCurrent(4096)", INVALID_CONTEXT),
    Misuse("the device of no context", "cuCtxGetDevice", "cu.cuCtxGetDevice()", INVALID_CONTEXT),
    Misuse("synchronizing no context", "cuCtxSynchronize", "cu.cuCtxSynchronize()", INVALID_CONTEXT),
    Misuse("memory info without a context", "cuMemGetInfo", "cu.cuMemGetInfo()", INVALID_CONTEXT),
    Misuse("memset without a context", "cuMemsetD8", "cu.cuMemsetD8(r, 0, PAGE)", INVALID_CONTEXT),
    Misuse("memset in a context that was released", "cuMemsetD8", "cu.cuMemsetD8(r, 0, PAGE)", CONTEXT_IS_DESTROYED,
           before="enter_context(); ok(cu.cuDevicePrimaryCtxRelease(0))"),
    Misuse("copy to the device without a context", "cuMemcpyHtoD", "cu.cuMemcpyHtoD(r, bytes(8), 8)", INVALID_CONTEXT),
    # Streams and events
    Misuse("a stream without a context", "cuStreamCreate", "cu.cuStreamCreate(0)", INVALID_CONTEXT),
    Misuse("a stream with unknown flags", "cuStreamCreate", "cu.cuStreamCreate(2)", before="enter_context()"),
    Misuse("waiting for a made-up stream", "cuStreamSynchronize", "cu.cuStreamSynchronize(4096)", INVALID_HANDLE,
           before="enter_context()"),
    Misuse("asking for a stream without a context", "cuStreamQuery", "cu.cuStreamQuery(0)", INVALID_CONTEXT),
    Misuse("asking for a stream that was destroyed", "cuStreamQuery", "cu.cuStreamQuery(s)", INVALID_HANDLE,
           before="enter_context(); s = ok(cu.cuStreamCreate(1)); ok(cu.cuStreamDestroy(s))"),
    Misuse("asking for a stream whose context was released", "cuStreamQuery", "cu.cuStreamQuery(s)", INVALID_HANDLE,
           before="enter_context(); s = ok(cu.cuStreamCreate(1)); ok(cu.cuDevicePrimaryCtxRelease(0));"
                  "enter_context()"),
    Misuse("destroying a stream twice", "cuStreamDestroy", "cu.cuStreamDestroy(s)", INVALID_HANDLE,
           before="enter_context(); s = ok(cu.cuStreamCreate(1)); ok(cu.cuStreamDestroy(s)); ok(cu.cuStreamCreate(1))"),
    Misuse("destroying the NULL stream", "cuStreamDestroy", "cu.cuStreamDestroy(0)", INVALID_HANDLE,
           before="enter_context()"),
    Misuse("the per-thread stream, which is not modelled", "cuStreamSynchronize", "cu.cuStreamSynchronize(2)",
           INVALID_HANDLE, before="enter_context()"),
    Misuse("waiting for an event outside a capture as if in one", "cuStreamWaitEvent",
           "cu.cuStreamWaitEvent(0, ok(cu.cuEventCreate(2)), 1)", before="enter_context()"),
    Misuse("a stream that waits for a made-up event", "cuStreamWaitEvent", "cu.cuStreamWaitEvent(0, 4096, 0)",
           INVALID_HANDLE, before="enter_context()"),
    Misuse("an event without a context", "cuEventCreate", "cu.cuEventCreate(2)", INVALID_CONTEXT),
    Misuse("an event with unknown flags", "cuEventCreate", "cu.cuEventCreate(8)", before="enter_context()"),
    Misuse("an event for other processes that takes the time", "cuEventCreate", "cu.cuEventCreate(4)",
           before="enter_context()"),
    Misuse("an event for other processes, which is not modelled", "cuEventCreate", "cu.cuEventCreate(6)",
           NOT_SUPPORTED, before="enter_context()"),
    Misuse("recording a made-up event", "cuEventRecord", "cu.cuEventRecord(4096, 0)", INVALID_HANDLE,
           before="enter_context()"),
    Misuse("recording an event without a context", "cuEventRecord", "cu.cuEventRecord(4096, 0)", INVALID_CONTEXT),
    Misuse("recording an event in a made-up stream", "cuEventRecord",
           "cu.cuEventRecord(ok(cu.cuEventCreate(2)), 4096)", INVALID_HANDLE, before="enter_context()"),
    Misuse("recording an event of no context", "cuCtxRecordEvent", "cu.cuCtxRecordEvent(0, ok(cu.cuEventCreate(2)))",
           INVALID_CONTEXT, before="enter_context()"),
    Misuse("recording a made-up event of a context", "cuCtxRecordEvent",
           "cu.cuCtxRecordEvent(ok(cu.cuCtxGetCurrent()), 4096)", INVALID_HANDLE, before="enter_context()"),
    Misuse("asking for an event that was destroyed", "cuEventQuery", "cu.cuEventQuery(e)", INVALID_HANDLE,
           before="enter_context(); e = ok(cu.cuEventCreate(2)); ok(cu.cuEventDestroy(e))"),
    Misuse("waiting for a made-up event", "cuEventSynchronize", "cu.cuEventSynchronize(4096)", INVALID_HANDLE,
           before="enter_context()"),
    Misuse("destroying an event twice", "cuEventDestroy", "cu.cuEventDestroy(e)", INVALID_HANDLE,
           before="enter_context(); e = ok(cu.cuEventCreate(2)); ok(cu.cuEventDestroy(e)); ok(cu.cuEventCreate(2))"),
    Misuse("the time between events that were never recorded", "cuEventElapsedTime",
           "cu.cuEventElapsedTime(ok(cu.cuEventCreate(0)), ok(cu.cuEventCreate(0)))", INVALID_HANDLE,
           before="enter_context()"),
    Misuse("the time of an event that does not take it", "cuEventElapsedTime", "cu.cuEventElapsedTime(e, e)",
           INVALID_HANDLE, before="enter_context(); e = ok(cu.cuEventCreate(2)); ok(cu.cuEventRecord(e, 0))"),
    Misuse("a capture mode that does not exist", "cuThreadExchangeStreamCaptureMode",
           "(libcuda.cuThreadExchangeStreamCaptureMode(ctypes.byref(ctypes.c_int(3))),)"),
    Misuse("a kernel without a context", "cudasim_launch", "(try_launch(0, Reads(r, 8)),)", INVALID_CONTEXT),
    Misuse("a kernel in a made-up stream", "cudasim_launch", "(try_launch(4096, Reads(r, 8)),)", INVALID_HANDLE,
           before="enter_context()"),
    Misuse("a kernel that uses nothing", "cudasim_launch", "(try_launch(0),)", before="enter_context()"),
    Misuse("a kernel that uses no bytes", "cudasim_launch", "(try_launch(0, Reads(r, 0)),)", before="enter_context()"),
    # Touching memory
    Misuse("memset of host memory", "cuMemsetD8", "cu.cuMemsetD8(id(h), 0, 8)", before="enter_context()"),
    Misuse("memset of a hole", "cuMemsetD8", "cu.cuMemsetD8(hole, 0, 8)", ILLEGAL_ADDRESS, before="enter_context()"),
    Misuse("memset that runs into a hole", "cuMemsetD8Async", "cu.cuMemsetD8Async(r, 0, PAGE + 1, 0)", ILLEGAL_ADDRESS,
           before="enter_context()"),
    Misuse("memset of mapped memory without access", "cuMemsetD8", "cu.cuMemsetD8(hole, 0, 8)", ILLEGAL_ADDRESS,
           before="enter_context(); ok(cu.cuMemMap(hole, PAGE, 0, spare, 0))"),
    Misuse("memset of read-only memory", "cuMemsetD8", "cu.cuMemsetD8(hole, 0, 8)", ILLEGAL_ADDRESS,
           before="enter_context(); attach(hole, spare, flags=READ)"),
    Misuse("memset of memory whose access was taken away", "cuMemsetD8", "cu.cuMemsetD8(r, 0, 8)", ILLEGAL_ADDRESS,
           before="enter_context(); ok(cu.cuMemSetAccess(r, PAGE, [access(NONE)], 1))"),
    Misuse("memset after a remap without access", "cuMemsetD8", "cu.cuMemsetD8(r, 0, 8)", ILLEGAL_ADDRESS,
           before="enter_context(); ok(cu.cuMemUnmap(r, PAGE)); ok(cu.cuMemMap(r, PAGE, 0, h, 0))"),
    Misuse("memset on a made-up stream", "cuMemsetD8Async", "cu.cuMemsetD8Async(r, 0, 8, 4096)", INVALID_HANDLE,
           before="enter_context()"),
    Misuse("copy on the device from a hole", "cuMemcpyDtoD", "cu.cuMemcpyDtoD(r, hole, 8)", ILLEGAL_ADDRESS,
           before="enter_context()"),
    Misuse("copy on the device to a hole", "cuMemcpyDtoDAsync", "cu.cuMemcpyDtoDAsync(hole, r, 8, 0)", ILLEGAL_ADDRESS,
           before="enter_context()"),
    Misuse("copy on the device from the host", "cuMemcpyDtoD", "cu.cuMemcpyDtoD(r, id(h), 8)",
           before="enter_context()"),
    Misuse("copy from a hole", "cuMemcpyDtoH", "cu.cuMemcpyDtoH(bytearray(8), hole, 8)", ILLEGAL_ADDRESS,
           before="enter_context()"),
    Misuse("copy to read-only memory", "cuMemcpyHtoD", "cu.cuMemcpyHtoD(hole, bytes(8), 8)", ILLEGAL_ADDRESS,
           before="enter_context(); attach(hole, spare, flags=READ)"),
    Misuse("mapping after an illegal address", "cuMemMap", "cu.cuMemMap(hole, PAGE, 0, spare, 0)", ILLEGAL_ADDRESS,
           before="enter_context(); cu.cuMemsetD8(hole, 0, 8)"),
    Misuse("synchronizing after an illegal address", "cuCtxSynchronize", "cu.cuCtxSynchronize()", ILLEGAL_ADDRESS,
           before="enter_context(); cu.cuMemsetD8(hole, 0, 8)"),
]  # fmt: skip
