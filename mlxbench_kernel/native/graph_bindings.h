// The graph reader as Python sees it: a dict of NumPy arrays and texts.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "graph_export.h"
#include "graph_reader.h"
#include "graph_replay.h"

namespace bench {

namespace nb = nanobind;

template <typename T>
nb::object as_numpy(std::vector<T>&& values) {
  auto kept = new std::vector<T>(std::move(values));
  nb::capsule owner(kept, [](void* vector) noexcept { delete static_cast<std::vector<T>*>(vector); });
  return nb::cast(nb::ndarray<nb::numpy, T, nb::ndim<1>>(kept->data(), {kept->size()}, owner));
}

inline nb::dict read_graph(
    const std::vector<mx::array>& outputs, const std::vector<uint64_t>& own) {
  auto flat = GraphReader().read(outputs, own);
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

// Remembers in which part of the user's program nodes were made, innermost part first.
class Marker {
 public:
  // How many marks there are: what has a lower number was marked before.
  uint64_t count() const {
    return parts_.size();
  }

  // Marks what `outputs` need that is not marked yet, up to `inputs`, and to what was marked when
  // there were `since` marks.
  void mark(
      const std::vector<mx::array>& outputs,
      const std::vector<mx::array>& inputs,
      int32_t part,
      uint64_t since) {
    std::unordered_set<uint64_t> seen;
    for (auto& input : inputs) {
      seen.insert(input.id());
    }
    std::vector<mx::array> waiting = outputs;
    while (!waiting.empty()) {
      auto array = std::move(waiting.back());
      waiting.pop_back();
      if (!array.has_primitive() || !seen.insert(array.id()).second) {
        continue;
      }
      auto [found, is_new] = parts_.try_emplace(array.id(), Mark{part, parts_.size()});
      if (!is_new && found->second.number < since) {
        continue;
      }
      for (auto& sibling : array.siblings()) {
        parts_.try_emplace(sibling.id(), Mark{part, parts_.size()});
        seen.insert(sibling.id());
      }
      waiting.insert(waiting.end(), array.inputs().begin(), array.inputs().end());
      if (is_new) {
        kept_.push_back(std::move(array));  // so that its id is not used again
      }
    }
  }

  // Ids and parts; what was kept is let go.
  nb::tuple take() {
    std::vector<uint64_t> ids;
    std::vector<int32_t> parts;
    for (auto [id, mark] : parts_) {
      ids.push_back(id);
      parts.push_back(mark.part);
    }
    parts_.clear();
    kept_.clear();
    return nb::make_tuple(as_numpy(std::move(ids)), as_numpy(std::move(parts)));
  }

 private:
  struct Mark {
    int32_t part;
    uint64_t number;
  };

  std::unordered_map<uint64_t, Mark> parts_;
  std::vector<mx::array> kept_;
};

// While reads are refused, the function that says so; NumPy reads arrays through their buffers.
inline nb::object& refusal() {
  static auto* refusal = new nb::object;
  return *refusal;
}

inline getbufferproc give_buffer = nullptr;
inline unsigned long refused_thread = 0;

inline int refuse_buffer(PyObject* exporter, Py_buffer* view, int flags) {
  auto lazy = nb::inst_ptr<mx::array>(nb::handle(exporter))->status() == mx::array::Status::unscheduled;
  if (!lazy || PyThread_get_thread_ident() != refused_thread) {
    return give_buffer(exporter, view, flags);
  }
  view->obj = nullptr;
  try {
    refusal()(nb::borrow(exporter));
    PyErr_SetString(PyExc_BufferError, "not now");
  } catch (nb::python_error& error) {
    error.restore();
  }
  return -1;
}

inline void refuse_buffers(nb::object say) {
  auto slots = reinterpret_cast<PyHeapTypeObject*>(nb::type<mx::array>().ptr());
  if (!say.is_none() && !give_buffer) {
    give_buffer = std::exchange(slots->as_buffer.bf_getbuffer, refuse_buffer);
    refused_thread = PyThread_get_thread_ident();
  } else if (say.is_none() && give_buffer) {
    slots->as_buffer.bf_getbuffer = std::exchange(give_buffer, nullptr);
  }
  refusal() = std::move(say);
}

inline void bind_graph(nb::module_& m) {
  nb::class_<Marker>(m, "Marker")
      .def(nb::init<>())
      .def("mark", &Marker::mark, nb::arg("outputs"), nb::arg("inputs"), nb::arg("part"), nb::arg("since"))
      .def("count", &Marker::count)
      .def("take", &Marker::take);

  m.def(
      "refuse_buffers",
      &refuse_buffers,
      nb::arg("say").none(),
      "In this thread call this instead of giving out the memory of a lazy array to NumPy and "
      "others; None ends it.");

  m.def(
      "put_back",
      [](mx::array& array, const mx::array& value) { array.overwrite_descriptor(value); },
      nb::arg("array"),
      nb::arg("value"),
      "Have an array object be another value, as a[...] = value does, without a node in the graph.");

  m.def(
      "read_graph",
      &read_graph,
      nb::arg("outputs"),
      nb::arg("own"),
      "What arrays are computed from, as flat arrays by name; nothing is evaluated or changed. Of "
      "the arrays with these ids one holder each does not count.");

  m.def(
      "arrays_of",
      &arrays_of,
      nb::arg("outputs"),
      nb::arg("numbers"),
      "The arrays with these numbers in `read_graph` of the same outputs.");

  m.def(
      "is_lazy",
      [](const mx::array& array) { return array.status() == mx::array::Status::unscheduled; },
      nb::arg("array"),
      "Whether reading its value would evaluate it.");

  m.def(
      "is_placeholder",
      [](const mx::array& array) {
        return array.status() == mx::array::Status::unscheduled && !array.has_primitive();
      },
      nb::arg("array"),
      "Whether it stands for an input in a trace: it has no value and nothing computes it.");

  m.def(
      "array_id",
      [](const mx::array& array) { return array.id(); },
      nb::arg("array"),
      "What `read_graph` has as its id.");

  bind_export(m);
  bind_replay(m);
}

}  // namespace bench
