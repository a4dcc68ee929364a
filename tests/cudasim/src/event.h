/* Events: a piece of work remembered, to be asked about later. */
#ifndef CUDASIM_EVENT_H
#define CUDASIM_EVENT_H

#include "work.h"

/* The context goes, and its events with it. Needs the process lock. */
void event_forget_all(uint32_t device);

#endif
