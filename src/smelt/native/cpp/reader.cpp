#include "reader.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace nb = nanobind;

namespace smelt {

namespace {

// The buffer protocol's letter for each element type; long and long long are both 64-bit on this platform.
template <typename T> constexpr const char* kLetters = "";
template <> constexpr const char* kLetters<int32_t> = "i";
template <> constexpr const char* kLetters<uint32_t> = "I";
template <> constexpr const char* kLetters<uint8_t> = "B";
template <> constexpr const char* kLetters<float> = "f";
template <> constexpr const char* kLetters<uint64_t> = "LQ";

class View {
 public:
  View(nb::handle batch, const char* name, const char* letters, int num_axes) {
    nb::object array = nb::getattr(batch, name);
    if (PyObject_GetBuffer(array.ptr(), &view_, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) {
      PyErr_Clear();
      throw std::invalid_argument(std::string(name) + " is no C-contiguous array");
    }
    const char* format = view_.format ? view_.format : "B";
    if (view_.ndim != num_axes || std::strlen(format) != 1 || std::strchr(letters, format[0]) == nullptr) {
      const std::string found = std::string(format) + " with " + std::to_string(view_.ndim) + " axes";
      PyBuffer_Release(&view_);
      throw std::invalid_argument(std::string(name) + " has type " + found + "; sought " + letters + " with " +
                                  std::to_string(num_axes));
    }
  }
  ~View() {
    if (view_.obj != nullptr) PyBuffer_Release(&view_);
  }
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  const Py_buffer& get() const { return view_; }
  Py_buffer release() {
    Py_buffer out = view_;
    view_.obj = nullptr;
    return out;
  }

 private:
  Py_buffer view_{};
};

template <typename T>
void read(nb::handle batch, const char* name, std::vector<T>& out) {
  const View view(batch, name, kLetters<T>, 1);
  const T* data = static_cast<const T*>(view.get().buf);
  out.assign(data, data + view.get().shape[0]);
}

}  // namespace

BatchReader::BatchReader(nb::handle batch) {
  read(batch, "token_ids", batch_.token_ids);
  read(batch, "starts", batch_.starts);
  read(batch, "next_ids", batch_.next_ids);
  read(batch, "first_positions", batch_.first_positions);
  read(batch, "sample", batch_.sample);
  read(batch, "score", batch_.score);
  read(batch, "temperatures", batch_.temperatures);
  read(batch, "top_ps", batch_.top_ps);
  read(batch, "presence_penalties", batch_.presence_penalties);
  read(batch, "frequency_penalties", batch_.frequency_penalties);
  read(batch, "seeds", batch_.seeds);
  read(batch, "draws", batch_.draws);
  read(batch, "top_k", batch_.top_k);
  read(batch, "bias_starts", batch_.bias_starts);
  read(batch, "bias_ids", batch_.bias_ids);
  read(batch, "bias_values", batch_.bias_values);
  read(batch, "count_starts", batch_.count_starts);
  read(batch, "count_ids", batch_.count_ids);
  read(batch, "counts", batch_.counts);
  read(batch, "mask_rows", batch_.mask_rows);
  if (!nb::getattr(batch, "privileges").is_none()) read(batch, "privileges", batch_.privileges);
  {
    const View tables(batch, "block_tables", kLetters<int32_t>, 2);
    const int32_t* data = static_cast<const int32_t*>(tables.get().buf);
    batch_.block_tables.assign(data, data + tables.get().shape[0] * tables.get().shape[1]);
    batch_.table_width = int(tables.get().shape[1]);
  }
  View masks(batch, "masks", kLetters<uint32_t>, 2);
  batch_.num_masks = int(masks.get().shape[0]);
  batch_.mask_words = int(masks.get().shape[1]);
  batch_.masks = static_cast<const uint32_t*>(masks.get().buf);
  masks_ = masks.release();
  // shape and strides of some exporters live in the view itself; only obj is needed to release it
}

BatchReader::~BatchReader() {
  if (masks_.obj != nullptr) PyBuffer_Release(&masks_);
}

}  // namespace smelt
