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

// The same within 128 bytes of two codes each.
size_t nibbles_of(int k, int lane) { return byte_of(k % 16, lane); }

size_t aligned(size_t num_bytes) { return (num_bytes + 63) / 64 * 64; }

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
  shifts_.reserve(size_t(num_tokens) * sizeof(float));
}

void Activations::quantize(const Kernels& kernels, int token, const Input& input, int first_group, int last_group) {
  if (!quantized_ || first_group >= last_group) return;
  const size_t group = size_t(token) * size_t(stride_ / kGroup) + size_t(first_group);
  const float* x = row(token) + size_t(first_group) * kGroup;
  int8_t* bytes = bytes_.as<int8_t>() + group * kGroup;
  float* scales = scales_.as<float>() + group;
  int32_t* sums = sums_.as<int32_t>() + group;
  if (input.kind == Input::kGroup) return kernels.quantize(x, last_group - first_group, bytes, scales, sums);
  float* shift = first_group == 0 ? shifts_.as<float>() + token : nullptr;
  kernels.quantize_row(x, last_group - first_group, input.row(), bytes, scales, sums, shift);
}

Linear::Linear(int rows, int k, const Format& format, const Input& input)
    : rows_(rows),
      k_(k),
      num_blocks_(round_up(rows, kLanes) / kLanes),
      num_groups_(round_up(k, kGroup) / kGroup),
      format_(format),
      input_(input) {
  if (format.quantized()) {
    num_scales_ = (num_groups_ + format.groups_per_scale - 1) / format.groups_per_scale;
    const size_t scales = size_t(num_scales_) * kLanes;
    zeros_at_ = scales * (format.float_scales ? sizeof(float) : sizeof(uint16_t));
    codes_at_ = aligned(zeros_at_ + (format.has_zeros ? scales : 0));
    block_bytes_ = codes_at_ + size_t(num_groups_) * kLanes * kGroup * size_t(format.bits) / 8;
    row_sums_ = std::make_shared<std::vector<float>>(size_t(out_stride()), 0.0f);
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
  if (!quantized()) {
    float* out = reinterpret_cast<float*>(block(row / kLanes)) + row % kLanes;
    for (int k = 0; k < k_; ++k) out[size_t(k) * kLanes] = values[k];
    return true;
  }
  std::vector<int8_t> codes(static_cast<size_t>(k_));
  std::vector<float> scales(static_cast<size_t>(num_groups_));
  for (int group = 0; group < num_groups_; ++group) {
    const int first = group * kGroup, last = k_ - first < kGroup ? k_ : first + kGroup;
    float absmax = 0.0f;
    for (int k = first; k < last; ++k) absmax = std::fabs(values[k]) > absmax ? std::fabs(values[k]) : absmax;
    // Codes reach from -128 to 127: 127.5 splits the error at both ends. Weights below 1e-30 count as 0.
    const float scale = absmax > 1e-30f ? from_bf16(bf16_above(absmax / 127.5f)) : 0.0f;
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    scales[size_t(group)] = scale;
    for (int k = first; k < last; ++k) {
      const long code = std::lrintf(values[k] * inverse);
      codes[size_t(k)] = int8_t(code < -128 ? -128 : (code > 127 ? 127 : code));
    }
  }
  put_codes(row, {codes.data(), scales.data(), nullptr, kGroup});
  return true;
}

bool Linear::holds(int bits, int group, bool zeros) const {
  const int own = format_.groups_per_scale * kGroup;
  return quantized() && bits <= format_.bits && (!zeros || format_.has_zeros) && (group % own == 0 || group >= k_);
}

void Linear::put_codes(int row, const CodesRow& from) {
  const int lane = row % kLanes;
  uint8_t* base = block(row / kLanes);
  for (int s = 0; s < num_scales_; ++s) {
    const int index = s * format_.groups_per_scale * kGroup / from.group;
    const size_t at = size_t(s) * kLanes + size_t(lane);
    if (format_.float_scales)
      reinterpret_cast<float*>(base)[at] = from.scales[index];
    else
      reinterpret_cast<uint16_t*>(base)[at] = bf16_above(from.scales[index]);
    if (format_.has_zeros) reinterpret_cast<int8_t*>(base + zeros_at_)[at] = from.zeros ? from.zeros[index] : int8_t(0);
  }
  double total = 0.0;
  uint8_t* codes = base + codes_at_;
  const size_t group_bytes = size_t(kLanes) * kGroup * size_t(format_.bits) / 8;
  for (int k = 0; k < num_groups_ * kGroup; ++k) {
    const int last = k < k_ ? k : k_ - 1;
    const int zero = from.zeros ? from.zeros[last / from.group] : 0;
    const int code = k < k_ ? from.codes[k] : zero;  // what pads the row must count as nothing
    total += double(code - zero) * double(from.scales[last / from.group]);
    uint8_t* group = codes + size_t(k / kGroup) * group_bytes;
    if (format_.bits == 8) {
      group[byte_of(k % kGroup, lane)] = uint8_t(code);
      continue;
    }
    uint8_t& pair = group[nibbles_of(k % kGroup, lane)];
    const bool high = k % kGroup >= kGroup / 2;
    pair = high ? uint8_t((pair & 0x0f) | (code + 8) << 4) : uint8_t((pair & 0xf0) | (code + 8));
  }
  (*row_sums_)[size_t(row)] = float(total);
}

void Linear::put_bias(int row, float value) {
  if (bias_.empty()) bias_.assign(size_t(out_stride()), 0.0f);
  bias_[size_t(row)] = value;
}

float Linear::scale(const uint8_t* base, int index, int lane) const {
  const size_t at = size_t(index) * kLanes + size_t(lane);
  return format_.float_scales ? reinterpret_cast<const float*>(base)[at] : from_bf16(reinterpret_cast<const uint16_t*>(base)[at]);
}

int Linear::code(const uint8_t* base, int k, int lane) const {
  const uint8_t* group = base + codes_at_ + size_t(k / kGroup) * kLanes * kGroup * size_t(format_.bits) / 8;
  if (format_.bits == 8) return int8_t(group[byte_of(k % kGroup, lane)]);
  const uint8_t pair = group[nibbles_of(k % kGroup, lane)];
  return (k % kGroup >= kGroup / 2 ? pair >> 4 : pair & 0x0f) - 8;
}

void Linear::read_row(int row, float* out) const {
  const int lane = row % kLanes;
  const uint8_t* base = block(row / kLanes);
  if (!quantized()) {
    const float* from = reinterpret_cast<const float*>(base) + lane;
    for (int k = 0; k < k_; ++k) out[k] = from[size_t(k) * kLanes];
    return;
  }
  for (int k = 0; k < k_; ++k) {
    const int index = k / kGroup / format_.groups_per_scale;
    const int8_t* zeros = reinterpret_cast<const int8_t*>(base + zeros_at_);
    const int zero = format_.has_zeros ? zeros[size_t(index) * kLanes + size_t(lane)] : 0;
    out[k] = scale(base, index, lane) * float(code(base, k, lane) - zero);
  }
}

void Linear::multiply(const Kernels& kernels, const Activations& x, int token, int num_tokens, int first_block,
                      int last_block, float* out, int out_stride) const {
  if (first_block >= last_block || num_tokens <= 0) return;
  const float* bias = bias_.empty() ? nullptr : bias_.data();
  if (!quantized()) {
    kernels.gemm_f32({weights_->as<float>(), bias, x.row(token), out, size_t(x.stride_), size_t(out_stride), num_tokens, k_,
                      first_block, last_block});
    return;
  }
  const size_t group = size_t(token) * size_t(num_groups_);
  GemmQ g;
  g.weights = weights_->as<uint8_t>();
  g.bias = bias;
  g.row_sums = row_sums_->data();
  g.x = x.bytes_.as<int8_t>() + group * kGroup;
  g.x_scale = x.scales_.as<float>() + group;
  g.x_sum = x.sums_.as<int32_t>() + group;
  g.shift = input_.symmetric ? nullptr : x.shifts_.as<float>() + token;
  g.out = out;
  g.block_bytes = block_bytes_;
  g.zeros_at = zeros_at_;
  g.codes_at = codes_at_;
  g.out_stride = size_t(out_stride);
  g.num_tokens = num_tokens;
  g.num_groups = num_groups_;
  g.groups_per_scale = format_.groups_per_scale;
  g.first_block = first_block;
  g.last_block = last_block;
  g.bits = format_.bits;
  g.has_zeros = format_.has_zeros;
  g.float_scales = format_.float_scales;
  g.full_range = input_.full_range();
  kernels.gemm_q(g);
}

}  // namespace smelt
