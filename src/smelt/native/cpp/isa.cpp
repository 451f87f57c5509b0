#ifdef SMELT_X86
#include <cpuid.h>
#endif

#include <cstring>

#include "kernels.h"

namespace smelt {

namespace {

// The compiler's checks include the operating system's: they read xgetbv too. GCC 12 has no name for AVX-VNNI.
#ifdef SMELT_X86
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1u) != 0;
}
#endif

bool runs_here(const Kernels& kernels) {
  if (&kernels == &kPortable) return true;
#ifdef SMELT_X86
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) return false;
  if (&kernels == &kAvxVnni) return has_avx_vnni();
  if (&kernels == &kAvx512Vnni)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#endif
  return true;
}

// Best first.
const Kernels* const kTables[] = {
#ifdef SMELT_X86
    &kAvxVnni, &kAvx512Vnni, &kAvx2,
#endif
    &kPortable};

}  // namespace

const Kernels* find_kernels(const char* name) {
  for (const Kernels* kernels : kTables)
    if ((name == nullptr || std::strcmp(name, kernels->name) == 0) && runs_here(*kernels)) return kernels;
  return nullptr;
}

}  // namespace smelt
