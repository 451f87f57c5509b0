// What a layer adds to matrices it shares with other layers: expand times (reduce times x), of low rank.
#pragma once
#include "linear.h"

namespace smelt {

// One thread's room for a residue's products.
struct ResidueScratch {
  Activations narrow;
  Buffer wide;
};

// Of a fused matrix (q, k and v; gate and up) the parts stand side by side: reduce has the rows of all of them, and each
// row of expand is zero in the columns of the others.
struct Residue {
  Linear reduce, expand;

  Residue() = default;
  Residue(int rows, int rank, int k, bool quantized) : reduce(rank, k, quantized), expand(rows, rank, quantized) {}

  bool empty() const { return reduce.rows() == 0; }
  size_t num_bytes() const { return reduce.num_bytes() + expand.num_bytes(); }

  // Adds to row blocks [first_block, last_block) of what the matrix beside it has put into `out`. Every thread reduces for
  // itself: that is little work, and meeting is not.
  void add(const Kernels& kernels, const Activations& x, int token, int num_tokens, int first_block, int last_block, float* out,
           int out_stride, ResidueScratch& scratch) const;
};

}  // namespace smelt
