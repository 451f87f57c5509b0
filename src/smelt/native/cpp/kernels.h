// The inner loops, one table of them per instruction set. All are compiled from the same kernels_*.inl over simd.h.
//
// Every result is a fixed sequence of operations per output element, whatever the number of tokens beside it: that is
// what makes an answer independent of its batch mates. Rows of floats are padded with zeros to a multiple of 32.
//
// Files compiled with instruction-set flags (kernels_x86.cpp and what it includes) must not instantiate inline functions
// of the standard library: the linker could keep that copy for everyone.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace smelt {

constexpr int kLanes = 8;    // rows of weights interleaved; floats in a vector
constexpr int kGroup = 32;   // weights, and activations, that share a scale
constexpr int kTileRows = 16;  // query rows one call of `attend` takes (more only when one token has more)

// out[t, r] = sum_k x[t, k] * w[r, k] + bias[r] for rows 8*first_block .. 8*last_block.
// weights: [N/8][K][8]. Strides are in elements.
struct GemmF32 {
  const float* weights;
  const float* bias;  // or null
  const float* x;
  float* out;
  size_t x_stride, out_stride;
  int num_tokens, k, first_block, last_block;
};

// The same with integer weights and 8-bit activations, summed exactly within groups of 32.
// weights: row blocks of `block_bytes`; in each, scales [S][8] in bfloat16 or float, zero points int8 [S][8] where there are
// any, and the codes, which begin at a multiple of 64. A scale covers `groups_per_scale` groups. Codes of 8 bits: int8
// [G][8][8 rows][4 k]; of 4 bits: [G][4][8 rows][4 k] bytes of two, plus 8: k of the first half of the group in the low
// nibbles, of the second in the high ones. bfloat16 has float's range, and widening it is a shift.
struct GemmQ {
  const uint8_t* weights;
  const float* bias;       // or null
  const float* row_sums;   // [N], of the weights; read where `shift` is not null
  const int8_t* x;         // [T, 32 G]
  const float* x_scale;    // [T, G]
  const int32_t* x_sum;    // [T, G], sum of the group
  const float* shift;      // [T], added as often as a weight says: what a zero point of the activations takes off; or null
  float* out;
  size_t block_bytes, zeros_at, codes_at, out_stride;
  int num_tokens, num_groups, groups_per_scale, first_block, last_block;
  int bits;
  bool has_zeros, float_scales;
  bool full_range;  // activations reach -128: AVX2's quickest way to multiply does not
};

// How a row of activations is rounded where it is not by its own groups: one scale for all of it, its own or a given one.
struct RowFormat {
  bool dynamic, symmetric;
  float scale;
  int zero;
};

// Causal attention of one key/value head for `num_tokens` consecutive tokens and the `group` query heads that share it.
// A block holds keys [head_dim][block_size], then values [block_size][head_dim padded to 8].
struct Attend {
  const float* q;  // [num_tokens (q_stride), group, head_dim]
  float* out;      // [num_tokens (out_stride), group, head_dim]
  const float* pool;
  const int32_t* table;
  float* scratch;  // attend_scratch_floats
  size_t q_stride, out_stride, block_stride;
  int num_tokens, group, head_dim, block_size;
  int position;  // of the first token
  int window;    // tokens visible, 0 for all
  float scale;
};

inline int attend_rows(int group) { return group > kTileRows ? group : kTileRows; }
inline size_t attend_scratch_floats(int group, int head_dim, int block_size) {
  const size_t padded = size_t(head_dim + 7) / 8 * 8;
  return size_t(attend_rows(group)) * (2 * padded + size_t(block_size) + 2 * kLanes);
}

struct Kernels {
  const char* name;
  void (*gemm_f32)(const GemmF32&);
  void (*gemm_q)(const GemmQ&);
  // x [32 * groups] -> int8, scale absmax/127 and sum of the int8 per group; a group with NaN or infinity gets scale NaN.
  void (*quantize)(const float* x, int num_groups, int8_t* q, float* scale, int32_t* sum);
  // The same for a whole row (or, where the scale is given, a part), whose one scale is written to every group: absmax/127,
  // or (max - min)/255 about a zero point. shift: -scale * zero point.
  void (*quantize_row)(const float* x, int num_groups, const RowFormat& format, int8_t* q, float* scale, int32_t* sum,
                       float* shift);
  // out = x / sqrt(mean(x^2) + eps) * weight over n values; `padded` values are read and written.
  void (*rms_norm)(const float* x, const float* weight, int n, int padded, float eps, float* out);
  void (*add)(float* x, const float* y, int padded);
  // out = activation(gate) * up: silu, or gelu in its tanh form.
  void (*gated)(const float* gate, const float* up, int padded, bool gelu, float* out);
  void (*attend)(const Attend&);
  float (*max)(const float* x, int n);  // NaN if any is
  // out = exp((x - max) / temperature), and the sum of all.
  double (*exp_sum)(const float* x, int n, float max, float temperature, float* out);
  uint64_t (*sum_words)(const uint64_t* words, size_t n);
};

extern const Kernels kPortable;
#ifdef SMELT_X86
extern const Kernels kAvx2, kAvxVnni, kAvx512Vnni;
#endif

// The table called "portable", "avx2", "avxvnni" or "avx512vnni", or the best one this processor runs where `name` is null.
// Null where it is unknown or the processor lacks it.
const Kernels* find_kernels(const char* name);

}  // namespace smelt
