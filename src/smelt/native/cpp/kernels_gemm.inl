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

// Scales and zero points of a block's eight rows.
template <bool kFloat>
inline f8 load_scale(const uint8_t* scales, int index) {
  if (kFloat) return load(reinterpret_cast<const float*>(scales) + size_t(index) * kLanes);
  return load_bf16(reinterpret_cast<const uint16_t*>(scales) + size_t(index) * kLanes);
}

inline i8 load_zeros(const int8_t* p) {
#ifdef SMELT_AVX2
  i8 wide;
  const __m256i found = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  memcpy(&wide, &found, sizeof wide);
  return wide;
#else
  return i8{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]};
#endif
}

// Form: which of the layouts of GemmQ, see TileQ.
template <typename Form, int B, int T>
void tile_q(const GemmQ& g, int block, int token) {
  constexpr int kGroupBytes = kLanes * kGroup * Form::kBits / 8;
  const uint8_t* base[B];
  const int32_t* sums[T];
  const float* x_scale[T];
  Group<B, T> at;
  f8 acc[B][T];
  for (int b = 0; b < B; ++b) {
    base[b] = g.weights + size_t(block + b) * g.block_bytes;
    at.w[b] = reinterpret_cast<const int8_t*>(base[b] + g.codes_at);
  }
  const size_t groups = size_t(g.num_groups);
  for (int t = 0; t < T; ++t) {
    at.x[t] = g.x + size_t(token + t) * groups * kGroup;
    sums[t] = g.x_sum + size_t(token + t) * groups;
    x_scale[t] = g.x_scale + size_t(token + t) * groups;
  }
  for (int b = 0; b < B; ++b)
    for (int t = 0; t < T; ++t) acc[b][t] = splat(0.0f);
  int index = 0, left = g.groups_per_scale;
  for (size_t group = 0; group < groups; ++group) {
    i8 dots[B][T];
    if (T == 1)  // one token reads from memory: a kilobyte ahead keeps the stream going
      for (int b = 0; b < B; ++b)
        for (int line = 0; line < kGroupBytes / 64; ++line) __builtin_prefetch(at.w[b] + 1024 + line * 64);
    for (int t = 0; t < T; ++t) at.sum[t] = sums[t][group];
    if (Form::kHasZeros)
      for (int b = 0; b < B; ++b)
        at.zero[b] = load_zeros(reinterpret_cast<const int8_t*>(base[b] + g.zeros_at) + size_t(index) * kLanes);
    group_dots<Form>(at, dots);
    for (int b = 0; b < B; ++b) {
      const f8 scale = load_scale<Form::kFloatScales>(base[b], index);
      for (int t = 0; t < T; ++t) acc[b][t] = fma(to_float(dots[b][t]), scale * splat(x_scale[t][group]), acc[b][t]);
      at.w[b] += kGroupBytes;
    }
    for (int t = 0; t < T; ++t) at.x[t] += kGroup;
    if (--left == 0) {
      left = g.groups_per_scale;
      ++index;
    }
  }
  for (int b = 0; b < B; ++b) {
    const size_t row = size_t(block + b) * kLanes;
    for (int t = 0; t < T; ++t) {
      f8 v = acc[b][t];
      if (g.shift) v = fma(load(g.row_sums + row), splat(g.shift[token + t]), v);
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
template <int Bits, bool HasZeros, bool FloatScales, bool FullRange>
struct TileQ {
  static constexpr int kBits = Bits;
  static constexpr bool kHasZeros = HasZeros, kFloatScales = FloatScales, kFullRange = FullRange;
#ifdef SMELT_AVX2
  static constexpr int kTokens = 2;
#else
  static constexpr int kTokens = 1;
#endif
  template <int B, int T>
  static void run(const GemmQ& g, int block, int token) {
    tile_q<TileQ, B, T>(g, block, token);
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

template <int Bits, bool FullRange>
void gemm_of(const GemmQ& g) {
  if (g.has_zeros) return g.float_scales ? over_blocks<TileQ<Bits, true, true, FullRange>, 2>(g)
                                         : over_blocks<TileQ<Bits, true, false, FullRange>, 2>(g);
  return g.float_scales ? over_blocks<TileQ<Bits, false, true, FullRange>, 2>(g)
                        : over_blocks<TileQ<Bits, false, false, FullRange>, 2>(g);
}

void gemm_q(const GemmQ& g) {
  if (g.bits == 4) return gemm_of<4, false>(g);
#if defined(SMELT_AVX2) && !defined(SMELT_VNNI)
  if (g.full_range) return gemm_of<8, true>(g);
#endif
  gemm_of<8, false>(g);
}

}  // namespace
}  // namespace smelt
