// The kernels for AVX2 with FMA; this file alone is compiled with those flags. Whether they may be called is isa.cpp's
// business: nothing here may run before it has looked.
#include "kernels.h"
#include "simd.h"

#include "kernels_gemm.inl"
#include "kernels_rows.inl"
#include "kernels_attention.inl"

namespace smelt {

const Kernels kAvx2 = {"avx2", gemm_f32, gemm_q8, quantize, rms_norm, add,
                       gated,  attend,   max_of,  exp_sum,  sum_words};

}  // namespace smelt
