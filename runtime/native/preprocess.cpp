// Preprocessing on the CPU. Its pixels are those of device.h's loops; a test compares the two.
//
// Columns are filtered first (columns.h), rows second. Only the rows and columns that the crop
// needs are read; colours are reordered by where the filtered columns are written.
#include "columns.h"

#include <exception>
#include <new>
#include <thread>

namespace {

// ---- reading rows -------------------------------------------------------------------------------

DVT_CLONES void luma_row(const uint8_t* from, int count, int red, int blue, uint8_t* to) {
    for (int i = 0; i < count; ++i)
        to[i] = dvt::luma(from[3 * i + red], from[3 * i + 1], from[3 * i + blue]);
}

// U and V of `pairs` pixel pairs, one of each per pixel.
DVT_CLONES void spread_chroma(const uint8_t* u, const uint8_t* v, int step, int pairs, uint8_t* us,
                              uint8_t* vs) {
    for (int i = 0; i < pairs; ++i) {
        us[2 * i] = us[2 * i + 1] = u[ptrdiff_t(i) * step];
        vs[2 * i] = vs[2 * i + 1] = v[ptrdiff_t(i) * step];
    }
}

template <int kStep>
DVT_CLONES void rgb_row(const uint8_t* __restrict y, const uint8_t* __restrict u,
                        const uint8_t* __restrict v, int count, uint8_t* __restrict r,
                        uint8_t* __restrict g, uint8_t* __restrict b) {
    for (int i = 0; i < count; ++i) {
        uint8_t rgb[3];
        dvt::rgb_from_yuv(y[i * kStep], u[i], v[i], rgb);
        r[i] = rgb[0], g[i] = rgb[1], b[i] = rgb[2];
    }
}

DVT_CLONES void luma_planes(const uint8_t* r, const uint8_t* g, const uint8_t* b, int count,
                            uint8_t* to) {
    for (int i = 0; i < count; ++i) to[i] = dvt::luma(r[i], g[i], b[i]);
}

// Row y of an NV12 or YUYV frame into the planes R, G, B and, for a gray model, into `to` its luma.
void read_yuv(const DvtPlan& plan, const uint8_t* frame, int y, int first, int count, int channels,
              uint8_t* planes, ptrdiff_t plane, Bytes& chroma, uint8_t* to) {
    const int even = first & ~1, pairs = (first + count - even + 1) / 2;
    const uint8_t* row = frame + y * plan.row_stride;
    const bool nv12 = plan.layout == DVT_NV12;
    chroma.resize(size_t(pairs) * 4);
    uint8_t *us = chroma.data(), *vs = us + pairs * 2;
    const uint8_t* u = nv12 ? frame + (plan.height + y / 2) * plan.row_stride + even
                            : row + ptrdiff_t(even) * 2 + 1;
    spread_chroma(u, u + (nv12 ? 1 : 2), nv12 ? 2 : 4, pairs, us, vs);
    us += first - even, vs += first - even;
    uint8_t *r = planes, *g = r + plane, *b = g + plane;
    if (nv12)
        rgb_row<1>(row + first, us, vs, count, r, g, b);
    else
        rgb_row<2>(row + ptrdiff_t(first) * 2, us, vs, count, r, g, b);
    if (channels == 1) luma_planes(r, g, b, count, to);
}

// ---- filtering rows, normalising ----------------------------------------------------------------

// One output row: to[i] = sum of weights[t] * from[t * stride + i].
DVT_CLONES void filter_row(const uint8_t* from, ptrdiff_t stride, const int32_t* weights, int taps,
                           int count, uint8_t* to) {
    constexpr int kLanes = 32;
    for (int at = 0; at < count; at += kLanes) {  // rows are padded to whole lanes
        int32_t sum[kLanes];
        for (int i = 0; i < kLanes; ++i) sum[i] = kHalf;
        for (int t = 0; t < taps; ++t)
            for (int i = 0; i < kLanes; ++i) sum[i] += from[t * stride + at + i] * weights[t];
        for (int i = 0; i < kLanes; ++i) to[at + i] = dvt::to_level(sum[i]);
    }
}

DVT_CLONES void normalise_row(const uint8_t* from, int count, float scale, float shift, float* to) {
    for (int i = 0; i < count; ++i) to[i] = dvt::normalise(from[i], scale, shift);
}

// ---- a whole frame ------------------------------------------------------------------------------

// Scratch memory of one thread, kept from frame to frame.
struct Scratch {
    std::vector<uint32_t> pixels;
    Bytes filtered, converted, chroma, row;
    uint16_t halves[3][256];  // float16 of each level, per channel
};

struct Frame {
    const DvtPlan& plan;
    const uint8_t* data;
    void* out;
    const Windows &columns, &rows;
    int channels;      // that are filtered: 1 where the frame is gray
    ptrdiff_t stride;  // of levels, a multiple of 32
    uint8_t* levels;   // [rows needed][stride]: columns filtered, one plane per channel
};

// Sixteen input rows from `row` on, where they lie or converted; behind the last, the first again.
void read_rows(const Frame& f, int row, int there, int first, Scratch& s, Rows& rows) {
    const DvtPlan& p = f.plan;
    const bool yuv = p.layout == DVT_NV12 || p.layout == DVT_YUYV, gray = f.channels == 1;
    const ptrdiff_t plane = rows.pixels;
    rows.plane = plane;
    if (yuv || gray) s.converted.resize(plane * (kRows + 1) * 3);
    for (int r = 0; r < kRows; ++r) {
        const int y = row + r;
        const uint8_t* data = f.data + y * p.row_stride;
        uint8_t* scratch = s.converted.data() + r * plane * 3;
        if (r >= there) {
            rows.row[r] = rows.row[0];
        } else if (yuv) {
            // A gray model's colours are needed for this row alone.
            uint8_t* planes = gray ? s.converted.data() + kRows * plane * 3 : scratch;
            read_yuv(p, f.data, y, first, rows.pixels, f.channels, planes, plane, s.chroma,
                     scratch);
            rows.row[r] = scratch;
        } else if (p.layout == DVT_GRAY) {
            rows.row[r] = data + first;
        } else if (!gray) {
            rows.row[r] = data + ptrdiff_t(first) * 3;
        } else {
            const int red = p.layout == DVT_RGB ? 0 : 2;
            luma_row(data + ptrdiff_t(first) * 3, rows.pixels, red, 2 - red, scratch);
            rows.row[r] = scratch;
        }
    }
}

// First pass over input rows from..to, counted from rows.first(); from is a multiple of 16.
void first_pass(const Frame& f, int from, int to, Scratch& s) {
    const int first = f.columns.first(), count = f.columns.end() - first;
    const int width = f.columns.count * f.channels, padded = (width + 15) / 16 * 16;
    const size_t tiles = size_t(count + 15) / 16;
    s.pixels.resize((tiles * 16 + 2) * f.channels * 8);
    s.filtered.resize(size_t(padded) * kRows);
    const int bgr[3] = {2, 1, 0}, rgb[3] = {0, 1, 2};
    const Block block = {reinterpret_cast<const int16_t*>(s.pixels.data()), &f.columns, f.channels,
                         s.filtered.data(),
                         f.channels == 3 && f.plan.layout == DVT_BGR ? bgr : rgb};
    const auto filter = choose_filter(f.channels);
    const bool yuv = f.plan.layout == DVT_NV12 || f.plan.layout == DVT_YUYV;
    const auto turn_rows = f.channels == 1 ? ::turn_rows<1, false>
                           : yuv           ? ::turn_rows<3, true>
                                           : ::turn_rows<3, false>;
    Rows rows = {};
    rows.pixels = count;
    for (int row = from; row < to; row += kRows) {
        read_rows(f, f.rows.first() + row, std::min(kRows, to - row), first, s, rows);
        turn_rows(rows, s.pixels.data());
        filter(block);
        // Back to rows. The last block writes into padding behind the levels.
        for (int at = 0; at < padded; at += 16) {
            const uint8_t* back[16];
            for (int i = 0; i < 16; ++i) back[i] = s.filtered.data() + size_t(at + i) * kRows;
            turn(back, f.levels + row * f.stride + at, f.stride);
        }
    }
}

void store_row(const Frame& f, int y, const uint8_t* levels, const Scratch& s) {
    const DvtPlan& p = f.plan;
    for (int c = 0; c < p.channels; ++c) {
        const uint8_t* plane = levels + (f.channels == 1 ? 0 : c * p.crop);
        const size_t at = (size_t(c) * p.crop + y) * p.crop;
        if (p.output == DVT_FLOAT32) {
            normalise_row(plane, p.crop, p.scale[c], p.shift[c], static_cast<float*>(f.out) + at);
        } else if (p.output == DVT_FLOAT16) {
            uint16_t* to = static_cast<uint16_t*>(f.out) + at;
            for (int x = 0; x < p.crop; ++x) to[x] = s.halves[c][plane[x]];
        } else {
            for (int x = 0; x < p.crop; ++x) dvt::store(p, f.out, c, x, y, plane[x]);
        }
    }
}

// Second pass over output rows from..to.
void second_pass(const Frame& f, int from, int to, Scratch& s) {
    const Axis axis = f.rows.axis();
    s.row.resize(f.stride);
    if (f.plan.output == DVT_FLOAT16)
        for (int c = 0; c < f.plan.channels; ++c)
            for (int level = 0; level < 256; ++level)
                s.halves[c][level] = dvt::half_bits(
                    dvt::normalise(uint8_t(level), f.plan.scale[c], f.plan.shift[c]));
    for (int y = from; y < to; ++y) {
        filter_row(f.levels + (axis.first(y) - f.rows.first()) * f.stride, f.stride,
                   axis.weights(y), axis.count(y), f.columns.count * f.channels, s.row.data());
        store_row(f, y, s.row.data(), s);
    }
}

// A thread is worth starting for so many bytes of the frame: they take some 0.1 ms, starting it
// 0.03 ms.
constexpr int64_t kBytesPerThread = 256 << 10;

// Run work(from, to, scratch) over 0..count in steps of `step` on so many threads, this one among
// them. A thread that cannot be started leaves its share to this one.
template <typename Work>
void share_out(int count, int step, int threads, Scratch& own, const Work& work) {
    threads = std::max(1, std::min(threads, (count + step - 1) / step));
    if (threads == 1) return work(0, count, own);
    const int share = (count + threads * step - 1) / (threads * step) * step;
    std::vector<Scratch> scratch(threads);
    std::vector<std::thread> running;
    std::vector<char> failed(threads, 0);
    int begun = 1;
    const auto run = [&](int i) {
        try {
            work(std::min(count, i * share), std::min(count, (i + 1) * share), scratch[i]);
        } catch (const std::exception&) {
            failed[i] = 1;
        }
    };
    try {
        running.reserve(threads);
        for (; begun < threads; ++begun) running.emplace_back(run, begun);
    } catch (const std::exception&) {
    }
    run(0);
    for (int i = begun; i < threads; ++i) run(i);
    for (std::thread& thread : running) thread.join();
    if (std::count(failed.begin(), failed.end(), 1)) throw std::bad_alloc();
}

}  // namespace

extern "C" {

void dvt_limit_instructions(int limit) { instruction_limit = limit; }

int dvt_preprocess(const DvtPlan* plan, const uint8_t* frame, void* out, int threads) {
    if (!dvt::valid(*plan)) return DVT_BAD_PLAN;
    thread_local Windows columns, rows;
    thread_local Scratch scratch;
    thread_local Bytes levels;
    try {
        const DvtPlan& p = *plan;
        columns.prepare(p.width, p.resized_width, p.left, p.crop, p.filter);
        rows.prepare(p.height, p.resized_height, p.top, p.crop, p.filter);
        const int channels = p.channels == 3 && p.layout != DVT_GRAY ? 3 : 1;
        const int64_t read = int64_t(rows.end() - rows.first()) * (columns.end() - columns.first());
        threads = int(std::min<int64_t>(threads, 1 + read * channels / kBytesPerThread));
        const ptrdiff_t stride = (ptrdiff_t(p.crop) * channels + 31) / 32 * 32;
        const int needed = rows.end() - rows.first();
        levels.resize(size_t(needed + kRows) / kRows * kRows * stride + kRows * stride);
        const Frame f = {p, frame, out, columns, rows, channels, stride, levels.data()};
        share_out(needed, kRows, threads, scratch,
                  [&](int from, int to, Scratch& s) { first_pass(f, from, to, s); });
        share_out(p.crop, 1, threads, scratch,
                  [&](int from, int to, Scratch& s) { second_pass(f, from, to, s); });
    } catch (const std::exception&) {  // nothing else can fail than memory
        return DVT_NO_MEMORY;
    }
    return DVT_OK;
}

}  // extern "C"
