// Every kernel's arithmetic, compiled for the GPU (kernels.cu) and for the CPU (preprocess.cpp,
// where the fast path is tested against it element by element).
//
// Pixels are uint8 levels 0..255. Pointers named frame, levels, table, rows and out lie in the
// memory of whoever calls: host memory on the CPU, device or mapped memory in a kernel. Nothing
// here allocates.
//
// The resize is Pillow's: a triangle or cubic (a = -0.5) stretched by the factor of the reduction,
// weights in fixed point with 22 fractional bits, columns first, rounded to levels after each pass.
// (Pillow 13 takes rows first for some sizes; here the order never changes.)
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define DVT_DEVICE __host__ __device__ inline
#else
#define DVT_DEVICE inline
#endif

enum DvtLayout {
    DVT_BGR = 0,   // [H, W, 3]
    DVT_RGB = 1,   // [H, W, 3]
    DVT_GRAY = 2,  // [H, W]
    DVT_NV12 = 3,  // [H * 3 / 2, W]: H rows of Y, then H / 2 rows of U V U V...; BT.601 limited
    DVT_YUYV = 4,  // [H, W, 2]: Y U Y V...; BT.601 limited range (Y 16..235)
};
enum DvtFilter { DVT_BILINEAR = 0, DVT_BICUBIC = 1 };
enum DvtOutput {
    DVT_LEVELS = 0,   // uint8 [crop, crop, channels], RGB, not normalised
    DVT_FLOAT32 = 1,  // [channels, crop, crop], normalised
    DVT_FLOAT16 = 2,  // the same in IEEE half precision
};

// How frames of one size and layout become one model's input. Passed by value to kernels; the same
// fields in the same order stand in library.py.
struct DvtPlan {
    int64_t row_stride;      // bytes from a row to the next; negative where rows run upwards
    int32_t layout;          // DvtLayout
    int32_t height;          // of the picture, px, 1..2^24; even for NV12
    int32_t width;           // px, 1..2^24; even for NV12 and YUYV
    int32_t channels;        // of the model: 1 (gray) or 3 (RGB)
    int32_t resized_height;  // of the whole resized picture, px, of which only the crop is computed
    int32_t resized_width;
    int32_t top;  // of the crop in the resized picture, px
    int32_t left;
    int32_t crop;    // side of the crop, px, 1..4096
    int32_t filter;  // DvtFilter
    int32_t output;  // DvtOutput
    float scale[3];  // per channel, in RGB order: value = level * scale + shift
    float shift[3];
};

// Rows that go on, of every array that goes on. Passed by value to the kernel: nothing has to be
// sent before it.
constexpr int kGatherArrays = 8;
constexpr int kGatherRows = 1024;
struct DvtGather {
    uint64_t base[kGatherArrays];  // addresses, aligned to 16 bytes; array i is [n][row_bytes[i]]
    int64_t row_bytes[kGatherArrays];
    int32_t arrays;
    int32_t count;               // of rows
    uint16_t rows[kGatherRows];  // increasing
};

namespace dvt {

// Whether every field is in its range.
DVT_DEVICE bool valid(const DvtPlan& p) {
    const int32_t limit = 1 << 24;
    const bool yuv = p.layout == DVT_NV12 || p.layout == DVT_YUYV;
    return p.layout >= DVT_BGR && p.layout <= DVT_YUYV && p.height >= 1 && p.height <= limit &&
           p.width >= 1 && p.width <= limit && (!yuv || p.width % 2 == 0) &&
           (p.layout != DVT_NV12 || p.height % 2 == 0) && (p.channels == 1 || p.channels == 3) &&
           p.crop >= 1 && p.crop <= 4096 && p.top >= 0 && p.left >= 0 &&
           p.resized_height >= p.crop && p.resized_height - p.crop >= p.top &&
           p.resized_width >= p.crop && p.resized_width - p.crop >= p.left &&
           (p.filter == DVT_BILINEAR || p.filter == DVT_BICUBIC) && p.output >= DVT_LEVELS &&
           p.output <= DVT_FLOAT16;
}

constexpr int kFractionBits = 22;
constexpr int32_t kHalf = 1 << (kFractionBits - 1);

// ---- resize -------------------------------------------------------------------------------------

DVT_DEVICE double filter_weight(int filter, double x) {
    if (x < 0.0) x = -x;
    if (filter == DVT_BILINEAR) return x < 1.0 ? 1.0 - x : 0.0;
    const double a = -0.5;
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

// One output pixel's window on the input along one axis: pixels first .. first + count - 1.
struct Window {
    int first, count;
    double centre, stretch;
};

// in, out: pixels along the axis before and after; at: 0..out - 1.
DVT_DEVICE Window window(int in, int out, int filter, int at) {
    const double scale = double(in) / out;
    const double stretch = scale < 1.0 ? 1.0 : scale;
    const double support = (filter == DVT_BILINEAR ? 1.0 : 2.0) * stretch;
    const double centre = (at + 0.5) * scale;
    int first = int(centre - support + 0.5);
    if (first < 0) first = 0;
    int end = int(centre + support + 0.5);
    if (end > in) end = in;
    return {first, end - first, centre, stretch};
}

// The window's weights, int32 with 22 fractional bits, into weights[window.count].
DVT_DEVICE void window_weights(const Window& w, int filter, int32_t* weights) {
    const double inverse = 1.0 / w.stretch;
    double sum = 0.0;
    for (int i = 0; i < w.count; ++i)
        sum += filter_weight(filter, (i + w.first - w.centre + 0.5) * inverse);
    for (int i = 0; i < w.count; ++i) {
        double weight = filter_weight(filter, (i + w.first - w.centre + 0.5) * inverse);
        if (sum != 0.0) weight /= sum;
        weight *= 1 << kFractionBits;
        weights[i] = int32_t(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
}

// A weighted sum, kHalf included, as a level.
DVT_DEVICE uint8_t to_level(int32_t sum) {
    const int32_t level = sum >> kFractionBits;
    return uint8_t(level < 0 ? 0 : level > 255 ? 255 : level);
}

// The windows of the crop's pixels along one axis. table int32 [crop][2 + taps]: first, count,
// weights; dvt_axis_table fills it.
struct Axis {
    const int32_t* table;
    int taps;
    DVT_DEVICE int first(int at) const { return table[int64_t(at) * (2 + taps)]; }
    DVT_DEVICE int count(int at) const { return table[int64_t(at) * (2 + taps) + 1]; }
    DVT_DEVICE int end(int at) const { return first(at) + count(at); }
    DVT_DEVICE const int32_t* weights(int at) const { return table + int64_t(at) * (2 + taps) + 2; }
};

// ---- colour -------------------------------------------------------------------------------------

// ITU-R 601 luma as Pillow rounds it.
DVT_DEVICE uint8_t luma(int r, int g, int b) {
    return uint8_t((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16);
}

DVT_DEVICE uint8_t clip_level(int32_t value) {
    return uint8_t(value < 0 ? 0 : value > 255 ? 255 : value);
}

// BT.601 limited range to RGB in the fixed point of OpenCV's cvtColor.
DVT_DEVICE void rgb_from_yuv(int y, int u, int v, uint8_t* rgb) {
    const int32_t light = (y > 16 ? y - 16 : 0) * 1220542 + (1 << 19);
    u -= 128;
    v -= 128;
    rgb[0] = clip_level((light + 1673527 * v) >> 20);
    rgb[1] = clip_level((light - 852492 * v - 409993 * u) >> 20);
    rgb[2] = clip_level((light + 2116026 * u) >> 20);
}

// Pixel (x, y) of the frame in the model's channels, RGB or gray, into pixel[plan.channels].
DVT_DEVICE void read_pixel(const DvtPlan& plan, const uint8_t* frame, int x, int y,
                           uint8_t* pixel) {
    const uint8_t* row = frame + y * plan.row_stride;
    uint8_t rgb[3];
    switch (plan.layout) {
        case DVT_GRAY:
            for (int c = 0; c < plan.channels; ++c) pixel[c] = row[x];
            return;
        case DVT_NV12: {
            const uint8_t* chroma = frame + (plan.height + y / 2) * plan.row_stride + (x & ~1);
            rgb_from_yuv(row[x], chroma[0], chroma[1], rgb);
            break;
        }
        case DVT_YUYV: {
            const uint8_t* pair = row + int64_t(x & ~1) * 2;
            rgb_from_yuv(pair[(x & 1) * 2], pair[1], pair[3], rgb);
            break;
        }
        default: {
            const bool swap = plan.layout == DVT_BGR;
            for (int c = 0; c < 3; ++c) rgb[c] = row[int64_t(x) * 3 + (swap ? 2 - c : c)];
        }
    }
    if (plan.channels == 1) {
        pixel[0] = luma(rgb[0], rgb[1], rgb[2]);
    } else {
        for (int c = 0; c < 3; ++c) pixel[c] = rgb[c];
    }
}

// ---- normalise ----------------------------------------------------------------------------------

// Product and sum are rounded one after the other, as NumPy does: the build forbids fused
// multiply-add on both sides.
DVT_DEVICE float normalise(uint8_t level, float scale, float shift) {
    return level * scale + shift;
}

// IEEE half precision, rounded to nearest even; infinity beyond 65504, NaN stays NaN.
DVT_DEVICE uint16_t half_bits(float value) {
    union {
        float real;
        uint32_t bits;
    } v;
    v.real = value;
    const uint32_t sign = (v.bits >> 16) & 0x8000u;
    uint32_t rest = v.bits & 0x7fffffffu;
    if (rest >= 0x7f800000u) return uint16_t(sign | (rest > 0x7f800000u ? 0x7e00u : 0x7c00u));
    if (rest >= 0x477ff000u) return uint16_t(sign | 0x7c00u);
    if (rest < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24
        v.bits = rest;
        v.real += 0.5f;
        return uint16_t(sign | (v.bits - 0x3f000000u));
    }
    rest += 0xfffu + ((rest >> 13) & 1u);
    return uint16_t(sign | ((rest - 0x38000000u) >> 13));
}

// Write one level of channel c at (x, y) of the crop.
DVT_DEVICE void store(const DvtPlan& plan, void* out, int c, int x, int y, uint8_t level) {
    const int64_t at = (int64_t(c) * plan.crop + y) * plan.crop + x;
    if (plan.output == DVT_LEVELS) {
        static_cast<uint8_t*>(out)[(int64_t(y) * plan.crop + x) * plan.channels + c] = level;
    } else if (plan.output == DVT_FLOAT32) {
        static_cast<float*>(out)[at] = normalise(level, plan.scale[c], plan.shift[c]);
    } else {
        static_cast<uint16_t*>(out)[at] = half_bits(normalise(level, plan.scale[c], plan.shift[c]));
    }
}

// ---- the preprocessing kernel, tile by tile -----------------------------------------------------

// Part of the crop, px; cut off at the crop's edge.
struct Tile {
    int left, top, width, height;
};

DVT_DEVICE Tile cut_tile(const DvtPlan& plan, int column, int row, int width, int height) {
    Tile t = {column * width, row * height, width, height};
    if (t.left + t.width > plan.crop) t.width = plan.crop - t.left;
    if (t.top + t.height > plan.crop) t.height = plan.crop - t.top;
    return t;
}

// First pass: the tile's columns of all input rows that it needs, uint8
// levels[row - first row][tile.width][channels]. Thread `thread` of `threads` does its share.
DVT_DEVICE void filter_columns(const DvtPlan& plan, const uint8_t* frame, Axis columns, Axis rows,
                               Tile tile, uint8_t* levels, int thread, int threads) {
    const int first = rows.first(tile.top);
    const int count = rows.end(tile.top + tile.height - 1) - first;
    for (int item = thread; item < count * tile.width; item += threads) {
        const int y = first + item / tile.width, x = tile.left + item % tile.width;
        const int32_t* weights = columns.weights(x);
        int32_t sum[3] = {kHalf, kHalf, kHalf};
        uint8_t pixel[3] = {0, 0, 0};
        for (int i = 0; i < columns.count(x); ++i) {
            read_pixel(plan, frame, columns.first(x) + i, y, pixel);
            for (int c = 0; c < 3; ++c) sum[c] += pixel[c] * weights[i];
        }
        for (int c = 0; c < plan.channels; ++c)
            levels[int64_t(item) * plan.channels + c] = to_level(sum[c]);
    }
}

// Second pass, after all threads have done the first: the tile's pixels, normalised, into out.
DVT_DEVICE void filter_rows(const DvtPlan& plan, Axis rows, Tile tile, const uint8_t* levels,
                            void* out, int thread, int threads) {
    const int first = rows.first(tile.top), width = tile.width * plan.channels;
    for (int item = thread; item < tile.height * width; item += threads) {
        const int c = item / (tile.height * tile.width), at = item % (tile.height * tile.width);
        const int x = at % tile.width, y = tile.top + at / tile.width;
        const int32_t* weights = rows.weights(y);
        const uint8_t* column = levels + int64_t(rows.first(y) - first) * width;
        int32_t sum = kHalf;
        for (int i = 0; i < rows.count(y); ++i)
            sum += column[int64_t(i) * width + x * plan.channels + c] * weights[i];
        store(plan, out, c, tile.left + x, y, to_level(sum));
    }
}

// ---- the exit decision and the survivors' gather ------------------------------------------------

// Whether a row leaves here. NaN reaches no threshold but -inf, which means that all leave.
DVT_DEVICE bool leaves(float confidence, double threshold) {
    return double(confidence) >= threshold || threshold == -__builtin_huge_val();
}

// Move word `word` of the chosen rows to the front of base [n][row_words]. In place: rows increase,
// so a row is read before it is written as long as one thread moves a word of all rows.
template <typename Word>
DVT_DEVICE void gather_word(Word* base, int64_t row_words, const DvtGather& g, int64_t word) {
    for (int i = 0; i < g.count; ++i)
        if (g.rows[i] != i) base[i * row_words + word] = base[g.rows[i] * row_words + word];
}

// Thread `thread` of `threads` moves its share of array `a`.
DVT_DEVICE void gather(const DvtGather& g, int a, int64_t thread, int64_t threads) {
    struct alignas(16) Wide {
        uint32_t part[4];
    };
    void* const base = reinterpret_cast<void*>(g.base[a]);
    const int64_t bytes = g.row_bytes[a];
    if (bytes % sizeof(Wide) == 0) {
        const int64_t words = bytes / int64_t(sizeof(Wide));
        for (int64_t word = thread; word < words; word += threads)
            gather_word(static_cast<Wide*>(base), words, g, word);
    } else {
        for (int64_t word = thread; word < bytes; word += threads)
            gather_word(static_cast<uint8_t*>(base), bytes, g, word);
    }
}

}  // namespace dvt
