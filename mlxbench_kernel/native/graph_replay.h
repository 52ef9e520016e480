// Evaluates a copy of a lazy graph, node by node or whole; the graph itself stays as it is.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "graph_reader.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace bench {

// The same value as a node of its own. It shares the memory, which is therefore never given away
// (donated) to a result; and MLX, which detaches what it evaluates, has nothing of the user's.
inline mx::array evaluated_copy(const mx::array& array) {
  if (array.status() == mx::array::Status::unscheduled) {
    throw std::invalid_argument(
        "an input of the graph has no value: it belongs to a function that is being traced");
  }
  mx::array copy(array.shape(), array.dtype(), nullptr, {});
  copy.copy_shared_buffer(array);
  copy.attach_event(array.event());
  copy.set_status(array.status());
  copy.wait();
  return copy;
}

class Replay {
 public:
  // `collectives`: execute them too; otherwise their input, or zeros, stands for what they give.
  // `donate`: let go of inputs before their last user runs, as MLX does; otherwise after it.
  Replay(std::vector<mx::array> outputs, bool collectives, bool donate)
      : outputs_(std::move(outputs)),
        flat_(GraphReader().read(outputs_)),
        collectives_(collectives),
        donate_(donate),
        last_(flat_.node.size(), -1) {
    for (int32_t node = 0; node < nodes(); node++) {
      for (auto i = flat_.input_start[node]; i < flat_.input_start[node + 1]; i++) {
        last_[flat_.inputs[i]] = node;
      }
    }
    restart();
  }

  int32_t nodes() const {
    return static_cast<int32_t>(flat_.primitive.size());
  }

  void restart() {
    kept_.assign(flat_.node.size(), std::nullopt);
    next_ = 0;
  }

  // Evaluates the next node; the seconds that took. 0 for what is evaluated or left out.
  double step() {
    if (!donate_ && next_ > 0) {
      forget(next_ - 1);
    }
    auto node = next_++;
    if (is_given(node)) {
      place(node, given(node));
    } else if (is_left_out(node)) {
      place(node, stand_ins(node, kept_));
      mx::eval(values());
    } else {
      auto inputs = inputs_of(node, kept_);
      if (donate_) {
        forget(node);
      }
      auto made = make(node, std::move(inputs));
      // Only one handle each, as in a whole evaluation: the list goes before the clock starts.
      auto first = made.front();
      place(node, std::move(made));
      auto start = std::chrono::steady_clock::now();
      mx::eval({std::move(first)});
      std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      drop_unused(node);
      return took.count();
    }
    drop_unused(node);
    return 0;
  }

  // What the last step gave; of what nobody takes, too, unless inputs are donated.
  std::vector<mx::array> values() const {
    std::vector<mx::array> found;
    for (auto a = flat_.output_start[next_ - 1]; a < flat_.output_start[next_]; a++) {
      if (kept_[a]) {
        found.push_back(*kept_[a]);
      }
    }
    return found;
  }

  // What the last step took; only where inputs are not donated.
  std::vector<mx::array> inputs() const {
    return inputs_of(next_ - 1, kept_);
  }

  // Seconds of evaluating a copy of everything at once.
  double whole() const {
    std::vector<mx::array> results;
    {
      std::vector<std::optional<mx::array>> made(flat_.node.size());
      for (int32_t node = 0; node < nodes(); node++) {
        auto arrays = is_given(node) ? given(node)
            : is_left_out(node)      ? stand_ins(node, made)
                                     : make(node, inputs_of(node, made));
        for (size_t i = 0; i < arrays.size(); i++) {
          made[flat_.output_start[node] + i] = std::move(arrays[i]);
        }
      }
      for (auto output : flat_.outputs) {
        results.push_back(*made[output]);
      }
    }
    auto start = std::chrono::steady_clock::now();
    mx::eval(results);
    std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    return took.count();
  }

 private:
  using Kept = std::vector<std::optional<mx::array>>;

  const mx::array& original(int32_t node) const {
    return *flat_.arrays[flat_.output_start[node]];
  }

  bool is_given(int32_t node) const {
    return flat_.primitive[node] == 0 ||
        original(node).status() != mx::array::Status::unscheduled;
  }

  bool is_left_out(int32_t node) const {
    if (collectives_) {
      return false;
    }
    auto& name = flat_.primitives[flat_.primitive[node]];
    return name.ends_with("AllReduce") || name.ends_with("ReduceScatter") || name == "AllGather" ||
        name == "Send" || name == "Recv";
  }

  std::vector<mx::array> given(int32_t node) const {
    std::vector<mx::array> arrays;
    for (auto a = flat_.output_start[node]; a < flat_.output_start[node + 1]; a++) {
      arrays.push_back(evaluated_copy(*flat_.arrays[a]));
    }
    return arrays;
  }

  std::vector<mx::array> stand_ins(int32_t node, const Kept& kept) const {
    auto inputs = inputs_of(node, kept);
    std::vector<mx::array> arrays;
    for (auto a = flat_.output_start[node]; a < flat_.output_start[node + 1]; a++) {
      auto& wanted = *flat_.arrays[a];
      auto i = static_cast<size_t>(a - flat_.output_start[node]);
      bool fits = i < inputs.size() && inputs[i].shape() == wanted.shape() &&
          inputs[i].dtype() == wanted.dtype();
      arrays.push_back(
          fits ? inputs[i]
               : mx::zeros(wanted.shape(), wanted.dtype(), original(node).primitive().stream()));
    }
    return arrays;
  }

  std::vector<mx::array> make(int32_t node, std::vector<mx::array> inputs) const {
    std::vector<mx::Shape> shapes;
    std::vector<mx::Dtype> dtypes;
    for (auto a = flat_.output_start[node]; a < flat_.output_start[node + 1]; a++) {
      shapes.push_back(flat_.arrays[a]->shape());
      dtypes.push_back(flat_.arrays[a]->dtype());
    }
    auto& primitive = original(node).primitive_ptr();
    if (shapes.size() == 1) {
      return {mx::array(std::move(shapes[0]), dtypes[0], primitive, std::move(inputs))};
    }
    return mx::array::make_arrays(std::move(shapes), dtypes, primitive, inputs);
  }

  std::vector<mx::array> inputs_of(int32_t node, const Kept& kept) const {
    std::vector<mx::array> inputs;
    for (auto i = flat_.input_start[node]; i < flat_.input_start[node + 1]; i++) {
      inputs.push_back(kept.at(flat_.inputs[i]).value());
    }
    return inputs;
  }

  void place(int32_t node, std::vector<mx::array> arrays) {
    for (size_t i = 0; i < arrays.size(); i++) {
      kept_[flat_.output_start[node] + i] = std::move(arrays[i]);
    }
  }

  // Lets go of what this node was the last to take, and of what it made for nobody.
  void forget(int32_t node) {
    for (auto i = flat_.input_start[node]; i < flat_.input_start[node + 1]; i++) {
      if (last_[flat_.inputs[i]] == node) {
        kept_[flat_.inputs[i]].reset();
      }
    }
    for (auto a = flat_.output_start[node]; a < flat_.output_start[node + 1]; a++) {
      if (last_[a] < 0) {
        kept_[a].reset();
      }
    }
  }

  void drop_unused(int32_t node) {
    if (donate_) {
      forget(node);
    }
  }

  std::vector<mx::array> outputs_;  // holds the graph
  FlatGraph flat_;
  bool collectives_, donate_;
  std::vector<int32_t> last_;  // of each array, the last node that takes it
  Kept kept_;
  int32_t next_ = 0;
};

inline void bind_replay(nanobind::module_& m) {
  namespace nb = nanobind;
  using Free = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<Replay>(m, "Replay", "Evaluates a copy of a lazy graph; see graph_replay.h.")
      .def(
          nb::init<std::vector<mx::array>, bool, bool>(),
          nb::arg("outputs"),
          nb::arg("collectives"),
          nb::arg("donate"))
      .def("restart", &Replay::restart, "Begin again with the first node.")
      .def("step", &Replay::step, Free(), "Evaluate the next node; the seconds it took.")
      .def("whole", &Replay::whole, Free(), "Seconds of evaluating everything at once.")
      .def("values", &Replay::values, "What the last step gave.")
      .def("inputs", &Replay::inputs, "What the last step took; not where inputs are donated.")
      .def_prop_ro("nodes", &Replay::nodes);
}

}  // namespace bench
