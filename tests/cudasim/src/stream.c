/* What the real driver does: work in one stream is done in order, streams among each other in none. The NULL stream is
 * the exception: work in it first waits for all blocking streams of its context, and work that blocking streams are
 * given later waits for it; CU_STREAM_NON_BLOCKING ones know nothing of it. Destroying a stream with work in it returns
 * at once, and the work is done all the same.
 *
 * Whether waiting for a blocking stream also waits for what the NULL stream was given later is in doubt; here it does
 * not. The per-thread default stream is not modelled. */
#include "stream.h"

#include <stdlib.h>

#include "context.h"

#define LEGACY ((CUstream)1)

/* In no order; those that were destroyed stay while anything in them is not proven. */
static struct stream *streams;
static struct stream legacy[MAX_DEVICES]; /* the NULL streams */
static uintptr_t last_handle = 0x5700000000u; /* never given out twice, so that no stale one is ever valid */

__attribute__((constructor)) static void number_null_streams(void)
{
    for (uint32_t device = 0; device < MAX_DEVICES; device++) {
        legacy[device].device = device;
    }
}

/* ---- who awaits whom ---- */

void stream_queue(struct stream *stream, struct work *work)
{
    struct stream *null_stream = &legacy[stream->device];
    work_await(work, stream->last);
    if (stream->blocking) {
        work_await(work, null_stream->last);
    }
    for (struct stream *other = streams; other && stream == null_stream; other = other->next) {
        if (other->blocking && other->device == stream->device) {
            work_await(work, other->last);
        }
    }
    work_drop(stream->last);
    stream->last = work_keep(work);
    work_queue(work);
    work_drop(work);
}

struct work *stream_mark_all(uint32_t device)
{
    struct work *mark = work_new(WORK_MARK, device, 0);
    if (mark) {
        work_await(mark, legacy[device].last);
        for (struct stream *stream = streams; stream; stream = stream->next) {
            if (stream->device == device) {
                work_await(mark, stream->last);
            }
        }
        work_queue(mark);
    }
    return mark;
}

static CUresult wait_and_prove(struct work *mark)
{
    if (!mark) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult result = work_wait(mark);
    work_prove(mark);
    work_drop(mark);
    return result;
}

CUresult stream_wait_all(uint32_t device)
{
    return wait_and_prove(stream_mark_all(device));
}

/* A mark at the end of a stream. In the NULL stream that is work like any other, and waits for the blocking ones. */
static struct work *mark_end(struct stream *stream)
{
    struct work *mark = work_new(WORK_MARK, stream->device, 0);
    if (mark && stream == &legacy[stream->device]) {
        stream_queue(stream, work_keep(mark));
    } else if (mark) {
        work_await(mark, stream->last);
        work_queue(mark);
    }
    return mark;
}

/* ---- finding, making, forgetting ---- */

static bool is_legacy(CUstream handle)
{
    return !handle || handle == LEGACY;
}

static struct stream *find_made(CUstream handle)
{
    process_lock();
    struct stream *stream = streams;
    while (stream && (stream->destroyed || stream->handle != handle)) {
        stream = stream->next;
    }
    process_unlock();
    return stream;
}

CUresult stream_find(CUstream handle, struct stream **found)
{
    uint32_t device;
    CUresult result = context_current_device(&device);
    if (result) {
        return result;
    }
    *found = is_legacy(handle) ? &legacy[device] : find_made(handle);
    return *found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult stream_find_here(CUstream handle, struct stream **found)
{
    uint32_t device;
    CUresult result = context_current_device(&device) ?: stream_find(handle, found);
    return result ?: ((*found)->device == device ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE);
}

/* Take out the streams that are destroyed and have nothing left in them, or all of one device. */
static void sweep(uint32_t forgotten_device)
{
    struct stream **link = &streams;
    while (*link) {
        struct stream *stream = *link;
        bool idle = stream->destroyed && (!stream->last || stream->last->proven);
        if (!idle && stream->device != forgotten_device) {
            link = &stream->next;
            continue;
        }
        *link = stream->next;
        work_drop(stream->last);
        free(stream);
    }
}

void stream_forget_all(uint32_t device)
{
    sweep(device);
    work_drop(legacy[device].last);
    legacy[device].last = NULL;
}

static CUresult create(CUstream *handle, unsigned int flags)
{
    uint32_t device;
    if (!handle || flags > CU_STREAM_NON_BLOCKING) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = context_current_device(&device);
    struct stream *stream = result ? NULL : calloc(1, sizeof *stream);
    if (!stream) {
        return result ?: CUDA_ERROR_OUT_OF_MEMORY;
    }
    process_lock();
    sweep(ANY_DEVICE);
    *handle = stream->handle = (CUstream)(last_handle += 16);
    stream->device = device;
    stream->blocking = flags != CU_STREAM_NON_BLOCKING;
    stream->next = streams;
    streams = stream;
    process_unlock();
    return CUDA_SUCCESS;
}

static CUresult destroy(CUstream handle)
{
    struct stream *stream;
    /* The NULL stream is nobody's to destroy. */
    CUresult result = is_legacy(handle) ? CUDA_ERROR_INVALID_HANDLE : stream_find(handle, &stream);
    if (!result) {
        process_lock();
        stream->destroyed = true;
        sweep(ANY_DEVICE);
        process_unlock();
    }
    return result;
}

/* ---- asking ---- */

static CUresult synchronize(CUstream handle)
{
    struct stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (!result) {
        process_lock();
        result = wait_and_prove(mark_end(stream));
        process_unlock();
    }
    return result;
}

static bool is_done(const struct stream *stream)
{
    return !stream->last || stream->last->state == WORK_DONE;
}

static CUresult query(CUstream handle)
{
    struct stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result) {
        return result;
    }
    process_lock();
    bool is_null_stream = stream == &legacy[stream->device];
    bool done = is_done(stream);
    for (struct stream *other = streams; other && is_null_stream; other = other->next) {
        done &= !other->blocking || other->device != stream->device || is_done(other);
    }
    if (done) {
        result = wait_and_prove(mark_end(stream)); /* there is nothing to wait for, but much to prove */
    }
    process_unlock();
    return done ? result : CUDA_ERROR_NOT_READY;
}

/* Of the NULL stream that is the current one; other streams need none to be current. */
static CUresult get_context(CUstream handle, CUcontext *context)
{
    if (!context) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    uint32_t device;
    const struct stream *stream = is_legacy(handle) ? NULL : find_made(handle);
    CUresult result = is_legacy(handle) ? context_current_device(&device) : CUDA_SUCCESS;
    if (!is_legacy(handle) && !stream) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (!result) {
        *context = context_of(stream ? stream->device : device);
    }
    return result;
}

/* ---- capture, which is not modelled: no stream ever captures ---- */

static CUresult is_capturing(CUstream handle, int *status)
{
    struct stream *stream;
    if (!status) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *status = 0;
    return stream_find(handle, &stream);
}

enum { CAPTURE_GLOBAL = 0, CAPTURE_RELAXED = 2 };
static _Thread_local int capture_mode = CAPTURE_GLOBAL;

static CUresult exchange_capture_mode(int *mode)
{
    if (!mode || *mode < CAPTURE_GLOBAL || *mode > CAPTURE_RELAXED) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    int before = capture_mode;
    capture_mode = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamCreate(CUstream *stream, unsigned int flags)
{
    return CALL(cuStreamCreate, create(stream, flags));
}

/* A priority promises nothing, and any number is taken: it is clamped. */
EXPORT CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned int flags, int priority)
{
    (void)priority;
    return CALL(cuStreamCreateWithPriority, create(stream, flags));
}

EXPORT CUresult cuStreamDestroy_v2(CUstream stream)
{
    return CALL(cuStreamDestroy, destroy(stream));
}

EXPORT CUresult cuStreamSynchronize(CUstream stream)
{
    return CALL(cuStreamSynchronize, synchronize(stream));
}

EXPORT CUresult cuStreamQuery(CUstream stream)
{
    return CALL(cuStreamQuery, query(stream));
}

EXPORT CUresult cuStreamGetCtx(CUstream stream, CUcontext *context)
{
    return CALL(cuStreamGetCtx, get_context(stream, context));
}

EXPORT CUresult cuStreamIsCapturing(CUstream stream, int *status)
{
    return CALL(cuStreamIsCapturing, is_capturing(stream, status));
}

EXPORT CUresult cuThreadExchangeStreamCaptureMode(int *mode)
{
    return CALL(cuThreadExchangeStreamCaptureMode, exchange_capture_mode(mode));
}
