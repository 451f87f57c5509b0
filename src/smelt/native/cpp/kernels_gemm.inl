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

#ifdef SMELT_AVX2
inline __m256i dot_step(__m256i acc, __m256i w, __m256i x) {
  // 127 * 127 * 2 fits int16: no saturation.
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}

// Integer part of one group: sum over 32 k of (weight - 64) * x, for B x 8 rows and T tokens.
template <int B, int T>
inline void group_dots(const uint8_t* const* w, const int8_t* const* x, const int32_t* const* zero, int group, i8 (*out)[T]) {
  __m256i acc[B][T];
  for (int t = 0; t < T; ++t)
    for (int b = 0; b < B; ++b) acc[b][t] = _mm256_set1_epi32(zero[t][group]);
  for (int j = 0; j < 8; ++j) {
    __m256i row[B];
    for (int b = 0; b < B; ++b)
      row[b] = _mm256_load_si256(reinterpret_cast<const __m256i*>(w[b] + size_t(group) * 256 + size_t(j) * 32));
    for (int t = 0; t < T; ++t) {
      int32_t four;
      memcpy(&four, x[t] + size_t(group) * kGroup + size_t(j) * 4, 4);
      const __m256i value = _mm256_set1_epi32(four);
      for (int b = 0; b < B; ++b) acc[b][t] = dot_step(acc[b][t], row[b], value);
    }
  }
  for (int b = 0; b < B; ++b)
    for (int t = 0; t < T; ++t) memcpy(&out[b][t], &acc[b][t], sizeof(i8));
}
#else
template <int B, int T>
inline void group_dots(const uint8_t* const* w, const int8_t* const* x, const int32_t* const* zero, int group, i8 (*out)[T]) {
  for (int b = 0; b < B; ++b) {
    const uint8_t* bytes = w[b] + size_t(group) * 256;
    for (int t = 0; t < T; ++t) {
      const int8_t* values = x[t] + size_t(group) * kGroup;
      i8 acc = splat(zero[t][group]);
      for (int j = 0; j < 8; ++j)
        for (int r = 0; r < kLanes; ++r)
          for (int i = 0; i < 4; ++i) acc[r] += int32_t(bytes[j * 32 + r * 4 + i]) * int32_t(values[j * 4 + i]);
      out[b][t] = acc;
    }
  }
}
#endif

template <int B, int T>
void tile_q8(const GemmQ8& g, int block, int token) {
  const uint16_t* scales[B];
  const uint8_t* w[B];
  const int8_t* x[T];
  const int32_t* zero[T];
  const float* x_scale[T];
  f8 acc[B][T];
  for (int b = 0; b < B; ++b) {
    const uint8_t* base = g.weights + size_t(block + b) * g.block_bytes;
    scales[b] = reinterpret_cast<const uint16_t*>(base);
    w[b] = base + g.scale_bytes;
  }
  const size_t groups = size_t(g.num_groups);
  for (int t = 0; t < T; ++t) {
    x[t] = g.x + size_t(token + t) * groups * kGroup;
    zero[t] = g.x_zero + size_t(token + t) * groups;
    x_scale[t] = g.x_scale + size_t(token + t) * groups;
  }
  for (int b = 0; b < B; ++b)
    for (int t = 0; t < T; ++t) acc[b][t] = splat(0.0f);
  for (int group = 0; group < g.num_groups; ++group) {
    i8 dots[B][T];
#ifdef SMELT_AVX2
    if (T == 1)  // from memory: a kilobyte ahead keeps the stream going
      for (int b = 0; b < B; ++b)
        for (int line = 0; line < 4; ++line) _mm_prefetch(w[b] + size_t(group) * 256 + 1024 + size_t(line) * 64, _MM_HINT_T0);
#endif
    group_dots<B, T>(w, x, zero, group, dots);
    for (int b = 0; b < B; ++b) {
      const f8 scale = load_bf16(scales[b] + size_t(group) * kLanes);
      for (int t = 0; t < T; ++t) acc[b][t] = fma(to_float(dots[b][t]), scale * splat(x_scale[t][group]), acc[b][t]);
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

constexpr int kTokenTile = 4;    // tokens that share one unpacked weight
constexpr int kTokenBlock = 64;  // tokens whose activations stay in cache while all rows pass

// Calls tile(block, token) over row blocks and tokens, the widest tiles first.
template <int B, typename Gemm, typename Tile>
inline void over_tokens(const Gemm& g, int block, int first, int last, Tile tile) {
  int token = first;
  for (; token + kTokenTile <= last; token += kTokenTile) tile.template run<B, kTokenTile>(g, block, token);
  switch (last - token) {
    case 3: tile.template run<B, 3>(g, block, token); break;
    case 2: tile.template run<B, 2>(g, block, token); break;
    case 1: tile.template run<B, 1>(g, block, token); break;
    default: break;
  }
}

template <int B, typename Gemm, typename Tile>
inline void over_blocks(const Gemm& g, Tile tile) {
  for (int first = 0; first < g.num_tokens; first += kTokenBlock) {
    const int last = first + kTokenBlock < g.num_tokens ? first + kTokenBlock : g.num_tokens;
    int block = g.first_block;
    for (; block + B <= g.last_block; block += B) over_tokens<B>(g, block, first, last, tile);
    for (; block < g.last_block; ++block) over_tokens<1>(g, block, first, last, tile);
  }
}

struct TileF32 {
  template <int B, int T>
  void run(const GemmF32& g, int block, int token) const {
    tile_f32<B, T>(g, block, token);
  }
};
struct TileQ8 {
  template <int B, int T>
  void run(const GemmQ8& g, int block, int token) const {
    tile_q8<B, T>(g, block, token);
  }
};

void gemm_f32(const GemmF32& g) {
  if (g.num_tokens == 1)
    over_blocks<8>(g, TileF32{});  // one token has one chain per row block: many blocks hide its latency
  else
    over_blocks<2>(g, TileF32{});
}

void gemm_q8(const GemmQ8& g) { over_blocks<2>(g, TileQ8{}); }

}  // namespace
}  // namespace smelt
