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

// Rows of activations, [T, k padded to 32] floats, and their int8 form where the weights are 8-bit.
class Activations {
 public:
  void reserve(int num_tokens, int k, bool quantized);
  int stride() const { return stride_; }
  float* row(int token) const { return floats_.as<float>() + size_t(token) * size_t(stride_); }
  // int8 form of groups [first, last) of a row; nothing to do for float weights.
  void quantize(const Kernels& kernels, int token, int first_group, int last_group);
  void quantize(const Kernels& kernels, int token) { quantize(kernels, token, 0, stride_ / kGroup); }

 private:
  friend class Linear;
  Buffer floats_, bytes_, scales_, sums_;
  int stride_ = 0;
  bool quantized_ = false;
};

class Linear {
 public:
  Linear() = default;
  Linear(int rows, int k, bool quantized);

  int rows() const { return rows_; }
  int k() const { return k_; }
  bool quantized() const { return quantized_; }
  int num_blocks() const { return num_blocks_; }
  int out_stride() const { return num_blocks_ * kLanes; }
  size_t num_bytes() const { return weights_ ? weights_->size() : 0; }

  // The same weights, not copied, with biases of its own (none yet).
  Linear sharing() const;

  // Row `row` from k floats. False where a value is not finite.
  bool put_row(int row, const float* values);
  void put_bias(int row, float value);
  // Row `row` back as floats, rounded as it is stored: an embedding.
  void read_row(int row, float* out) const;

  // Row blocks [first, last) for tokens [token, token + num_tokens) into out (row of the first token).
  void multiply(const Kernels& kernels, const Activations& x, int token, int num_tokens, int first_block, int last_block,
                float* out, int out_stride) const;

 private:
  uint8_t* block(int index) const { return weights_->as<uint8_t>() + size_t(index) * block_bytes_; }

  int rows_ = 0, k_ = 0, num_blocks_ = 0, num_groups_ = 0;
  bool quantized_ = false;
  size_t block_bytes_ = 0, scale_bytes_ = 0;
  std::shared_ptr<Buffer> weights_;
  std::vector<float> bias_;
};

}  // namespace smelt
