// oneDNN's own RNN primitives behind a C interface, for ctypes.
//
// The best case for oneDNN: the weights are brought into the layout that the primitive asks for
// when a layer is prepared, not when it runs; the gradients of the weights stay in the primitive's
// layout, and are added up from call to call as the primitive does it: nobody sets them to zero in
// between.

#include <cstring>
#include <exception>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <unordered_map>
#include <vector>

using dnnl::memory;
using Tag = memory::format_tag;

extern "C" {
// One layer, one direction, initial states zero. Gates and biases in oneDNN's order.
struct Problem {
  int cell;  // 0: RNN with tanh, 1: GRU whose reset gate acts after the product, 2: LSTM
  int training, bfloat16;  // of the tensors, which are float32 here; gradients are float32
  int T, B, I, H;
  float* x;            // [T, B, I]
  float* w_ih;         // [G*H, I]
  float* w_hh;         // [G*H, H]
  float* bias;         // [G*H]; of a GRU [4*H]
  float* grad_output;  // [T, B, H]; read in training only
};
}

namespace {

struct Step {
  dnnl::primitive primitive;
  std::unordered_map<int, memory> arguments;
};

class Layer {
 public:
  explicit Layer(const Problem& problem) : p_(problem) {
    given_ = {{DNNL_ARG_SRC_LAYER, user_memory(sequence(p_.I), p_.x)},
              {DNNL_ARG_WEIGHTS_LAYER, user_memory(weights(p_.I, Tag::ldgoi), p_.w_ih)},
              {DNNL_ARG_WEIGHTS_ITER, user_memory(weights(p_.H, Tag::ldgoi), p_.w_hh)},
              {DNNL_ARG_BIAS, user_memory(bias(), p_.bias)}};
    if (p_.training) given_[DNNL_ARG_DIFF_DST_LAYER] = user_memory(sequence(p_.H), p_.grad_output);
    prepare();
  }

  void run() {
    for (Step& step : steps_) step.primitive.execute(stream_, step.arguments);
    stream_.wait();
  }

  // Copies an argument of the last step to `to`, weights in torch's layout.
  void read(int argument, float* to) {
    memory& from = steps_.back().arguments.at(argument);
    const memory::dims sizes = from.get_desc().get_dims();
    memory target = user_memory(argument == DNNL_ARG_DIFF_WEIGHTS_LAYER ? weights(p_.I, Tag::ldgoi)
                                : argument == DNNL_ARG_DIFF_WEIGHTS_ITER
                                    ? weights(p_.H, Tag::ldgoi)
                                    : desc(sizes, sizes.size() == 3 ? Tag::abc : Tag::abcd),
                                to);
    copy(from, target);
  }

 private:
  static memory::desc desc(const memory::dims& sizes, Tag tag) {
    return {sizes, memory::data_type::f32, tag};
  }
  // As the primitives take it.
  memory::desc in_dtype(const memory::desc& of, Tag tag) const {
    return {of.get_dims(), p_.bfloat16 ? memory::data_type::bf16 : memory::data_type::f32, tag};
  }
  memory::desc sequence(int width) const { return desc({p_.T, p_.B, width}, Tag::tnc); }
  memory::desc state() const { return desc({1, 1, p_.B, p_.H}, Tag::ldnc); }
  memory::desc weights(int width, Tag tag) const {
    return desc({1, 1, width, p_.cell == 0 ? 1 : p_.cell + 2, p_.H}, tag);
  }
  memory::desc bias() const { return desc({1, 1, p_.cell == 0 ? 1 : 4, p_.H}, Tag::ldgo); }
  memory user_memory(const memory::desc& of, float* data) const { return {of, engine_, data}; }

  // The gradients have the descriptors of what they are gradients of, in float32.
  void prepare() {
    using namespace dnnl;
    const auto forward = p_.training ? prop_kind::forward_training : prop_kind::forward_inference;
    const auto backward = prop_kind::backward;
    const auto tanh = algorithm::eltwise_tanh;
    const auto direction = rnn_direction::unidirectional_left2right;
    const auto dx = sequence(p_.I), dy = sequence(p_.H), dh = state(), b = bias();
    const auto dw = weights(p_.I, Tag::any), du = weights(p_.H, Tag::any), &c = dh;
    const auto x = in_dtype(dx, Tag::tnc), y = in_dtype(dy, Tag::tnc), h = in_dtype(dh, Tag::ldnc);
    const auto w = in_dtype(weights(p_.I, Tag::ldgoi), Tag::any),
               u = in_dtype(weights(p_.H, Tag::ldgoi), Tag::any);
    if (p_.cell == 0) {
      const vanilla_rnn_forward::primitive_desc pass(engine_, forward, tanh, direction, x, h, w, u,
                                                     b, y, h);
      add<vanilla_rnn_forward>(pass);
      if (p_.training)
        add<vanilla_rnn_backward>({engine_, backward, tanh, direction, x, h, w, u, b, y, h, dx, dh,
                                   dw, du, b, dy, dh, pass});
    } else if (p_.cell == 1) {
      const lbr_gru_forward::primitive_desc pass(engine_, forward, direction, x, h, w, u, b, y, h);
      add<lbr_gru_forward>(pass);
      if (p_.training)
        add<lbr_gru_backward>(
            {engine_, backward, direction, x, h, w, u, b, y, h, dx, dh, dw, du, b, dy, dh, pass});
    } else {
      const lstm_forward::primitive_desc pass(engine_, forward, direction, x, h, c, w, u, b, y, h,
                                              c);
      add<lstm_forward>(pass);
      if (p_.training)
        add<lstm_backward>({engine_, backward, direction, x, h,  c,  w, u,  b,  y, h,
                            c,       dx,       dh,        c, dw, du, b, dy, dh, c, pass});
    }
  }

  // A pass with memory for all its arguments: what was given, in the layout it wants; what the step
  // before it left; else zeros.
  template <class Pass>
  void add(const typename Pass::primitive_desc& pass) {
    Step step{Pass(pass), {}};
    for (int argument : kArguments) {
      const memory::desc wanted = pass.query_md(dnnl::query::exec_arg_md, argument);
      if (wanted.get_size() == 0) continue;
      step.arguments[argument] = find(argument, wanted);
    }
    steps_.push_back(std::move(step));
  }

  memory find(int argument, const memory::desc& wanted) {
    if (!steps_.empty()) {
      const auto& before = steps_.back().arguments;
      const auto left = before.find(argument);
      if (left != before.end() && left->second.get_desc() == wanted) return left->second;
    }
    memory made(wanted, engine_);
    std::memset(made.get_data_handle(), 0, wanted.get_size());
    const auto given = given_.find(argument);
    if (given != given_.end()) copy(given->second, made);
    return made;
  }

  void copy(memory& from, memory& to) {
    dnnl::reorder(from, to).execute(stream_, from, to);
    stream_.wait();
  }

  static constexpr int kArguments[] = {DNNL_ARG_SRC_LAYER,          DNNL_ARG_SRC_ITER,
                                       DNNL_ARG_SRC_ITER_C,         DNNL_ARG_DIFF_SRC_ITER,
                                       DNNL_ARG_DIFF_SRC_ITER_C,    DNNL_ARG_WEIGHTS_LAYER,
                                       DNNL_ARG_WEIGHTS_ITER,       DNNL_ARG_BIAS,
                                       DNNL_ARG_DST_LAYER,          DNNL_ARG_DST_ITER,
                                       DNNL_ARG_DST_ITER_C,         DNNL_ARG_WORKSPACE,
                                       DNNL_ARG_DIFF_DST_LAYER,     DNNL_ARG_DIFF_DST_ITER,
                                       DNNL_ARG_DIFF_DST_ITER_C,    DNNL_ARG_DIFF_SRC_LAYER,
                                       DNNL_ARG_DIFF_WEIGHTS_LAYER, DNNL_ARG_DIFF_WEIGHTS_ITER,
                                       DNNL_ARG_DIFF_BIAS};

  Problem p_;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  std::unordered_map<int, memory> given_;
  std::vector<Step> steps_;
};

std::string last_error;

// Whether it went well.
template <class Function>
bool attempt(const Function& function) {
  try {
    function();
    return true;
  } catch (const std::exception& error) {
    last_error = error.what();
    return false;
  }
}

}  // namespace

extern "C" {

// Null on failure: `rnn_error` says why.
void* rnn_prepare(const Problem* problem) {
  Layer* made = nullptr;
  attempt([&] { made = new Layer(*problem); });
  return made;
}

const char* rnn_error() { return last_error.c_str(); }
int rnn_run(void* layer) {
  return attempt([&] { static_cast<Layer*>(layer)->run(); });
}
int rnn_read(void* layer, int argument, float* to) {
  return attempt([&] { static_cast<Layer*>(layer)->read(argument, to); });
}
void rnn_free(void* layer) { delete static_cast<Layer*>(layer); }

// As one number: 30200 is 3.2.0.
int rnn_version() {
  const dnnl_version_t* version = dnnl_version();
  return 10000 * version->major + 100 * version->minor + version->patch;
}
}
