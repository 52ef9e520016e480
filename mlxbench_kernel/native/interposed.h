// Has something else be called in place of a function, by whatever name the function is called.
//
// What is called often carries a pointer to the C function that does it (the vectorcall protocol,
// PEP 590); functions of Python and of nanobind do. That pointer is replaced for a while.
#pragma once

#include <nanobind/nanobind.h>

#include <unordered_map>

namespace bench {

namespace nb = nanobind;

struct Interposed {
  vectorcallfunc original;
  PyObject* instead;    // owned; null where it is only to be known that it was called
  unsigned long thread; // in which alone it is called
  void (*note)(PyObject* target, PyObject* const* arguments, size_t count);
  int times;
};

// A function's entry stays where it is while others come and go.
inline std::unordered_map<PyObject*, Interposed>& interposed() {
  static auto* all = new std::unordered_map<PyObject*, Interposed>;
  return *all;
}

inline PyObject* interposed_call(
    PyObject* self, PyObject* const* arguments, size_t count, PyObject* names) {
  auto& found = interposed().at(self);
  auto original = found.original;
  if (found.thread != PyThread_get_thread_ident()) {
    return original(self, arguments, count, names);
  }
  if (found.note != nullptr) {
    found.note(self, arguments, PyVectorcall_NARGS(count));
    return original(self, arguments, count, names);
  }
  auto instead = nb::borrow(found.instead);
  PyObject* result = PyObject_Vectorcall(instead.ptr(), arguments, count, names);
  if (result != Py_NotImplemented) {
    return result;
  }
  Py_DECREF(result);
  return original(self, arguments, count, names);
}

inline vectorcallfunc* pointer_of(PyObject* target) {
  auto type = Py_TYPE(target);
  if (!PyType_HasFeature(type, Py_TPFLAGS_HAVE_VECTORCALL)) {
    return nullptr;
  }
  auto place = reinterpret_cast<char*>(target) + type->tp_vectorcall_offset;
  auto pointer = reinterpret_cast<vectorcallfunc*>(place);
  return *pointer == nullptr ? nullptr : pointer;
}

// Whether it can be done; each one that could is to be followed by a `withdraw`.
inline bool interpose(PyObject* target, PyObject* instead, decltype(Interposed::note) note) {
  auto pointer = pointer_of(target);
  if (pointer == nullptr) {
    return false;
  }
  auto thread = PyThread_get_thread_ident();
  auto [found, is_new] = interposed().try_emplace(
      target, Interposed{*pointer, Py_XNewRef(instead), thread, note, 0});
  found->second.times++;
  if (is_new) {
    Py_INCREF(target);
    *pointer = interposed_call;
  }
  return true;
}

inline void withdraw(PyObject* target) {
  auto found = interposed().find(target);
  if (found == interposed().end() || --found->second.times > 0) {
    return;
  }
  *pointer_of(target) = found->second.original;
  auto instead = found->second.instead;
  interposed().erase(found);
  Py_XDECREF(instead);
  Py_DECREF(target);
}

inline void bind_interposed(nb::module_& m) {
  m.def(
      "interpose",
      [](nb::object target, nb::object instead) {
        return interpose(target.ptr(), instead.ptr(), nullptr);
      },
      nb::arg("target"),
      nb::arg("instead"),
      "Have calls of a function in this thread go to another one, and to it where that returns "
      "NotImplemented; whether that can be done.");
  m.def(
      "withdraw",
      [](nb::object target) { withdraw(target.ptr()); },
      nb::arg("target"),
      "Have a function be called itself again.");
}

}  // namespace bench
