// What happens to one row of floats at a time: quantisation, norms, activations, softmax sums.
namespace smelt {
namespace {

void quantize(const float* x, int num_groups, int8_t* q, float* scale, int32_t* sum) {
  for (int group = 0; group < num_groups; ++group, x += kGroup, q += kGroup) {
    // As integers, magnitudes order like floats, and infinity and NaN come last: they are never lost.
    i8 most = splat(0);
    for (int i = 0; i < kGroup; i += kLanes) {
      const i8 magnitude = bits_of(load(x + i)) & 0x7fffffff;
      most = magnitude > most ? magnitude : most;
    }
    int32_t top = 0;
    for (int i = 0; i < kLanes; ++i) top = most[i] > top ? most[i] : top;
    float absmax;
    memcpy(&absmax, &top, sizeof absmax);
    const bool sound = top < 0x7f800000;
    // Below this the inverse would overflow; such values round to nothing.
    const bool some = sound && absmax > 1e-35f;
    scale[group] = sound ? (some ? absmax / 127.0f : 0.0f) : __builtin_nanf("");
    const f8 inverse = splat(some ? 127.0f / absmax : 0.0f);
    const f8 magic = splat(12582912.0f);
    i8 total = splat(0);
    for (int i = 0; i < kGroup; i += kLanes) {
      const f8 scaled = some ? load(x + i) * inverse : splat(0.0f);
      const i8 rounded = __builtin_convertvector((scaled + magic) - magic, i8);
      total += rounded;
      for (int lane = 0; lane < kLanes; ++lane) q[i + lane] = int8_t(rounded[lane]);
    }
    sum[group] = 0;
    for (int i = 0; i < kLanes; ++i) sum[group] += total[i];
  }
}

// The least and the greatest of a row, 0 among them; both NaN where a value is NaN or infinite.
inline void range_of(const float* x, int n, float* lowest, float* highest) {
  f8 low = splat(0.0f), high = splat(0.0f), sound = splat(0.0f);
  for (int i = 0; i < n; i += kLanes) {
    const f8 v = load(x + i);
    sound = sound + (v - v);  // 0, and NaN for what is not finite
    low = v < low ? v : low;
    high = v > high ? v : high;
  }
  *lowest = -greatest(-low) + sum(sound);
  *highest = greatest(high) + sum(sound);
}

void quantize_row(const float* x, int num_groups, const RowFormat& format, int8_t* q, float* scale, int32_t* sum, float* shift) {
  float low, high, step = format.scale;
  range_of(x, num_groups * kGroup, &low, &high);
  const bool sound = low == low && high == high;
  int zero = format.zero;
  const f8 magic = splat(12582912.0f);
  if (format.dynamic) {
    step = format.symmetric ? (high > -low ? high : -low) / 127.0f : (high - low) / 255.0f;
    step = step == 0.0f ? 1.0f : (step < 1.17549435e-38f ? 1.17549435e-38f : step);
    zero = 0;
    if (!format.symmetric && sound) {
      const f8 down = (splat(low / step) + magic) - magic;
      zero = -128 - int(down[0]);
      zero = zero > 127 ? 127 : zero;
    }
  }
  if (shift) *shift = -step * float(zero);
  const f8 most = splat(1024.0f), divisor = splat(step), offset = splat(float(zero));
  for (int group = 0; group < num_groups; ++group, x += kGroup, q += kGroup) {
    i8 total = splat(0);
    for (int i = 0; i < kGroup; i += kLanes) {
      f8 scaled = sound ? load(x + i) / divisor : splat(0.0f);
      scaled = scaled > most ? most : (scaled < -most ? -most : scaled);  // codes end long before
      f8 code = ((scaled + magic) - magic) + offset;
      code = code < splat(-128.0f) ? splat(-128.0f) : (code > splat(127.0f) ? splat(127.0f) : code);
      const i8 rounded = __builtin_convertvector(code, i8);
      total += rounded;
      for (int lane = 0; lane < kLanes; ++lane) q[i + lane] = int8_t(rounded[lane]);
    }
    scale[group] = sound ? step : __builtin_nanf("");
    sum[group] = 0;
    for (int i = 0; i < kLanes; ++i) sum[group] += total[i];
  }
}

void rms_norm(const float* x, const float* weight, int n, int padded, float eps, float* out) {
  f8 squares = splat(0.0f);
  for (int i = 0; i < padded; i += kLanes) {
    const f8 v = load(x + i);
    squares = fma(v, v, squares);
  }
  const f8 inverse = splat(1.0f / __builtin_sqrtf(sum(squares) / float(n) + eps));
  for (int i = 0; i < padded; i += kLanes) store(out + i, load(x + i) * inverse * load(weight + i));
}

void add(float* x, const float* y, int padded) {
  for (int i = 0; i < padded; i += kLanes) store(x + i, load(x + i) + load(y + i));
}

inline f8 silu(f8 x) { return x / (splat(1.0f) + exponential(-x)); }

inline f8 gelu_tanh(f8 x) {
  // 0.5 x (1 + tanh(u)) = x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3)
  const f8 u = splat(0.7978845608f) * (x + splat(0.044715f) * x * x * x);
  return x / (splat(1.0f) + exponential(splat(-2.0f) * u));
}

void gated(const float* gate, const float* up, int padded, bool gelu, float* out) {
  for (int i = 0; i < padded; i += kLanes) {
    const f8 g = load(gate + i);
    store(out + i, (gelu ? gelu_tanh(g) : silu(g)) * load(up + i));
  }
}

float max_of(const float* x, int n) {
  f8 best = splat(-__builtin_inff()), odd = splat(0.0f);
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const f8 v = load(x + i);
    best = greater(v, best);
    odd = v != v ? v : odd;
  }
  float top = greatest(best);
  const float nan = sum(odd);
  for (; i < n; ++i) {
    if (x[i] != x[i]) return x[i];
    top = x[i] > top ? x[i] : top;
  }
  return nan != nan ? nan : top;
}

double exp_sum(const float* x, int n, float max, float temperature, float* out) {
  double total[kLanes] = {};
  const f8 highest = splat(max), divisor = splat(temperature);
  for (int i = 0; i < n; i += kLanes) {
    f8 v = splat(-__builtin_inff());
    if (i + kLanes <= n)
      v = load(x + i);
    else
      for (int lane = 0; lane < n - i; ++lane) v[lane] = x[i + lane];
    const f8 e = exponential((v - highest) / divisor);
    for (int lane = 0; lane < kLanes; ++lane) total[lane] += double(e[lane]);
    if (i + kLanes <= n)
      store(out + i, e);
    else
      for (int lane = 0; lane < n - i; ++lane) out[i + lane] = e[lane];
  }
  return ((total[0] + total[4]) + (total[2] + total[6])) + ((total[1] + total[5]) + (total[3] + total[7]));
}

uint64_t sum_words(const uint64_t* words, size_t n) {
  typedef uint64_t u4 __attribute__((vector_size(32)));
  u4 acc[4] = {};
  size_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 4; ++j) {
      u4 v;
      memcpy(&v, words + i + size_t(j) * 4, sizeof v);
      acc[j] += v;
    }
  uint64_t total = 0;
  for (; i < n; ++i) total += words[i];
  for (int j = 0; j < 4; ++j)
    for (int lane = 0; lane < 4; ++lane) total += acc[j][lane];
  return total;
}

}  // namespace
}  // namespace smelt
