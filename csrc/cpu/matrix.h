// A matrix of weights as one forward pass multiplies with it, and the memory of its panels.
#pragma once

#include "cpu/driver.h"
#include "cpu/frozen.h"

namespace rnnfast::cpu {

template <class S>
class ForwardMatrix {
 public:
  // With the panels kept of a frozen one, with panels for this call if it `packs`, or as it stands;
  // plain() is asked for its numbers where they are needed.
  template <class Plain>
  Weights<S> set(const Tensor& given, const Panels<S>& panels, bool packs, const Plain& plain) {
    Weights<S> w{panels, nullptr, nullptr};
    const PanelForm form{kScalarType<S>, panels.hidden, panels.depth, panels.gates, panels.group};
    given_ = given;
    frozen_ = FrozenWeights::instance().find(given, form, panels.size() * sizeof(S));
    if (frozen_) {
      w.packed = static_cast<S*>(frozen_->memory.get()), w.filled = frozen_->filled;
    } else if (packs) {
      packed_ = Scratch<S>(panels.size());
      w.packed = packed_.data();
    }
    if (!w.filled) w.plain = plain();
    return w;
  }
  // Once the pass has run.
  void keep_frozen() {
    if (frozen_ && !frozen_->filled) FrozenWeights::instance().keep(given_, frozen_);
  }

 private:
  Tensor given_;
  std::shared_ptr<FrozenPanels> frozen_;
  Scratch<S> packed_;
};

}  // namespace rnnfast::cpu
