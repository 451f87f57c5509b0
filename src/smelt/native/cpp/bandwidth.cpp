#include "bandwidth.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "buffer.h"
#include "linear.h"
#include "pool.h"

namespace smelt {

namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

double read_bandwidth(int num_threads, size_t num_bytes, const Kernels& kernels) {
  Buffer memory(num_bytes, true);
  const size_t num_words = num_bytes / sizeof(uint64_t);
  for (size_t i = 0; i < num_words; i += 512) memory.as<uint64_t>()[i] = i;  // one write a page, so that it exists
  Pool pool(num_threads);
  std::vector<uint64_t> sums(size_t(num_threads) * 8);
  auto read = [&](int thread) {
    const size_t begin = num_words * size_t(thread) / size_t(num_threads);
    const size_t end = num_words * size_t(thread + 1) / size_t(num_threads);
    sums[size_t(thread) * 8] += kernels.sum_words(memory.as<uint64_t>() + begin, end - begin);
  };
  double best_s = 1e30;
  for (int round = 0; round < 4; ++round) {
    const auto start = std::chrono::steady_clock::now();
    pool.run(num_threads, read);
    const double taken_s = seconds_since(start);
    if (round > 0 && taken_s < best_s) best_s = taken_s;
  }
  return double(num_bytes) / best_s / 1e9;
}

double multiply_rate(int num_threads, const Kernels& kernels) {
  constexpr int kRows = 64, kK = 512, kTokens = 64, kRepeats = 40;
  std::vector<float> ones(kK, 1.0f);
  Linear weights(kRows, kK, true);
  for (int i = 0; i < kRows; ++i) weights.put_row(i, ones.data());
  Activations x;
  x.reserve(kTokens, kK, true);
  for (int t = 0; t < kTokens; ++t) {
    std::copy(ones.begin(), ones.end(), x.row(t));
    x.quantize(kernels, t);
  }
  Pool pool(num_threads);
  std::vector<std::vector<float>> out(size_t(num_threads), std::vector<float>(size_t(kTokens) * kRows));
  auto multiply = [&](int thread) {
    for (int i = 0; i < kRepeats; ++i)
      weights.multiply(kernels, x, 0, kTokens, 0, weights.num_blocks(), out[size_t(thread)].data(), kRows);
  };
  double best_s = 1e30;
  for (int round = 0; round < 6; ++round) {
    const auto start = std::chrono::steady_clock::now();
    pool.run(num_threads, multiply);
    const double taken_s = seconds_since(start);
    if (round > 0 && taken_s < best_s) best_s = taken_s;
  }
  return 2.0 * kRows * kK * kTokens * kRepeats * num_threads / best_s / 1e9;
}

}  // namespace smelt
