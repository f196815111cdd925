// The thin layer under set.cpp: what GCC's and Clang's vectors of floats and of 32-bit integers
// lack, for the instruction set that this file is compiled for, and in plain C++ where it has none
// of ours.
//
// Everything has internal linkage, and nothing here may call a template of the standard library:
// the linker would keep one copy of it for all sets, with instructions that not all processors
// have.
#pragma once

#include "kernels.h"

#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define DVT_INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512VNNI__)
constexpr int kLanes = 16, kPanel = 64, kOffset = 128, kCodeRows = 6;
#elif defined(__AVXVNNI__)
constexpr int kLanes = 8, kPanel = 16, kOffset = 128, kCodeRows = 6;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kPanel = 16, kOffset = 0, kCodeRows = 4;
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int kLanes = 4, kPanel = 16, kOffset = 0, kCodeRows = 6;
#else
#define DVT_PLAIN
constexpr int kLanes = 4, kPanel = 16, kOffset = 0, kCodeRows = 4;
#endif
constexpr int kMostRows = 6;  // of floats that are multiplied together

typedef float F __attribute__((vector_size(4 * kLanes)));
typedef int32_t I __attribute__((vector_size(4 * kLanes)));

template <class V = F>
DVT_INLINE V load(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class V>
DVT_INLINE void store(void* p, V v) {
    std::memcpy(p, &v, sizeof v);
}
DVT_INLINE F broadcast(float v) { return v - F{}; }
DVT_INLINE I broadcast(int32_t v) { return v - I{}; }
DVT_INLINE F to_float(I a) { return __builtin_convertvector(a, F); }

// Not zero in the lanes that hold a code of -128.
DVT_INLINE I not_numbers(I codes) {
    typedef uint32_t U __attribute__((vector_size(4 * kLanes)));
    const U turned = U(codes) ^ 0x80808080;  // such a byte is zero now: it borrows
    return I((turned - 0x01010101) & ~turned & 0x80808080);
}

// load_bytes takes bytes as lanes, without sign. min and max keep a NaN in their second argument.
// to_int rounds to the nearest, ties to even, and makes NaN the least integer. times_power(y, n) is
// y 2^n for whole n. sum_of takes the lanes' halves together until one is left, max_of any NaN or
// none. `dot` adds to each lane the products of four codes of a panel, with kOffset added, and four
// of a row. `lookup` takes each byte to table[byte]. `store_codes` writes C vectors of codes,
// saturated, so that to_int's NaN becomes -128; with a table, looked up.

#if !defined(__AVX512VBMI__)
DVT_INLINE I lookup(I bytes, const int8_t* table) {
    uint8_t values[sizeof bytes];
    store(values, bytes);
    for (uint8_t& v : values) v = uint8_t(table[v]);
    return load<I>(values);
}
#endif

#if defined(__AVX512VNNI__)

DVT_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
DVT_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
DVT_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
DVT_INLINE I to_int(F a) { return I(_mm512_cvtps_epi32(a)); }
DVT_INLINE F nearest(F a) { return _mm512_roundscale_ps(a, 0); }
DVT_INLINE F times_power(F y, F n) { return _mm512_scalef_ps(y, n); }
DVT_INLINE float sum_of(F a) { return _mm512_reduce_add_ps(a); }
DVT_INLINE float max_of(F a) { return _mm512_reduce_max_ps(a); }
DVT_INLINE I load_bytes(const int8_t* p) { return I(_mm512_cvtepu8_epi32(load<__m128i>(p))); }
DVT_INLINE I dot(I sum, I panel, I row) {  // GCC 12 spills the sums around the intrinsic
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(panel), "v"(row));
    return sum;
}

#if defined(__AVX512VBMI__)
DVT_INLINE I lookup(I bytes, const int8_t* table) {
    const __m512i index = __m512i(bytes);
    const auto part = [&](int i) { return _mm512_loadu_si512(table + 64 * i); };
    const __m512i low = _mm512_permutex2var_epi8(part(0), index, part(1));
    const __m512i high = _mm512_permutex2var_epi8(part(2), index, part(3));
    return I(_mm512_mask_mov_epi8(low, _mm512_movepi8_mask(index), high));
}
#endif

template <int C>
DVT_INLINE void store_codes(int8_t* out, const I (&q)[C], const int8_t* table = nullptr) {
    const auto part = [&](int c) { return c < C ? __m512i(q[c < C ? c : 0]) : __m512i(I{}); };
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i bytes =
        _mm512_permutexvar_epi32(order, _mm512_packs_epi16(_mm512_packs_epi32(part(0), part(1)),
                                                           _mm512_packs_epi32(part(2), part(3))));
    if (table) bytes = __m512i(lookup(I(bytes), table));
    _mm512_mask_storeu_epi32(out, __mmask16((1 << 4 * C) - 1), bytes);
}

#if defined(__AVX512BF16__)
// Sums of two products of bfloat16; pairs of them: of neighbours in two vectors that follow one
// another, of two vectors' lanes.
DVT_INLINE F half_dot(F sum, I panel, I row) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(panel), "v"(row));
    return sum;
}
DVT_INLINE I half_neighbours(F a, F b) { return I(_mm512_cvtne2ps_pbh(b, a)); }
DVT_INLINE I half_pairs(F a, F b) {
    const auto half = [](F v) { return I(_mm512_cvtepu16_epi32(__m256i(_mm512_cvtneps_pbh(v)))); };
    return half(a) | half(b) << 16;
}
#endif

#else  // 16 codes to a panel

DVT_INLINE I load_bytes(const int8_t* p) {
    typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
    return __builtin_convertvector(load<Bytes>(p), I);
}
template <class Together>
DVT_INLINE float over_lanes(F a, Together together) {
    for (int half = kLanes / 2; half; half /= 2)
        for (int l = 0; l < half; ++l) a[l] = together(a[l], a[l + half]);
    return a[0];
}
DVT_INLINE float sum_of(F a) {
    return over_lanes(a, [](float x, float y) { return x + y; });
}
DVT_INLINE float max_of(F a) {
    return over_lanes(a, [](float x, float y) { return x > y ? x : y; });
}
DVT_INLINE I to_int(F a);
DVT_INLINE F nearest(F a) { return to_float(to_int(a)); }
DVT_INLINE F times_power(F y, F n) { return y * F((to_int(n) + 127) << 23); }

#if defined(__AVX2__)

DVT_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
DVT_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
DVT_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
DVT_INLINE I to_int(F a) { return I(_mm256_cvtps_epi32(a)); }
DVT_INLINE I dot(I sum, I panel, I row) {
#if defined(__AVXVNNI__)
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(panel), "x"(row));
    return sum;
#else
    // |row| times the panel with row's sign. Two such products fit into 16 bits: neither weights
    // nor codes that count are below -127.
    const __m256i w = _mm256_sign_epi8(__m256i(panel), __m256i(row));
    const __m256i two = _mm256_maddubs_epi16(_mm256_abs_epi8(__m256i(row)), w);
    return sum + I(_mm256_madd_epi16(two, _mm256_set1_epi16(1)));
#endif
}
DVT_INLINE void store_saturated(int8_t* out, const I (&q)[2]) {
    const __m256i words =
        _mm256_permute4x64_epi64(_mm256_packs_epi32(__m256i(q[0]), __m256i(q[1])), 0xD8);
    store(out, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

#elif !defined(DVT_PLAIN)  // NEON

DVT_INLINE F min(F a, F b) { return vminq_f32(a, b); }
DVT_INLINE F max(F a, F b) { return vmaxq_f32(a, b); }
DVT_INLINE F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
DVT_INLINE I to_int(F a) { return a == a ? I(vcvtnq_s32_f32(a)) : broadcast(INT32_MIN); }
DVT_INLINE I dot(I sum, I panel, I row) { return vdotq_s32(sum, int8x16_t(panel), int8x16_t(row)); }
DVT_INLINE void store_saturated(int8_t* out, const I (&q)[4]) {
    const int16x8_t low = vcombine_s16(vqmovn_s32(q[0]), vqmovn_s32(q[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32(q[2]), vqmovn_s32(q[3]));
    vst1q_s8(out, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
}

#else

DVT_INLINE F min(F a, F b) { return a < b ? a : b; }
DVT_INLINE F max(F a, F b) { return a > b ? a : b; }
DVT_INLINE F fma(F a, F b, F c) { return a * b + c; }
DVT_INLINE I to_int(F a) {
    I q;
    for (int l = 0; l < kLanes; ++l)
        q[l] = a[l] == a[l] ? int32_t(__builtin_rintf(a[l])) : INT32_MIN;
    return q;
}
DVT_INLINE I dot(I sum, I panel, I row) {
    for (int byte = 0; byte < 4; ++byte)
        sum += (panel << (24 - 8 * byte) >> 24) * (row << (24 - 8 * byte) >> 24);
    return sum;
}
DVT_INLINE void store_saturated(int8_t* out, const I (&q)[4]) {
    for (int i = 0; i < 16; ++i) {
        const int32_t v = q[i / 4][i % 4];
        out[i] = int8_t(v < -128 ? -128 : v > 127 ? 127 : v);
    }
}

#endif

template <int C>
DVT_INLINE void store_codes(int8_t* out, const I (&q)[C], const int8_t* table = nullptr) {
    store_saturated(out, q);
    if (table)
        for (int i = 0; i < kPanel; ++i) out[i] = table[uint8_t(out[i])];
}

#endif

}  // namespace
