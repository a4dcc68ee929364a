/* What tests order to go wrong. */
#ifndef CUDASIM_FAULT_H
#define CUDASIM_FAULT_H

#include "process.h"

/* Does what was ordered for this call of this process: the result that it is to fail with, or CUDA_SUCCESS. */
CUresult fault_meet(enum call call);

#endif
