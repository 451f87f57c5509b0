#include "residue.h"

#include <algorithm>

namespace smelt {

namespace {
constexpr int kTokens = 16;  // whose products are held at once
}

void Residue::add(const Kernels& kernels, const Activations& x, int token, int num_tokens, int first_block, int last_block,
                  float* out, int out_stride, ResidueScratch& scratch) const {
  if (empty() || first_block >= last_block) return;
  Activations& narrow = scratch.narrow;
  narrow.reserve(kTokens, reduce.rows(), reduce.quantized());
  scratch.wide.reserve(size_t(kTokens) * size_t(out_stride) * sizeof(float));
  const size_t column = size_t(first_block) * kLanes;
  for (int first = 0; first < num_tokens; first += kTokens) {
    const int count = std::min(kTokens, num_tokens - first);
    reduce.multiply(kernels, x, token + first, count, 0, reduce.num_blocks(), narrow.row(0), narrow.stride());
    for (int t = 0; t < count; ++t) {
      std::fill(narrow.row(t) + reduce.out_stride(), narrow.row(t) + narrow.stride(), 0.0f);
      narrow.quantize(kernels, t);
    }
    float* wide = scratch.wide.as<float>();
    expand.multiply(kernels, narrow, 0, count, first_block, last_block, wide, out_stride);
    for (int t = 0; t < count; ++t)
      kernels.add(out + size_t(first + t) * size_t(out_stride) + column, wide + size_t(t) * size_t(out_stride) + column,
                  (last_block - first_block) * kLanes);
  }
}

}  // namespace smelt
