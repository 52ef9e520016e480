// What a function that is being traced cannot know by itself: with what its compiled form was
// called, and when that call ends.
//
// MLX simplifies and fuses a graph after the Python of the function has returned, and that takes
// most of a trace. All that mx.compile returns is of one type; for a while its call is replaced by
// one that notes where the arguments are, calls the same and then looks at one variable.
//
// MLX keeps each trace for the next call with such arguments. Those that a capture made must not be
// kept: what the function read besides its arguments is part of them, and is put back afterwards.
#pragma once

#include <nanobind/nanobind.h>

#include <unordered_set>
#include <vector>

#include "interposed.h"
#include "mlx/array.h"
#include "mlx/compile_impl.h"

namespace bench {

namespace nb = nanobind;
namespace mx = mlx::core;

// The calls that go on in this thread, the innermost first.
struct CompiledCall {
  PyObject* arguments;
  PyObject* names;
  CompiledCall* outer;
};
inline thread_local CompiledCall* compiled_call = nullptr;

// What is to be called when the innermost call ends; owned.
inline thread_local PyObject* after_call = nullptr;
inline ternaryfunc mlx_call = nullptr;

inline void call_after() {
  PyObject* after = after_call;
  after_call = nullptr;
  nb::error_scope raised;  // kept while something else is called
  if (PyObject* done = PyObject_CallNoArgs(after)) {
    Py_DECREF(done);
  } else {
    PyErr_WriteUnraisable(after);
  }
  Py_DECREF(after);
}

// While a capture goes on in this thread, the functions that MLX traced since it began; owned.
inline thread_local std::unordered_set<PyObject*>* traced = nullptr;

inline void note_trace(PyObject* function) {
  if (traced != nullptr && traced->insert(function).second) {
    Py_INCREF(function);
  }
}

// The first array in lists, tuples and dicts; null where there is none.
inline const mx::array* first_array(PyObject* tree) {
  if (nb::isinstance<mx::array>(nb::handle(tree))) {
    return nb::inst_ptr<mx::array>(nb::handle(tree));
  }
  if (PyDict_Check(tree)) {
    PyObject *key, *value;
    for (Py_ssize_t place = 0; PyDict_Next(tree, &place, &key, &value);) {
      if (auto found = first_array(value)) {
        return found;
      }
    }
  } else if (PyList_Check(tree) || PyTuple_Check(tree)) {
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(tree); i++) {
      if (auto found = first_array(PySequence_Fast_GET_ITEM(tree, i))) {
        return found;
      }
    }
  }
  return nullptr;
}

// What mx.compile was given: what it returns refers to its type, inputs, outputs and function, in
// this order (python/src/mlx_func.cpp). Null for what other transformations return.
inline PyObject* compiled_function(PyObject* compiled) {
  std::vector<PyObject*> parts;
  auto collect = [](PyObject* part, void* found) {
    static_cast<std::vector<PyObject*>*>(found)->push_back(part);
    return 0;
  };
  Py_TYPE(compiled)->tp_traverse(compiled, collect, &parts);
  return parts.size() < 4 ? nullptr : parts.back();
}

// The compiled function that is being called, in `compiled_call`; null where it is known by others
// whether it is traced (graph/trace_history.py).
inline thread_local PyObject* watched_function = nullptr;

// MLX calls the function to trace it, with other arrays than those that the call was given, or
// where it does not compile, with the same.
inline void note_call(PyObject* target, PyObject* const* arguments, size_t count) {
  if (watched_function == nullptr || compiled_call == nullptr) {
    return;
  }
  auto given = first_array(compiled_call->arguments);
  size_t own = target != watched_function;  // `self`, of a method
  for (size_t i = own; i < count && given != nullptr; i++) {
    if (auto got = first_array(arguments[i])) {
      if (got->id() == given->id()) {
        return;
      }
      break;
    }
  }
  note_trace(watched_function);
}

inline PyObject* noted_call(PyObject* self, PyObject* arguments, PyObject* names) {
  auto function = compiled_function(self);
  if (function == nullptr) {
    return mlx_call(self, arguments, names);
  }
  auto kept = nb::borrow(function);
  auto target = PyMethod_Check(function) ? PyMethod_GET_FUNCTION(function) : function;
  bool known = PyObject_HasAttrString(
      reinterpret_cast<PyObject*>(Py_TYPE(function)), "mlxbench_history");
  bool placed = !known && interpose(target, nullptr, note_call);
  if (!known && !placed) {
    note_trace(function);  // it may be
  }
  auto outer = watched_function;
  watched_function = placed ? function : nullptr;
  PyObject* result = mlx_call(self, arguments, names);
  watched_function = outer;
  if (placed) {
    withdraw(target);
  }
  return result;
}

inline PyObject* watched_call(PyObject* self, PyObject* arguments, PyObject* names) {
  CompiledCall call{arguments, names, compiled_call};
  compiled_call = &call;
  PyObject* result = traced == nullptr ? mlx_call(self, arguments, names)
                                       : noted_call(self, arguments, names);
  compiled_call = call.outer;
  if (after_call != nullptr) [[unlikely]] {
    call_after();
  }
  return result;
}

// Whether calls of objects of this type of MLX are now watched; `on` or no longer.
inline bool watch_calls(nb::handle type, bool on) {
  auto found = reinterpret_cast<PyTypeObject*>(type.ptr());
  if (PyType_HasFeature(found, Py_TPFLAGS_HAVE_VECTORCALL) || found->tp_call == nullptr) {
    return false;  // this MLX calls them in another way
  }
  if (on && found->tp_call != watched_call) {
    mlx_call = found->tp_call;
    found->tp_call = watched_call;
  } else if (!on && found->tp_call == watched_call) {
    found->tp_call = mlx_call;
  }
  return on;
}

inline void call_when_ended(nb::object after) {
  if (compiled_call == nullptr) {
    after();
    return;
  }
  Py_XSETREF(after_call, after.release().ptr());
}

inline nb::object call_arguments() {
  if (compiled_call == nullptr) {
    return nb::none();
  }
  nb::object names = nb::borrow(compiled_call->names ? compiled_call->names : Py_None);
  return nb::make_tuple(nb::borrow(compiled_call->arguments), names);
}

// Have MLX forget the traces of those functions that it traced since `note_traces`; how many.
inline size_t forget_traces() {
  if (traced == nullptr) {
    return 0;
  }
  auto functions = std::exchange(traced, nullptr);
  for (auto function : *functions) {
    mx::detail::compile_erase(
        mx::detail::compile_cache(), reinterpret_cast<std::uintptr_t>(function));
    Py_DECREF(function);
  }
  size_t count = functions->size();
  delete functions;
  return count;
}

inline void bind_compiled_calls(nb::module_& m) {
  bind_interposed(m);

  m.def(
      "note_traces",
      [] {
        bool began = traced == nullptr;
        if (began) {
          traced = new std::unordered_set<PyObject*>;
        }
        return began;
      },
      "From now on note which functions are traced in this thread, in watched calls; False where "
      "that is done already.");
  m.def(
      "note_trace", [](nb::object function) { note_trace(function.ptr()); }, nb::arg("function"),
      "A function of mx.compile is traced: MLX is to forget that with the others.");
  m.def(
      "forget_traces", &forget_traces,
      "Have MLX forget all traces of the functions that were traced since `note_traces`; how many "
      "functions. They are traced again when they are called next.");
  m.def(
      "watch_calls", &watch_calls, nb::arg("type"), nb::arg("on"),
      "Have calls of objects of mx.compile's type known to the others here, or no longer; whether "
      "they are.");
  m.def(
      "call_arguments", &call_arguments,
      "The tuple and the dict (or None) that the innermost watched call of this thread was made "
      "with; None where there is no call.");
  m.def(
      "call_when_ended", &call_when_ended, nb::arg("after"),
      "Call something, without arguments, when the innermost watched call of this thread ends; at "
      "once where there is none.");
}

}  // namespace bench
