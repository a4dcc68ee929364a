/* Room for an mmap that must not fail. Both need the process lock. */
#ifndef CUDASIM_BALLAST_H
#define CUDASIM_BALLAST_H

#include <stdbool.h>

#include "cuda_abi.h"

/* Call before mapping anything. False: no kernel mappings are left. */
bool keep_ballast(void);
/* Put reserved addresses back over whatever is there, or end the process. */
void make_reserved(CUdeviceptr start, size_t size);

#endif
