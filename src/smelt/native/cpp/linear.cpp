#include "linear.h"

#include <cmath>
#include <cstring>

namespace smelt {

namespace {

// The smallest bfloat16 not below x, for finite x >= 0.
uint16_t bf16_above(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return uint16_t((bits + 0xffff) >> 16);
}

float from_bf16(uint16_t half) {
  const uint32_t bits = uint32_t(half) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Place of k within a group's 256 bytes, for one of 8 rows: registers of 8 rows x 4 consecutive k.
size_t byte_of(int k, int lane) { return size_t(k / 4) * 32 + size_t(lane) * 4 + size_t(k % 4); }

}  // namespace

void Activations::reserve(int num_tokens, int k, bool quantized) {
  stride_ = round_up(k, kGroup);
  quantized_ = quantized;
  const size_t num_values = size_t(num_tokens) * size_t(stride_);
  floats_.reserve(num_values * sizeof(float));
  if (!quantized) return;
  bytes_.reserve(num_values);
  scales_.reserve(num_values / kGroup * sizeof(float));
  sums_.reserve(num_values / kGroup * sizeof(int32_t));
}

void Activations::quantize(const Kernels& kernels, int token, int first_group, int last_group) {
  if (!quantized_) return;
  const size_t group = size_t(token) * size_t(stride_ / kGroup) + size_t(first_group);
  kernels.quantize(row(token) + size_t(first_group) * kGroup, last_group - first_group,
                   bytes_.as<int8_t>() + group * kGroup, scales_.as<float>() + group, sums_.as<int32_t>() + group);
}

Linear::Linear(int rows, int k, bool quantized)
    : rows_(rows),
      k_(k),
      num_blocks_(round_up(rows, kLanes) / kLanes),
      num_groups_(round_up(k, kGroup) / kGroup),
      quantized_(quantized) {
  if (quantized) {
    scale_bytes_ = size_t(round_up(num_groups_ * kLanes * 2, 64));
    block_bytes_ = scale_bytes_ + size_t(num_groups_) * kLanes * kGroup;
  } else {
    block_bytes_ = size_t(k) * kLanes * sizeof(float);
  }
  // Rows and columns that pad the matrix have weight 0: scale 0, or the float 0 that fresh memory holds.
  weights_ = std::make_shared<Buffer>(block_bytes_ * size_t(num_blocks_), true);
}

Linear Linear::sharing() const {
  Linear other = *this;
  other.bias_.clear();
  return other;
}

bool Linear::put_row(int row, const float* values) {
  for (int k = 0; k < k_; ++k)
    if (!std::isfinite(values[k])) return false;
  const int lane = row % kLanes;
  uint8_t* base = block(row / kLanes);
  if (!quantized_) {
    float* out = reinterpret_cast<float*>(base) + lane;
    for (int k = 0; k < k_; ++k) out[size_t(k) * kLanes] = values[k];
    return true;
  }
  uint16_t* scales = reinterpret_cast<uint16_t*>(base);
  for (int group = 0; group < num_groups_; ++group) {
    const float* from = values + size_t(group) * kGroup;
    const int count = k_ - group * kGroup < kGroup ? k_ - group * kGroup : kGroup;
    float absmax = 0.0f;
    for (int i = 0; i < count; ++i) absmax = std::fabs(from[i]) > absmax ? std::fabs(from[i]) : absmax;
    // Codes reach from -128 to 127: 127.5 splits the error at both ends. Weights below 1e-30 count as 0.
    const uint16_t half = absmax > 1e-30f ? bf16_above(absmax / 127.5f) : uint16_t(0);
    scales[size_t(group) * kLanes + size_t(lane)] = half;
    const float inverse = half ? 1.0f / from_bf16(half) : 0.0f;
    int8_t* codes = reinterpret_cast<int8_t*>(base + scale_bytes_) + size_t(group) * kLanes * kGroup;
    for (int i = 0; i < kGroup; ++i) {
      const long code = i < count ? std::lrintf(from[i] * inverse) : 0;
      codes[byte_of(i, lane)] = int8_t(code < -128 ? -128 : (code > 127 ? 127 : code));
    }
  }
  return true;
}

void Linear::put_bias(int row, float value) {
  if (bias_.empty()) bias_.assign(size_t(out_stride()), 0.0f);
  bias_[size_t(row)] = value;
}

void Linear::read_row(int row, float* out) const {
  const int lane = row % kLanes;
  const uint8_t* base = block(row / kLanes);
  if (!quantized_) {
    const float* from = reinterpret_cast<const float*>(base) + lane;
    for (int k = 0; k < k_; ++k) out[k] = from[size_t(k) * kLanes];
    return;
  }
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(base);
  for (int k = 0; k < k_; ++k) {
    const int group = k / kGroup;
    const int8_t* codes = reinterpret_cast<const int8_t*>(base + scale_bytes_) + size_t(group) * kLanes * kGroup;
    out[k] = from_bf16(scales[size_t(group) * kLanes + size_t(lane)]) * float(codes[byte_of(k % kGroup, lane)]);
  }
}

void Linear::multiply(const Kernels& kernels, const Activations& x, int token, int num_tokens, int first_block,
                      int last_block, float* out, int out_stride) const {
  if (first_block >= last_block || num_tokens <= 0) return;
  const float* bias = bias_.empty() ? nullptr : bias_.data();
  if (!quantized_) {
    kernels.gemm_f32({weights_->as<float>(), bias, x.row(token), out, size_t(x.stride_), size_t(out_stride), num_tokens, k_,
                      first_block, last_block});
    return;
  }
  const size_t group = size_t(token) * size_t(num_groups_);
  kernels.gemm_q8({weights_->as<uint8_t>(), bias, x.bytes_.as<int8_t>() + group * kGroup, x.scales_.as<float>() + group,
                   x.sums_.as<int32_t>() + group, out, block_bytes_, scale_bytes_, size_t(out_stride), num_tokens,
                   num_groups_, first_block, last_block});
}

}  // namespace smelt
