// A copy of a traced function's graph that MLX's exporter writes rightly.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <unordered_set>
#include <utility>
#include <vector>

#include "graph_reader.h"
#include "graph_replay.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace bench {

// `mx::export_function` (mlx/export.cpp, 0.32.4) writes the memory of a constant as it lies, which
// is wrong for transposed, sliced and broadcast ones; writes what unevaluated parameters would be
// computed from; merges equal nodes in the graph that it is given; has no form for
// CustomTransforms, which only pass their last inputs on; and recurses. So it is given a copy, in
// which what does not depend on `inputs` and is held outside of the graph (Python's variables) is
// a constant. Its value is computed from a copy, too: nothing of the user's is evaluated.
//
// Gives the outputs of the copy, and how many nodes its longest chain has.
inline std::pair<std::vector<mx::array>, int32_t> exportable(
    const std::vector<mx::array>& outputs, const std::vector<mx::array>& inputs) {
  auto flat = GraphReader().read(outputs);
  std::unordered_set<uint64_t> given;
  for (auto& input : inputs) {
    given.insert(input.id());
  }
  std::vector<std::optional<mx::array>> made(flat.node.size());
  std::vector<int32_t> depth(flat.node.size(), 0);
  std::vector<char> depends(flat.node.size(), false);
  std::vector<mx::array> constants;

  auto as_constant = [&](const mx::array& array) {
    auto device = array.dtype() == mx::float64 ? mx::Device(mx::Device::cpu) : mx::default_device();
    constants.push_back(mx::contiguous(array, false, device));
    return constants.back();
  };

  for (size_t node = 0; node < flat.primitive.size(); node++) {
    auto first = flat.output_start[node], last = flat.output_start[node + 1];
    auto& original = *flat.arrays[first];
    if (given.contains(original.id())) {
      made[first] = original;
      depends[first] = true;
      continue;
    }
    if (flat.primitive[node] == 0 || original.status() != mx::array::Status::unscheduled) {
      for (auto a = first; a < last; a++) {
        auto copy = evaluated_copy(*flat.arrays[a]);
        made[a] = copy.flags().row_contiguous ? copy : as_constant(copy);
      }
      continue;
    }
    std::vector<mx::array> taken;
    int32_t deepest = 0;
    bool any = false;
    for (auto i = flat.input_start[node]; i < flat.input_start[node + 1]; i++) {
      auto a = flat.inputs[i];
      taken.push_back(*made[a]);
      deepest = std::max(deepest, depth[a]);
      any = any || depends[a];
    }
    std::vector<mx::Shape> shapes;
    std::vector<mx::Dtype> dtypes;
    for (auto a = first; a < last; a++) {
      shapes.push_back(flat.arrays[a]->shape());
      dtypes.push_back(flat.arrays[a]->dtype());
    }
    std::vector<mx::array> results;
    if (flat.primitives[flat.primitive[node]] == "CustomTransforms") {
      results.assign(taken.end() - static_cast<ptrdiff_t>(shapes.size()), taken.end());
    } else if (shapes.size() == 1) {
      results.emplace_back(
          std::move(shapes[0]), dtypes[0], original.primitive_ptr(), std::move(taken));
    } else {
      results = mx::array::make_arrays(
          std::move(shapes), dtypes, original.primitive_ptr(), std::move(taken));
    }
    for (auto a = first; a < last; a++) {
      auto& result = results[a - first];
      bool fixed = !any && flat.held[a] > 0;
      made[a] = fixed ? as_constant(result) : result;
      depth[a] = fixed ? 0 : deepest + 1;
      depends[a] = any;
    }
  }
  mx::eval(constants);
  std::vector<mx::array> results;
  int32_t deepest = 0;
  for (auto output : flat.outputs) {
    results.push_back(*made[output]);
    deepest = std::max(deepest, depth[output]);
  }
  return {std::move(results), deepest};
}

inline void bind_export(nanobind::module_& m) {
  namespace nb = nanobind;
  m.def(
      "exportable",
      &exportable,
      nb::arg("outputs"),
      nb::arg("inputs"),
      nb::call_guard<nb::gil_scoped_release>(),
      "A copy of the graph between these arrays, for mx.export_function, and its depth.");
}

}  // namespace bench
