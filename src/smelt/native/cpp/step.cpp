#include "step.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>
#include <string>

namespace smelt {

namespace {

constexpr int kPassTokens = 256;   // bounds scratch memory; weights are read again for each pass
constexpr int kSmallTokens = 8;    // up to here repeating norms costs less than meeting
constexpr int kGateTokens = 64;    // tokens whose gate and up are held at once
constexpr int kLogitRows = 32;     // logits held at once
constexpr double kMacsPerThread = 1e6;  // below some 30 us of work a second thread costs more than it brings

double steady_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

Runner::Runner(std::shared_ptr<const Model> model, int num_blocks, int block_size, int num_threads)
    : model_(std::move(model)),
      kernels_(model_->kernels()),
      cache_(model_->shape(), int(model_->layers().size()), num_blocks, block_size),
      pool_(num_threads),
      crowding_(num_threads),
      streams_(size_t(num_threads)),
      residue_scratch_(size_t(num_threads)),
      next_tile_(model_->layers().size()) {
  const Shape& shape = model_->shape();
  const size_t floats = attend_scratch_floats(shape.group(), shape.head_dim, block_size);
  for (int thread = 0; thread < num_threads; ++thread) {
    samplers_.emplace_back(kernels_, shape.vocab_size);
    scratch_.emplace_back((floats + size_t(round_up(shape.hidden_size, kGroup))) * sizeof(float));
  }
}

Limits Runner::limits() const {
  const Shape& shape = model_->shape();
  return {shape.vocab_size, shape.context_len, cache_.num_blocks(), cache_.block_size(), shape.num_privileges};
}

Runner::Range Runner::share(int n, int unit, int thread) const {
  const int64_t units = (n + unit - 1) / unit;
  const int64_t first = units * thread / num_active_ * unit, last = units * (thread + 1) / num_active_ * unit;
  return {int(std::min<int64_t>(first, n)), int(std::min<int64_t>(last, n))};
}

void Runner::step(const Batch& batch, Result& result, bool all_logits) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!pool_.usable()) throw std::runtime_error("the runner was made before this process forked; make one in each process");
  batch.check(limits());
  result.prepare(batch);
  batch_ = &batch;
  result_ = &result;
  all_logits_ = all_logits;
  failure_.store(0);
  if (all_logits) result.logits.assign(size_t(batch.num_tokens()) * size_t(model_->shape().vocab_size), 0.0f);
  plan(batch, all_logits);
  run_passes();
  if (const int failure = failure_.load()) {
    if (Outcome(failure) == Outcome::kNothingAllowed)
      throw std::runtime_error("a grammar mask allows no token; it must allow at least one");
    throw std::runtime_error("the model's logits are not finite; found NaN or infinity");
  }
}

void Runner::run_passes() {
  const double start_s = steady_s();
  num_active_ = choose_active(*batch_, start_s);
  for (const Pass& pass : passes_) {
    for (std::atomic<int>& next : next_tile_) next.store(0, std::memory_order_relaxed);
    auto task = [&](int thread) { run_pass(pass, thread); };
    pool_.run(num_active_, task);
  }
  const double end_s = steady_s();
  crowding_.record(end_s, end_s - start_s, pool_.take_stalled_s(), num_active_);
}

void Runner::plan(const Batch& batch, bool all_logits) {
  passes_.clear();
  int scored = 0;
  for (int s = 0; s < batch.num_sequences(); ++s) {
    const bool draws = batch.sample[size_t(s)] != 0, scores = batch.score[size_t(s)] != 0;
    for (int i = 0; i < batch.count(s); ++i) {
      if (passes_.empty() || int(passes_.back().tokens.size()) == kPassTokens) passes_.emplace_back();
      Pass& pass = passes_.back();
      const bool drawn = draws && i + 1 == batch.count(s);
      if (drawn || scores || all_logits) pass.rows.push_back({int(pass.tokens.size()), scores ? scored : -1, drawn});
      scored += scores;
      pass.tokens.push_back({batch.starts[size_t(s)] + i, s, batch.first_positions[size_t(s)] + i});
    }
  }
  int most = 0;
  for (Pass& pass : passes_) {
    pass.small = int(pass.tokens.size()) <= kSmallTokens;
    most = std::max(most, int(pass.tokens.size()));
    add_tiles(pass);
  }
  reserve(most);
}

void Runner::add_tiles(Pass& pass) const {
  const int num_tokens = int(pass.tokens.size());
  const int most = std::max(1, kTileRows / model_->shape().group());
  for (int first = 0; first < num_tokens;) {
    int last = first + 1;
    while (last < num_tokens && last - first < most && pass.tokens[size_t(last)].sequence == pass.tokens[size_t(first)].sequence)
      ++last;
    for (int head = 0; head < model_->shape().num_kv_heads; ++head) pass.tiles.push_back({first, last - first, head});
    first = last;
  }
  // Late positions cost most: the longest first, so that threads end together.
  std::reverse(pass.tiles.begin(), pass.tiles.end());
}

int Runner::choose_active(const Batch& batch, double now_s) {
  const double work = model_->macs_per_token() * batch.num_tokens();
  return std::max(1, int(std::min(double(crowding_.allowed(now_s)), 1.0 + work / kMacsPerThread)));
}

void Runner::reserve(int num_tokens) {
  const Shape& shape = model_->shape();
  const bool quantized = model_->quantized();
  const size_t tokens = size_t(num_tokens);
  const Layer& layer = model_->layers()[0];
  for (size_t i = 0; i < streams_.size(); ++i) {
    const int own = i == 0 ? num_tokens : std::min(num_tokens, kSmallTokens);
    streams_[i].x.reserve(own, shape.hidden_size, false);
    streams_[i].normed.reserve(own, shape.hidden_size, quantized);
    streams_[i].mixed.reserve(std::min(num_tokens, kSmallTokens), shape.q_size(), quantized);
  }
  attended_.reserve(num_tokens, shape.q_size(), quantized);
  inner_.reserve(num_tokens, shape.intermediate_size, quantized);
  head_in_.reserve(kLogitRows, shape.hidden_size, quantized);
  qkv_.reserve(tokens * size_t(layer.qkv.out_stride()) * sizeof(float));
  gate_up_.reserve(size_t(kGateTokens) * size_t(layer.gate_up.out_stride()) * sizeof(float));
  output_.reserve(tokens * size_t(round_up(shape.hidden_size, kGroup)) * sizeof(float));
  logits_.reserve(size_t(kLogitRows) * size_t(model_->head().out_stride()) * sizeof(float));
  ropes_.reserve(model_->ropes().size() * tokens * size_t(shape.head_dim) * sizeof(float));
}

void Runner::run_pass(const Pass& pass, int thread) {
  Stream& stream = streams_[pass.small ? size_t(thread) : 0];
  const int num_tokens = int(pass.tokens.size());
  const Range tokens = pass.small ? Range{0, num_tokens} : share(num_tokens, 1, thread);
  embed(pass, stream, tokens);
  fill_ropes(pass, thread);
  const int num_layers = int(model_->layers().size());
  for (int index = 0; index < num_layers; ++index) {
    attention_layer(pass, index, stream, tokens, thread);
    mlp_layer(pass, model_->layers()[size_t(index)], stream, tokens, thread);
  }
  if (!pass.rows.empty()) {
    meet(pass);  // rows are taken by whoever comes, so all must stand
    find_logits(pass, stream, thread);
  }
}

void Runner::embed(const Pass& pass, Stream& stream, Range tokens) {
  const Shape& shape = model_->shape();
  for (int t = tokens.first; t < tokens.last; ++t) {
    float* x = stream.x.row(t);
    model_->embedding().read_row(batch_->token_ids[size_t(pass.tokens[size_t(t)].index)], x);
    for (int i = 0; i < shape.hidden_size; ++i) x[i] *= shape.embedding_scale;
    if (shape.num_privileges == 0) continue;
    const float* said = model_->privilege(batch_->privileges[size_t(pass.tokens[size_t(t)].index)]);
    for (int i = 0; i < shape.hidden_size; ++i) x[i] += said[i];
  }
}

// ropes_: [num_ropes][T][cos (head_dim/2), sin (head_dim/2)]. Angles are float products, as the models were trained with.
void Runner::fill_ropes(const Pass& pass, int thread) {
  const int half = model_->shape().head_dim / 2, num_tokens = int(pass.tokens.size());
  const Range tokens = share(num_tokens, 1, thread);
  for (size_t r = 0; r < model_->ropes().size(); ++r) {
    const Rope& rope = model_->ropes()[r];
    for (int t = tokens.first; t < tokens.last; ++t) {
      float* cos = ropes_.as<float>() + (r * size_t(num_tokens) + size_t(t)) * 2 * size_t(half);
      for (int i = 0; i < half; ++i) {
        const double angle = float(pass.tokens[size_t(t)].position) * rope.inv_freq[size_t(i)];
        cos[i] = float(std::cos(angle)) * rope.factor;
        cos[half + i] = float(std::sin(angle)) * rope.factor;
      }
    }
  }
}

void Runner::attention_layer(const Pass& pass, int index, Stream& stream, Range tokens, int thread) {
  const Layer& layer = model_->layers()[size_t(index)];
  const Shape& shape = model_->shape();
  const int num_tokens = int(pass.tokens.size()), stride = stream.x.stride();
  for (int t = tokens.first; t < tokens.last; ++t) {
    if (!layer.entry.empty()) kernels_.add(stream.x.row(t), layer.entry.data(), stride);
    kernels_.rms_norm(stream.x.row(t), layer.attn_norm.data(), shape.hidden_size, stride, shape.norm_eps, stream.normed.row(t));
    stream.normed.quantize(kernels_, t, layer.qkv.input());
  }
  meet(pass);
  Range blocks = share(layer.qkv.num_blocks(), 2, thread);
  multiply(layer.qkv, layer.qkv_residue, stream.normed, 0, num_tokens, blocks, qkv_.as<float>(), layer.qkv.out_stride(), thread);
  pool_.barrier();
  const Range own = share(num_tokens, 1, thread);
  for (int t = own.first; t < own.last; ++t) rotate_and_store(pass, index, t, thread);
  pool_.barrier();
  attend_tiles(pass, index, thread);
  pool_.barrier();
  Activations& mixed = pass.small ? stream.mixed : attended_;
  for (int t = tokens.first; t < tokens.last; ++t) {
    if (pass.small) std::copy_n(attended_.row(t), size_t(attended_.stride()), mixed.row(t));
    mixed.quantize(kernels_, t, layer.o.input());
  }
  meet(pass);
  blocks = share(layer.o.num_blocks(), 2, thread);
  multiply(layer.o, layer.o_residue, mixed, 0, num_tokens, blocks, output_.as<float>(), stride, thread);
  pool_.barrier();
  add_output(layer.attn_post_norm, stream, tokens, thread);
}

void Runner::mlp_layer(const Pass& pass, const Layer& layer, Stream& stream, Range tokens, int thread) {
  const Shape& shape = model_->shape();
  const int num_tokens = int(pass.tokens.size()), stride = stream.x.stride(), gate_stride = layer.gate_up.out_stride();
  for (int t = tokens.first; t < tokens.last; ++t) {
    kernels_.rms_norm(stream.x.row(t), layer.mlp_norm.data(), shape.hidden_size, stride, shape.norm_eps, stream.normed.row(t));
    stream.normed.quantize(kernels_, t, layer.gate_up.input());
  }
  meet(pass);
  constexpr int kBlocks = 2 * kStripe / kLanes;  // of a stripe of gate and one of up
  const Range stripes = share(layer.gate_up.num_blocks() / kBlocks, 1, thread);
  const bool whole_rows = model_->quantized() && layer.down.input().kind == Input::kToken;  // no stripe alone knows the scale
  for (int first = 0; first < num_tokens; first += kGateTokens) {
    const int count = std::min(kGateTokens, num_tokens - first);
    multiply(layer.gate_up, layer.gate_up_residue, stream.normed, first, count, {stripes.first * kBlocks, stripes.last * kBlocks},
             gate_up_.as<float>(), gate_stride, thread);
    for (int t = 0; t < count; ++t) {
      for (int stripe = stripes.first; stripe < stripes.last; ++stripe) {
        const float* gate = gate_up_.as<float>() + size_t(t) * size_t(gate_stride) + size_t(stripe) * 2 * kStripe;
        kernels_.gated(gate, gate + kStripe, kStripe, shape.gelu, inner_.row(first + t) + size_t(stripe) * kStripe);
      }
      if (!whole_rows) inner_.quantize(kernels_, first + t, layer.down.input(), stripes.first, stripes.last);
    }
  }
  pool_.barrier();
  if (whole_rows) {
    const Range own = share(num_tokens, 1, thread);
    for (int t = own.first; t < own.last; ++t) inner_.quantize(kernels_, t, layer.down.input());
    pool_.barrier();
  }
  const Range blocks = share(layer.down.num_blocks(), 2, thread);
  multiply(layer.down, layer.down_residue, inner_, 0, num_tokens, blocks, output_.as<float>(), stride, thread);
  pool_.barrier();
  add_output(layer.mlp_post_norm, stream, tokens, thread);
}

void Runner::add_output(const std::vector<float>& post_norm, Stream& stream, Range tokens, int thread) {
  const Shape& shape = model_->shape();
  const int stride = stream.x.stride();
  for (int t = tokens.first; t < tokens.last; ++t) {
    const float* output = output_.as<float>() + size_t(t) * size_t(stride);
    if (!post_norm.empty()) {
      float* scratch = scratch_[size_t(thread)].as<float>();
      kernels_.rms_norm(output, post_norm.data(), shape.hidden_size, stride, shape.norm_eps, scratch);
      output = scratch;
    }
    kernels_.add(stream.x.row(t), output, stride);
  }
}

// Optional norm, then rotation of one head in place; the pairs are (i, i + head_dim/2).
void Runner::shape_head(const std::vector<float>& norm, const float* cos, float* head, float* scratch) const {
  const int dim = model_->shape().head_dim, half = dim / 2, padded = round_up(dim, kLanes);
  if (!norm.empty()) {
    std::copy_n(head, dim, scratch);
    std::fill(scratch + dim, scratch + padded, 0.0f);
    kernels_.rms_norm(scratch, norm.data(), dim, padded, model_->shape().norm_eps, scratch);
    std::copy_n(scratch, dim, head);
  }
  const float* sin = cos + half;
  for (int i = 0; i < half; ++i) {
    const float low = head[i], high = head[half + i];
    head[i] = low * cos[i] - high * sin[i];
    head[half + i] = high * cos[i] + low * sin[i];
  }
}

void Runner::rotate_and_store(const Pass& pass, int index, int token, int thread) {
  const Layer& layer = model_->layers()[size_t(index)];
  const Shape& shape = model_->shape();
  const size_t dim = size_t(shape.head_dim);
  const Token& at = pass.tokens[size_t(token)];
  const float* cos = ropes_.as<float>() + (size_t(layer.rope) * pass.tokens.size() + size_t(token)) * dim;
  float* scratch = scratch_[size_t(thread)].as<float>();
  float* q = qkv_.as<float>() + size_t(token) * size_t(layer.qkv.out_stride());
  float* k = q + size_t(shape.q_size());
  const float* v = k + size_t(shape.kv_size());
  for (int head = 0; head < shape.num_heads; ++head) shape_head(layer.q_norm, cos, q + size_t(head) * dim, scratch);
  const int block = batch_->table(at.sequence)[at.position / cache_.block_size()];
  for (int head = 0; head < shape.num_kv_heads; ++head) {
    const size_t offset = size_t(head) * dim;
    shape_head(layer.k_norm, cos, k + offset, scratch);
    float* place = cache_.head(index, head) + size_t(block) * cache_.block_stride();
    cache_.put(place, at.position % cache_.block_size(), k + offset, v + offset);
  }
}

void Runner::attend_tiles(const Pass& pass, int index, int thread) {
  const Layer& layer = model_->layers()[size_t(index)];
  const Shape& shape = model_->shape();
  const size_t q_stride = size_t(layer.qkv.out_stride()), head = size_t(shape.group() * shape.head_dim);
  const int num_tiles = int(pass.tiles.size());
  for (int i; (i = next_tile_[size_t(index)].fetch_add(1, std::memory_order_relaxed)) < num_tiles;) {
    const Tile& tile = pass.tiles[size_t(i)];
    const Token& at = pass.tokens[size_t(tile.first)];
    Attend a;
    a.q = qkv_.as<float>() + size_t(tile.first) * q_stride + size_t(tile.kv_head) * head;
    a.out = attended_.row(tile.first) + size_t(tile.kv_head) * head;
    a.pool = cache_.head(index, tile.kv_head);
    a.table = batch_->table(at.sequence);
    a.scratch = scratch_[size_t(thread)].as<float>();
    a.q_stride = q_stride;
    a.out_stride = size_t(attended_.stride());
    a.block_stride = cache_.block_stride();
    a.num_tokens = tile.num_tokens;
    a.group = shape.group();
    a.head_dim = shape.head_dim;
    a.block_size = cache_.block_size();
    a.position = at.position;
    a.window = layer.window;
    a.scale = shape.attention_scale;
    kernels_.attend(a);
  }
}

void Runner::find_logits(const Pass& pass, Stream& stream, int thread) {
  const Shape& shape = model_->shape();
  const Linear& head = model_->head();
  const int num_rows = int(pass.rows.size());
  const Range blocks = share(head.num_blocks(), 2, thread);
  for (int first = 0; first < num_rows; first += kLogitRows) {
    const int count = std::min(kLogitRows, num_rows - first);
    for (int r = thread; r < count; r += num_active_) {
      const float* x = stream.x.row(pass.rows[size_t(first + r)].token);
      kernels_.rms_norm(x, model_->final_norm(), shape.hidden_size, stream.x.stride(), shape.norm_eps, head_in_.row(r));
      head_in_.quantize(kernels_, r, head.input());
    }
    pool_.barrier();
    head.multiply(kernels_, head_in_, 0, count, blocks.first, blocks.last, logits_.as<float>(), head.out_stride());
    pool_.barrier();
    for (int r = thread; r < count; r += num_active_) {
      const Row& row = pass.rows[size_t(first + r)];
      use_logits(row, pass.tokens[size_t(row.token)], logits_.as<float>() + size_t(r) * size_t(head.out_stride()), thread);
    }
  }
}

void Runner::use_logits(const Row& row, const Token& token, const float* logits, int thread) {
  const size_t s = size_t(token.sequence), width = size_t(result_->width);
  const int vocab_size = model_->shape().vocab_size;
  if (all_logits_) {
    std::copy_n(logits, vocab_size, result_->logits.data() + size_t(token.index) * size_t(vocab_size));
    return;
  }
  Sampler& sampler = samplers_[size_t(thread)];
  Outcome outcome = Outcome::kDrawn;
  if (row.drawn) outcome = sampler.draw(logits, batch_->draw(token.sequence), &result_->token_ids[s]);
  const int k = batch_->top_k[s];
  if (outcome == Outcome::kDrawn && row.drawn && k >= 0)
    outcome = sampler.report(logits, result_->token_ids[s], k, result_->width, &result_->logprobs[s],
                             result_->top_ids.data() + s * width, result_->top_logprobs.data() + s * width);
  if (outcome == Outcome::kDrawn && row.scored >= 0) {
    const size_t r = size_t(row.scored);
    outcome = sampler.report(logits, batch_->next_ids[size_t(token.index)], k, result_->width, &result_->scored_logprobs[r],
                             result_->scored_top_ids.data() + r * width, result_->scored_top_logprobs.data() + r * width);
  }
  if (outcome != Outcome::kDrawn) failure_.store(int(outcome));
}

}  // namespace smelt
