/* Devices as this process numbers them. CUDA_VISIBLE_DEVICES renumbers, so an ordinal and an index into the world's
 * devices are two things; NVML uses the second. */
#ifndef CUDASIM_DEVICE_H
#define CUDASIM_DEVICE_H

#include "process.h"

/* Reads CUDA_VISIBLE_DEVICES; how many devices are left. */
int device_select_visible(void);
int device_count(void);
/* The world's index of an ordinal of this process, or -1. */
int device_index(CUdevice ordinal);
/* The ordinal of a world's device in this process, or -1 if it is not visible. */
CUdevice device_ordinal(uint32_t index);

#endif
