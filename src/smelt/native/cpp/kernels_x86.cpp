// The kernels for x86-64 with AVX2 and FMA, and more where the flags say so: this file is compiled once for each of
// AVX2, AVX-VNNI and AVX-512 VNNI (of which only the 256-bit dot product is used), into the table SMELT_TABLE.
// Whether a table may be called is isa.cpp's business: nothing here may run before it has looked.
#include "kernels.h"
#include "simd.h"

#include "kernels_dots.inl"
#include "kernels_gemm.inl"
#include "kernels_rows.inl"
#include "kernels_attention.inl"

namespace smelt {

const Kernels SMELT_TABLE = {SMELT_TABLE_NAME, gemm_f32, gemm_q, quantize, quantize_row, rms_norm, add,
                             gated,            attend,   max_of,  exp_sum,  sum_words};

}  // namespace smelt
