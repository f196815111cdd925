// Preprocessing on the CPU. Its pixels are those of device.h's loops; a test compares the two.
//
// Columns are filtered first, rows second. Filtering columns wants neighbouring pixels of one row
// under one weight each, which suits no vector unit, so sixteen rows at a time are turned: then a
// weight goes with sixteen rows' pixels, whatever the frame's channels. Only the rows and columns that
// the crop needs are read; colours are reordered by where the filtered columns are written.
#include "native.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define DVT_X86 1
#include <immintrin.h>
#endif

// One body, compiled for several instruction sets and chosen when the library is loaded.
#if defined(DVT_X86) && defined(__linux__) && defined(__GLIBC__) && !defined(__clang__)
#define DVT_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define DVT_CLONES
#endif

namespace {

using dvt::Axis;
using dvt::kFractionBits;
using dvt::kHalf;

constexpr int kRows = 16;  // rows that are filtered together
constexpr int kLowBits = 11;

using Bytes = std::vector<uint8_t>;

// ---- turning 16x16 bytes --------------------------------------------------------------------------

typedef uint8_t Vector __attribute__((vector_size(16)));

inline Vector zip(Vector a, Vector b, bool high) {
#if defined(__clang__)
    return high ? __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14,
                                          30, 15, 31)
                : __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7,
                                          23);
#else
    const Vector up = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const Vector down = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    return high ? __builtin_shuffle(a, b, up) : __builtin_shuffle(a, b, down);
#endif
}

inline void zip_all(const Vector (&in)[16], Vector (&out)[16]) {
    for (int i = 0; i < 8; ++i) {
        out[2 * i] = zip(in[i], in[i + 8], false);
        out[2 * i + 1] = zip(in[i], in[i + 8], true);
    }
}

// to[j * to_stride + i] = from[i][j], i and j 0..15.
inline void turn(const uint8_t* const* from, uint8_t* to, ptrdiff_t to_stride) {
    Vector a[16], b[16];
    for (int i = 0; i < 16; ++i) std::memcpy(&a[i], from[i], 16);
    zip_all(a, b);
    zip_all(b, a);
    zip_all(a, b);
    zip_all(b, a);
    for (int i = 0; i < 16; ++i) std::memcpy(to + i * to_stride, &a[i], 16);
}

// ---- the windows of the crop ----------------------------------------------------------------------

// Windows along one axis, kept from frame to frame: frames of one source have one size.
struct Windows {
    int in = 0, out = 0, from = 0, count = 0, filter = -1;
    std::vector<int32_t> table;
    int taps = 0;
    // Weights of pixel pairs from an even distance to `first()`: for 2 i and 2 i + 1, high and low
    // part, [count][pairs][4] int16: weight = high * 2^11 + low. Two 16-bit products are exact where
    // one 32-bit product would be slow.
    std::vector<int16_t> pairs;
    std::vector<int> first_pair, pair_count;
    int max_pairs = 0;

    Axis axis() const { return {table.data(), taps}; }
    int first() const { return axis().first(0); }
    int end() const { return axis().end(count - 1); }

    void prepare(int in_, int out_, int from_, int count_, int filter_) {
        if (in == in_ && out == out_ && from == from_ && count == count_ && filter == filter_) return;
        filter = -1;  // stays so if memory runs out below
        in = in_, out = out_, from = from_, count = count_;
        taps = 0;
        for (int i = 0; i < count; ++i)
            taps = std::max(taps, dvt::window(in, out, filter_, from + i).count);
        table.assign(size_t(count) * (2 + taps), 0);
        max_pairs = taps / 2 + 1;
        pairs.assign(size_t(count) * max_pairs * 4, 0);
        first_pair.resize(count);
        pair_count.resize(count);
        for (int i = 0; i < count; ++i) {
            const dvt::Window w = dvt::window(in, out, filter_, from + i);
            int32_t* row = &table[size_t(i) * (2 + taps)];
            row[0] = w.first, row[1] = w.count;
            dvt::window_weights(w, filter_, row + 2);
            const int skip = (w.first - table[0]) & 1;
            first_pair[i] = (w.first - table[0]) / 2;
            pair_count[i] = (skip + w.count + 1) / 2;
            for (int t = 0; t < w.count; ++t) {
                const int32_t weight = row[2 + t];
                const int at = skip + t;
                int16_t* pair = &pairs[(size_t(i) * max_pairs + at / 2) * 4];
                pair[at % 2] = int16_t(weight >> kLowBits);
                pair[2 + at % 2] = int16_t(weight & ((1 << kLowBits) - 1));
            }
        }
        filter = filter_;
    }
};

// ---- filtering columns ----------------------------------------------------------------------------

// Pairs of neighbouring pixels of sixteen rows, [pair][channel][16 rows][2] as int16, filtered into
// to[plane * plane_step + x][16 rows].
struct Block {
    const int16_t* pixels;
    const Windows* windows;
    int channels;
    uint8_t* to;
    const int* planes;  // where channel c goes
};

void filter_block(const Block& b) {
    const Windows& w = *b.windows;
    for (int x = 0; x < w.count; ++x) {
        const int16_t* weights = &w.pairs[size_t(x) * w.max_pairs * 4];
        for (int c = 0; c < b.channels; ++c) {
            const int16_t* p = b.pixels + (size_t(w.first_pair[x]) * b.channels + c) * 32;
            int32_t sum[kRows];
            for (int r = 0; r < kRows; ++r) sum[r] = kHalf;
            for (int i = 0; i < w.pair_count[x]; ++i, p += 32 * b.channels) {
                const int32_t even = weights[4 * i] * (1 << kLowBits) + weights[4 * i + 2];
                const int32_t odd = weights[4 * i + 1] * (1 << kLowBits) + weights[4 * i + 3];
                for (int r = 0; r < kRows; ++r) sum[r] += p[2 * r] * even + p[2 * r + 1] * odd;
            }
            uint8_t* to = b.to + (size_t(b.planes[c]) * w.count + x) * kRows;
            for (int r = 0; r < kRows; ++r) to[r] = dvt::to_level(sum[r]);
        }
    }
}

#if defined(DVT_X86)
__attribute__((target("avx2"))) inline __m256i finish(__m256i high, __m256i low) {
    const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(high, kLowBits), low);
    return _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(kHalf)), kFractionBits);
}

template <int kChannels>
__attribute__((target("avx2"))) void filter_block_avx2(const Block& b) {
    const Windows& w = *b.windows;
    for (int x = 0; x < w.count; ++x) {
        const int16_t* weights = &w.pairs[size_t(x) * w.max_pairs * 4];
        const int16_t* p = b.pixels + size_t(w.first_pair[x]) * kChannels * 32;
        __m256i high[kChannels][2], low[kChannels][2];
        for (int c = 0; c < kChannels; ++c)
            for (int h = 0; h < 2; ++h) high[c][h] = low[c][h] = _mm256_setzero_si256();
        for (int i = 0; i < w.pair_count[x]; ++i, p += 32 * kChannels) {
            int32_t both[2];
            std::memcpy(both, weights + 4 * i, sizeof both);
            const __m256i up = _mm256_set1_epi32(both[0]), down = _mm256_set1_epi32(both[1]);
            for (int c = 0; c < kChannels; ++c)
                for (int h = 0; h < 2; ++h) {
                    const __m256i v = _mm256_loadu_si256(
                        reinterpret_cast<const __m256i*>(p + 32 * c + 16 * h));
                    high[c][h] = _mm256_add_epi32(high[c][h], _mm256_madd_epi16(v, up));
                    low[c][h] = _mm256_add_epi32(low[c][h], _mm256_madd_epi16(v, down));
                }
        }
        for (int c = 0; c < kChannels; ++c) {
            const __m256i words = _mm256_packs_epi32(finish(high[c][0], low[c][0]),
                                                     finish(high[c][1], low[c][1]));
            const __m256i order = _mm256_permute4x64_epi64(words, 0xd8);
            const __m128i levels = _mm_packus_epi16(_mm256_castsi256_si128(order),
                                                    _mm256_extracti128_si256(order, 1));
            uint8_t* to = b.to + (size_t(b.planes[c]) * w.count + x) * kRows;
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to), levels);
        }
    }
}
#endif

std::atomic<bool> portable_only{false};

void (*choose_filter(int channels))(const Block&) {
#if defined(DVT_X86)
    if (__builtin_cpu_supports("avx2") && !portable_only)
        return channels == 1 ? filter_block_avx2<1> : filter_block_avx2<3>;
#endif
    (void)channels;
    return filter_block;
}

// Widen two vectors of sixteen rows into pairs.
inline void pair_up(const uint8_t* even, const uint8_t* odd, uint32_t* to) {
    for (int r = 0; r < kRows; ++r) to[r] = even[r] | uint32_t(odd[r]) << 16;
}

// Sixteen rows of `bytes` bytes (a multiple of the channels) -> pairs as Block wants them, filled up
// with zeros to sixteen pixels.
template <int kChannels>
DVT_CLONES void turn_rows(const uint8_t* const* rows, int bytes, uint32_t* pixels) {
    constexpr int kStep = 16 * kChannels;  // sixteen pixels
    uint8_t tile[kStep * 16];
    for (int at = 0; at < bytes; at += kStep) {
        const int left = std::min(kStep, bytes - at);
        for (int part = 0; part < kStep; part += 16) {
            const uint8_t* from[16];
            if (left - part >= 16) {
                for (int r = 0; r < kRows; ++r) from[r] = rows[r] + at + part;
                turn(from, tile + part * 16, 16);
            } else {
                uint8_t padded[16][16] = {};
                for (int r = 0; r < kRows; ++r) {
                    if (left > part) std::memcpy(padded[r], rows[r] + at + part, left - part);
                    from[r] = padded[r];
                }
                turn(from, tile + part * 16, 16);
            }
        }
        for (int pixel = 0; pixel < 16; pixel += 2)
            for (int c = 0; c < kChannels; ++c, pixels += kRows)
                pair_up(tile + (pixel * kChannels + c) * 16,
                        tile + ((pixel + 1) * kChannels + c) * 16, pixels);
    }
}

// ---- reading rows ---------------------------------------------------------------------------------

DVT_CLONES void luma_row(const uint8_t* from, int count, int red, int blue, uint8_t* to) {
    for (int i = 0; i < count; ++i)
        to[i] = dvt::luma(from[3 * i + red], from[3 * i + 1], from[3 * i + blue]);
}

// Row y of the frame from column `first` on, `count` pixels: where they lie, or converted into
// scratch.
const uint8_t* read_row(const DvtPlan& plan, const uint8_t* frame, int y, int first, int count,
                        int channels, uint8_t* scratch) {
    const uint8_t* row = frame + y * plan.row_stride;
    if (plan.layout == DVT_GRAY) return row + first;
    if (plan.layout == DVT_BGR || plan.layout == DVT_RGB) {
        row += int64_t(first) * 3;
        if (channels == 3) return row;
        const int red = plan.layout == DVT_RGB ? 0 : 2;
        luma_row(row, count, red, 2 - red, scratch);
        return scratch;
    }
    for (int i = 0; i < count; ++i)
        dvt::read_pixel(plan, frame, first + i, y, scratch + int64_t(i) * channels);
    return scratch;
}

// ---- filtering rows, normalising ------------------------------------------------------------------

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

// ---- a whole frame --------------------------------------------------------------------------------

// Scratch memory of one thread, kept from frame to frame.
struct Scratch {
    std::vector<uint32_t> pixels;
    Bytes filtered, converted, row;
};

struct Frame {
    const DvtPlan& plan;
    const uint8_t* data;
    void* out;
    const Windows &columns, &rows;
    int channels;     // that are filtered: 1 where the frame is gray
    ptrdiff_t stride;  // of levels, a multiple of 32
    uint8_t* levels;  // [rows.end() - rows.first()][stride]: columns filtered, one plane per channel
};

// First pass over input rows from..to, counted from rows.first(); from is a multiple of 16.
void first_pass(const Frame& f, int from, int to, Scratch& s) {
    const int first = f.columns.first(), count = f.columns.end() - first;
    const int bytes = count * f.channels, width = f.columns.count * f.channels;
    const int padded = (width + 15) / 16 * 16;
    const size_t tiles = size_t(count + 15) / 16;
    s.pixels.resize((tiles * 16 + 2) * f.channels * 8);
    s.filtered.resize(size_t(padded) * kRows);
    s.converted.resize(size_t(bytes) * kRows);
    const int bgr[3] = {2, 1, 0}, rgb[3] = {0, 1, 2};
    const Block block = {reinterpret_cast<const int16_t*>(s.pixels.data()), &f.columns, f.channels,
                         s.filtered.data(),
                         f.channels == 3 && f.plan.layout == DVT_BGR ? bgr : rgb};
    const auto filter = choose_filter(f.channels);
    for (int row = from; row < to; row += kRows) {
        const uint8_t* rows[kRows];
        const int there = std::min(kRows, to - row);
        for (int r = 0; r < kRows; ++r)
            rows[r] = r < there ? read_row(f.plan, f.data, f.rows.first() + row + r, first, count,
                                           f.channels, s.converted.data() + size_t(r) * bytes)
                                : rows[0];
        (f.channels == 1 ? turn_rows<1> : turn_rows<3>)(rows, bytes, s.pixels.data());
        filter(block);
        // Back to rows. The last block writes into padding behind the levels.
        for (int at = 0; at < padded; at += 16) {
            const uint8_t* back[16];
            for (int i = 0; i < 16; ++i) back[i] = s.filtered.data() + size_t(at + i) * kRows;
            turn(back, f.levels + row * f.stride + at, f.stride);
        }
    }
}

void store_row(const Frame& f, int y, const uint8_t* levels) {
    const DvtPlan& p = f.plan;
    for (int c = 0; c < p.channels; ++c) {
        const uint8_t* plane = levels + (f.channels == 1 ? 0 : c * p.crop);
        if (p.output == DVT_FLOAT32)
            normalise_row(plane, p.crop, p.scale[c], p.shift[c],
                          static_cast<float*>(f.out) + (size_t(c) * p.crop + y) * p.crop);
        else
            for (int x = 0; x < p.crop; ++x) dvt::store(p, f.out, c, x, y, plane[x]);
    }
}

// Second pass over output rows from..to.
void second_pass(const Frame& f, int from, int to, Scratch& s) {
    const Axis axis = f.rows.axis();
    s.row.resize(f.stride);
    for (int y = from; y < to; ++y) {
        filter_row(f.levels + (axis.first(y) - f.rows.first()) * f.stride, f.stride, axis.weights(y),
                   axis.count(y), f.columns.count * f.channels, s.row.data());
        store_row(f, y, s.row.data());
    }
}

// A thread is worth starting for so many bytes of the frame: it takes some 30 us, in which one
// thread filters about as many.
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
        } catch (const std::bad_alloc&) {
            failed[i] = 1;
        }
    };
    try {
        running.reserve(threads);
        for (; begun < threads; ++begun) running.emplace_back(run, begun);
    } catch (const std::system_error&) {
    }
    run(0);
    for (int i = begun; i < threads; ++i) run(i);
    for (std::thread& thread : running) thread.join();
    if (std::count(failed.begin(), failed.end(), 1)) throw std::bad_alloc();
}

}  // namespace

extern "C" {

void dvt_set_portable(int on) { portable_only = on != 0; }

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
    } catch (const std::bad_alloc&) {
        return DVT_NO_MEMORY;
    }
    return DVT_OK;
}

}  // extern "C"
