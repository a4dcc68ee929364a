/* Physical allocations: the bytes of device memory, each allocation one sparse file on tmpfs.
 * A file with a name rather than a memfd: whoever sweeps must be able to open it anew to ask whether anyone still
 * holds it, and a memfd can only be reached through a descriptor, which is itself a hold. All of these need the
 * world's lock. */
#ifndef CUDASIM_PHYSICAL_H
#define CUDASIM_PHYSICAL_H

#include "cuda_abi.h"
#include "world.h"

/* Charge the device and make the file. The new allocation has no references: the caller adds its handle at once. */
CUresult physical_create(struct world *world, uint32_t device, uint64_t size, uint32_t handle_types, uint32_t *index);
/* A new open file of the allocation, or -1. `hold`: it pins the memory for as long as any copy of it is open. */
int physical_open(struct world *world, uint32_t index, bool hold);
/* Which allocation a descriptor from anywhere is an export of; 0 if none. */
uint32_t physical_of_descriptor(struct world *world, int fd);
/* Give the bytes back to the device if no handle, mapping or exported descriptor is left. */
void physical_free_if_unheld(struct world *world, uint32_t index);

#endif
