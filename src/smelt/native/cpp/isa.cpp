#include <cstring>

#include "kernels.h"

namespace smelt {

namespace {

const Kernels* avx2() {
#ifdef SMELT_X86
  // The compiler's check includes the operating system's: it reads xgetbv too.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kAvx2;
#endif
  return nullptr;
}

}  // namespace

const Kernels* find_kernels(const char* name) {
  if (name == nullptr) return avx2() != nullptr ? avx2() : &kPortable;
  if (std::strcmp(name, "avx2") == 0) return avx2();
  if (std::strcmp(name, "portable") == 0) return &kPortable;
  return nullptr;
}

}  // namespace smelt
