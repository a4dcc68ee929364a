/* Streams: who awaits whom. All need the process lock, save where a context must be looked up first. */
#ifndef CUDASIM_STREAM_H
#define CUDASIM_STREAM_H

#include "work.h"

struct stream {
    CUstream handle;
    uint32_t device;
    bool blocking;
    bool destroyed;
    struct work *last; /* what was queued last, or NULL */
    struct stream *next;
};

/* The stream of a handle. Takes the lock for a moment itself: do not hold it. A stream is freed with its context only,
 * or when it is destroyed and nothing is left in it. */
CUresult stream_find(CUstream handle, struct stream **stream);
/* The same, of the current context's device. */
CUresult stream_find_here(CUstream handle, struct stream **stream);
/* Queue work in its stream, and give up the caller's reference. */
void stream_queue(struct stream *stream, struct work *work);
/* A mark after all that the context has been given, in whatever stream. NULL: out of memory. */
struct work *stream_mark_all(uint32_t device);
/* Wait for all that the context has been given, and take it as proven. */
CUresult stream_wait_all(uint32_t device);
/* The context goes, and its streams with it. */
void stream_forget_all(uint32_t device);

#endif
