#include "model.h"

#include <algorithm>
#include <stdexcept>

namespace smelt {

namespace {

// Where row i of gate (up: one stripe later) stands in the fused matrix.
int striped(int row, bool up) { return row / kStripe * 2 * kStripe + row % kStripe + (up ? kStripe : 0); }

struct Place {
  Linear* linear;
  int rows, cols, first;
  bool is_striped, up;
  int column = 0;
  int row(int i) const { return is_striped ? striped(i, up) : first + i; }
};

// Ranks of a layer's residues: of no matrix more than its smaller side.
struct Ranks {
  int q, kv, inner;
  Ranks(const Shape& s, int rank)
      : q(std::min({rank, s.q_size(), s.hidden_size})),
        kv(std::min({rank, s.kv_size(), s.hidden_size})),
        inner(std::min({rank, s.intermediate_size, s.hidden_size})) {}
};

void add_residues(const Shape& shape, Layer& layer, bool quantized) {
  if (layer.residue_rank == 0) return;
  const Ranks ranks(shape, layer.residue_rank);
  const int hidden = shape.hidden_size;
  layer.qkv_residue = Residue(layer.qkv.rows(), ranks.q + 2 * ranks.kv, hidden, quantized);
  layer.o_residue = Residue(hidden, ranks.q, shape.q_size(), quantized);
  layer.gate_up_residue = Residue(layer.gate_up.rows(), 2 * ranks.inner, hidden, quantized);
  layer.down_residue = Residue(hidden, ranks.inner, shape.intermediate_size, quantized);
}

}  // namespace

Cache::Cache(const Shape& shape, int num_layers, int num_blocks, int block_size)
    : num_blocks_(num_blocks),
      block_size_(block_size),
      head_dim_(shape.head_dim),
      padded_(round_up(shape.head_dim, kLanes)),
      num_kv_heads_(shape.num_kv_heads),
      head_stride_(size_t(block_size) * size_t(shape.head_dim + round_up(shape.head_dim, kLanes))),
      memory_(size_t(num_layers) * size_t(num_blocks) * size_t(shape.num_kv_heads) * head_stride_ * sizeof(float)) {}

void Cache::put(float* block, int row, const float* key, const float* value) const {
  float* values = block + size_t(head_dim_) * size_t(block_size_) + size_t(row) * size_t(padded_);
  for (int d = 0; d < head_dim_; ++d) block[size_t(d) * size_t(block_size_) + size_t(row)] = key[d];
  for (int d = 0; d < head_dim_; ++d) values[d] = value[d];
}

Model::Model(const Shape& shape, std::vector<Layer> layers, std::vector<Rope> ropes, bool quantized, const Kernels& kernels)
    : shape_(shape), layers_(std::move(layers)), ropes_(std::move(ropes)), quantized_(quantized), kernels_(kernels) {
  const int hidden = shape.hidden_size, inner = round_up(shape.intermediate_size, kStripe);
  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    if (layer.home < 0 || layer.home > int(i) || layers_[size_t(layer.home)].home != layer.home)
      throw std::invalid_argument("layer " + std::to_string(i) + " uses the weights of layer " + std::to_string(layer.home));
    if (layer.home != int(i)) {
      const Layer& home = layers_[size_t(layer.home)];
      layer.qkv = home.qkv.sharing();
      layer.o = home.o.sharing();
      layer.gate_up = home.gate_up.sharing();
      layer.down = home.down.sharing();
    } else {
      layer.qkv = Linear(shape.q_size() + 2 * shape.kv_size(), hidden, quantized);
      layer.o = Linear(hidden, shape.q_size(), quantized);
      layer.gate_up = Linear(2 * inner, hidden, quantized);
      layer.down = Linear(hidden, shape.intermediate_size, quantized);
    }
    add_residues(shape, layer, quantized);
  }
  embedding_ = Linear(shape.vocab_size, hidden, quantized);
  if (!shape.tie_embeddings) head_ = Linear(shape.vocab_size, hidden, quantized);
}

static Place find_place(const Shape& shape, Layer* layer, Linear& embedding, Linear& head, const std::string& slot) {
  const int hidden = shape.hidden_size, inner = shape.intermediate_size, q = shape.q_size(), kv = shape.kv_size();
  if (layer == nullptr) {
    if (slot == "embedding") return {&embedding, shape.vocab_size, hidden, 0, false, false};
    if (slot == "head" && !shape.tie_embeddings) return {&head, shape.vocab_size, hidden, 0, false, false};
  } else {
    if (slot == "q") return {&layer->qkv, q, hidden, 0, false, false};
    if (slot == "k") return {&layer->qkv, kv, hidden, q, false, false};
    if (slot == "v") return {&layer->qkv, kv, hidden, q + kv, false, false};
    if (slot == "o") return {&layer->o, hidden, q, 0, false, false};
    if (slot == "gate") return {&layer->gate_up, inner, hidden, 0, true, false};
    if (slot == "up") return {&layer->gate_up, inner, hidden, 0, true, true};
    if (slot == "down") return {&layer->down, hidden, inner, 0, false, false};
  }
  throw std::invalid_argument("no matrix is called " + slot);
}

void Model::refit(int layer, const std::string& matrix, const Format& format, const Input& input) {
  const int hidden = shape_.hidden_size, inner = round_up(shape_.intermediate_size, kStripe);
  if (layer < 0) {
    if (matrix != "embedding" && (matrix != "head" || shape_.tie_embeddings)) throw std::invalid_argument("no matrix is called " + matrix);
    (matrix == "head" ? head_ : embedding_) = Linear(shape_.vocab_size, hidden, format, input);
    return;
  }
  Linear Layer::*one = &Layer::down;
  Residue Layer::*residue = &Layer::down_residue;
  int rows = hidden, k = shape_.intermediate_size;
  if (matrix == "qkv") {
    one = &Layer::qkv, residue = &Layer::qkv_residue;
    rows = shape_.q_size() + 2 * shape_.kv_size(), k = hidden;
  } else if (matrix == "o") {
    one = &Layer::o, residue = &Layer::o_residue;
    k = shape_.q_size();
  } else if (matrix == "gate_up") {
    one = &Layer::gate_up, residue = &Layer::gate_up_residue;
    rows = 2 * inner, k = hidden;
  } else if (matrix != "down") {
    throw std::invalid_argument("no matrix is called " + matrix);
  }
  const Linear made(rows, k, format, input);
  for (Layer& each : layers_) {
    if (each.home != layer) continue;
    each.*one = made.sharing();
    (each.*residue).reduce.set_input(input);  // it multiplies the same activations
  }
}

// The place of "q_reduce", "q_expand" and so on, from that of "q".
static Place find_residue(const Shape& shape, Layer& layer, const Place& whole, const std::string& slot) {
  const size_t end = slot.rfind('_');
  const std::string stem = slot.substr(0, end);
  const Ranks ranks(shape, layer.residue_rank);
  Residue* residue = &layer.down_residue;
  if (whole.linear == &layer.qkv) residue = &layer.qkv_residue;
  if (whole.linear == &layer.o) residue = &layer.o_residue;
  if (whole.linear == &layer.gate_up) residue = &layer.gate_up_residue;
  if (residue->empty()) throw std::invalid_argument("the layer has no residue; found " + slot);
  const int rank = stem == "k" || stem == "v" ? ranks.kv : (stem == "q" || stem == "o" ? ranks.q : ranks.inner);
  const int before = stem == "k" ? ranks.q : (stem == "v" ? ranks.q + ranks.kv : (stem == "up" ? ranks.inner : 0));
  if (slot.compare(end, std::string::npos, "_reduce") == 0) return {&residue->reduce, rank, whole.cols, before, false, false};
  return {&residue->expand, whole.rows, rank, whole.first, whole.is_striped, whole.up, before};
}

void Model::put_matrix(int layer, const std::string& slot, const float* values, int rows, int cols) {
  if (layer < 0 && slot == "privileges" && shape_.num_privileges > 0) {  // added, not multiplied: kept as it is
    if (rows != shape_.num_privileges || cols != shape_.hidden_size)
      throw std::invalid_argument("privileges has shape " + std::to_string(rows) + "x" + std::to_string(cols));
    for (int i = 0; i < rows * cols; ++i)
      if (!(values[i] - values[i] == 0.0f)) throw std::invalid_argument("privileges holds NaN or infinity");
    privileges_.assign(values, values + size_t(rows) * size_t(cols));
    return;
  }
  Layer* owner = layer < 0 ? nullptr : &layers_.at(size_t(layer));
  const size_t suffix = std::max(slot.find("_reduce") + 1, slot.find("_expand") + 1);  // 0 for neither
  Place place = find_place(shape_, owner, embedding_, head_, suffix ? slot.substr(0, suffix - 1) : slot);
  if (owner != nullptr && suffix) place = find_residue(shape_, *owner, place, slot);
  if (rows != place.rows || cols != place.cols)
    throw std::invalid_argument(slot + " has shape " + std::to_string(rows) + "x" + std::to_string(cols) + "; sought " +
                                std::to_string(place.rows) + "x" + std::to_string(place.cols));
  if (place.linear->quantized() && !place.linear->holds(8, kGroup, false))
    throw std::invalid_argument(slot + " comes as floats, which its matrix was not made for");
  std::vector<float> wide(size_t(place.linear->k()));
  for (int i = 0; i < rows; ++i) {
    std::copy_n(values + size_t(i) * size_t(cols), size_t(cols), wide.begin() + place.column);
    if (!place.linear->put_row(place.row(i), wide.data()))
      throw std::invalid_argument(slot + " holds NaN or infinity in row " + std::to_string(i));
  }
  num_rows_put_ += size_t(rows);
}

void Model::put_codes(int layer, const std::string& slot, CodesRow from, int bits, int rows, int cols, int num_scales) {
  Layer* owner = layer < 0 ? nullptr : &layers_.at(size_t(layer));
  const Place place = find_place(shape_, owner, embedding_, head_, slot);
  if (rows != place.rows || cols != place.cols)
    throw std::invalid_argument(slot + " has shape " + std::to_string(rows) + "x" + std::to_string(cols) + "; sought " +
                                std::to_string(place.rows) + "x" + std::to_string(place.cols));
  if (!place.linear->holds(bits, from.group, from.zeros != nullptr) || num_scales != (cols + from.group - 1) / from.group)
    throw std::invalid_argument(slot + " has groups of " + std::to_string(from.group) + ", which its matrix was not made for");
  for (int i = 0; i < rows; ++i) {
    place.linear->put_codes(place.row(i), from);
    from.codes += cols;
    from.scales += num_scales;
    if (from.zeros) from.zeros += num_scales;
  }
  num_rows_put_ += size_t(rows);
}

void Model::put_vector(int layer, const std::string& slot, const float* values, int n) {
  for (int i = 0; i < n; ++i)
    if (!(values[i] - values[i] == 0.0f)) throw std::invalid_argument(slot + " holds NaN or infinity");
  Layer* owner = layer < 0 ? nullptr : &layers_.at(size_t(layer));
  const size_t suffix = slot.rfind("_bias");
  if (owner != nullptr && suffix != std::string::npos) {
    const Place place = find_place(shape_, owner, embedding_, head_, slot.substr(0, suffix));
    if (n != place.rows) throw std::invalid_argument(slot + " has " + std::to_string(n) + " entries; sought " + std::to_string(place.rows));
    for (int i = 0; i < n; ++i) place.linear->put_bias(place.row(i), values[i]);
    return;
  }
  std::vector<float>* norm = nullptr;
  int length = shape_.hidden_size;
  if (owner == nullptr) {
    if (slot == "final_norm") norm = &final_norm_;
  } else {
    if (slot == "entry") norm = &owner->entry;
    if (slot == "attn_norm") norm = &owner->attn_norm;
    if (slot == "attn_post_norm") norm = &owner->attn_post_norm;
    if (slot == "mlp_norm") norm = &owner->mlp_norm;
    if (slot == "mlp_post_norm") norm = &owner->mlp_post_norm;
    if (slot == "q_norm" || slot == "k_norm") {
      norm = slot == "q_norm" ? &owner->q_norm : &owner->k_norm;
      length = shape_.head_dim;
    }
  }
  if (norm == nullptr) throw std::invalid_argument("no vector is called " + slot);
  if (n != length) throw std::invalid_argument(slot + " has " + std::to_string(n) + " entries; sought " + std::to_string(length));
  norm->assign(size_t(round_up(n, kGroup)), 0.0f);
  std::copy(values, values + n, norm->begin());
}

void Model::finish() const {
  if (num_rows_put_ != num_rows())
    throw std::invalid_argument("the matrices hold " + std::to_string(num_rows_put_) + " rows; sought " + std::to_string(num_rows()));
  if (privileges_.empty() != (shape_.num_privileges == 0)) throw std::invalid_argument("the table of privileges is missing");
  bool complete = !final_norm_.empty();
  for (const Layer& layer : layers_)
    complete = complete && !layer.attn_norm.empty() && !layer.mlp_norm.empty() &&
               layer.attn_post_norm.empty() == layer.mlp_post_norm.empty() && layer.q_norm.empty() == layer.k_norm.empty();
  if (!complete) throw std::invalid_argument("a norm's weights are missing");
}

size_t Model::weight_bytes() const {
  size_t total = embedding_.num_bytes() + head_.num_bytes();
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    total += layer.qkv_residue.num_bytes() + layer.o_residue.num_bytes() + layer.gate_up_residue.num_bytes() +
             layer.down_residue.num_bytes();
    if (layer.home != int(i)) continue;
    total += layer.qkv.num_bytes() + layer.o.num_bytes() + layer.gate_up.num_bytes() + layer.down.num_bytes();
  }
  return total;
}

size_t Model::num_rows() const {
  const size_t per_layer = size_t(shape_.q_size() + 2 * shape_.kv_size() + 2 * shape_.hidden_size + 2 * shape_.intermediate_size);
  size_t found = size_t(shape_.vocab_size) * (shape_.tie_embeddings ? 1 : 2);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    if (layer.home == int(i)) found += per_layer;
    if (layer.residue_rank == 0) continue;
    const Ranks ranks(shape_, layer.residue_rank);
    found += per_layer + size_t(2 * ranks.q + 2 * ranks.kv + 3 * ranks.inner);
  }
  return found;
}

double Model::macs_per_token() const {
  const double per_layer = double(shape_.hidden_size) *
                           (2.0 * shape_.q_size() + 2.0 * shape_.kv_size() + 3.0 * shape_.intermediate_size);
  return per_layer * double(layers_.size());
}

}  // namespace smelt
