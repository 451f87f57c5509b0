// A StepBatch object's arrays -> Batch. Through the buffer protocol: twenty arrays in about two microseconds.
#pragma once
#include <Python.h>

#include <nanobind/nanobind.h>

#include "batch.h"

namespace smelt {

class BatchReader {
 public:
  // Throws std::invalid_argument where an array has another type or number of axes, or is not contiguous.
  explicit BatchReader(nanobind::handle batch);
  ~BatchReader();
  BatchReader(const BatchReader&) = delete;
  BatchReader& operator=(const BatchReader&) = delete;
  const Batch& batch() const { return batch_; }

 private:
  Batch batch_;
  Py_buffer masks_{};
};

}  // namespace smelt
