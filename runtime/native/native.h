// The C interface of libdvt_edge_native; library.py declares the same. All pointers are host
// memory. Functions keep nothing but scratch memory per thread and may be called from several
// threads.
#pragma once

#include "device.h"

#if defined(__GNUC__)
#define DVT_EXPORT __attribute__((visibility("default")))
#else
#define DVT_EXPORT
#endif

enum DvtStatus {
    DVT_OK = 0,
    DVT_BAD_PLAN = 1,   // a field of the plan is out of its range; nothing was written
    DVT_NO_MEMORY = 2,  // out was written in part
};

extern "C" {

// Changes with any change to this interface.
DVT_EXPORT int dvt_abi_version(void);

// One frame -> out as plan.output says, on at most `threads` threads, the caller's among them.
DVT_EXPORT int dvt_preprocess(const DvtPlan* plan, const uint8_t* frame, void* out, int threads);

// Which instructions dvt_preprocess may use, in all threads, where the processor has them; for
// tests.
enum DvtInstructions { DVT_PORTABLE = 0, DVT_AVX2 = 1, DVT_ALL_INSTRUCTIONS = 2 };
DVT_EXPORT void dvt_limit_instructions(int limit);

// The same as dvt_preprocess, tile by tile, as the CUDA kernel's threads do it one after the other;
// slow, for tests. `block`: threads of a block, 1..1024.
DVT_EXPORT int dvt_preprocess_reference(const DvtPlan* plan, const uint8_t* frame, void* out,
                                        int block, int64_t shared_bytes);

// What dvt_preprocess_kernel reads about one axis (0 columns, 1 rows): returns the windows' taps
// and fills table int32 [crop][2 + taps] unless it is null. -1 for a bad plan.
DVT_EXPORT int dvt_axis_table(const DvtPlan* plan, int axis, int32_t* table);

// The largest tile whose first pass fits into `shared_bytes` of shared memory, at most 32x16 px.
// Returns the bytes that it needs; 0 where not even one pixel fits, or for a bad plan.
DVT_EXPORT int64_t dvt_tile(const DvtPlan* plan, int64_t shared_bytes, int* width, int* height);

// The gather kernel's threads, and the exit kernel's decision, one after the other; for tests.
DVT_EXPORT void dvt_gather_reference(const DvtGather* gather, int threads);
DVT_EXPORT int dvt_leaves_reference(float confidence, double threshold);

// libcuda's functions, by address: the library loads where there is none.
struct DvtDriver {
    int (*launch)(void* graph, void* stream);  // cuGraphLaunch
    int (*query)(void* stream);                // cuStreamQuery
    int (*record)(void* event, void* stream);  // cuEventRecord
    int (*wait)(void* event);                  // cuEventSynchronize
};

// Launch a graph and wait for it, in one call. With an event, which was made to block, this thread
// sleeps meanwhile; without, it asks until the stream is done. Returns CUDA's status.
DVT_EXPORT int dvt_run_graph(const DvtDriver* driver, void* graph, void* stream, void* event);
DVT_EXPORT int dvt_wait(const DvtDriver* driver, void* stream, void* event);

}  // extern "C"
