// A weight matrix, repacked once at load for the kernels, and the activations it is multiplied with.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "buffer.h"
#include "kernels.h"

namespace smelt {

inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// How activations are rounded in front of a matrix of integers.
struct Input {
  enum Kind { kGroup, kToken, kTensor };  // a scale for 32 values, for a token as it comes, or one for all
  Kind kind = kGroup;
  bool symmetric = true;
  float scale = 0.0f;  // of kTensor, with its zero point
  int zero = 0;

  // Codes of a group, and symmetric ones of a token, end at -127.
  bool full_range() const { return kind == kTensor || !symmetric; }
  RowFormat row() const { return {kind == kToken, symmetric, scale, zero}; }
};

// How a matrix is stored; see GemmQ. What is not quantized is float.
struct Format {
  int bits = 32;  // or 8, or 4
  int groups_per_scale = 1;
  bool has_zeros = false, float_scales = false;

  bool quantized() const { return bits < 32; }
  static Format plain(bool quantized) { return {quantized ? 8 : 32}; }
};

// A row of a quantized matrix: codes [k], scales and zero points (or null) of every `group` of them.
struct CodesRow {
  const int8_t* codes;
  const float* scales;
  const int8_t* zeros;
  int group;
};

// Rows of activations, [T, k padded to 32] floats, and their int8 form where the weights are integers.
class Activations {
 public:
  void reserve(int num_tokens, int k, bool quantized);
  int stride() const { return stride_; }
  float* row(int token) const { return floats_.as<float>() + size_t(token) * size_t(stride_); }
  // int8 form of groups [first, last) of a row (of kToken: of all); nothing to do for float weights.
  void quantize(const Kernels& kernels, int token, const Input& input, int first_group, int last_group);
  void quantize(const Kernels& kernels, int token, const Input& input = {}) {
    quantize(kernels, token, input, 0, stride_ / kGroup);
  }

 private:
  friend class Linear;
  Buffer floats_, bytes_, scales_, sums_, shifts_;
  int stride_ = 0;
  bool quantized_ = false;
};

class Linear {
 public:
  Linear() = default;
  Linear(int rows, int k, const Format& format, const Input& input = {});
  Linear(int rows, int k, bool quantized) : Linear(rows, k, Format::plain(quantized)) {}

  int rows() const { return rows_; }
  int k() const { return k_; }
  bool quantized() const { return format_.quantized(); }
  int num_blocks() const { return num_blocks_; }
  int out_stride() const { return num_blocks_ * kLanes; }
  size_t num_bytes() const { return weights_ ? weights_->size() : 0; }
  const Input& input() const { return input_; }
  void set_input(const Input& input) { input_ = input; }

  // The same weights, not copied, with biases of its own (none yet).
  Linear sharing() const;

  // Row `row` from k floats, rounded to 8 bits in groups of 32 where the matrix is one of integers. False where a value is
  // not finite.
  bool put_row(int row, const float* values);
  // Row `row` as it is. The format must hold it: groups of groups_per_scale * 32, or multiples of them.
  void put_codes(int row, const CodesRow& from);
  // Whether it can hold codes of `bits` with a scale (and a zero point) every `group` inputs.
  bool holds(int bits, int group, bool zeros) const;
  void put_bias(int row, float value);
  // Row `row` back as floats, rounded as it is stored: an embedding.
  void read_row(int row, float* out) const;

  // Row blocks [first, last) for tokens [token, token + num_tokens) into out (row of the first token).
  void multiply(const Kernels& kernels, const Activations& x, int token, int num_tokens, int first_block, int last_block,
                float* out, int out_stride) const;

 private:
  uint8_t* block(int index) const { return weights_->as<uint8_t>() + size_t(index) * block_bytes_; }
  float scale(const uint8_t* base, int index, int lane) const;
  int code(const uint8_t* base, int k, int lane) const;

  int rows_ = 0, k_ = 0, num_blocks_ = 0, num_groups_ = 0, num_scales_ = 0;
  Format format_;
  Input input_;
  size_t block_bytes_ = 0, zeros_at_ = 0, codes_at_ = 0;
  std::shared_ptr<Buffer> weights_;
  std::shared_ptr<std::vector<float>> row_sums_;  // of a matrix of integers
  std::vector<float> bias_;
};

}  // namespace smelt
