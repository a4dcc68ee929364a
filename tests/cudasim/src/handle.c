/* What the real driver does: create, import and retain give one reference each; release drops one; a mapping keeps a
 * released handle's memory; releasing a handle that is not one is undefined behaviour. */
#include "handle.h"

#include "physical.h"

enum { ENTRY_BITS = 20, USE_BITS = 28 };

CUmemGenericAllocationHandle handle_add(uint32_t allocation)
{
    struct process_file *file = process.file;
    uint32_t index = file->handle_free ? file->handle_free : file->handle_high;
    if (index >= MAX_HANDLES) {
        return 0;
    }
    struct handle_entry *entry = &file->handles[index];
    if (index == file->handle_free) {
        file->handle_free = entry->next_free;
    } else {
        file->handle_high++;
    }
    uint64_t use = ((entry->value >> ENTRY_BITS) + 1) & ((1u << USE_BITS) - 1);
    entry->value = (uint64_t)(process.slot + 1) << (ENTRY_BITS + USE_BITS) | use << ENTRY_BITS | index;
    entry->references = 1;
    entry->mappings = 0;
    entry->allocation = allocation;
    process.world.state->allocations[allocation].references++;
    return entry->value;
}

struct handle_entry *handle_find(CUmemGenericAllocationHandle value)
{
    uint32_t index = value & ((1u << ENTRY_BITS) - 1);
    if (index == 0 || index >= process.file->handle_high) {
        return NULL;
    }
    struct handle_entry *entry = &process.file->handles[index];
    return entry->allocation && entry->value == value && entry->references ? entry : NULL;
}

void handle_settle(struct handle_entry *entry)
{
    if (entry->references || entry->mappings) {
        return;
    }
    world_lock(&process.world);
    uint32_t allocation = entry->allocation;
    entry->allocation = 0;
    entry->next_free = process.file->handle_free;
    process.file->handle_free = (uint32_t)(entry - process.file->handles);
    process.world.state->allocations[allocation].references--;
    physical_free_if_unheld(&process.world, allocation);
    world_unlock(&process.world);
}
