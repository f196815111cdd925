// The thin layer under set.cpp: vectors of floats and of 32-bit integers, in whatever instruction set
// this file is compiled for.
//
// Everything has internal linkage, and nothing here may call a function template of the standard
// library: the linker would keep one copy of it for all sets, with instructions that not all
// processors have.
//
// min and max keep a NaN in their second argument.
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
typedef __m512 F;
typedef __m512i I;

DVT_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
DVT_INLINE I load(const int32_t* p) { return _mm512_loadu_si512(p); }
DVT_INLINE void store(float* p, F v) { _mm512_storeu_ps(p, v); }
DVT_INLINE void store(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
DVT_INLINE I load_bytes(const int8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
DVT_INLINE F broadcast(float v) { return _mm512_set1_ps(v); }
DVT_INLINE I broadcast(int32_t v) { return _mm512_set1_epi32(v); }
DVT_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
DVT_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
DVT_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
DVT_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
DVT_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
DVT_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
DVT_INLINE I add(I a, I b) { return _mm512_add_epi32(a, b); }
DVT_INLINE I sub(I a, I b) { return _mm512_sub_epi32(a, b); }
DVT_INLINE I bit_and(I a, I b) { return _mm512_and_si512(a, b); }
DVT_INLINE I bit_or(I a, I b) { return _mm512_or_si512(a, b); }
DVT_INLINE I bit_xor(I a, I b) { return _mm512_xor_si512(a, b); }
template <int N>
DVT_INLINE I shift_left(I a) {
    return _mm512_slli_epi32(a, N);
}
DVT_INLINE F to_float(I a) { return _mm512_cvtepi32_ps(a); }
DVT_INLINE I to_int(F a) { return _mm512_cvtps_epi32(a); }  // to the nearest, ties to even
DVT_INLINE F as_float(I a) { return _mm512_castsi512_ps(a); }
DVT_INLINE I as_int(F a) { return _mm512_castps_si512(a); }
DVT_INLINE F nan_unless_zero(I a) {
    return _mm512_maskz_mov_ps(_mm512_test_epi32_mask(a, a), broadcast(__builtin_nanf("")));
}
DVT_INLINE float sum_of(F a) { return _mm512_reduce_add_ps(a); }
DVT_INLINE float max_of(F a) { return _mm512_reduce_max_ps(a); }

// Assembly, because GCC 12 spills the sums around the intrinsic.
DVT_INLINE I dot(I sum, I panel, I row) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(panel), "v"(row));
    return sum;
}

DVT_INLINE I lookup(I bytes, const int8_t* table) {
#if defined(__AVX512VBMI__)
    const I low = _mm512_permutex2var_epi8(_mm512_loadu_si512(table), bytes,
                                           _mm512_loadu_si512(table + 64));
    const I high = _mm512_permutex2var_epi8(_mm512_loadu_si512(table + 128), bytes,
                                            _mm512_loadu_si512(table + 192));
    return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(bytes), high);
#else
    alignas(64) uint8_t values[64];
    _mm512_store_si512(values, bytes);
    for (uint8_t& v : values) v = uint8_t(table[v]);
    return _mm512_load_si512(values);
#endif
}

// C vectors of codes, saturated: what to_int makes of NaN becomes -128.
template <int C>
DVT_INLINE void store_codes(int8_t* out, const I (&q)[C], const int8_t* table = nullptr) {
    const I zero = _mm512_setzero_si512();
    const I low = _mm512_packs_epi32(q[0], C > 1 ? q[1 % C] : zero);
    const I high = C > 2 ? _mm512_packs_epi32(q[2 % C], C > 3 ? q[3 % C] : zero) : zero;
    const I order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    I bytes = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high));
    if (table) bytes = lookup(bytes, table);
    _mm512_mask_storeu_epi32(out, __mmask16((1 << 4 * C) - 1), bytes);
}

#if defined(__AVX512BF16__)
DVT_INLINE F half_dot(F sum, I panel, I row) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(panel), "v"(row));
    return sum;
}
// Pairs: of neighbours in two vectors that follow one another; of two vectors' lanes.
DVT_INLINE I neighbours(F first, F second) { return I(_mm512_cvtne2ps_pbh(second, first)); }
DVT_INLINE I pairs(F low, F high) {
    return bit_or(_mm512_cvtepu16_epi32(__m256i(_mm512_cvtneps_pbh(low))),
                  shift_left<16>(_mm512_cvtepu16_epi32(__m256i(_mm512_cvtneps_pbh(high)))));
}
#endif

#elif defined(__AVX2__)

constexpr int kLanes = 8, kPanel = 16;
typedef __m256 F;
typedef __m256i I;

DVT_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
DVT_INLINE I load(const int32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
DVT_INLINE void store(float* p, F v) { _mm256_storeu_ps(p, v); }
DVT_INLINE void store(int32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
DVT_INLINE I load_bytes(const int8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
DVT_INLINE F broadcast(float v) { return _mm256_set1_ps(v); }
DVT_INLINE I broadcast(int32_t v) { return _mm256_set1_epi32(v); }
DVT_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
DVT_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
DVT_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
DVT_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
DVT_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
DVT_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
DVT_INLINE I add(I a, I b) { return _mm256_add_epi32(a, b); }
DVT_INLINE I sub(I a, I b) { return _mm256_sub_epi32(a, b); }
DVT_INLINE I bit_and(I a, I b) { return _mm256_and_si256(a, b); }
DVT_INLINE I bit_or(I a, I b) { return _mm256_or_si256(a, b); }
DVT_INLINE I bit_xor(I a, I b) { return _mm256_xor_si256(a, b); }
template <int N>
DVT_INLINE I shift_left(I a) {
    return _mm256_slli_epi32(a, N);
}
DVT_INLINE F to_float(I a) { return _mm256_cvtepi32_ps(a); }
DVT_INLINE I to_int(F a) { return _mm256_cvtps_epi32(a); }
DVT_INLINE F as_float(I a) { return _mm256_castsi256_ps(a); }
DVT_INLINE I as_int(F a) { return _mm256_castps_si256(a); }
DVT_INLINE F nan_unless_zero(I a) {
    return _mm256_andnot_ps(as_float(_mm256_cmpeq_epi32(a, _mm256_setzero_si256())),
                            broadcast(__builtin_nanf("")));
}
DVT_INLINE float sum_of(F a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
DVT_INLINE float max_of(F a) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

#if defined(__AVXVNNI__)
constexpr int kOffset = 128, kCodeRows = 6;
DVT_INLINE I dot(I sum, I panel, I row) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(panel), "x"(row));
    return sum;
}
#else
constexpr int kOffset = 0, kCodeRows = 4;
// |row| times the panel with row's sign: two such products fit into 16 bits, as weights and codes
// are at least -127.
DVT_INLINE I dot(I sum, I panel, I row) {
    const I two = _mm256_maddubs_epi16(_mm256_abs_epi8(row), _mm256_sign_epi8(panel, row));
    return add(sum, _mm256_madd_epi16(two, _mm256_set1_epi16(1)));
}
#endif

DVT_INLINE I lookup(I bytes, const int8_t* table) {
    alignas(32) uint8_t values[32];
    _mm256_store_si256(reinterpret_cast<__m256i*>(values), bytes);
    for (uint8_t& v : values) v = uint8_t(table[v]);
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(values));
}

template <int C>
DVT_INLINE void store_codes(int8_t* out, const I (&q)[C], const int8_t* table = nullptr) {
    static_assert(C == 2, "a panel is two vectors wide");
    const I words = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[0], q[1]), 0xD8);
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(out),
        _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
    if (table)
        for (int i = 0; i < 16; ++i) out[i] = table[uint8_t(out[i])];
}

#elif defined(__ARM_FEATURE_DOTPROD)

constexpr int kLanes = 4, kPanel = 16, kOffset = 0, kCodeRows = 6;
typedef float32x4_t F;
typedef int32x4_t I;

DVT_INLINE F load(const float* p) { return vld1q_f32(p); }
DVT_INLINE I load(const int32_t* p) { return vld1q_s32(p); }
DVT_INLINE void store(float* p, F v) { vst1q_f32(p, v); }
DVT_INLINE void store(int32_t* p, I v) { vst1q_s32(p, v); }
DVT_INLINE I load_bytes(const int8_t* p) {
    uint32_t four;
    std::memcpy(&four, p, 4);
    const uint16x8_t wide = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(wide)));
}
DVT_INLINE F broadcast(float v) { return vdupq_n_f32(v); }
DVT_INLINE I broadcast(int32_t v) { return vdupq_n_s32(v); }
DVT_INLINE F add(F a, F b) { return vaddq_f32(a, b); }
DVT_INLINE F sub(F a, F b) { return vsubq_f32(a, b); }
DVT_INLINE F mul(F a, F b) { return vmulq_f32(a, b); }
DVT_INLINE F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
DVT_INLINE F min(F a, F b) { return vminq_f32(a, b); }
DVT_INLINE F max(F a, F b) { return vmaxq_f32(a, b); }
DVT_INLINE I add(I a, I b) { return vaddq_s32(a, b); }
DVT_INLINE I sub(I a, I b) { return vsubq_s32(a, b); }
DVT_INLINE I bit_and(I a, I b) { return vandq_s32(a, b); }
DVT_INLINE I bit_or(I a, I b) { return vorrq_s32(a, b); }
DVT_INLINE I bit_xor(I a, I b) { return veorq_s32(a, b); }
template <int N>
DVT_INLINE I shift_left(I a) {
    return vshlq_n_s32(a, N);
}
DVT_INLINE F to_float(I a) { return vcvtq_f32_s32(a); }
DVT_INLINE I to_int(F a) {  // NaN to the least integer, as on x86
    return vbslq_s32(vceqq_f32(a, a), vcvtnq_s32_f32(a), vdupq_n_s32(INT32_MIN));
}
DVT_INLINE F as_float(I a) { return vreinterpretq_f32_s32(a); }
DVT_INLINE I as_int(F a) { return vreinterpretq_s32_f32(a); }
DVT_INLINE F nan_unless_zero(I a) {
    return as_float(bit_and(vreinterpretq_s32_u32(vtstq_s32(a, a)),
                            as_int(broadcast(__builtin_nanf("")))));
}
DVT_INLINE float sum_of(F a) { return vaddvq_f32(a); }
DVT_INLINE float max_of(F a) { return vmaxvq_f32(a); }
DVT_INLINE I dot(I sum, I panel, I row) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(panel), vreinterpretq_s8_s32(row));
}

DVT_INLINE I lookup(I bytes, const int8_t* table) {
    uint8_t values[16];
    vst1q_u8(values, vreinterpretq_u8_s32(bytes));
    for (uint8_t& v : values) v = uint8_t(table[v]);
    return vreinterpretq_s32_u8(vld1q_u8(values));
}

template <int C>
DVT_INLINE void store_codes(int8_t* out, const I (&q)[C], const int8_t* table = nullptr) {
    static_assert(C == 4, "a panel is four vectors wide");
    const int16x8_t low = vcombine_s16(vqmovn_s32(q[0]), vqmovn_s32(q[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32(q[2]), vqmovn_s32(q[3]));
    vst1q_s8(out, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
    if (table)
        for (int i = 0; i < 16; ++i) out[i] = table[uint8_t(out[i])];
}

#else
#error "no instruction set of this layer is switched on"
#endif

}  // namespace
