// What a function that is being traced cannot know by itself: with what its compiled form was
// called, and when that call ends.
//
// MLX simplifies and fuses a graph after the Python of the function has returned, and that takes
// most of a trace. All that mx.compile returns is of one type; for a while its call is replaced by
// one that notes where the arguments are, calls the same and then looks at one variable.
#pragma once

#include <nanobind/nanobind.h>

namespace bench {

namespace nb = nanobind;

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

inline PyObject* watched_call(PyObject* self, PyObject* arguments, PyObject* names) {
  CompiledCall call{arguments, names, compiled_call};
  compiled_call = &call;
  PyObject* result = mlx_call(self, arguments, names);
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

inline void bind_compiled_calls(nb::module_& m) {
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
