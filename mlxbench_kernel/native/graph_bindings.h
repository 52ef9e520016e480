// The graph reader as Python sees it: a dict of NumPy arrays and texts.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "graph_reader.h"

namespace bench {

namespace nb = nanobind;

template <typename T>
nb::object as_numpy(std::vector<T>&& values) {
  auto kept = new std::vector<T>(std::move(values));
  nb::capsule owner(kept, [](void* vector) noexcept { delete static_cast<std::vector<T>*>(vector); });
  return nb::cast(nb::ndarray<nb::numpy, T, nb::ndim<1>>(kept->data(), {kept->size()}, owner));
}

inline nb::dict read_graph(const std::vector<mx::array>& outputs) {
  auto flat = GraphReader().read(outputs);
  nb::dict read;
  read["primitive"] = as_numpy(std::move(flat.primitive));
  read["arguments"] = as_numpy(std::move(flat.arguments));
  read["stream"] = as_numpy(std::move(flat.stream));
  read["device"] = as_numpy(std::move(flat.device));
  read["output_start"] = as_numpy(std::move(flat.output_start));
  read["input_start"] = as_numpy(std::move(flat.input_start));
  read["inputs"] = as_numpy(std::move(flat.inputs));
  read["node"] = as_numpy(std::move(flat.node));
  read["shape_start"] = as_numpy(std::move(flat.shape_start));
  read["dtype"] = as_numpy(std::move(flat.dtype));
  read["held"] = as_numpy(std::move(flat.held));
  read["extents"] = as_numpy(std::move(flat.extents));
  read["nbytes"] = as_numpy(std::move(flat.nbytes));
  read["status"] = as_numpy(std::move(flat.status));
  read["id"] = as_numpy(std::move(flat.id));
  read["buffer"] = as_numpy(std::move(flat.buffer));
  read["buffer_bytes"] = as_numpy(std::move(flat.buffer_bytes));
  read["outputs"] = as_numpy(std::move(flat.outputs));
  read["fused"] = flat.fused;
  read["primitives"] = flat.primitives;
  read["dtypes"] = flat.dtypes;
  read["texts"] = flat.texts;
  return read;
}

// Handles of those arrays of a graph that have these numbers, in the order of the reader.
inline std::vector<mx::array> arrays_of(
    const std::vector<mx::array>& outputs, const std::vector<int32_t>& numbers) {
  auto flat = GraphReader().read(outputs);
  std::vector<mx::array> found;
  found.reserve(numbers.size());
  for (auto number : numbers) {
    found.push_back(*flat.arrays.at(number));
  }
  return found;
}

inline void bind_graph(nb::module_& m) {
  m.def(
      "read_graph",
      &read_graph,
      nb::arg("outputs"),
      "What arrays are computed from, as flat arrays by name; nothing is evaluated or changed.");

  m.def(
      "arrays_of",
      &arrays_of,
      nb::arg("outputs"),
      nb::arg("numbers"),
      "The arrays with these numbers in `read_graph` of the same outputs.");

  m.def(
      "array_id",
      [](const mx::array& array) { return array.id(); },
      nb::arg("array"),
      "What `read_graph` has as its id.");
}

}  // namespace bench
