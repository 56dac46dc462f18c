// rnnfast._C.layers and cell: a call of a module in one step from Python, where nothing is special
// about it. Whatever is special, or wrong, is left to rnnfast.layers and cells, which know the
// errors.
#include "eager.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <c10/util/irange.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <numeric>
#include <optional>
#include <string_view>
#include <utility>

#include "attributes.h"
#include "cells.h"
#include "ops.h"

namespace rnnfast {
namespace {

using at::Tensor;
using Tensors = c10::SmallVector<Tensor, 8>;

// Torch's `mode` is the cell's name in capitals.
const CellFacts* find_cell(PyObject* mode) {
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(mode, &size);
  const auto same = [](char letter, char capital) { return std::toupper(letter) == capital; };
  for (const CellFacts& cell : kCells) {
    const std::string_view name = cell.name;
    if (text && std::equal(name.begin(), name.end(), text, text + size, same)) return &cell;
  }
  return nullptr;
}

// Appends the tensor that `object` is, if it is one and of no subclass.
bool take(PyObject* object, Tensors& tensors) {
  if (!THPVariable_CheckExact(object)) return false;
  tensors.push_back(THPVariable_Unpack(object));
  return true;
}

// The tensors of a call.
struct Arguments {
  const CellFacts* cell = nullptr;
  Tensor input, batch_sizes;  // batch_sizes undefined for a tensor that is not packed
  Tensors states, weights;

  bool read_tensors(PyObject* given_input, PyObject* given_sizes, PyObject* hx);
  bool is_plain() const;
};

// One call of a module of layers: its options, too.
struct Call : Arguments {
  int64_t input_size, hidden_size, num_layers, directions;
  bool has_biases, batch_first;
  bool batched = true;

  bool read(PyObject* module, PyObject* given_input, PyObject* given_sizes, PyObject* hx) {
    return read_options(module) && read_tensors(given_input, given_sizes, hx) && is_plain() &&
           add_batch() && fits();
  }
  int64_t batch_dim() const { return batch_first ? 0 : 1; }

 private:
  bool read_options(PyObject* module);
  bool read_weights(PyObject* list, PyObject* weight_names, PyObject* parameters);
  bool add_batch();
  bool fits() const;
};

bool Call::read_options(PyObject* module) {
  const Names& names = Names::get();
  Attributes attributes(module);
  if (!attributes.good || has_own_options(attributes)) return false;
  const auto is_list = [](PyObject* o) -> bool { return PyList_CheckExact(o); };
  PyObject* mode =
      attributes.get(names.mode, [](PyObject* o) -> bool { return PyUnicode_Check(o); });
  PyObject* parameters = attributes.dict(names.parameters);
  PyObject* list = attributes.get(names.weights, is_list);
  PyObject* weight_names = attributes.get(names.weight_names, is_list);
  input_size = attributes.integer(names.input_size);
  hidden_size = attributes.integer(names.hidden_size);
  num_layers = attributes.integer(names.num_layers);
  has_biases = attributes.truth(names.bias);
  batch_first = attributes.truth(names.batch_first);
  directions = attributes.truth(names.bidirectional) ? 2 : 1;
  const bool drops =
      num_layers > 1 && attributes.truth(names.training) && attributes.truth(names.dropout);
  if (drops || attributes.truth(names.proj_size) || !attributes.good || num_layers < 1)
    return false;
  cell = find_cell(mode);
  return cell && read_weights(list, weight_names, parameters);
}

// _flat_weights, if they are the module's parameters. Parametrisations, functional_call and others
// put other tensors in their place, which Python brings up to date.
bool Call::read_weights(PyObject* list, PyObject* weight_names, PyObject* parameters) {
  const Py_ssize_t count = PyList_GET_SIZE(list);
  if (count != num_layers * directions * (has_biases ? 4 : 2) ||
      count != PyList_GET_SIZE(weight_names))
    return false;
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* weight = PyList_GET_ITEM(list, i);
    if (PyDict_GetItemWithError(parameters, PyList_GET_ITEM(weight_names, i)) != weight ||
        !take(weight, weights))
      return false;
  }
  return true;
}

bool Arguments::read_tensors(PyObject* given_input, PyObject* given_sizes, PyObject* hx) {
  Tensors read;
  if (!take(given_input, read)) return false;
  input = read[0];
  if (given_sizes != Py_None) {
    if (!take(given_sizes, read)) return false;
    batch_sizes = read[1];
  }
  if (hx == Py_None) return true;
  if (cell->states == 1) return take(hx, states);
  if (!PyTuple_CheckExact(hx) || PyTuple_GET_SIZE(hx) != cell->states) return false;
  for (int k = 0; k < cell->states; ++k)
    if (!take(PyTuple_GET_ITEM(hx, k), states)) return false;
  return true;
}

// Whether only autograd and our kernels have a say in what is done with these tensors: no mode, no
// transform, no trace, no autocast.
bool Arguments::is_plain() const {
  if (at::impl::torch_function_mode_enabled()) return false;
  if (torch::autograd::ForwardADLevel::try_get_by_idx(0)) return false;
  const at::ScalarType dtype = input.scalar_type();
  if (dtype != at::kFloat && dtype != at::kDouble && dtype != at::kBFloat16 && dtype != at::kHalf)
    return false;
  c10::DispatchKeySet keys = input.key_set();
  const auto is_alike = [&](const Tensor& t) {
    keys = keys | t.key_set();
    return t.scalar_type() == dtype && t.device() == input.device();
  };
  if (!std::all_of(states.begin(), states.end(), is_alike) ||
      !std::all_of(weights.begin(), weights.end(), is_alike))
    return false;
  const auto who_else = [](c10::DispatchKeySet keys) {
    const auto local = c10::impl::tls_local_dispatch_key_set();
    return ((keys | local.included_) - local.excluded_) -
           c10::autograd_dispatch_keyset_with_ADInplaceOrView -
           c10::DispatchKeySet(c10::DispatchKey::BackendSelect);
  };
  const c10::DispatchKeySet cpu(c10::DispatchKey::CPU), cuda(c10::DispatchKey::CUDA);
  if (batch_sizes.defined() && who_else(batch_sizes.key_set()) != cpu) return false;
  return who_else(keys) == cpu ||
         (who_else(keys) == cuda && layer_op().hasKernelForDispatchKey(c10::DispatchKey::CUDA));
}

// One sequence without a batch is a batch of one.
bool Call::add_batch() {
  if (batch_sizes.defined() || input.dim() != 2) return true;
  if (!std::all_of(states.begin(), states.end(), [](const Tensor& s) { return s.dim() == 2; }))
    return false;
  batched = false;
  input = input.unsqueeze(batch_dim());
  for (Tensor& state : states) state = state.unsqueeze(1);
  return true;
}

// Whether all sizes are as torch.nn wants them. Those of the weights are the operator's to check.
bool Call::fits() const {
  const bool packed = batch_sizes.defined();
  if (input.dim() != (packed ? 2 : 3) || input.size(-1) != input_size) return false;
  const int64_t time_dim = batch_first && !packed ? 1 : 0;
  if (input.size(time_dim) == 0) return false;
  int64_t batch = packed ? 0 : input.size(1 - time_dim);
  if (packed) {
    if (batch_sizes.dim() != 1 || batch_sizes.scalar_type() != at::kLong || !batch_sizes.is_cpu() ||
        !batch_sizes.is_contiguous() || batch_sizes.numel() == 0)
      return false;
    const int64_t* sizes = batch_sizes.const_data_ptr<int64_t>();
    const auto rows = std::accumulate(sizes, sizes + batch_sizes.numel(), uint64_t{0});
    if (rows != static_cast<uint64_t>(input.size(0))) return false;
    batch = sizes[0];
  }
  const std::array<int64_t, 3> wanted{num_layers * directions, batch, hidden_size};
  return std::all_of(states.begin(), states.end(),
                     [&](const Tensor& state) { return state.sizes() == wanted; });
}

struct Results {
  Tensor output;
  Tensors states_n;
};

// Python's lock, given back for a while. pybind11's does more, for threads that it has begun.
class WithoutLock {
 public:
  WithoutLock() : state_(PyEval_SaveThread()) {}
  ~WithoutLock() { PyEval_RestoreThread(state_); }
  WithoutLock(const WithoutLock&) = delete;
  WithoutLock& operator=(const WithoutLock&) = delete;

 private:
  PyThreadState* state_;
};

// The layers, one on the output of the other.
Results run(const Call& call) {
  const WithoutLock no_lock;
  const bool transposes = call.batch_first && !call.batch_sizes.defined();
  const std::optional<Tensor> sizes =
      call.batch_sizes.defined() ? std::optional(call.batch_sizes) : std::nullopt;
  const size_t per_layer = call.weights.size() / call.num_layers;
  Tensor output = transposes ? call.input.transpose(0, 1) : call.input;
  std::array<Tensors, 2> states_n;  // by layer, for each state of the cell
  for (const auto i : c10::irange(call.num_layers)) {
    Tensors initial = call.states;
    if (call.num_layers > 1)
      for (Tensor& state : initial) state = state.narrow(0, i * call.directions, call.directions);
    const auto own_weights = at::TensorList(call.weights).slice(i * per_layer, per_layer);
    auto [above, finals, reserve] =
        layer_op().call(call.cell->name, output, sizes, initial, own_weights, call.directions == 2,
                        /*train=*/false);
    output = std::move(above);
    for (const auto k : c10::irange(finals.size())) states_n[k].push_back(std::move(finals[k]));
  }
  // As torch's operators: only that of the LSTM gives a view, which may not be written in all ways.
  if (transposes)
    output = call.cell->states == 2 ? output.transpose(0, 1) : output.transpose_(0, 1);
  Results results{std::move(output), {}};
  for (int k = 0; k < call.cell->states; ++k)
    results.states_n.push_back(call.num_layers == 1 ? std::move(states_n[k][0])
                                                    : at::cat(states_n[k]));
  if (!call.batched) {
    results.output = results.output.squeeze(call.batch_dim());
    for (Tensor& state : results.states_n) state = state.squeeze(1);
  }
  return results;
}

// One call of a module that is a cell.
struct CellCall : Arguments {
  bool read(PyObject* module, PyObject* name, PyObject* given_input, PyObject* hx) {
    cell = find_cell(name);
    return cell && read_tensors(given_input, Py_None, hx) && read_weights(module) && is_plain() &&
           fits();
  }
  // The states after the step.
  Tensors run() const;

 private:
  bool read_weights(PyObject* module);
  bool fits() const;
};

bool CellCall::read_weights(PyObject* module) {
  const Names& names = Names::get();
  Attributes attributes(module);
  PyObject* parameters = attributes.dict(names.parameters);
  if (!attributes.good) return false;
  for (PyObject* name : names.of_cell) {
    if (attributes.has(name)) return false;  // in the way of the parameter
    PyObject* weight = PyDict_GetItemWithError(parameters, name);
    if (!weight || !(weight == Py_None || take(weight, weights))) return false;
  }
  return weights.size() == 2 || weights.size() == 4;
}

// On a GPU the plan has a say, see routes.py.
bool CellCall::fits() const {
  if (!input.is_cpu() || (input.dim() != 1 && input.dim() != 2) || weights[0].dim() != 2 ||
      weights[1].dim() != 2 || input.size(-1) != weights[0].size(1))
    return false;
  const int64_t H = weights[1].size(1), rows = cell->gates * H;
  if (weights[0].size(0) != rows || weights[1].size(0) != rows) return false;
  for (size_t i = 2; i < weights.size(); ++i)
    if (weights[i].dim() != 1 || weights[i].size(0) != rows) return false;
  c10::SmallVector<int64_t, 2> wanted(input.sizes().begin(), input.sizes().end());
  wanted.back() = H;
  return std::all_of(states.begin(), states.end(),
                     [&](const Tensor& state) { return state.sizes() == at::IntArrayRef(wanted); });
}

Tensors CellCall::run() const {
  const WithoutLock no_lock;
  const bool batched = input.dim() == 2;
  const auto widened = [&](const Tensor& t) {
    return batched ? t.unsqueeze(0) : t.unsqueeze(0).unsqueeze(0);
  };
  Tensors initial;
  for (const Tensor& state : states) initial.push_back(widened(state));
  auto [output, finals, reserve] = layer_op().call(cell->name, widened(input), std::nullopt,
                                                   initial, weights, /*bidirectional=*/false,
                                                   /*train=*/false);
  // In place: a view may not be written in all ways.
  for (Tensor& state : finals) batched ? state.squeeze_(0) : state.squeeze_(0).squeeze_(0);
  return {finals.begin(), finals.end()};
}

py::object wrapped(Tensor& t) {
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(std::move(t)));
}

// One state as it is, two as a pair.
py::object wrapped(Tensors& states) {
  py::object first = wrapped(states[0]);
  return states.size() == 2 ? py::make_tuple(std::move(first), wrapped(states[1])) : first;
}

// layers(module, input, batch_sizes, hx) -> (output, hidden), or None for a call that is not plain.
PyObject* layers(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 4) {
    PyErr_Format(PyExc_TypeError, "layers takes 4 arguments, got %zd", count);
    return nullptr;
  }
  Call call;
  if (!call.read(arguments[0], arguments[1], arguments[2], arguments[3])) {
    PyErr_Clear();
    Py_RETURN_NONE;
  }
  Results results = run(call);
  py::object hidden = wrapped(results.states_n);
  return py::make_tuple(wrapped(results.output), std::move(hidden)).release().ptr();
  END_HANDLE_TH_ERRORS
}

// cell(module, name, input, hx) -> the states after the step, or None for a call that is not plain.
PyObject* cell(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 4) {
    PyErr_Format(PyExc_TypeError, "cell takes 4 arguments, got %zd", count);
    return nullptr;
  }
  CellCall call;
  if (!call.read(arguments[0], arguments[1], arguments[2], arguments[3])) {
    PyErr_Clear();
    Py_RETURN_NONE;
  }
  Tensors states = call.run();
  return wrapped(states).release().ptr();
  END_HANDLE_TH_ERRORS
}

template <PyObject* function(PyObject*, PyObject* const*, Py_ssize_t)>
PyCFunction fastcall() {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

}  // namespace

PyMethodDef kEagerMethods[] = {
    {"layers", fastcall<layers>(), METH_FASTCALL,
     "A call of a module in one step, or None where something about it is special or wrong."},
    {"cell", fastcall<cell>(), METH_FASTCALL, "The same of a module that is a cell."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace rnnfast
