/* One simulated machine: its devices, their memory and the processes that use them.
 *
 * Why: device memory is accounted across processes, and outlives any of them. So the state lies in a directory on
 * tmpfs that every process maps:
 *     world             this structure
 *     process-SLOT      one process: its handle table and its counters (struct process_file)
 *     allocation-I-N    the bytes of one physical allocation: record I, serial number N
 *
 * Who lives is the kernel's truth, never ours. A process maps its own file through a description that holds a shared
 * flock, and an exported fd holds one on its allocation's file. Such a lock ends with the last mapping, dup, fork copy
 * or message in a socket of that description, whatever killed the process; an exclusive flock that succeeds proves
 * that nobody is left. */
#ifndef CUDASIM_WORLD_H
#define CUDASIM_WORLD_H

#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "calls.h"

#define WORLD_MAGIC 0x6d69736164756375ull
#define WORLD_VERSION 1u

enum { MAX_DEVICES = 16, MAX_PROCESSES = 4096, MAX_ALLOCATIONS = 1 << 17, MAX_HANDLES = 1 << 18, MAX_FAULTS = 16 };

struct device_record {
    char name[96];
    uint8_t uuid[16];
    uint64_t total_bytes;
    uint64_t used_bytes; /* allocations and contexts; world_repair can compute it anew */
};

/* Record 0 is never used, so that index 0 means "no allocation". */
struct allocation_record {
    uint32_t used; /* written last when made, first when freed: a killed process leaves no half record */
    uint32_t device;
    uint64_t size;
    uint64_t serial;
    uint64_t inode;
    uint32_t handle_types;
    uint32_t references; /* handle table entries of living processes; world_repair can compute it anew */
    uint32_t next_free;
};

enum process_state { PROCESS_NONE, PROCESS_ALIVE, PROCESS_BURIED };

struct process_record {
    uint32_t state;
    int32_t pid;
};

/* What a test has ordered to go wrong (fault.c). */
struct fault {
    int32_t call;       /* an enum call, or ANY_CALL: every one that needs cuInit */
    int32_t pid;        /* 0: in whichever process */
    uint64_t calls;     /* so many more of them pass first */
    uint64_t times;     /* so many of them are met then; 0: this place is free */
    int32_t code;       /* what they return without being made; CUDA_SUCCESS: they are made after all */
    uint32_t is_sticky; /* and it ends all work in the process */
    uint64_t stall_ns;  /* how long they wait first; FOR_GOOD: until the test releases them */
};
#define ANY_CALL (-1)
#define FOR_GOOD UINT64_MAX

struct world_state {
    uint64_t magic;
    uint32_t version;
    uint32_t device_count;
    uint64_t granularity;
    uint64_t context_bytes; /* what the first primary context of a process on a device costs */
    int32_t fresh_byte;     /* what a new allocation is filled with; -1: zeros, which cost no memory */
    uint64_t latency_ns[CALL_COUNT];
    uint32_t fault_count; /* places in use; read without the lock */
    uint32_t stalled;     /* calls that wait until they are released */
    uint32_t releases;    /* so many times that was done */
    struct fault faults[MAX_FAULTS];
    pthread_mutex_t mutex; /* process-shared and robust */
    uint64_t next_serial;
    uint32_t free_head;       /* freed allocation records, through next_free */
    uint32_t allocation_high; /* records from here on were never used */
    uint32_t process_count;
    struct device_record devices[MAX_DEVICES];
    struct process_record processes[MAX_PROCESSES];
    struct allocation_record allocations[MAX_ALLOCATIONS];
};

/* One handle of one process. It exists while `allocation` is not 0, which is while it has references (create, import,
 * retain) or mappings: a released handle that is still mapped keeps its memory and its value. */
struct handle_entry {
    uint64_t value;
    uint32_t allocation;
    uint32_t references;
    uint32_t mappings;
    uint32_t next_free;
};

struct process_file {
    int32_t pid;
    uint32_t charged_devices; /* bit per device: a primary context was paid for */
    uint64_t calls[CALL_COUNT];
    uint64_t refused[CALL_COUNT];   /* neither SUCCESS nor NOT_READY, save for the next two */
    uint64_t exhausted[CALL_COUNT]; /* OUT_OF_MEMORY: no misuse, but not served either */
    uint64_t injected[CALL_COUNT];  /* failed because a test wanted it: in neither of those */
    uint64_t reserved_bytes;        /* addresses, and in how many reservations */
    uint64_t reservations;
    uint32_t handle_free;           /* freed entries, through next_free; entry 0 is never used */
    uint32_t handle_high;
    struct handle_entry handles[MAX_HANDLES];
};

/* This process's view of a world. */
struct world {
    char path[PATH_MAX];
    struct world_state *state;
};

extern const char *const call_names[CALL_COUNT];

/* Returns 0 or an errno. */
int world_create(struct world *world, const char *path);
int world_open(struct world *world, const char *path);
void world_close(struct world *world);

void world_lock(struct world *world);
void world_unlock(struct world *world);

/* Make this process known: maps its file, whose lock lives as long as that mapping. NULL if the world is full. */
struct process_file *world_join(struct world *world, uint32_t *slot);
struct process_file *world_map_process(struct world *world, uint32_t slot);
void world_unmap_process(struct process_file *file);

enum { UUID_TEXT = 48 };
/* "GPU-" and the usual groups, as nvidia-smi prints it. */
void world_format_uuid(const struct device_record *device, char text[UUID_TEXT]);

/* The following need the lock. */

/* Take back what dead processes held and free the allocations that nobody holds any more. */
void world_sweep(struct world *world);
/* Charge a device, sweeping first if it is short. False: not enough memory. */
bool world_charge(struct world *world, uint32_t device, uint64_t bytes);

#endif
