// Matrix products. A tile is B row blocks (of 8) x T tokens; k runs innermost and whole, one chain of operations per
// output, so that no tile size changes a digit.
namespace smelt {
namespace {

template <int B, int T>
void tile_f32(const GemmF32& g, int block, int token) {
  const float* w[B];
  const float* x[T];
  f8 acc[B][T];
  for (int b = 0; b < B; ++b) w[b] = g.weights + size_t(block + b) * size_t(g.k) * kLanes;
  for (int t = 0; t < T; ++t) x[t] = g.x + size_t(token + t) * g.x_stride;
  for (int b = 0; b < B; ++b)
    for (int t = 0; t < T; ++t) acc[b][t] = splat(0.0f);
  for (int k = 0; k < g.k; ++k) {
    f8 row[B];
    for (int b = 0; b < B; ++b) row[b] = load(w[b] + size_t(k) * kLanes);
    for (int t = 0; t < T; ++t) {
      const f8 value = splat(x[t][k]);
      for (int b = 0; b < B; ++b) acc[b][t] = fma(row[b], value, acc[b][t]);
    }
  }
  for (int b = 0; b < B; ++b) {
    const size_t row = size_t(block + b) * kLanes;
    for (int t = 0; t < T; ++t) {
      f8 v = acc[b][t];
      if (g.bias) v = v + load(g.bias + row);
      store(g.out + size_t(token + t) * g.out_stride + row, v);
    }
  }
}

// One group of a tile: B row blocks' codes, T tokens' values and their sums.
template <int B, int T>
struct Group {
  const int8_t* w[B];
  const int8_t* x[T];
  int32_t sum[T];
};

// Integer part of one group: sum over 32 k of weight * x, for B x 8 rows and T tokens. Exact everywhere.
#if defined(SMELT_VNNI)
template <int B, int T>
inline void group_dots(const Group<B, T>& g, i8 (*out)[T]) {
  // The instruction multiplies unsigned by signed: weight + 128, and 128 * sum taken off beforehand.
  __m256i acc[B][T];
  for (int t = 0; t < T; ++t)
    for (int b = 0; b < B; ++b) acc[b][t] = _mm256_set1_epi32(-128 * g.sum[t]);
  for (int j = 0; j < 8; ++j)
    for (int b = 0; b < B; ++b) {
      const __m256i w = _mm256_xor_si256(load_bytes(g.w[b] + j * 32), _mm256_set1_epi8(-128));
      for (int t = 0; t < T; ++t) acc[b][t] = dpbusd(acc[b][t], w, splat_bytes(g.x[t] + j * 4));
    }
  for (int b = 0; b < B; ++b)
    for (int t = 0; t < T; ++t) memcpy(&out[b][t], &acc[b][t], sizeof(i8));
}
#elif defined(SMELT_AVX2)
template <int B, int T>
inline void group_dots(const Group<B, T>& g, i8 (*out)[T]) {
  // |weight| times x with the weight's sign: 128 * 127 * 2 fits int16, so nothing saturates.
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
    for (int t = 0; t < T; ++t) memcpy(&out[b][t], &acc[b][t], sizeof(i8));
}
#else
template <int B, int T>
inline void group_dots(const Group<B, T>& g, i8 (*out)[T]) {
  // Products of two int8 fit int16. Lanes are (row, k): half the rows at a time, the four k of a row added at the end.
  typedef int8_t Bytes __attribute__((vector_size(16)));
  typedef int16_t Halves __attribute__((vector_size(32)));
  typedef int32_t Words __attribute__((vector_size(64)));
  for (int b = 0; b < B; ++b)
    for (int t = 0; t < T; ++t)
      for (int half = 0; half < 2; ++half) {
        Words acc = {};
        for (int j = 0; j < 8; ++j) {
          Bytes w, x;
          memcpy(&w, g.w[b] + j * 32 + half * 16, sizeof w);
          for (int row = 0; row < 4; ++row) memcpy(reinterpret_cast<char*>(&x) + row * 4, g.x[t] + j * 4, 4);
          acc += __builtin_convertvector(__builtin_convertvector(w, Halves) * __builtin_convertvector(x, Halves), Words);
        }
        for (int row = 0; row < 4; ++row)
          out[b][t][half * 4 + row] = (acc[row * 4] + acc[row * 4 + 1]) + (acc[row * 4 + 2] + acc[row * 4 + 3]);
      }
}
#endif

template <int B, int T>
void tile_q8(const GemmQ8& g, int block, int token) {
  const uint16_t* scales[B];
  const int32_t* sums[T];
  const float* x_scale[T];
  Group<B, T> at;
  f8 acc[B][T];
  for (int b = 0; b < B; ++b) {
    const uint8_t* base = g.weights + size_t(block + b) * g.block_bytes;
    scales[b] = reinterpret_cast<const uint16_t*>(base);
    at.w[b] = reinterpret_cast<const int8_t*>(base + g.scale_bytes);
  }
  const size_t groups = size_t(g.num_groups);
  for (int t = 0; t < T; ++t) {
    at.x[t] = g.x + size_t(token + t) * groups * kGroup;
    sums[t] = g.x_sum + size_t(token + t) * groups;
    x_scale[t] = g.x_scale + size_t(token + t) * groups;
  }
  for (int b = 0; b < B; ++b)
    for (int t = 0; t < T; ++t) acc[b][t] = splat(0.0f);
  for (size_t group = 0; group < groups; ++group) {
    i8 dots[B][T];
    if (T == 1)  // one token reads from memory: a kilobyte ahead keeps the stream going
      for (int b = 0; b < B; ++b)
        for (int line = 0; line < 4; ++line) __builtin_prefetch(at.w[b] + 1024 + line * 64);
    for (int t = 0; t < T; ++t) at.sum[t] = sums[t][group];
    group_dots<B, T>(at, dots);
    for (int b = 0; b < B; ++b) {
      const f8 scale = load_bf16(scales[b] + group * kLanes);
      for (int t = 0; t < T; ++t) acc[b][t] = fma(to_float(dots[b][t]), scale * splat(x_scale[t][group]), acc[b][t]);
      at.w[b] += kLanes * kGroup;
    }
    for (int t = 0; t < T; ++t) at.x[t] += kGroup;
  }
  for (int b = 0; b < B; ++b) {
    const size_t row = size_t(block + b) * kLanes;
    for (int t = 0; t < T; ++t) {
      f8 v = acc[b][t];
      if (g.bias) v = v + load(g.bias + row);
      store(g.out + size_t(token + t) * g.out_stride + row, v);
    }
  }
}

constexpr int kTokenBlock = 64;  // tokens whose activations stay in cache while all rows pass

// A tile of B row blocks and the widest number of tokens; sizes measured (GOPS of one Zen 5 core): with sixteen registers
// two 8-bit tokens by two blocks keep sums in them (AVX2 177, VNNI 384), four do not (137, 250).
struct TileF32 {
  static constexpr int kTokens = 4;
  template <int B, int T>
  static void run(const GemmF32& g, int block, int token) {
    tile_f32<B, T>(g, block, token);
  }
};
struct TileQ8 {
#ifdef SMELT_AVX2
  static constexpr int kTokens = 2;
#else
  static constexpr int kTokens = 1;
#endif
  template <int B, int T>
  static void run(const GemmQ8& g, int block, int token) {
    tile_q8<B, T>(g, block, token);
  }
};

template <typename Tile, int B, int T, typename Gemm>
inline void over_tokens(const Gemm& g, int block, int token, int last) {
  for (; token + T <= last; token += T) Tile::template run<B, T>(g, block, token);
  if constexpr (T > 1) over_tokens<Tile, B, T - 1>(g, block, token, last);
}

template <typename Tile, int B, typename Gemm>
inline void over_blocks(const Gemm& g) {
  for (int first = 0; first < g.num_tokens; first += kTokenBlock) {
    const int last = first + kTokenBlock < g.num_tokens ? first + kTokenBlock : g.num_tokens;
    int block = g.first_block;
    for (; block + B <= g.last_block; block += B) over_tokens<Tile, B, Tile::kTokens>(g, block, first, last);
    for (; block < g.last_block; ++block) over_tokens<Tile, 1, Tile::kTokens>(g, block, first, last);
  }
}

void gemm_f32(const GemmF32& g) {
  if (g.num_tokens > 1) return over_blocks<TileF32, 2>(g);
  int block = g.first_block;  // one token has one chain of additions per block: many blocks hide its latency
  for (; block + 8 <= g.last_block; block += 8) tile_f32<8, 1>(g, block, 0);
  for (; block < g.last_block; ++block) tile_f32<1, 1>(g, block, 0);
}

void gemm_q8(const GemmQ8& g) { over_blocks<TileQ8, 2>(g); }

}  // namespace
}  // namespace smelt
