#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace smelt {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

uint64_t splitmix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

bool allowed(const uint32_t* mask, int token) { return (mask[token / 32] >> (token % 32)) & 1u; }

}  // namespace

double counter_uniform(uint64_t seed, uint64_t draw) {
  return double(splitmix64(splitmix64(seed) ^ draw) >> 11) * 0x1p-53;
}

Sampler::Sampler(const Kernels& kernels, int vocab_size) : kernels_(kernels), vocab_size_(vocab_size) {}

// Bias, penalties and mask into adjusted_; false where nothing is to be adjusted.
bool Sampler::adjust(const float* logits, const Draw& draw) {
  const bool penalties = draw.num_counts > 0 && (draw.presence_penalty != 0.0f || draw.frequency_penalty != 0.0f);
  if (draw.num_biases == 0 && !penalties && draw.mask == nullptr) return false;
  adjusted_.assign(logits, logits + vocab_size_);
  for (int i = 0; i < draw.num_biases; ++i) adjusted_[size_t(draw.bias_ids[i])] += draw.bias_values[i];
  if (penalties) {
    for (int i = 0; i < draw.num_counts; ++i) {
      float& logit = adjusted_[size_t(draw.count_ids[i])];
      if (draw.counts[i] > 0) logit -= draw.presence_penalty;
      logit -= draw.frequency_penalty * float(draw.counts[i]);
    }
  }
  if (draw.mask != nullptr) {
    for (int word = 0; word * 32 < vocab_size_; ++word) {
      const uint32_t bits = draw.mask[word];
      const int last = std::min(word * 32 + 32, vocab_size_);
      if (bits == 0) {
        std::fill(adjusted_.begin() + word * 32, adjusted_.begin() + last, -kInfinity);
      } else if (bits != 0xffffffffu) {
        for (int token = word * 32; token < last; ++token)
          if (!allowed(draw.mask, token)) adjusted_[size_t(token)] = -kInfinity;
      }
    }
  }
  return true;
}

Outcome Sampler::draw(const float* logits, const Draw& draw, int32_t* token) {
  float highest = kernels_.max(logits, vocab_size_);
  if (!std::isfinite(highest)) return Outcome::kNotFinite;
  if (adjust(logits, draw)) {
    logits = adjusted_.data();
    highest = kernels_.max(logits, vocab_size_);
    if (highest == -kInfinity) return Outcome::kNothingAllowed;
  }
  if (draw.temperature <= 0.0f) {
    *token = int32_t(std::find(logits, logits + vocab_size_, highest) - logits);
    return Outcome::kDrawn;
  }
  *token = pick(logits, highest, draw);
  return Outcome::kDrawn;
}

// weights_, bucket_of_ and mass_ of all tokens; returns the sum of all weights.
double Sampler::fill_buckets(const float* logits, float highest, float temperature) {
  weights_.resize(size_t(vocab_size_));
  bucket_of_.resize(size_t(vocab_size_));
  kernels_.exp_sum(logits, vocab_size_, highest, temperature, weights_.data());
  std::fill(mass_, mass_ + kBuckets, 0.0);
  for (int token = 0; token < vocab_size_; ++token) {
    // Rounding keeps order, so a token in an earlier bucket is never less probable than one in a later.
    const float quarters = (highest - logits[token]) / temperature * 4.0f;
    const int bucket = quarters < float(kBuckets - 1) ? int(quarters) : kBuckets - 1;
    bucket_of_[size_t(token)] = uint8_t(bucket);
    mass_[bucket] += double(weights_[size_t(token)]);
  }
  double total = 0.0;
  for (int bucket = 0; bucket < kBuckets; ++bucket) {
    if (mass_[bucket] > 0.0) last_bucket_ = bucket;
    total += mass_[bucket];
  }
  return total;
}

// order_ = the tokens of a bucket, best first, ties by rising id.
void Sampler::sort_bucket(const float* logits, int bucket) {
  order_.clear();
  for (int token = 0; token < vocab_size_; ++token)
    if (bucket_of_[size_t(token)] == bucket) order_.push_back(token);
  std::sort(order_.begin(), order_.end(),
            [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
}

int32_t Sampler::pick(const float* logits, float highest, const Draw& draw) {
  double kept = fill_buckets(logits, highest, draw.temperature);
  int last = last_bucket_;                // where the kept tokens end,
  size_t num_last = size_t(vocab_size_);  // and how many of that bucket are kept
  if (draw.top_p < 1.0f) {
    const double wanted = double(draw.top_p) * kept;
    int bucket = 0;
    for (kept = 0.0; bucket < last && kept + mass_[bucket] < wanted; ++bucket) kept += mass_[bucket];
    last = bucket;
    sort_bucket(logits, last);
    num_last = 0;
    while (num_last < order_.size()) {
      kept += double(weights_[size_t(order_[num_last++])]);
      if (kept >= wanted) break;
    }
  }
  const double target = counter_uniform(draw.seed, draw.draw) * kept;
  double sum = 0.0;
  int bucket = 0;
  for (; bucket < last && sum + mass_[bucket] <= target; ++bucket) sum += mass_[bucket];
  sort_bucket(logits, bucket);
  const size_t count = bucket == last ? std::min(num_last, order_.size()) : order_.size();
  int32_t found = order_[0];
  for (size_t i = 0; i < count && sum <= target; ++i) {  // ends early only where rounding lifts u * sum to the sum
    const double weight = double(weights_[size_t(order_[i])]);
    if (weight > 0.0) found = order_[i];
    sum += weight;
  }
  return found;
}

Outcome Sampler::report(const float* logits, int32_t token, int k, int width, float* logprob, int32_t* ids,
                        float* logprobs) {
  const float highest = kernels_.max(logits, vocab_size_);
  if (!std::isfinite(highest)) return Outcome::kNotFinite;
  weights_.resize(size_t(vocab_size_));
  const double log_total = std::log(kernels_.exp_sum(logits, vocab_size_, highest, 1.0f, weights_.data()));
  const auto logprob_of = [&](int32_t id) { return float(double(logits[id]) - double(highest) - log_total); };
  *logprob = token >= 0 ? logprob_of(token) : kNan;
  // The best so far in order; a later token enters only where it is strictly better, so ties rise by id.
  order_.clear();
  const size_t wanted = size_t(std::min(std::max(k, 0), vocab_size_));
  for (int id = 0; id < vocab_size_ && wanted > 0; ++id) {
    if (order_.size() == wanted && !(logits[id] > logits[order_.back()])) continue;
    if (order_.size() == wanted) order_.pop_back();
    const auto place = std::find_if(order_.rbegin(), order_.rend(), [&](int32_t other) { return logits[other] >= logits[id]; });
    order_.insert(place.base(), id);
  }
  for (int i = 0; i < width; ++i) {
    const bool filled = size_t(i) < order_.size();
    ids[i] = filled ? order_[size_t(i)] : -1;
    logprobs[i] = filled ? logprob_of(order_[size_t(i)]) : kNan;
  }
  return Outcome::kDrawn;
}

}  // namespace smelt
