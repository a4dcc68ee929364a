/* This process's handle table: values it gave out, and which allocation each stands for.
 *
 * It lies in the process's file in the world, so that when the process dies the others can see what it held. A value
 * says which process, which entry and which use of the entry it is: none that was released or came from elsewhere is
 * ever valid. All of these need the process lock. */
#ifndef CUDASIM_HANDLE_H
#define CUDASIM_HANDLE_H

#include "process.h"

/* A new handle with one reference, of an allocation that is held by something else at this moment. 0: table full.
 * Needs the world's lock too. */
CUmemGenericAllocationHandle handle_add(uint32_t allocation);
/* The entry of a handle that the program may use: one with references. NULL if there is none. */
struct handle_entry *handle_find(CUmemGenericAllocationHandle value);
/* After `references` or `mappings` went down: forget the entry, and free the memory, if it was the last. */
void handle_settle(struct handle_entry *entry);

#endif
