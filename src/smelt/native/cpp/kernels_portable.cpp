// The kernels for any processor.
#include "kernels.h"
#include "simd.h"

#include "kernels_dots.inl"
#include "kernels_gemm.inl"
#include "kernels_rows.inl"
#include "kernels_attention.inl"

namespace smelt {

const Kernels kPortable = {"portable", gemm_f32, gemm_q, quantize, quantize_row, rms_norm, add,
                           gated,      attend,   max_of,  exp_sum,  sum_words};

}  // namespace smelt
