// The first pass of preprocess.cpp: filtering the columns of sixteen rows at a time.
//
// Columns want neighbouring pixels of one row under one weight each, which suits no vector unit, so
// sixteen rows are turned: then a weight goes with sixteen rows' pixels, whatever the channels.
#pragma once

#include "native.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
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

// ---- turning 16x16 bytes ------------------------------------------------------------------------

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

// ---- the windows of the crop --------------------------------------------------------------------

// Windows along one axis, kept from frame to frame: frames of one source have one size.
struct Windows {
    int in = 0, out = 0, from = 0, count = 0, filter = -1;
    std::vector<int32_t> table;
    int taps = 0;
    // Weights of pixel pairs from an even distance to `first()`: for 2 i and 2 i + 1, high and low
    // part, [count][pairs][4] int16: weight = high * 2^11 + low. Two 16-bit products are exact
    // where one 32-bit product would be slow.
    std::vector<int16_t> pairs;
    std::vector<int> first_pair, pair_count;
    int max_pairs = 0;

    Axis axis() const { return {table.data(), taps}; }
    int first() const { return axis().first(0); }
    int end() const { return axis().end(count - 1); }

    void prepare(int in_, int out_, int from_, int count_, int filter_) {
        if (in == in_ && out == out_ && from == from_ && count == count_ && filter == filter_)
            return;
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

// ---- filtering columns --------------------------------------------------------------------------

// Pairs of neighbouring pixels of sixteen rows, [pair][channel][16 rows][2] as int16, filtered into
// to[plane * plane_step + x][16 rows].
struct Block {
    const int16_t* pixels;
    const Windows* windows;
    int channels;
    uint8_t* to;
    const int* planes;  // where channel c goes
};

typedef int32_t Four __attribute__((vector_size(16)));

// For any processor with vectors of sixteen bytes. A pair of pixels is one 32-bit number, the even
// one below.
template <int kChannels>
void filter_block(const Block& b) {
    const Windows& w = *b.windows;
    for (int x = 0; x < w.count; ++x) {
        const int16_t* weights = &w.pairs[size_t(x) * w.max_pairs * 4];
        const int16_t* p = b.pixels + size_t(w.first_pair[x]) * kChannels * 32;
        Four sum[kChannels][4];
        for (int c = 0; c < kChannels; ++c)
            for (int q = 0; q < 4; ++q) sum[c][q] = Four{} + kHalf;
        for (int i = 0; i < w.pair_count[x]; ++i, p += 32 * kChannels) {
            const int32_t even = weights[4 * i] * (1 << kLowBits) + weights[4 * i + 2];
            const int32_t odd = weights[4 * i + 1] * (1 << kLowBits) + weights[4 * i + 3];
            for (int c = 0; c < kChannels; ++c)
                for (int q = 0; q < 4; ++q) {
                    Four v;
                    std::memcpy(&v, p + 32 * c + 8 * q, sizeof v);
                    sum[c][q] += (v & 0xffff) * even;
                    sum[c][q] += (v >> 16) * odd;
                }
        }
        for (int c = 0; c < kChannels; ++c) {
            uint8_t* to = b.to + (size_t(b.planes[c]) * w.count + x) * kRows;
            for (int r = 0; r < kRows; ++r) to[r] = dvt::to_level(sum[c][r / 4][r % 4]);
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
                    const __m256i v =
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32 * c + 16 * h));
                    high[c][h] = _mm256_add_epi32(high[c][h], _mm256_madd_epi16(v, up));
                    low[c][h] = _mm256_add_epi32(low[c][h], _mm256_madd_epi16(v, down));
                }
        }
        for (int c = 0; c < kChannels; ++c) {
            const __m256i words =
                _mm256_packs_epi32(finish(high[c][0], low[c][0]), finish(high[c][1], low[c][1]));
            const __m256i order = _mm256_permute4x64_epi64(words, 0xd8);
            const __m128i levels =
                _mm_packus_epi16(_mm256_castsi256_si128(order), _mm256_extracti128_si256(order, 1));
            uint8_t* to = b.to + (size_t(b.planes[c]) * w.count + x) * kRows;
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to), levels);
        }
    }
}

#define DVT_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))

typedef int32_t Sums __attribute__((vector_size(64)));

// The sixteen rows' sums are one vector, product and sum one instruction.
template <int kChannels>
DVT_VNNI void filter_block_vnni(const Block& b) {
    const Windows& w = *b.windows;
    for (int x = 0; x < w.count; ++x) {
        const int16_t* weights = &w.pairs[size_t(x) * w.max_pairs * 4];
        const int16_t* p = b.pixels + size_t(w.first_pair[x]) * kChannels * 32;
        __m512i high[kChannels], low[kChannels];
        for (int c = 0; c < kChannels; ++c) high[c] = low[c] = _mm512_setzero_si512();
        for (int i = 0; i < w.pair_count[x]; ++i, p += 32 * kChannels) {
            int32_t both[2];
            std::memcpy(both, weights + 4 * i, sizeof both);
            const __m512i up = _mm512_set1_epi32(both[0]), down = _mm512_set1_epi32(both[1]);
            for (int c = 0; c < kChannels; ++c) {
                const __m512i v = _mm512_loadu_si512(p + 32 * c);
                high[c] = _mm512_dpwssd_epi32(high[c], v, up);
                low[c] = _mm512_dpwssd_epi32(low[c], v, down);
            }
        }
        for (int c = 0; c < kChannels; ++c) {
            // Operators, not intrinsics: those draw false warnings from GCC's own headers.
            Sums sum = (Sums(high[c]) * (1 << kLowBits) + Sums(low[c]) + kHalf) >> kFractionBits;
            sum = sum < 0 ? Sums{} : sum > 255 ? Sums{} + 255 : sum;
            const Vector levels = __builtin_convertvector(sum, Vector);
            std::memcpy(b.to + (size_t(b.planes[c]) * w.count + x) * kRows, &levels, kRows);
        }
    }
}
#endif

std::atomic<int> instruction_limit{DVT_ALL_INSTRUCTIONS};

void (*choose_filter(int channels))(const Block&) {
#if defined(DVT_X86)
    const int limit = instruction_limit;
    if (limit >= DVT_ALL_INSTRUCTIONS && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return channels == 1 ? filter_block_vnni<1> : filter_block_vnni<3>;
    if (limit >= DVT_AVX2 && __builtin_cpu_supports("avx2"))
        return channels == 1 ? filter_block_avx2<1> : filter_block_avx2<3>;
#endif
    return channels == 1 ? filter_block<1> : filter_block<3>;
}

// Widen two vectors of sixteen rows into pairs.
inline void pair_up(const uint8_t* even, const uint8_t* odd, uint32_t* to) {
    for (int r = 0; r < kRows; ++r) to[r] = even[r] | uint32_t(odd[r]) << 16;
}

// Sixteen rows of one picture: interleaved channels, or planes.
struct Rows {
    const uint8_t* row[kRows];
    int pixels;
    ptrdiff_t plane;  // bytes from plane to plane
};

// Sixteen bytes from `at` on of each row, of which `there` exist, turned.
inline void turn_part(const Rows& rows, ptrdiff_t at, int there, uint8_t* tile) {
    const uint8_t* from[kRows];
    uint8_t padded[kRows][16];
    for (int r = 0; r < kRows; ++r) from[r] = rows.row[r] + at;
    if (there < 16) {
        std::memset(padded, 0, sizeof padded);
        for (int r = 0; r < kRows; ++r) {
            if (there > 0) std::memcpy(padded[r], from[r], there);
            from[r] = padded[r];
        }
    }
    turn(from, tile, 16);
}

// Rows -> pairs as Block wants them, filled up with zeros to sixteen pixels.
template <int kChannels, bool kPlanar>
DVT_CLONES void turn_rows(const Rows& rows, uint32_t* pixels) {
    uint8_t tile[kChannels * 16 * 16];
    constexpr int kPixel = kPlanar ? 16 : kChannels * 16, kChannel = kPlanar ? 256 : 16;
    for (int at = 0; at < rows.pixels; at += 16) {
        const int left = rows.pixels - at;
        for (int part = 0; part < kChannels; ++part)
            if (kPlanar)
                turn_part(rows, part * rows.plane + at, left, tile + part * 256);
            else
                turn_part(rows, ptrdiff_t(at) * kChannels + part * 16,
                          std::min(left, 16) * kChannels - part * 16, tile + part * 256);
        for (int pixel = 0; pixel < 16; pixel += 2)
            for (int c = 0; c < kChannels; ++c, pixels += kRows) {
                const uint8_t* even = tile + pixel * kPixel + c * kChannel;
                pair_up(even, even + kPixel, pixels);
            }
    }
}

}  // namespace
