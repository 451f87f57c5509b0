// A decoder: its shape, its repacked weights, its pool of keys and values, and the step over a batch.
#pragma once
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "batch.h"
#include "buffer.h"
#include "kernels.h"
#include "linear.h"
#include "pool.h"
#include "residue.h"

namespace smelt {

struct Shape {
  int vocab_size, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, context_len;
  float norm_eps, embedding_scale, attention_scale;
  bool gelu, tie_embeddings;
  int num_privileges = 0;  // rows of the table of who said a token; 0 for none

  int q_size() const { return num_heads * head_dim; }
  int kv_size() const { return num_kv_heads * head_dim; }
  int group() const { return num_heads / num_kv_heads; }
};

struct Rope {
  std::vector<float> inv_freq;  // [head_dim / 2]
  float factor;                 // of cos and sin
};

struct Layer {
  int window = 0;  // 0: everything before is seen
  int rope = 0;
  int home = 0;  // the layer whose matrices this one uses: itself or an earlier one
  int residue_rank = 0;
  Linear qkv, o, gate_up, down;
  Residue qkv_residue, o_residue, gate_up_residue, down_residue;  // empty where residue_rank is 0
  std::vector<float> entry;  // added to the residual stream in front of the layer; empty for none
  // Norm weights, offset included, padded with zeros; empty where the family has none.
  std::vector<float> attn_norm, attn_post_norm, mlp_norm, mlp_post_norm, q_norm, k_norm;
};

// Gate and up rows alternate in stripes this long, so that the thread that computes one has the other.
constexpr int kStripe = kGroup;

// Keys and values of all layers: [layer][block][kv head] of (keys [head_dim][block_size], values [block_size][padded]).
class Cache {
 public:
  Cache(const Shape& shape, int num_layers, int num_blocks, int block_size);
  int num_blocks() const { return num_blocks_; }
  int block_size() const { return block_size_; }
  size_t block_stride() const { return head_stride_ * size_t(num_kv_heads_); }  // in floats
  float* head(int layer, int kv_head) const {
    return memory_.as<float>() + size_t(layer) * size_t(num_blocks_) * block_stride() + size_t(kv_head) * head_stride_;
  }
  // Writes one token's key and value of one head; `block` is where head() of its block begins.
  void put(float* block, int row, const float* key, const float* value) const;

 private:
  int num_blocks_, block_size_, head_dim_, padded_, num_kv_heads_;
  size_t head_stride_;
  Buffer memory_;
};

class Model {
 public:
  Model(const Shape& shape, std::vector<Layer> layers, std::vector<Rope> ropes, bool quantized, const Kernels& kernels);

  // Exchanges a matrix ("qkv", "o", "gate_up", "down"; layer -1: "embedding", "head") for one of another format, before
  // anything is put into it. Layers that share it have the new one.
  void refit(int layer, const std::string& matrix, const Format& format, const Input& input);
  // Weights come one tensor at a time under the names of smelt.native.weights; throws std::invalid_argument.
  void put_matrix(int layer, const std::string& slot, const float* values, int rows, int cols);
  // Rows of integers of so many bits; `from` is the first of them, `num_scales` the scales of each.
  void put_codes(int layer, const std::string& slot, CodesRow from, int bits, int rows, int cols, int num_scales);
  void put_vector(int layer, const std::string& slot, const float* values, int n);
  // Throws std::invalid_argument where something is still missing.
  void finish() const;

  const Shape& shape() const { return shape_; }
  const std::vector<Layer>& layers() const { return layers_; }
  const std::vector<Rope>& ropes() const { return ropes_; }
  const Kernels& kernels() const { return kernels_; }
  bool quantized() const { return quantized_; }
  const Linear& embedding() const { return embedding_; }
  const Linear& head() const { return shape_.tie_embeddings ? embedding_ : head_; }
  const float* final_norm() const { return final_norm_.data(); }
  // What is added to the embedding of a token said by `privilege`.
  const float* privilege(int privilege) const { return privileges_.data() + size_t(privilege) * size_t(shape_.hidden_size); }
  size_t weight_bytes() const;
  // Multiply-adds of one token through all layers.
  double macs_per_token() const;

 private:
  // Rows of matrices that must be put: those of layers with matrices of their own, residues, embedding and head.
  size_t num_rows() const;

  Shape shape_;
  std::vector<Layer> layers_;
  std::vector<Rope> ropes_;
  bool quantized_;
  const Kernels& kernels_;
  Linear embedding_, head_;
  std::vector<float> final_norm_, privileges_;
  size_t num_rows_put_ = 0;
};

}  // namespace smelt
