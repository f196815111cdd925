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

// Which of n <= 1024 rows stay: their indexes, increasing, in rows [n], and how many in count [1].
// Any grid with at least n threads.
extern "C" __global__ void dvt_decide_kernel(const float* confidence, int n, double threshold,
                                             int32_t* rows, int32_t* count) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < n) dvt::decide(confidence, n, threshold, row, rows, count);
}

// Move rows[0..*count) of base [n][row_bytes] to its front, in place. base is aligned to 16 bytes.
// Any grid: threads stride over the words of a row. rows and count as dvt_decide_kernel wrote them.
extern "C" __global__ void dvt_gather_kernel(void* base, int64_t row_bytes, const int32_t* rows,
                                             const int32_t* count) {
    const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int64_t threads = int64_t(gridDim.x) * blockDim.x;
    if (row_bytes % sizeof(uint4) == 0) {
        const int64_t words = row_bytes / sizeof(uint4);
        for (int64_t word = thread; word < words; word += threads)
            dvt::gather_word(static_cast<uint4*>(base), words, rows, *count, word);
    } else {
        for (int64_t word = thread; word < row_bytes; word += threads)
            dvt::gather_word(static_cast<uint8_t*>(base), row_bytes, rows, *count, word);
    }
}
