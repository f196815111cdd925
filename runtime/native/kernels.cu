// The kernels around the stages; their arithmetic is in device.h. All pointers are device or mapped
// pinned memory. Loaded with cuModuleLoadData; every name is extern "C".
#include "device.h"

// A frame -> the model's input. Grid (ceil(crop / tile_width), ceil(crop / tile_height)), any block
// size, shared memory and tile from dvt_tile; columns and rows from dvt_axis_table.
//
// The floor is the crop's part of the frame, read once, and the output, written once, over the
// memory bandwidth. A block keeps its tile's first pass in shared memory, so the frame is read from
// memory once but for the tiles' borders, and no intermediate picture goes through memory.
extern "C" __global__ void dvt_preprocess_kernel(DvtPlan plan, const uint8_t* frame,
                                                 const int32_t* columns, int column_taps,
                                                 const int32_t* rows, int row_taps, int tile_width,
                                                 int tile_height, void* out) {
    extern __shared__ uint8_t levels[];
    const dvt::Axis across = {columns, column_taps}, down = {rows, row_taps};
    const dvt::Tile tile = dvt::cut_tile(plan, blockIdx.x, blockIdx.y, tile_width, tile_height);
    dvt::filter_columns(plan, frame, across, down, tile, levels, threadIdx.x, blockDim.x);
    __syncthreads();
    dvt::filter_rows(plan, down, tile, levels, out, threadIdx.x, blockDim.x);
}

// Move the chosen rows of all arrays to their fronts, in place. Grid (any, arrays), any block size:
// threads stride over the words of a row.
extern "C" __global__ void dvt_gather_kernel(const __grid_constant__ DvtGather gather) {
    dvt::gather(gather, blockIdx.y, int64_t(blockIdx.x) * blockDim.x + threadIdx.x,
                int64_t(gridDim.x) * blockDim.x);
}

#if CUDART_VERSION >= 12040
// The exit decision of a cascade that runs as one graph: behind stage `stage` (from 0), whether
// the conditional node `next`, which holds the rest of the cascade, runs. `next` is 0 behind the
// last stage. Writes to ran[0] how many stages ran, and to ended_ns[stage] when this one ended.
extern "C" __global__ void dvt_exit_kernel(const float* confidence, const double* thresholds,
                                           int stage, cudaGraphConditionalHandle next, int32_t* ran,
                                           uint64_t* ended_ns) {
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    ended_ns[stage] = now;
    *ran = stage + 1;
    if (next) cudaGraphSetConditional(next, !dvt::leaves(*confidence, thresholds[stage]));
}
#endif
