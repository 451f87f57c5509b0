// Drawing tokens: the fast twin of smelt.engine.sampling, row by row.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace smelt {

// How to draw after one sequence; spans point into the batch.
struct Draw {
  float temperature, top_p, presence_penalty, frequency_penalty;
  uint64_t seed, draw;
  const int32_t* bias_ids;
  const float* bias_values;
  int num_biases;
  const int32_t* count_ids;
  const int32_t* counts;
  int num_counts;
  const uint32_t* mask;  // or null
};

enum class Outcome { kDrawn, kNotFinite, kNothingAllowed };

class Sampler {
 public:
  Sampler(const Kernels& kernels, int vocab_size);

  // A token by `draw` from logits [V], which stay as they are.
  Outcome draw(const float* logits, const Draw& draw, int32_t* token);
  // Natural log-probability of `token` (NaN where it is -1) and the k best, best first, ties by rising id; ids and
  // logprobs have room for `width`, the rest is padded with -1 and NaN.
  Outcome report(const float* logits, int32_t token, int k, int width, float* logprob, int32_t* ids, float* logprobs);

 private:
  bool adjust(const float* logits, const Draw& draw);
  int32_t pick(const float* logits, float highest, const Draw& draw);
  double fill_buckets(const float* logits, float highest, float temperature);
  void sort_bucket(const float* logits, int bucket);

  const Kernels& kernels_;
  int vocab_size_;
  std::vector<float> adjusted_, weights_;
  std::vector<int32_t> order_;
  // Tokens by distance from the best one, so that only the bucket a draw falls into has to be sorted.
  static constexpr int kBuckets = 256;
  std::vector<uint8_t> bucket_of_;
  double mass_[kBuckets];
  int last_bucket_ = 0;  // with any probability
};

double counter_uniform(uint64_t seed, uint64_t draw);

}  // namespace smelt
