// core/step.py's StepBatch and StepResult on this side: copies, so that nothing checked here can change afterwards.
#pragma once
#include <cstdint>
#include <vector>

#include "sampler.h"

namespace smelt {

struct Limits {
  int vocab_size, context_len, num_blocks, block_size;
  int num_privileges = 0;
};

struct Batch {
  std::vector<int32_t> token_ids, starts, next_ids, first_positions, block_tables, top_k;
  std::vector<uint8_t> sample, score;
  std::vector<uint8_t> privileges;  // empty where the caller gives none
  std::vector<float> temperatures, top_ps, presence_penalties, frequency_penalties, bias_values;
  std::vector<uint64_t> seeds, draws;
  std::vector<int32_t> bias_starts, bias_ids, count_starts, count_ids, counts, mask_rows;
  const uint32_t* masks = nullptr;  // the caller's; any bits are safe
  int table_width = 0, num_masks = 0, mask_words = 0;

  int num_tokens() const { return int(token_ids.size()); }
  int num_sequences() const { return int(first_positions.size()); }
  int count(int s) const { return starts[size_t(s) + 1] - starts[size_t(s)]; }
  const int32_t* table(int s) const { return block_tables.data() + size_t(s) * size_t(table_width); }
  // The widest list of alternatives anyone wants.
  int width() const;
  Draw draw(int s) const;
  // Throws std::invalid_argument naming the array, what it holds and what would be right.
  void check(const Limits& limits) const;
};

struct Result {
  std::vector<int32_t> token_ids, top_ids, scored_top_ids;
  std::vector<float> logprobs, top_logprobs, scored_logprobs, scored_top_logprobs;
  int width = 0, num_scored = 0;
  std::vector<float> logits;  // [T, V], only where asked for

  void prepare(const Batch& batch);
};

}  // namespace smelt
