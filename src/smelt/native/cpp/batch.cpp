#include "batch.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace smelt {

namespace {

[[noreturn]] void refuse(const char* name, size_t index, const std::string& found, const std::string& sought) {
  throw std::invalid_argument(std::string(name) + "[" + std::to_string(index) + "] is " + found + "; sought " + sought);
}

template <typename T>
void check_length(const char* name, const std::vector<T>& values, size_t length) {
  if (values.size() == length) return;
  throw std::invalid_argument(std::string(name) + " has " + std::to_string(values.size()) + " entries; sought " +
                              std::to_string(length));
}

void check_range(const char* name, const std::vector<int32_t>& values, int lowest, int highest) {
  for (size_t i = 0; i < values.size(); ++i)
    if (values[i] < lowest || values[i] > highest)
      refuse(name, i, std::to_string(values[i]), std::to_string(lowest) + ".." + std::to_string(highest));
}

void check_range(const char* name, const std::vector<float>& values, float lowest, float highest) {
  for (size_t i = 0; i < values.size(); ++i)
    if (!(values[i] >= lowest && values[i] <= highest))  // refuses NaN too
      refuse(name, i, std::to_string(values[i]), std::to_string(lowest) + ".." + std::to_string(highest));
}

// Offsets of a CSR array over n rows: from 0 to the number of entries, each step at least `least`.
void check_offsets(const char* name, const std::vector<int32_t>& starts, size_t num_rows, size_t num_entries, int least) {
  check_length(name, starts, num_rows + 1);
  if (starts[0] != 0) refuse(name, 0, std::to_string(starts[0]), "0");
  for (size_t i = 0; i < num_rows; ++i)
    if (int64_t(starts[i + 1]) < int64_t(starts[i]) + least)
      refuse(name, i + 1, std::to_string(starts[i + 1]), "at least " + std::to_string(int64_t(starts[i]) + least));
  if (size_t(starts[num_rows]) != num_entries)
    refuse(name, num_rows, std::to_string(starts[num_rows]), std::to_string(num_entries));
}

constexpr float kMost = std::numeric_limits<float>::max();

}  // namespace

int Batch::width() const {
  int width = 0;
  for (int32_t k : top_k) width = std::max(width, int(k));
  return width;
}

Draw Batch::draw(int s) const {
  const size_t i = size_t(s);
  const int32_t bias = bias_starts[i], count = count_starts[i];
  return {temperatures[i],
          top_ps[i],
          presence_penalties[i],
          frequency_penalties[i],
          seeds[i],
          draws[i],
          bias_ids.data() + bias,
          bias_values.data() + bias,
          bias_starts[i + 1] - bias,
          count_ids.data() + count,
          counts.data() + count,
          count_starts[i + 1] - count,
          mask_rows[i] >= 0 ? masks + size_t(mask_rows[i]) * size_t(mask_words) : nullptr};
}

void Batch::check(const Limits& limits) const {
  const size_t S = first_positions.size();  // NOLINT: the contract's name
  if (S == 0 || token_ids.empty()) throw std::invalid_argument("the batch is empty; sought at least one token");
  check_offsets("starts", starts, S, token_ids.size(), 1);
  check_range("token_ids", token_ids, 0, limits.vocab_size - 1);
  check_length("next_ids", next_ids, token_ids.size());
  check_range("next_ids", next_ids, -1, limits.vocab_size - 1);
  if (limits.num_privileges > 0 || !privileges.empty()) check_length("privileges", privileges, token_ids.size());
  if (limits.num_privileges > 0) {
    for (size_t i = 0; i < privileges.size(); ++i)
      if (privileges[i] >= limits.num_privileges)
        refuse("privileges", i, std::to_string(privileges[i]), "below " + std::to_string(limits.num_privileges));
  }
  check_length("sample", sample, S);
  check_length("score", score, S);
  check_length("temperatures", temperatures, S);
  check_range("temperatures", temperatures, 0.0f, kMost);
  check_length("top_ps", top_ps, S);
  check_range("top_ps", top_ps, 0.0f, 1.0f);
  check_length("presence_penalties", presence_penalties, S);
  check_range("presence_penalties", presence_penalties, -kMost, kMost);
  check_length("frequency_penalties", frequency_penalties, S);
  check_range("frequency_penalties", frequency_penalties, -kMost, kMost);
  check_length("seeds", seeds, S);
  check_length("draws", draws, S);
  check_length("top_k", top_k, S);
  check_range("top_k", top_k, -1, std::max(limits.vocab_size, 1024));
  check_offsets("bias_starts", bias_starts, S, bias_ids.size(), 0);
  check_range("bias_ids", bias_ids, 0, limits.vocab_size - 1);
  check_length("bias_values", bias_values, bias_ids.size());
  check_range("bias_values", bias_values, -kMost, kMost);
  check_offsets("count_starts", count_starts, S, count_ids.size(), 0);
  check_range("count_ids", count_ids, 0, limits.vocab_size - 1);
  check_length("counts", counts, count_ids.size());
  check_length("mask_rows", mask_rows, S);
  check_range("mask_rows", mask_rows, -1, num_masks - 1);
  if (num_masks > 0 && mask_words != (limits.vocab_size + 31) / 32)
    throw std::invalid_argument("masks has " + std::to_string(mask_words) + " words a row; sought " +
                                std::to_string((limits.vocab_size + 31) / 32));
  if (block_tables.size() != S * size_t(table_width))
    throw std::invalid_argument("block_tables has " + std::to_string(block_tables.size()) + " entries; sought one row for each of " +
                                std::to_string(S) + " sequences");
  for (size_t s = 0; s < S; ++s) {
    const int64_t first = first_positions[s], end = first + count(int(s));
    if (first < 0 || end > limits.context_len)
      refuse("first_positions", s, std::to_string(first),
             "0.." + std::to_string(limits.context_len - count(int(s))) + ", so that its tokens fit the context");
    const int64_t num_blocks = (end + limits.block_size - 1) / limits.block_size;
    if (num_blocks > table_width)
      refuse("block_tables", s, std::to_string(table_width) + " blocks", std::to_string(num_blocks) + " for position " + std::to_string(end - 1));
    for (int64_t b = 0; b < num_blocks; ++b) {
      const int32_t id = table(int(s))[b];
      if (id < 0 || id >= limits.num_blocks)
        refuse("block_tables", s, std::to_string(id) + " at " + std::to_string(b), "0.." + std::to_string(limits.num_blocks - 1));
    }
  }
}

void Result::prepare(const Batch& batch) {
  const size_t num_sequences = size_t(batch.num_sequences());
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  width = batch.width();
  num_scored = 0;
  for (int s = 0; s < batch.num_sequences(); ++s)
    if (batch.score[size_t(s)]) num_scored += batch.count(s);
  token_ids.assign(num_sequences, -1);
  logprobs.assign(num_sequences, nan);
  top_ids.assign(num_sequences * size_t(width), -1);
  top_logprobs.assign(num_sequences * size_t(width), nan);
  scored_logprobs.assign(size_t(num_scored), nan);
  scored_top_ids.assign(size_t(num_scored) * size_t(width), -1);
  scored_top_logprobs.assign(size_t(num_scored) * size_t(width), nan);
}

}  // namespace smelt
