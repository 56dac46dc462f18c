// The attributes of a module of Python's that a call in one step looks at: see eager.cpp.
#pragma once

#include <ATen/core/grad_mode.h>
#include <pybind11/pybind11.h>

#include <cstdint>

namespace rnnfast {

namespace py = pybind11;

// Interned strings are found in a dict by their address.
struct Names {
  PyObject *mode = intern("mode"), *input_size = intern("input_size"),
           *hidden_size = intern("hidden_size"), *num_layers = intern("num_layers"),
           *bias = intern("bias"), *batch_first = intern("batch_first"),
           *bidirectional = intern("bidirectional"), *dropout = intern("dropout"),
           *training = intern("training"), *proj_size = intern("proj_size"),
           *parameters = intern("_parameters"), *weights = intern("_flat_weights"),
           *weight_names = intern("_flat_weights_names"), *heads = intern("_heads"),
           *regularisation = intern("_regularisation"), *recompute = intern("recompute"),
           *detach_every = intern("detach_every");
  PyObject* of_cell[4] = {intern("weight_ih"), intern("weight_hh"), intern("bias_ih"),
                          intern("bias_hh")};

  static PyObject* intern(const char* name) { return PyUnicode_InternFromString(name); }
  static const Names& get() {
    static const Names names;
    return names;
  }
};

// Reads the attributes of a module; `good` turns false at the first that is not as it should be.
class Attributes {
 public:
  bool good;

  explicit Attributes(PyObject* module) : type_(Py_TYPE(module)) {
    dict_ = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module, nullptr));
    good = static_cast<bool>(dict_);
  }

  PyObject* get(PyObject* name, bool (*is_kind)(PyObject*)) {
    PyObject* found = good ? PyDict_GetItemWithError(dict_.ptr(), name) : nullptr;
    good = found && is_kind(found);
    return found;
  }
  int64_t integer(PyObject* name) {
    PyObject* found = get(name, [](PyObject* o) -> bool { return PyLong_Check(o); });
    const int64_t value = good ? PyLong_AsLongLong(found) : 0;
    good = good && !(value == -1 && PyErr_Occurred());
    return value;
  }
  bool truth(PyObject* name) {
    PyObject* found = get(name, [](PyObject*) { return true; });
    return good && PyObject_IsTrue(found) == 1;
  }
  bool has(PyObject* name) { return PyDict_GetItemWithError(dict_.ptr(), name) != nullptr; }
  // Of the object or, where it has none, of its class; null where neither has one.
  PyObject* of_class_too(PyObject* name) {
    PyObject* own = PyDict_GetItemWithError(dict_.ptr(), name);
    return own ? own : _PyType_Lookup(type_, name);
  }
  PyObject* dict(PyObject* name) {
    return get(name, [](PyObject* o) -> bool { return PyDict_Check(o); });
  }

 private:
  PyTypeObject* type_;
  py::object dict_;
};

// Whether a layer may be more than torch.nn's, here and now; see rnnfast/base.py.
inline bool has_own_options(Attributes& attributes) {
  const Names& names = Names::get();
  if (attributes.has(names.heads) || attributes.has(names.regularisation)) return true;
  if (!at::GradMode::is_enabled()) return false;
  PyObject *every = attributes.of_class_too(names.detach_every),
           *again = attributes.of_class_too(names.recompute);
  return (every && every != Py_None) || (again && again != Py_False);
}

}  // namespace rnnfast
