/* What the real driver does: an event stands for all that its stream, or its context, had been given when it was last
 * recorded; for nothing, so done, if it never was. Recording again replaces that, for who asks later and for nobody who
 * waits already. Destroying one that is not done returns at once.
 *
 * Here each recording is a mark in the graph of work, which an event refers to. Any call but cuEventQuery needs a
 * current context; the real driver may be less strict. */
#include "event.h"

#include <stdlib.h>

#include "context.h"
#include "stream.h"

enum { CU_EVENT_BLOCKING_SYNC = 1, CU_EVENT_DISABLE_TIMING = 2, CU_EVENT_INTERPROCESS = 4 };

struct event {
    CUevent handle;
    uint32_t device;
    bool timed;
    struct work *captured; /* NULL: never recorded */
    struct event *next;
};

static struct event *events;
static uintptr_t last_handle = 0xe700000000u; /* never given out twice, so that no stale one is ever valid */

/* Needs the process lock, as do the others that take an event. */
static struct event *find(CUevent handle)
{
    struct event *event = events;
    while (event && event->handle != handle) {
        event = event->next;
    }
    return event;
}

static void forget(struct event **link)
{
    struct event *event = *link;
    *link = event->next;
    work_drop(event->captured);
    free(event);
}

void event_forget_all(uint32_t device)
{
    struct event **link = &events;
    while (*link) {
        if ((*link)->device == device) {
            forget(link);
        } else {
            link = &(*link)->next;
        }
    }
}

static CUresult create(CUevent *handle, unsigned int flags)
{
    const unsigned int known = CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;
    uint32_t device;
    if (!handle || flags & ~known) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (flags & CU_EVENT_INTERPROCESS) {
        return flags & CU_EVENT_DISABLE_TIMING ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = context_current_device(&device);
    struct event *event = result ? NULL : calloc(1, sizeof *event);
    if (!event) {
        return result ?: CUDA_ERROR_OUT_OF_MEMORY;
    }
    process_lock();
    *handle = event->handle = (CUevent)(last_handle += 16);
    event->device = device;
    event->timed = !(flags & CU_EVENT_DISABLE_TIMING);
    event->next = events;
    events = event;
    process_unlock();
    return CUDA_SUCCESS;
}

static CUresult destroy(CUevent handle)
{
    uint32_t device;
    CUresult result = context_current_device(&device);
    if (result) {
        return result;
    }
    process_lock();
    struct event **link = &events;
    while (*link && (*link)->handle != handle) {
        link = &(*link)->next;
    }
    result = *link ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
    if (!result) {
        forget(link);
    }
    process_unlock();
    return result;
}

/* ---- recording ---- */

/* `mark` is queued; the event takes the caller's reference. */
static void capture(struct event *event, struct work *mark)
{
    work_drop(event->captured);
    event->captured = mark;
}

static CUresult record(CUevent handle, CUstream stream_handle)
{
    struct stream *stream;
    CUresult result = stream_find(stream_handle, &stream);
    if (result) {
        return result;
    }
    process_lock();
    struct event *event = find(handle);
    struct work *mark = NULL;
    if (!event || event->device != stream->device) {
        result = CUDA_ERROR_INVALID_HANDLE;
    } else if (!(mark = work_new(WORK_MARK, stream->device, 0))) {
        result = CUDA_ERROR_OUT_OF_MEMORY;
    } else {
        capture(event, work_keep(mark));
        stream_queue(stream, mark);
    }
    process_unlock();
    return result;
}

static CUresult record_context(CUcontext context, CUevent handle)
{
    uint32_t device, current;
    CUresult result = context_device(context, &device) ?: context_current_device(&current);
    if (result) {
        return result;
    }
    process_lock();
    struct event *event = find(handle);
    struct work *mark = NULL;
    if (!event || event->device != device) {
        result = CUDA_ERROR_INVALID_HANDLE;
    } else if (!(mark = stream_mark_all(device))) {
        result = CUDA_ERROR_OUT_OF_MEMORY;
    } else {
        capture(event, mark);
    }
    process_unlock();
    return result;
}

/* ---- asking ---- */

static CUresult query(CUevent handle)
{
    CUresult result = CUDA_SUCCESS;
    process_lock();
    const struct event *event = find(handle);
    if (!event) {
        result = CUDA_ERROR_INVALID_HANDLE;
    } else if (event->captured && event->captured->state != WORK_DONE) {
        result = CUDA_ERROR_NOT_READY;
    } else if (event->captured) {
        work_prove(event->captured);
    }
    process_unlock();
    return result;
}

static CUresult synchronize(CUevent handle)
{
    uint32_t device;
    CUresult result = context_current_device(&device);
    if (result) {
        return result;
    }
    process_lock();
    const struct event *event = find(handle);
    if (!event) {
        result = CUDA_ERROR_INVALID_HANDLE;
    } else if (event->captured) {
        struct work *mark = work_keep(event->captured); /* the event may be recorded anew, or destroyed, meanwhile */
        result = work_wait(mark);
        work_prove(mark);
        work_drop(mark);
    }
    process_unlock();
    return result;
}

static CUresult wait_event(CUstream stream_handle, CUevent handle, unsigned int flags)
{
    struct stream *stream;
    CUresult result = flags ? CUDA_ERROR_INVALID_VALUE : stream_find(stream_handle, &stream);
    if (result) {
        return result;
    }
    process_lock();
    const struct event *event = find(handle);
    struct work *mark = event ? work_new(WORK_MARK, stream->device, 0) : NULL;
    if (!event) {
        result = CUDA_ERROR_INVALID_HANDLE;
    } else if (!mark) {
        result = CUDA_ERROR_OUT_OF_MEMORY;
    } else {
        work_await(mark, event->captured);
        stream_queue(stream, mark);
    }
    process_unlock();
    return result;
}

static CUresult elapsed(float *milliseconds, CUevent first, CUevent second)
{
    uint32_t device;
    CUresult result = milliseconds ? context_current_device(&device) : CUDA_ERROR_INVALID_VALUE;
    if (result) {
        return result;
    }
    process_lock();
    const struct event *from = find(first), *to = find(second);
    if (!from || !to || !from->timed || !to->timed || !from->captured || !to->captured) {
        result = CUDA_ERROR_INVALID_HANDLE;
    } else if (from->captured->state != WORK_DONE || to->captured->state != WORK_DONE) {
        result = CUDA_ERROR_NOT_READY;
    } else {
        *milliseconds = (float)((double)(int64_t)(to->captured->end_ns - from->captured->end_ns) / 1e6);
    }
    process_unlock();
    return result;
}

EXPORT CUresult cuEventCreate(CUevent *event, unsigned int flags)
{
    return CALL(cuEventCreate, create(event, flags));
}

EXPORT CUresult cuEventDestroy_v2(CUevent event)
{
    return CALL(cuEventDestroy, destroy(event));
}

EXPORT CUresult cuEventRecord(CUevent event, CUstream stream)
{
    return CALL(cuEventRecord, record(event, stream));
}

EXPORT CUresult cuCtxRecordEvent(CUcontext context, CUevent event)
{
    return CALL(cuCtxRecordEvent, record_context(context, event));
}

EXPORT CUresult cuEventQuery(CUevent event)
{
    return CALL(cuEventQuery, query(event));
}

EXPORT CUresult cuEventSynchronize(CUevent event)
{
    return CALL(cuEventSynchronize, synchronize(event));
}

EXPORT CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags)
{
    return CALL(cuStreamWaitEvent, wait_event(stream, event, flags));
}

EXPORT CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent first, CUevent second)
{
    return CALL(cuEventElapsedTime, elapsed(milliseconds, first, second));
}
