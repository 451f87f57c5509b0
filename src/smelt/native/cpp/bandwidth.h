// What this machine can do at this instant: the limits that decode (reading) and prefill (multiplying) are measured against.
#pragma once
#include <cstddef>

#include "kernels.h"

namespace smelt {

// GB/s of `num_threads` threads reading `num_bytes` once; best of three rounds after one to warm up.
double read_bandwidth(int num_threads, size_t num_bytes, const Kernels& kernels);

// GOPS (two operations a multiply-add) of the 8-bit product of `num_threads` threads in cache; best of five bursts of
// about a millisecond.
double multiply_rate(int num_threads, const Kernels& kernels);

}  // namespace smelt
