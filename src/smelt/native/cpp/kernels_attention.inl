// Attention over paged keys and values with an online softmax (Milakov, Gimelshein 2018, arXiv:1805.02867).
// Keys are taken block by block from absolute block boundaries, so a query's order of operations depends on its own
// position and window alone: not on the chunk it came in, nor on the queries beside it.
namespace smelt {
namespace {

// One tile's working memory; rows are (token, head) pairs, token major.
struct TileState {
  float* q;       // [rows, padded head_dim], scaled
  float* acc;     // [rows, padded head_dim], weighted sum of values so far
  float* p;       // [rows, block_size], scores, then weights
  float* total;   // [rows, 8], sum of weights by lane
  float* highest;  // [rows], largest score so far
};

// p[r, j] = q[r] . key[j] for R rows and 16 keys; keys: [head_dim][block_size].
template <int R>
inline void score_rows(const float* q, size_t q_stride, const float* keys, int head_dim, size_t block_size, float* p) {
  f8 acc[R][2];
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = splat(0.0f);
  for (int d = 0; d < head_dim; ++d) {
    const f8 k0 = load(keys + size_t(d) * block_size), k1 = load(keys + size_t(d) * block_size + kLanes);
    for (int r = 0; r < R; ++r) {
      const f8 value = splat(q[size_t(r) * q_stride + size_t(d)]);
      acc[r][0] = fma(value, k0, acc[r][0]);
      acc[r][1] = fma(value, k1, acc[r][1]);
    }
  }
  for (int r = 0; r < R; ++r) {
    store(p + size_t(r) * block_size, acc[r][0]);
    store(p + size_t(r) * block_size + kLanes, acc[r][1]);
  }
}

// acc[r, 0..8*W) += sum_j p[r, j] * value[j] for R rows; values: [num_keys][stride].
template <int R, int W>
inline void gather_rows(const float* p, size_t p_stride, const float* values, int num_keys, size_t stride, float* acc) {
  f8 sums[R][W];
  for (int r = 0; r < R; ++r)
    for (int w = 0; w < W; ++w) sums[r][w] = load(acc + size_t(r) * stride + size_t(w) * kLanes);
  for (int j = 0; j < num_keys; ++j) {
    f8 value[W];
    for (int w = 0; w < W; ++w) value[w] = load(values + size_t(j) * stride + size_t(w) * kLanes);
    for (int r = 0; r < R; ++r) {
      const f8 weight = splat(p[size_t(r) * p_stride + size_t(j)]);
      for (int w = 0; w < W; ++w) sums[r][w] = fma(weight, value[w], sums[r][w]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int w = 0; w < W; ++w) store(acc + size_t(r) * stride + size_t(w) * kLanes, sums[r][w]);
}

template <int R>
void score_and_pad(const Attend& a, const TileState& s, int row, const float* keys, size_t padded) {
  for (int j = 0; j < a.block_size; j += 2 * kLanes)
    score_rows<R>(s.q + size_t(row) * padded, padded, keys + j, a.head_dim, size_t(a.block_size),
                  s.p + size_t(row) * size_t(a.block_size) + j);
}

template <int R>
void gather(const Attend& a, const TileState& s, int row, const float* values, int num_keys, size_t padded) {
  const float* p = s.p + size_t(row) * size_t(a.block_size);
  float* acc = s.acc + size_t(row) * padded;
  size_t d = 0;
  for (; d + 16 <= padded; d += 16) gather_rows<R, 2>(p, size_t(a.block_size), values + d, num_keys, padded, acc + d);
  if (d < padded) gather_rows<R, 1>(p, size_t(a.block_size), values + d, num_keys, padded, acc + d);
}

// Scores of one row and block -> weights, keeping the running maximum and sum. Keys first..last of the block are seen.
inline void soften(const Attend& a, const TileState& s, int row, int first, int last, size_t padded) {
  const int size = a.block_size;
  float* p = s.p + size_t(row) * size_t(size);
  if (last < 0 || first >= size) {
    for (int j = 0; j < size; ++j) p[j] = 0.0f;
    return;
  }
  for (int j = 0; j < first; ++j) p[j] = -__builtin_inff();
  for (int j = last + 1; j < size; ++j) p[j] = -__builtin_inff();
  f8 best = load(p);
  for (int j = kLanes; j < size; j += kLanes) best = greater(load(p + j), best);
  const float top = greatest(best);
  float* total = s.total + size_t(row) * kLanes;
  if (top > s.highest[row]) {
    const f8 shrink = exponential(splat(s.highest[row] - top));  // 0 the first time
    float* acc = s.acc + size_t(row) * padded;
    for (size_t d = 0; d < padded; d += kLanes) store(acc + d, load(acc + d) * shrink);
    store(total, load(total) * shrink);
    s.highest[row] = top;
  }
  const f8 highest = splat(s.highest[row]);
  f8 sums = load(total);
  for (int j = 0; j < size; j += kLanes) {
    const f8 weight = exponential(load(p + j) - highest);
    store(p + j, weight);
    sums = sums + weight;
  }
  store(total, sums);
}

inline void start_tile(const Attend& a, const TileState& s, size_t padded) {
  for (int t = 0; t < a.num_tokens; ++t)
    for (int h = 0; h < a.group; ++h) {
      const size_t row = size_t(t) * size_t(a.group) + size_t(h);
      const float* from = a.q + size_t(t) * a.q_stride + size_t(h) * size_t(a.head_dim);
      for (int d = 0; d < a.head_dim; ++d) s.q[row * padded + size_t(d)] = from[d] * a.scale;
      for (size_t d = 0; d < padded; ++d) s.acc[row * padded + d] = 0.0f;
      store(s.total + row * kLanes, splat(0.0f));
      s.highest[row] = -__builtin_inff();
    }
}

inline void finish_tile(const Attend& a, const TileState& s, size_t padded) {
  for (int t = 0; t < a.num_tokens; ++t)
    for (int h = 0; h < a.group; ++h) {
      const size_t row = size_t(t) * size_t(a.group) + size_t(h);
      const float inverse = 1.0f / sum(load(s.total + row * kLanes));
      float* to = a.out + size_t(t) * a.out_stride + size_t(h) * size_t(a.head_dim);
      for (int d = 0; d < a.head_dim; ++d) to[d] = s.acc[row * padded + size_t(d)] * inverse;
    }
}

void attend(const Attend& a) {
  const size_t padded = size_t(a.head_dim + 7) / 8 * 8;
  const int num_rows = a.num_tokens * a.group, size = a.block_size;
  const int last_position = a.position + a.num_tokens - 1;
  TileState s;
  s.q = a.scratch;
  s.acc = s.q + size_t(num_rows) * padded;
  s.p = s.acc + size_t(num_rows) * padded;
  s.total = s.p + size_t(num_rows) * size_t(size);
  s.highest = s.total + size_t(num_rows) * kLanes;
  start_tile(a, s, padded);
  const int first_seen = a.window > 0 && a.position >= a.window ? a.position - a.window + 1 : 0;
  for (int block = first_seen / size; block <= last_position / size; ++block) {
    const float* keys = a.pool + size_t(a.table[block]) * a.block_stride;
    const float* values = keys + size_t(a.head_dim) * size_t(size);
    const int base = block * size;
    int row = 0;
    for (; row + 4 <= num_rows; row += 4) score_and_pad<4>(a, s, row, keys, padded);
    for (; row < num_rows; ++row) score_and_pad<1>(a, s, row, keys, padded);
    for (row = 0; row < num_rows; ++row) {
      const int position = a.position + row / a.group;
      const int first = a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
      const int last = position - base;
      soften(a, s, row, first - base, last < size ? last : size - 1, padded);
    }
    // Rows beyond the tile's last position were never written: they may hold anything.
    const int num_keys = last_position - base + 1 < size ? last_position - base + 1 : size;
    for (row = 0; row + 4 <= num_rows; row += 4) gather<4>(a, s, row, values, num_keys, padded);
    for (; row < num_rows; ++row) gather<1>(a, s, row, values, num_keys, padded);
  }
  finish_tile(a, s, padded);
}

}  // namespace
}  // namespace smelt
