// The Python face of the core; smelt.native.runner wraps it with types and error classes.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "bandwidth.h"
#include "reader.h"
#include "step.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace smelt {

namespace {

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Codes = nb::ndarray<const int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <typename T>
nb::object to_numpy(std::vector<T>&& values, std::initializer_list<size_t> shape) {
  auto* kept = new std::vector<T>(std::move(values));
  nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, T>(kept->data(), shape, owner));
}

const Kernels& kernels_named(const std::string& name) {
  const Kernels* kernels = find_kernels(name.empty() ? nullptr : name.c_str());
  if (kernels == nullptr) throw std::invalid_argument("instruction set " + name + " is not one this processor has");
  return *kernels;
}

std::shared_ptr<Model> make_model(const Shape& shape, const std::vector<std::tuple<int, int, int, int>>& layers,
                                  const std::vector<std::tuple<std::vector<float>, float>>& ropes, bool quantized,
                                  const std::string& isa) {
  std::vector<Layer> made(layers.size());
  for (size_t i = 0; i < layers.size(); ++i) std::tie(made[i].window, made[i].rope, made[i].home, made[i].residue_rank) = layers[i];
  std::vector<Rope> rotations;
  for (const auto& [inv_freq, factor] : ropes) rotations.push_back({inv_freq, factor});
  return std::make_shared<Model>(shape, std::move(made), std::move(rotations), quantized, kernels_named(isa));
}

nb::tuple step(Runner& runner, nb::handle batch_object) {
  BatchReader reader(batch_object);
  Result result;
  {
    nb::gil_scoped_release release;
    runner.step(reader.batch(), result, false);
  }
  const size_t s = result.token_ids.size(), k = size_t(result.width), r = size_t(result.num_scored);
  return nb::make_tuple(to_numpy(std::move(result.token_ids), {s}), to_numpy(std::move(result.logprobs), {s}),
                        to_numpy(std::move(result.top_ids), {s, k}), to_numpy(std::move(result.top_logprobs), {s, k}),
                        to_numpy(std::move(result.scored_logprobs), {r}), to_numpy(std::move(result.scored_top_ids), {r, k}),
                        to_numpy(std::move(result.scored_top_logprobs), {r, k}), runner.last_active());
}

nb::object logits(Runner& runner, nb::handle batch_object) {
  BatchReader reader(batch_object);
  Result result;
  {
    nb::gil_scoped_release release;
    runner.step(reader.batch(), result, true);
  }
  return to_numpy(std::move(result.logits), {size_t(reader.batch().num_tokens()), size_t(runner.limits().vocab_size)});
}

nb::object product(const Kernels& kernels, const Linear& linear, const float* x, int num_tokens, int k) {
  Activations in;
  in.reserve(num_tokens, k, linear.quantized());
  for (int t = 0; t < num_tokens; ++t) {
    std::copy_n(x + size_t(t) * size_t(k), k, in.row(t));
    in.quantize(kernels, t, linear.input());
  }
  std::vector<float> padded(size_t(num_tokens) * size_t(linear.out_stride())), out;
  linear.multiply(kernels, in, 0, num_tokens, 0, linear.num_blocks(), padded.data(), linear.out_stride());
  for (int t = 0; t < num_tokens; ++t) {
    const auto row = padded.begin() + int64_t(t) * linear.out_stride();
    out.insert(out.end(), row, row + linear.rows());
  }
  return to_numpy(std::move(out), {size_t(num_tokens), size_t(linear.rows())});
}

// x [T, K] times the transpose of weights [N, K], through the packed format: [T, N]. For tests and benchmarks of kernels.
nb::object multiply(Matrix weights, Matrix x, bool quantized, const std::string& isa) {
  const Kernels& kernels = kernels_named(isa);
  const int rows = int(weights.shape(0)), k = int(weights.shape(1)), num_tokens = int(x.shape(0));
  if (rows == 0 || k == 0 || int(x.shape(1)) != k) throw std::invalid_argument("sought [N, K] and [T, K], none empty");
  Linear linear(rows, k, quantized);
  for (int i = 0; i < rows; ++i) linear.put_row(i, weights.data() + size_t(i) * size_t(k));
  return product(kernels, linear, x.data(), num_tokens, k);
}

// Codes [N, K], scales and perhaps zero points [N, G] as rows; throws where they do not belong together or are out of range.
CodesRow rows_of(const Codes& codes, const Matrix& scales, const std::optional<Codes>& zeros, int group, int bits) {
  const size_t n = codes.shape(0), k = codes.shape(1), groups = scales.shape(1);
  if (group < 1 || groups != (k + size_t(group) - 1) / size_t(group) || scales.shape(0) != n ||
      (zeros && (zeros->shape(0) != n || zeros->shape(1) != groups)))
    throw std::invalid_argument("scales and zero points do not belong to codes " + std::to_string(n) + "x" + std::to_string(k));
  const int most = (1 << (bits - 1)) - 1;
  for (const Codes* part : {&codes, zeros ? &*zeros : nullptr})
    for (size_t i = 0; part && bits < 8 && i < part->size(); ++i)
      if (part->data()[i] < -most - 1 || part->data()[i] > most) throw std::invalid_argument("a code is beyond " + std::to_string(bits) + " bits");
  for (size_t i = 0; i < scales.size(); ++i)
    if (!(scales.data()[i] - scales.data()[i] == 0.0f)) throw std::invalid_argument("the scales hold NaN or infinity");
  return {codes.data(), scales.data(), zeros ? zeros->data() : nullptr, group};
}

// x [T, K] times the transpose of quantized weights [N, K], in the given format: [T, N]. For tests and benchmarks of kernels.
nb::object multiply_codes(Codes codes, Matrix scales, std::optional<Codes> zeros, int group, const Format& format,
                          const Input& input, Matrix x, const std::string& isa) {
  const Kernels& kernels = kernels_named(isa);
  CodesRow from = rows_of(codes, scales, zeros, group, format.bits);
  const int rows = int(codes.shape(0)), k = int(codes.shape(1)), num_tokens = int(x.shape(0));
  Linear linear(rows, k, format, input);
  if (int(x.shape(1)) != k || !linear.holds(format.bits, group, zeros.has_value())) throw std::invalid_argument("the format does not hold the codes");
  for (int i = 0; i < rows; ++i) {
    linear.put_codes(i, from);
    from.codes += k;
    from.scales += scales.shape(1);
    if (from.zeros) from.zeros += scales.shape(1);
  }
  return product(kernels, linear, x.data(), num_tokens, k);
}

void bind_formats(nb::module_& m) {
  nb::class_<Format>(m, "Format")
      .def("__init__", [](Format* self, int bits, int groups_per_scale, bool has_zeros, bool float_scales) {
        if ((bits != 4 && bits != 8) || groups_per_scale < 1) throw std::invalid_argument("sought 4 or 8 bits, and groups");
        new (self) Format{bits, groups_per_scale, has_zeros, float_scales};
      }, "bits"_a, "groups_per_scale"_a, "has_zeros"_a, "float_scales"_a);
  nb::class_<Input>(m, "Input")
      .def("__init__", [](Input* self, const std::string& kind, bool symmetric, float scale, int zero) {
        if (kind != "group" && kind != "token" && kind != "tensor") throw std::invalid_argument("no input is called " + kind);
        if (kind == "tensor" && !(scale > 0.0f && scale - scale == 0.0f && zero >= -128 && zero <= 127))
          throw std::invalid_argument("an input scale must be finite and above 0, its zero point within -128..127");
        new (self) Input{kind == "group" ? Input::kGroup : (kind == "token" ? Input::kToken : Input::kTensor), symmetric, scale, zero};
      }, "kind"_a, "symmetric"_a = true, "scale"_a = 0.0f, "zero"_a = 0);
}

void bind_model(nb::module_& m) {
  nb::class_<Shape>(m, "Shape")
      .def(nb::init<>())
      .def_rw("vocab_size", &Shape::vocab_size)
      .def_rw("hidden_size", &Shape::hidden_size)
      .def_rw("intermediate_size", &Shape::intermediate_size)
      .def_rw("num_heads", &Shape::num_heads)
      .def_rw("num_kv_heads", &Shape::num_kv_heads)
      .def_rw("head_dim", &Shape::head_dim)
      .def_rw("context_len", &Shape::context_len)
      .def_rw("norm_eps", &Shape::norm_eps)
      .def_rw("embedding_scale", &Shape::embedding_scale)
      .def_rw("attention_scale", &Shape::attention_scale)
      .def_rw("gelu", &Shape::gelu)
      .def_rw("tie_embeddings", &Shape::tie_embeddings)
      .def_rw("num_privileges", &Shape::num_privileges);
  nb::class_<Model>(m, "Model")
      .def(nb::new_(&make_model), "shape"_a, "layers"_a, "ropes"_a, "quantized"_a, "isa"_a)
      .def("put_matrix", [](Model& model, int layer, const std::string& slot, Matrix values) {
        nb::gil_scoped_release release;
        model.put_matrix(layer, slot, values.data(), int(values.shape(0)), int(values.shape(1)));
      }, "layer"_a, "slot"_a, "values"_a.noconvert())
      .def("refit", &Model::refit, "layer"_a, "matrix"_a, "format"_a, "input"_a)
      .def("put_codes", [](Model& model, int layer, const std::string& slot, Codes codes, Matrix scales, std::optional<Codes> zeros,
                           int group, int bits) {
        const CodesRow from = rows_of(codes, scales, zeros, group, bits);
        nb::gil_scoped_release release;
        model.put_codes(layer, slot, from, bits, int(codes.shape(0)), int(codes.shape(1)), int(scales.shape(1)));
      }, "layer"_a, "slot"_a, "codes"_a.noconvert(), "scales"_a.noconvert(), "zeros"_a.noconvert().none(), "group"_a, "bits"_a)
      .def("put_vector", [](Model& model, int layer, const std::string& slot, Vector values) {
        model.put_vector(layer, slot, values.data(), int(values.shape(0)));
      }, "layer"_a, "slot"_a, "values"_a.noconvert())
      .def("finish", &Model::finish)
      .def_prop_ro("weight_bytes", &Model::weight_bytes)
      .def_prop_ro("isa", [](const Model& model) { return model.kernels().name; });
  nb::class_<Runner>(m, "Runner")
      .def("__init__", [](Runner* self, std::shared_ptr<Model> model, int num_blocks, int block_size, int num_threads) {
        new (self) Runner(std::move(model), num_blocks, block_size, num_threads);
      }, "model"_a, "num_blocks"_a, "block_size"_a, "num_threads"_a)
      .def("step", &step, "batch"_a)
      .def("logits", &logits, "batch"_a)
      .def_prop_ro("num_threads", &Runner::num_threads);
}

}  // namespace

NB_MODULE(_core, m) {
  nb::set_leak_warnings(false);  // threads of a runner that lives until exit are the operating system's to end
  bind_formats(m);
  bind_model(m);
  m.def("best_isa", [] { return find_kernels(nullptr)->name; });
  m.def("has_isa", [](const std::string& name) { return find_kernels(name.c_str()) != nullptr; }, "name"_a);
  m.def("counter_uniform", &counter_uniform, "seed"_a, "draw"_a);
  m.def("multiply", &multiply, "weights"_a, "x"_a, "quantized"_a, "isa"_a);
  m.def("multiply_codes", &multiply_codes, "codes"_a, "scales"_a, "zeros"_a.none(), "group"_a, "format"_a, "input"_a, "x"_a, "isa"_a);
  m.def("read_bandwidth", [](int num_threads, size_t num_bytes) {
    nb::gil_scoped_release release;
    return read_bandwidth(num_threads, num_bytes, *find_kernels(nullptr));
  }, "num_threads"_a, "num_bytes"_a);
  m.def("multiply_rate", [](int num_threads, const std::string& isa) {
    nb::gil_scoped_release release;
    return multiply_rate(num_threads, kernels_named(isa));
  }, "num_threads"_a, "isa"_a);
}

}  // namespace smelt
