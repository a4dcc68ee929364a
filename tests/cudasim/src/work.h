/* What the device has been given to do: kernels, fills, copies, and the marks that events are made of.
 *
 * Work is a graph. Each piece awaits earlier ones, starts when they are done, and is then done itself; streams are
 * nothing but a rule for who awaits whom (stream.c).
 *
 * Beside done there is proven: the program has been told, by a query or a wait that covers the piece. Until then its
 * memory counts as in use, finished or not. So a program that forgets to wait dies every time, not only when the device
 * happens to be slow. All of this needs the process lock. */
#ifndef CUDASIM_WORK_H
#define CUDASIM_WORK_H

#include "process.h"

enum work_kind { WORK_MARK, WORK_FILL, WORK_COPY, WORK_KERNEL };
enum work_state { WORK_QUEUED, WORK_RUNNING, WORK_DONE };

struct work_range {
    CUdeviceptr start;
    size_t size;
    uint32_t access;    /* CU_MEM_ACCESS_FLAGS_*: what the device does to it */
    unsigned char byte; /* what a fill or a kernel writes */
    uint64_t checksum;  /* what a kernel that reads saw when it started */
};

/* A copy has its source, its destination or both as ranges, in this order; `host` is the end that is none. */
struct work {
    enum work_kind kind;
    enum work_state state;
    bool proven;
    uint32_t device;
    uint64_t number; /* for messages: the first of the process is 1 */
    uint64_t duration_ns;
    uint64_t end_ns; /* of what runs: when it will be done; of what is done: when it was */
    void *host;
    int references;
    struct work **awaited;
    size_t awaited_count;
    struct work *next_unfinished;
    struct work *next_proven, *next_dead;
    struct work *next_in_use, **link_in_use;
    size_t range_count;
    struct work_range ranges[];
};

/* With one reference, the caller's. NULL: out of memory. */
struct work *work_new(enum work_kind kind, uint32_t device, size_t range_count);
struct work *work_keep(struct work *work);
void work_drop(struct work *work); /* NULL is ignored */
/* `earlier` may be NULL. Only before `work` is queued. */
void work_await(struct work *work, struct work *earlier);
void work_queue(struct work *work);

/* Until it is done. Gives the lock up meanwhile. The sticky error, if that ended all work. */
CUresult work_wait(struct work *work);
/* The program has been told that `work` is done, and so that all it awaited is. */
void work_prove(struct work *work);
/* No work of this process is done any more: the sticky error. */
void work_fault(CUresult code);

enum { ANY_DEVICE = MAX_DEVICES };
/* Ends the process if work of the device that is not proven uses any of these bytes. */
void work_must_not_use(const char *call, CUdeviceptr start, size_t size, uint32_t device);

#endif
