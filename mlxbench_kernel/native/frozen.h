// Trees of arrays: copies that keep what they held, and whether it has been computed.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <exception>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "mlx/array.h"

namespace bench {

namespace nb = nanobind;
namespace mx = mlx::core;

// The array in a Python object, or null. nanobind would look the type up for each one.
inline mx::array* as_array(nb::handle object) {
  static const auto type = reinterpret_cast<PyTypeObject*>(nb::type<mx::array>().ptr());
  return PyObject_TypeCheck(object.ptr(), type) ? nb::inst_ptr<mx::array>(object) : nullptr;
}

// The same array as another object.
inline nb::object handle_of(const mx::array& array) {
  static const auto type = nb::type<mx::array>();
  auto made = nb::inst_alloc(type);
  new (nb::inst_ptr<mx::array>(made)) mx::array(array);
  nb::inst_mark_ready(made);
  return made;
}

// Walks dicts, lists and tuples; `see` is called with each array and says whether to go on.
template <typename See>
inline bool walk(nb::handle tree, See&& see) {
  if (auto array = as_array(tree)) {
    return see(*array);
  }
  if (PyDict_Check(tree.ptr())) {
    PyObject *key, *value;
    for (Py_ssize_t at = 0; PyDict_Next(tree.ptr(), &at, &key, &value);) {
      if (!walk(value, see)) {
        return false;
      }
    }
  } else if (PyList_Check(tree.ptr()) || PyTuple_Check(tree.ptr())) {
    for (auto each : nb::cast<nb::sequence>(tree)) {
      if (!walk(each, see)) {
        return false;
      }
    }
  }
  return true;
}

// MLX leaves what it has evaluated at the status `evaluated` until somebody asks whether it is
// available. So after an evaluation was broken off, what still has it may hold anything.
inline bool is_complete(mx::array& array) {
  try {
    return array.status() != mx::array::Status::unscheduled && array.is_available();
  } catch (const std::exception&) {
    return false;  // an asynchronous evaluation has failed
  }
}

// Calls `see` with arrays and what they are computed from, each once; without recursion.
template <typename See>
inline void walk_graph(const std::vector<mx::array>& arrays, See&& see) {
  std::unordered_set<std::uintptr_t> seen;
  std::vector<mx::array> waiting = arrays;
  while (!waiting.empty()) {
    auto array = std::move(waiting.back());
    waiting.pop_back();
    if (seen.insert(array.id()).second) {
      see(array);
      for (auto& input : array.inputs()) {
        waiting.push_back(input);
      }
    }
  }
}

inline void settle(const std::vector<mx::array>& arrays) {
  walk_graph(arrays, [](mx::array& array) { is_complete(array); });
}

// For each array, whether it or something that it is computed from was evaluated and has not been
// found complete since.
inline std::vector<bool> unsettled(const std::vector<mx::array>& arrays) {
  std::unordered_map<std::uintptr_t, bool> known;
  std::vector<bool> found;
  for (auto& array : arrays) {
    std::vector<std::pair<mx::array, size_t>> path{{array, 0}};
    while (!path.empty()) {
      auto& [current, next] = path.back();
      auto [entry, is_new] = known.try_emplace(current.id(), false);
      if (is_new) {
        entry->second = current.status() == mx::array::Status::evaluated;
      }
      if (next > 0) {
        entry->second = entry->second || known[current.inputs()[next - 1].id()];
      } else if (!is_new) {
        path.pop_back();
        continue;
      }
      if (next == current.inputs().size()) {
        path.pop_back();
      } else {
        auto input = current.inputs()[next++];
        path.emplace_back(std::move(input), 0);
      }
    }
    found.push_back(known[array.id()]);
  }
  return found;
}

// What Python's C API made, which is null where it has raised.
inline PyObject* checked(PyObject* made) {
  if (!made) {
    throw nb::python_error();
  }
  return made;
}

inline nb::object copied(nb::handle value, nb::list& copies) {
  if (auto array = as_array(value)) {
    return handle_of(*array);
  }
  if (PyTuple_CheckExact(value.ptr())) {
    nb::list parts;
    for (auto each : nb::cast<nb::tuple>(value)) {
      parts.append(copied(each, copies));
    }
    return nb::tuple(parts);
  }
  if (PyDict_Check(value.ptr())) {
    // Of a subclass that iterates in its own way, its methods would be called.
    bool plain = Py_TYPE(value.ptr())->tp_iter == PyDict_Type.tp_iter;
    auto copy = nb::steal<nb::dict>(checked(plain ? PyDict_Copy(value.ptr()) : PyDict_New()));
    copies.append(nb::make_tuple(nb::borrow(value), copy));
    PyObject *key, *each;
    for (Py_ssize_t at = 0; PyDict_Next(value.ptr(), &at, &key, &each);) {
      auto made = copied(each, copies);
      if ((!plain || made.ptr() != each) && PyDict_SetItem(copy.ptr(), key, made.ptr())) {
        throw nb::python_error();
      }
    }
  } else if (PyList_Check(value.ptr())) {
    auto end = PyList_GET_SIZE(value.ptr());
    auto copy = nb::steal<nb::list>(checked(PyList_GetSlice(value.ptr(), 0, end)));
    copies.append(nb::make_tuple(nb::borrow(value), copy));
    for (Py_ssize_t at = 0; at < end; at++) {
      auto each = PyList_GET_ITEM(copy.ptr(), at);
      auto made = copied(each, copies);
      if (made.ptr() != each) {
        PyList_SetItem(copy.ptr(), at, made.release().ptr());
      }
    }
  }
  return nb::borrow(value);
}

// Whether two frozen trees hold the same nodes of the graph and equal values otherwise.
inline bool is_same(nb::handle one, nb::handle other) {
  if (one.is(other)) {
    return true;
  }
  auto first = as_array(one), second = as_array(other);
  if (first || second) {
    return first && second && first->id() == second->id();
  }
  if (PyDict_CheckExact(one.ptr()) && PyDict_CheckExact(other.ptr())) {
    if (PyDict_Size(one.ptr()) != PyDict_Size(other.ptr())) {
      return false;
    }
    PyObject *key, *value;
    for (Py_ssize_t at = 0; PyDict_Next(one.ptr(), &at, &key, &value);) {
      auto found = PyDict_GetItemWithError(other.ptr(), key);
      if (!found || !is_same(value, found)) {
        return false;
      }
    }
    return true;
  }
  bool lists = PyList_CheckExact(one.ptr()) && PyList_CheckExact(other.ptr());
  if (lists || (PyTuple_CheckExact(one.ptr()) && PyTuple_CheckExact(other.ptr()))) {
    auto size = nb::len(one);
    if (size != nb::len(other)) {
      return false;
    }
    for (size_t i = 0; i < size; i++) {
      if (!is_same(one[i], other[i])) {
        return false;
      }
    }
    return true;
  }
  return nb::isinstance<nb::int_>(one) && one.equal(other);
}

inline nb::object freeze(nb::handle tree, bool complete) {
  if (complete && !walk(tree, is_complete)) {
    return nb::none();
  }
  nb::list copies;
  copied(tree, copies);
  return copies;
}

inline nb::object renewed(nb::handle value) {
  if (auto array = as_array(value)) {
    return handle_of(*array);
  }
  if (PyTuple_CheckExact(value.ptr())) {
    nb::list parts;
    for (auto each : nb::cast<nb::tuple>(value)) {
      parts.append(renewed(each));
    }
    return nb::tuple(parts);
  }
  return nb::borrow(value);
}

// Gives dicts and lists what their frozen copies hold, with handles of their own. What it leaves
// alone is returned: an OrderedDict keeps its order where this does not reach.
inline nb::list thaw(const nb::list& parts) {
  nb::list left;
  for (auto part : parts) {
    nb::object original = part[0], copy = part[1];
    if (PyDict_Check(copy.ptr()) && PyDict_Check(original.ptr()) && !PyODict_Check(original.ptr())) {
      PyDict_Clear(original.ptr());
      PyObject *key, *value;
      for (Py_ssize_t at = 0; PyDict_Next(copy.ptr(), &at, &key, &value);) {
        if (PyDict_SetItem(original.ptr(), key, renewed(value).ptr())) {
          throw nb::python_error();
        }
      }
    } else if (PyList_Check(copy.ptr()) && PyList_Check(original.ptr())) {
      nb::list values;
      for (auto each : nb::cast<nb::list>(copy)) {
        values.append(renewed(each));
      }
      if (PyList_SetSlice(original.ptr(), 0, PyList_GET_SIZE(original.ptr()), values.ptr())) {
        throw nb::python_error();
      }
    } else {
      left.append(part);
    }
  }
  return left;
}

inline void bind_frozen(nb::module_& m) {
  m.def(
      "settle",
      &settle,
      nb::arg("arrays"),
      "Mark arrays, and what they are computed from, as complete as far as they are evaluated.");

  m.def(
      "unsettled",
      &unsettled,
      nb::arg("arrays"),
      "For each array, whether it, or what it is computed from, was evaluated without having been "
      "read or settled since.");

  m.def(
      "settle_tree",
      [](nb::handle tree) {
        walk(tree, [](mx::array& array) {
          is_complete(array);
          return true;
        });
      },
      nb::arg("tree"),
      "Mark the evaluated arrays in dicts, lists and tuples as complete.");

  m.def(
      "is_same",
      &is_same,
      nb::arg("one"),
      nb::arg("other"),
      "Whether two trees hold the same nodes of the graph, and equal numbers.");

  m.def(
      "thaw",
      &thaw,
      nb::arg("parts"),
      "Give dicts and lists what `freeze` has kept of them; the parts that it cannot do.");

  m.def(
      "freeze",
      &freeze,
      nb::arg("tree"),
      nb::arg("complete") = true,
      "Shallow copies of all dicts and lists of a tree, as (original, copy), with arrays as new "
      "handles; None if an array has to be `complete` and is not.");
}

}  // namespace bench
