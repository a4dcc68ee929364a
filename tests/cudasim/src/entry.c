/* cuGetProcAddress_v2: how cuda.bindings finds everything else.
 *
 * What the real driver does: it is asked by the unversioned name and the CUDA version wanted, and answers with the
 * symbol of that version. Callers may ignore the result, so the pointer is set to NULL for every name that is not
 * simulated, and for the one in CUDASIM_WITHOUT: an old driver. */
#include <stdlib.h>
#include <string.h>

#include "process.h"

typedef enum { PROC_SUCCESS = 0, PROC_SYMBOL_NOT_FOUND = 1 } CUdriverProcAddressQueryResult;

/* The signatures do not matter for taking an address. */
#define X(name, exported, needs) extern CUresult exported();
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wstrict-prototypes"
#pragma GCC diagnostic ignored "-Wbuiltin-declaration-mismatch"
CALLS(X)
#pragma GCC diagnostic pop
#undef X

EXPORT CUresult cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags,
                                    CUdriverProcAddressQueryResult *status)
{
    (void)version;
    (void)flags;
    if (!name || !function) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const char *without = getenv("CUDASIM_WITHOUT");
    *function = NULL;
#define X(call, exported, needs)                                       \
    if (!strcmp(name, #call) && (!without || strcmp(name, without))) { \
        *function = (void *)(uintptr_t)exported;                       \
    }
    CALLS(X)
#undef X
    if (!strcmp(name, "cuGetProcAddress")) {
        *function = (void *)(uintptr_t)cuGetProcAddress_v2;
    }
    if (status) {
        *status = *function ? PROC_SUCCESS : PROC_SYMBOL_NOT_FOUND;
    }
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

EXPORT CUresult cuDriverGetVersion(int *version)
{
    return CALL(cuDriverGetVersion, version ? (*version = 13000, CUDA_SUCCESS) : CUDA_ERROR_INVALID_VALUE);
}
