#include "buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

namespace smelt {

namespace {
constexpr size_t kHugePage = size_t(2) << 20;
}

Buffer::Buffer(size_t num_bytes, bool huge_pages) : size_(num_bytes) {
  if (num_bytes == 0) return;
#ifdef __SANITIZE_ADDRESS__  // from the heap, so that a read one beyond the end is caught
  if (posix_memalign(&data_, 64, num_bytes) != 0) throw std::bad_alloc();
  std::memset(data_, 0, num_bytes);
  (void)huge_pages;
  return;
#endif
  void* data = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    size_ = 0;
    throw std::bad_alloc();
  }
  data_ = data;
#ifdef MADV_HUGEPAGE
  madvise(data_, size_, huge_pages && size_ >= kHugePage ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#else
  (void)huge_pages;
#endif
}

Buffer::~Buffer() {
#ifdef __SANITIZE_ADDRESS__
  std::free(data_);
#else
  if (data_ != nullptr) munmap(data_, size_);
#endif
}

void Buffer::reserve(size_t num_bytes) {
  if (num_bytes > size_) *this = Buffer(num_bytes + num_bytes / 4);
}

}  // namespace smelt
