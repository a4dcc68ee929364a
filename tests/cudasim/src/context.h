/* Primary contexts, and which one a thread works in. */
#ifndef CUDASIM_CONTEXT_H
#define CUDASIM_CONTEXT_H

#include "process.h"

/* The world's index of the current context's device, or the reason why there is none. */
CUresult context_current_device(uint32_t *device);
/* The same of a context that need not be current. */
CUresult context_device(CUcontext context, uint32_t *device);
CUcontext context_of(uint32_t device);

#endif
