// Gather, decision, and what the kernels' hosts and tests need; see native.h.
#include "native.h"

#include <algorithm>
#include <cstring>
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

int dvt_abi_version(void) { return 1; }

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

int dvt_decide(const float* confidence, int n, double threshold, int32_t* rows) {
    int count = 0;
    for (int row = 0; row < n; ++row)
        if (!dvt::leaves(confidence[row], threshold)) rows[count++] = row;
    return count;
}

void dvt_gather(void* const* arrays, const int64_t* row_bytes, int array_count, const int32_t* rows,
                int count) {
    for (int a = 0; a < array_count; ++a) {
        char* base = static_cast<char*>(arrays[a]);
        for (int i = 0; i < count; ++i)
            if (rows[i] != i)
                std::memcpy(base + i * row_bytes[a], base + rows[i] * row_bytes[a], row_bytes[a]);
    }
}

int dvt_decide_reference(const float* confidence, int n, double threshold, int32_t* rows) {
    int32_t count = 0;
    for (int row = 0; row < n; ++row) dvt::decide(confidence, n, threshold, row, rows, &count);
    return count;
}

void dvt_gather_reference(void* const* arrays, const int64_t* row_bytes, int array_count,
                          const int32_t* rows, int count) {
    for (int a = 0; a < array_count; ++a)
        for (int64_t word = 0; word < row_bytes[a]; ++word)
            dvt::gather_word(static_cast<uint8_t*>(arrays[a]), row_bytes[a], rows, count, word);
}

}  // extern "C"
