// How fast this machine reads memory: the limit decode is measured against.
#pragma once
#include <cstddef>

#include "kernels.h"

namespace smelt {

// GB/s of `num_threads` threads reading `num_bytes` once; best of three rounds after one to warm up.
double read_bandwidth(int num_threads, size_t num_bytes, const Kernels& kernels);

}  // namespace smelt
