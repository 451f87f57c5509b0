// Eight floats at a time: AVX2 where the including file is compiled for it, else the compiler's vector types.
// Only what the kernels need. Everything is static: each instruction set has its own copy.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__) && defined(__FMA__)
#define SMELT_AVX2 1
#include <immintrin.h>
#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
#define SMELT_VNNI 1
#endif
#endif

namespace smelt {
namespace {

typedef float f8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));

inline f8 load(const float* p) {
  f8 v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, f8 v) { memcpy(p, &v, sizeof v); }
inline f8 splat(float x) { return f8{x, x, x, x, x, x, x, x}; }
inline i8 splat(int32_t x) { return i8{x, x, x, x, x, x, x, x}; }
inline f8 to_float(i8 v) { return __builtin_convertvector(v, f8); }
inline i8 bits_of(f8 v) {
  i8 out;
  memcpy(&out, &v, sizeof out);
  return out;
}
inline f8 float_of(i8 v) {
  f8 out;
  memcpy(&out, &v, sizeof out);
  return out;
}

// a * b + c, in one rounding where the instruction exists.
inline f8 fma(f8 a, f8 b, f8 c) {
#ifdef SMELT_AVX2
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

inline f8 greater(f8 a, f8 b) { return a > b ? a : b; }  // b where either is NaN

// Sum of the lanes, in one fixed order.
inline float sum(f8 v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

inline float greatest(f8 v) {
  float best = v[0];
  for (int i = 1; i < 8; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

// e^x to 2 ulp; 0 below -87.3, infinity above 88.7, NaN for NaN.
inline f8 exponential(f8 x) {
  const f8 low = splat(-87.33f), high = splat(88.72f);
  f8 r = x < low ? low : x;
  r = r > high ? high : r;
  const f8 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const f8 n = (r * splat(1.44269504f) + magic) - magic;
  r = fma(n, splat(-0.693145752f), r);
  r = fma(n, splat(-1.42860677e-6f), r);
  f8 p = splat(1.98756912e-4f);
  p = fma(p, r, splat(1.39819994e-3f));
  p = fma(p, r, splat(8.33345205e-3f));
  p = fma(p, r, splat(4.16657962e-2f));
  p = fma(p, r, splat(0.166666657f));
  p = fma(p, r, splat(0.5f));
  p = fma(p * r, r, r) + splat(1.0f);
  // 2^n in two factors: n reaches 128, which one exponent field cannot hold. NaN stays in p.
  const f8 finite = n == n ? n : splat(0.0f);
  const i8 half = __builtin_convertvector(finite, i8) >> 1;
  const i8 rest = __builtin_convertvector(finite, i8) - half;
  p = p * float_of((half + 127) << 23) * float_of((rest + 127) << 23);
  p = x < low ? splat(0.0f) : p;
  return x > high ? splat(__builtin_inff()) : p;
}

#ifdef SMELT_AVX2
inline __m256i load_bytes(const int8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

// Four bytes, eight times.
inline __m256i splat_bytes(const int8_t* p) {
  int32_t four;
  memcpy(&four, p, sizeof four);
  return _mm256_set1_epi32(four);
}
#endif
#ifdef SMELT_VNNI
inline __m256i dpbusd(__m256i acc, __m256i a, __m256i b) {
#ifdef __AVXVNNI__
  return _mm256_dpbusd_avx_epi32(acc, a, b);
#else
  return _mm256_dpbusd_epi32(acc, a, b);
#endif
}
#endif

// Eight bfloat16 widened.
inline f8 load_bf16(const uint16_t* p) {
#ifdef SMELT_AVX2
  const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
#else
  i8 wide;
  for (int i = 0; i < 8; ++i) wide[i] = int32_t(uint32_t(p[i]) << 16);
  return float_of(wide);
#endif
}

}  // namespace
}  // namespace smelt
