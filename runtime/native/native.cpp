// What the kernels' hosts and tests need, and waiting for the GPU; see native.h.
#include "native.h"

#include <algorithm>
#include <new>
#include <vector>

namespace {

// Input rows that the first pass of a tile of so many output rows reads, at most.
int64_t most_rows(const DvtPlan& p, int height) {
    int64_t most = 0;
    for (int top = 0; top < p.crop; top += height) {
        const int last = std::min(top + height, p.crop) - 1;
        const dvt::Window a = dvt::window(p.height, p.resized_height, p.filter, p.top + top);
        const dvt::Window b = dvt::window(p.height, p.resized_height, p.filter, p.top + last);
        most = std::max<int64_t>(most, b.first + b.count - a.first);
    }
    return most;
}

int reference(const DvtPlan& plan, const uint8_t* frame, void* out, int block,
              int64_t shared_bytes) {
    int width = 0, height = 0;
    const int64_t bytes = dvt_tile(&plan, shared_bytes, &width, &height);
    if (bytes == 0 || block < 1) return DVT_BAD_PLAN;
    const int taps[2] = {dvt_axis_table(&plan, 0, nullptr), dvt_axis_table(&plan, 1, nullptr)};
    std::vector<int32_t> tables[2];
    for (int axis = 0; axis < 2; ++axis) {
        tables[axis].resize(size_t(plan.crop) * (2 + taps[axis]));
        dvt_axis_table(&plan, axis, tables[axis].data());
    }
    const dvt::Axis columns = {tables[0].data(), taps[0]}, rows = {tables[1].data(), taps[1]};
    std::vector<uint8_t> levels(bytes);
    for (int row = 0; row * height < plan.crop; ++row)
        for (int column = 0; column * width < plan.crop; ++column) {
            const dvt::Tile tile = dvt::cut_tile(plan, column, row, width, height);
            for (int t = 0; t < block; ++t)
                dvt::filter_columns(plan, frame, columns, rows, tile, levels.data(), t, block);
            for (int t = 0; t < block; ++t)
                dvt::filter_rows(plan, rows, tile, levels.data(), out, t, block);
        }
    return DVT_OK;
}

}  // namespace

extern "C" {

int dvt_abi_version(void) { return 2; }

int dvt_preprocess_reference(const DvtPlan* plan, const uint8_t* frame, void* out, int block,
                             int64_t shared_bytes) {
    try {
        return reference(*plan, frame, out, block, shared_bytes);
    } catch (const std::bad_alloc&) {
        return DVT_NO_MEMORY;
    }
}

int dvt_axis_table(const DvtPlan* plan, int axis, int32_t* table) {
    if (!dvt::valid(*plan) || axis < 0 || axis > 1) return -1;
    const int in = axis ? plan->height : plan->width;
    const int out = axis ? plan->resized_height : plan->resized_width;
    const int from = axis ? plan->top : plan->left;
    int taps = 0;
    for (int i = 0; i < plan->crop; ++i)
        taps = std::max(taps, dvt::window(in, out, plan->filter, from + i).count);
    if (!table) return taps;
    for (int i = 0; i < plan->crop; ++i, table += 2 + taps) {
        const dvt::Window w = dvt::window(in, out, plan->filter, from + i);
        table[0] = w.first;
        table[1] = w.count;
        dvt::window_weights(w, plan->filter, table + 2);
        std::fill(table + 2 + w.count, table + 2 + taps, 0);
    }
    return taps;
}

int64_t dvt_tile(const DvtPlan* plan, int64_t shared_bytes, int* width, int* height) {
    if (!dvt::valid(*plan)) return 0;
    // Fewer rows first: a row of a tile costs the border of a whole window, and threads read along
    // x.
    for (*width = 32; *width >= 1; *width /= 2)
        for (*height = 16; *height >= 1; *height /= 2) {
            const int64_t bytes = most_rows(*plan, *height) * *width * plan->channels;
            if (bytes <= shared_bytes) return bytes;
        }
    return 0;
}

void dvt_gather_reference(const DvtGather* gather, int threads) {
    for (int a = 0; a < gather->arrays; ++a)
        for (int thread = 0; thread < threads; ++thread) dvt::gather(*gather, a, thread, threads);
}

int dvt_leaves_reference(float confidence, double threshold) {
    return dvt::leaves(confidence, threshold);
}

int dvt_run_graph(const DvtDriver* driver, void* graph, void* stream, void* event) {
    if (const int status = driver->launch(graph, stream)) return status;
    return dvt_wait(driver, stream, event);
}

int dvt_wait(const DvtDriver* driver, void* stream, void* event) {
    if (event) {
        if (const int status = driver->record(event, stream)) return status;
        return driver->wait(event);
    }
    constexpr int kNotReady = 600;  // CUDA_ERROR_NOT_READY
    int status;
    while ((status = driver->query(stream)) == kNotReady) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }
    return status;
}

}  // extern "C"
