// One step of a model over a flat batch: every thread walks the layers together, meeting at barriers.
//
// T tokens of the batch are taken in passes of at most kPassTokens. In a small pass each thread keeps the whole residual
// stream for itself and repeats norms and quantisation, which is cheaper than meeting; in a large one tokens are shared out.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "batch.h"
#include "model.h"
#include "pool.h"

namespace smelt {

class Runner {
 public:
  Runner(std::shared_ptr<const Model> model, int num_blocks, int block_size, int num_threads);

  // Throws std::invalid_argument for a bad batch (nothing is computed then), std::runtime_error where the model's logits
  // are no distribution or a mask allows nothing. all_logits: fill result.logits for every token and draw nothing.
  void step(const Batch& batch, Result& result, bool all_logits);

  const Model& model() const { return *model_; }
  const Cache& cache() const { return cache_; }
  int num_threads() const { return pool_.num_threads(); }
  int last_active() const { return num_active_; }
  Limits limits() const;

 private:
  // A token of the pass: flat index in the batch, its sequence and position.
  struct Token {
    int index, sequence, position;
  };
  // Queries of one key/value head that `attend` takes together.
  struct Tile {
    int first, num_tokens, kv_head;
  };
  // A token whose logits are wanted; scored: row of result.scored_*, or -1.
  struct Row {
    int token, scored;
    bool drawn;
  };
  struct Pass {
    std::vector<Token> tokens;
    std::vector<Tile> tiles;
    std::vector<Row> rows;
    bool small = false;
  };
  // The residual stream and what is made of it; one for each thread in small passes, else one for all.
  struct Stream {
    Activations x, normed, mixed;
  };
  struct Range {
    int first, last;
  };

  void plan(const Batch& batch, bool all_logits);
  void add_tiles(Pass& pass) const;
  int choose_active(const Batch& batch, double now_s);
  void run_passes();
  void reserve(int num_tokens);

  void run_pass(const Pass& pass, int thread);
  void embed(const Pass& pass, Stream& stream, Range tokens);
  void fill_ropes(const Pass& pass, int thread);
  void attention_layer(const Pass& pass, int index, Stream& stream, Range tokens, int thread);
  void mlp_layer(const Pass& pass, const Layer& layer, Stream& stream, Range tokens, int thread);
  void rotate_and_store(const Pass& pass, int index, int token, int thread);
  void shape_head(const std::vector<float>& norm, const float* cos, float* head, float* scratch) const;
  void attend_tiles(const Pass& pass, int index, int thread);
  void add_output(const std::vector<float>& post_norm, Stream& stream, Range tokens, int thread);
  void find_logits(const Pass& pass, Stream& stream, int thread);
  void use_logits(const Row& row, const Token& token, const float* logits, int thread);
  void meet(const Pass& pass) {
    if (!pass.small) pool_.barrier();
  }
  // Row blocks of a matrix, and of the residue beside it, for tokens [token, token + num_tokens) of x.
  void multiply(const Linear& linear, const Residue& residue, const Activations& x, int token, int num_tokens, Range blocks,
                float* out, int out_stride, int thread) {
    linear.multiply(kernels_, x, token, num_tokens, blocks.first, blocks.last, out, out_stride);
    residue.add(kernels_, x, token, num_tokens, blocks.first, blocks.last, out, out_stride, residue_scratch_[size_t(thread)]);
  }
  Range share(int n, int unit, int thread) const;

  std::shared_ptr<const Model> model_;
  const Kernels& kernels_;
  Cache cache_;
  Pool pool_;
  Crowding crowding_;
  std::mutex mutex_;
  std::vector<Pass> passes_;
  std::vector<Stream> streams_;
  std::vector<Sampler> samplers_;
  std::vector<Buffer> scratch_;  // by thread
  std::vector<ResidueScratch> residue_scratch_;  // by thread
  Activations attended_, inner_, head_in_;
  Buffer qkv_, gate_up_, output_, logits_, ropes_;
  std::vector<std::atomic<int>> next_tile_;  // by layer
  std::atomic<int> failure_{0};
  int num_active_ = 1;
  const Batch* batch_ = nullptr;
  Result* result_ = nullptr;
  bool all_logits_ = false;
};

}  // namespace smelt
