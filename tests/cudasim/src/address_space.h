/* This process's device addresses: reservations, and the mappings in them. All need the process lock. */
#ifndef CUDASIM_ADDRESS_SPACE_H
#define CUDASIM_ADDRESS_SPACE_H

#include "handle.h"

/* One allocation seen at one address, always as a whole. */
struct mapping {
    CUdeviceptr start;
    size_t size;
    struct handle_entry *handle; /* kept alive by its `mappings` count */
    uint8_t access[MAX_DEVICES]; /* CU_MEM_ACCESS_FLAGS_* per device of the world; all NONE when new */
};

/* `granules` has an entry per granule: the mapping that covers it, or NULL. */
struct reservation {
    CUdeviceptr start;
    size_t size;
    struct mapping **granules;
    size_t mapping_count;
    struct reservation *next;
};

static inline size_t granule_bytes(void)
{
    return process.world.state->granularity;
}

/* The place in `granules` of an address inside the reservation. */
struct mapping **granule_at(const struct reservation *r, CUdeviceptr address);
/* NULL where there is none. */
struct reservation *reservation_at(CUdeviceptr address);
struct mapping *mapping_at(CUdeviceptr address);

enum reach { REACH_ALL, REACH_FAULT, REACH_NOWHERE };
/* Can `device` touch all of [start, start + size) with `access`? REACH_FAULT: a hole or too little access inside a
 * reservation, which a GPU answers with a fault. REACH_NOWHERE: the address is not the driver's at all. */
enum reach address_reach(CUdeviceptr start, size_t size, uint32_t device, uint32_t access);

#endif
