/* This process as a user of the driver, and the gate that every driver call passes. */
#ifndef CUDASIM_PROCESS_H
#define CUDASIM_PROCESS_H

#include "cuda_abi.h"
#include "world.h"

enum needs { ALWAYS, INIT, WORK };

struct process {
    struct world world;
    struct process_file *file; /* NULL: no world, so no device */
    uint32_t slot;
    int pid;
    bool initialized;
    int sticky;            /* the CUresult that ends all work in this process, or 0 */
    bool lost_on_demand;   /* because a test ordered it: that calls fail is nobody's misuse */
    pthread_mutex_t mutex; /* guards handles, address space and contexts; taken before the world's lock */
};

extern struct process process;
extern const enum needs call_needs[CALL_COUNT];

/* Every entry point is `return CALL(cuName, implementation(...));`. */
#define CALL(name, result) leave(CALL_##name, enter(CALL_##name) ?: (result))

/* Counts the call and decides whether it may run at all. */
CUresult enter(enum call call);
/* Counts what was refused, which NOT_READY is not, and makes the call last its latency; returns `result`. */
CUresult leave(enum call call, CUresult result);

void process_lock(void);
void process_unlock(void);

#endif
