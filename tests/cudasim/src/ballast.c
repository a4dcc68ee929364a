/* Living at vm.max_map_count.
 *
 * A process may have so many kernel mappings (65,530) and no more, and at the limit even an mmap over an existing
 * mapping is refused. But an unmap, or the undo of a failed map, must not fail. So a few mappings are kept aside, to
 * be given up in that moment; nothing is mapped while they are missing. */
#define _GNU_SOURCE
#include "ballast.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { BALLAST_PAGES = 16 };
static char *ballast;

static void drop_ballast(void)
{
    if (ballast) {
        munmap(ballast, BALLAST_PAGES * (size_t)sysconf(_SC_PAGESIZE));
        ballast = NULL;
    }
}

bool keep_ballast(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (ballast) {
        return true;
    }
    char *pages = mmap(NULL, BALLAST_PAGES * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) {
        return false;
    }
    ballast = pages;
    for (int i = 0; i < BALLAST_PAGES; i += 2) { /* neighbours that differ are mappings of their own */
        if (mprotect(pages + i * page, page, PROT_READ)) {
            drop_ballast();
            return false;
        }
    }
    return true;
}

void make_reserved(CUdeviceptr start, size_t size)
{
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    void *at = (void *)start;
    if (mmap(at, size, PROT_NONE, flags, -1, 0) == at) {
        return;
    }
    drop_ballast();
    if (mmap(at, size, PROT_NONE, flags, -1, 0) != at) {
        fprintf(stderr, "cudasim: cannot put back the reservation at %p: %s\n", at, strerror(errno));
        abort();
    }
    keep_ballast();
}
