// Memory: zeroed, 64-byte aligned, given by the kernel page by page when first touched.
#pragma once
#include <cstddef>
#include <utility>

namespace smelt {

class Buffer {
 public:
  Buffer() = default;
  // huge_pages: ask for them (weights, which are read whole); a lazily filled pool should not.
  explicit Buffer(size_t num_bytes, bool huge_pages = false);
  ~Buffer();
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t size() const { return size_; }
  // At least num_bytes; contents are lost when it grows.
  void reserve(size_t num_bytes);

 private:
  void swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace smelt
