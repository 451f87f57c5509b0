// The integer part of a product: sums over one group of 32 k of weight times x, for B row blocks of 8 rows and T tokens.
// Exact, so the same in every instruction set.
namespace smelt {
namespace {

// One group of a tile: B row blocks' codes and zero points, T tokens' values and their sums.
template <int B, int T>
struct Group {
  const int8_t* w[B];
  const int8_t* x[T];
  int32_t sum[T];
  i8 zero[B];  // where the form has them
};

// What the sums begin with: codes as they are multiplied are `offset` and the zero point too large.
template <typename Form, int B, int T>
inline i8 start(const Group<B, T>& g, int b, int t, int32_t offset) {
  if (Form::kHasZeros) return (g.zero[b] + offset) * splat(-g.sum[t]);
  return splat(-offset * g.sum[t]);
}

#ifdef SMELT_AVX2
inline __m256i words_of(i8 v) {
  __m256i out;
  memcpy(&out, &v, sizeof out);
  return out;
}
inline i8 lanes_of(__m256i v) {
  i8 out;
  memcpy(&out, &v, sizeof out);
  return out;
}

// The nibbles of 32 bytes: k of the group's first half, and of its second.
inline __m256i low_nibbles(__m256i w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
inline __m256i high_nibbles(__m256i w) { return low_nibbles(_mm256_srli_epi16(w, 4)); }
#endif

#if defined(SMELT_VNNI)
// The instruction multiplies unsigned by signed: 8-bit weights are taken 128 larger, and 4-bit ones are stored 8 larger.
template <typename Form, int B, int T>
inline void group_dots(const Group<B, T>& g, i8 (*out)[T]) {
  constexpr bool kNibbles = Form::kBits == 4;
  __m256i acc[B][T];
  for (int t = 0; t < T; ++t)
    for (int b = 0; b < B; ++b) acc[b][t] = words_of(start<Form>(g, b, t, kNibbles ? 8 : 128));
  for (int j = 0; j < (kNibbles ? 4 : 8); ++j)
    for (int b = 0; b < B; ++b) {
      const __m256i w = load_bytes(g.w[b] + j * 32);
      if (kNibbles) {
        const __m256i low = low_nibbles(w), high = high_nibbles(w);
        for (int t = 0; t < T; ++t) {
          acc[b][t] = dpbusd(acc[b][t], low, splat_bytes(g.x[t] + j * 4));
          acc[b][t] = dpbusd(acc[b][t], high, splat_bytes(g.x[t] + j * 4 + 16));
        }
      } else {
        const __m256i larger = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
        for (int t = 0; t < T; ++t) acc[b][t] = dpbusd(acc[b][t], larger, splat_bytes(g.x[t] + j * 4));
      }
    }
  for (int b = 0; b < B; ++b)
    for (int t = 0; t < T; ++t) out[b][t] = lanes_of(acc[b][t]);
}
#elif defined(SMELT_AVX2)
// Pairs of products as int16: 15 * 128 * 2 eight times over fits.
template <typename Form, int B, int T>
inline void nibble_dots(const Group<B, T>& g, i8 (*out)[T]) {
  __m256i acc[B][T];
  for (int b = 0; b < B; ++b)
    for (int t = 0; t < T; ++t) acc[b][t] = _mm256_setzero_si256();
  for (int j = 0; j < 4; ++j)
    for (int b = 0; b < B; ++b) {
      const __m256i w = load_bytes(g.w[b] + j * 32), low = low_nibbles(w), high = high_nibbles(w);
      for (int t = 0; t < T; ++t) {
        acc[b][t] = _mm256_add_epi16(acc[b][t], _mm256_maddubs_epi16(low, splat_bytes(g.x[t] + j * 4)));
        acc[b][t] = _mm256_add_epi16(acc[b][t], _mm256_maddubs_epi16(high, splat_bytes(g.x[t] + j * 4 + 16)));
      }
    }
  for (int b = 0; b < B; ++b)
    for (int t = 0; t < T; ++t)
      out[b][t] = lanes_of(_mm256_madd_epi16(acc[b][t], _mm256_set1_epi16(1))) + start<Form>(g, b, t, 8);
}

// Weights taken 128 larger, even and odd k apart: one product of 255 * 128 fits int16, a pair would not.
template <typename Form, int B, int T>
inline void full_range_dots(const Group<B, T>& g, i8 (*out)[T]) {
  const __m256i ones = _mm256_set1_epi16(1), evens = _mm256_set1_epi16(0xff);
  __m256i acc[B][T];
  for (int b = 0; b < B; ++b)
    for (int t = 0; t < T; ++t) acc[b][t] = words_of(start<Form>(g, b, t, 128));
  for (int j = 0; j < 8; ++j)
    for (int b = 0; b < B; ++b) {
      const __m256i w = _mm256_xor_si256(load_bytes(g.w[b] + j * 32), _mm256_set1_epi8(-128));
      const __m256i even = _mm256_and_si256(w, evens), odd = _mm256_andnot_si256(evens, w);
      for (int t = 0; t < T; ++t) {
        const __m256i x = splat_bytes(g.x[t] + j * 4);
        acc[b][t] = _mm256_add_epi32(acc[b][t], _mm256_madd_epi16(_mm256_maddubs_epi16(even, x), ones));
        acc[b][t] = _mm256_add_epi32(acc[b][t], _mm256_madd_epi16(_mm256_maddubs_epi16(odd, x), ones));
      }
    }
  for (int b = 0; b < B; ++b)
    for (int t = 0; t < T; ++t) out[b][t] = lanes_of(acc[b][t]);
}

// |weight| times x with the weight's sign: 128 * 127 * 2 fits int16, so nothing saturates. x = -128 has no opposite.
template <typename Form, int B, int T>
inline void signed_dots(const Group<B, T>& g, i8 (*out)[T]) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i acc[B][T];
  for (int b = 0; b < B; ++b)
    for (int t = 0; t < T; ++t) acc[b][t] = _mm256_setzero_si256();
  for (int j = 0; j < 8; ++j)
    for (int b = 0; b < B; ++b) {
      const __m256i w = load_bytes(g.w[b] + j * 32), magnitude = _mm256_abs_epi8(w);
      for (int t = 0; t < T; ++t) {
        const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(splat_bytes(g.x[t] + j * 4), w));
        acc[b][t] = _mm256_add_epi32(acc[b][t], _mm256_madd_epi16(pairs, ones));
      }
    }
  for (int b = 0; b < B; ++b)
    for (int t = 0; t < T; ++t) {
      out[b][t] = lanes_of(acc[b][t]);
      if (Form::kHasZeros) out[b][t] += start<Form>(g, b, t, 0);
    }
}

template <typename Form, int B, int T>
inline void group_dots(const Group<B, T>& g, i8 (*out)[T]) {
  if constexpr (Form::kBits == 4)
    nibble_dots<Form>(g, out);
  else if constexpr (Form::kFullRange)
    full_range_dots<Form>(g, out);
  else
    signed_dots<Form>(g, out);
}
#else
typedef int8_t Bytes __attribute__((vector_size(16)));
typedef int16_t Halves __attribute__((vector_size(32)));
typedef int32_t Words __attribute__((vector_size(64)));

// Products of two int8 fit int16. Lanes are (row, k): four rows, the same four k of x for each.
inline Words products(Bytes w, const int8_t* four) {
  Bytes x;
  for (int row = 0; row < 4; ++row) memcpy(reinterpret_cast<char*>(&x) + row * 4, four, 4);
  return __builtin_convertvector(__builtin_convertvector(w, Halves) * __builtin_convertvector(x, Halves), Words);
}

template <typename Form, int B, int T>
inline void group_dots(const Group<B, T>& g, i8 (*out)[T]) {
  constexpr bool kNibbles = Form::kBits == 4;
  for (int b = 0; b < B; ++b)
    for (int t = 0; t < T; ++t) {
      for (int half = 0; half < 2; ++half) {
        Words acc = {};
        for (int j = 0; j < (kNibbles ? 4 : 8); ++j) {
          Bytes w;
          memcpy(&w, g.w[b] + j * 32 + half * 16, sizeof w);
          acc += products(kNibbles ? w & 15 : w, g.x[t] + j * 4);
          if (kNibbles) acc += products((w >> 4) & 15, g.x[t] + j * 4 + 16);
        }
        for (int row = 0; row < 4; ++row)  // the four k of a row
          out[b][t][half * 4 + row] = (acc[row * 4] + acc[row * 4 + 1]) + (acc[row * 4 + 2] + acc[row * 4 + 3]);
      }
      if (kNibbles || Form::kHasZeros) out[b][t] += start<Form>(g, b, t, kNibbles ? 8 : 0);
    }
}
#endif

}  // namespace
}  // namespace smelt
