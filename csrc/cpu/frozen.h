// Weights that rnnfast.freeze has named: what one forward pass packs of them is kept for the next.
#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <iterator>
#include <memory>
#include <mutex>
#include <tuple>
#include <unordered_map>

#include "cpu/memory.h"

namespace rnnfast::cpu {

// Which numbers a weight held when it was looked at: as long as it looks the same, it holds them,
// but for writes that autograd's version does not count (through .data, or another library).
struct WeightState {
  c10::weak_intrusive_ptr<c10::StorageImpl> storage;  // weak: its address is used by no other
  const void* data;
  at::ScalarType dtype;
  uint32_t version;

  explicit WeightState(const at::Tensor& w)
      : storage(w.storage().getWeakStorageImpl()),
        data(w.const_data_ptr()),
        dtype(w.scalar_type()),
        version(w._version()) {}
  bool operator==(const WeightState& other) const {
    return storage._unsafe_get_target() == other.storage._unsafe_get_target() &&
           data == other.data && dtype == other.dtype && version == other.version;
  }
};

// What is packed, and how.
struct PanelForm {
  at::ScalarType type;  // of the numbers in the panels
  int64_t hidden, depth;
  int gates, group;

  bool operator==(const PanelForm& o) const {
    return std::tie(type, hidden, depth, gates, group) ==
           std::tie(o.type, o.hidden, o.depth, o.gates, o.group);
  }
};

struct FrozenPanels {
  WeightState of;
  PanelForm form;
  c10::DataPtr memory;
  bool filled;
};

class FrozenWeights {
 public:
  static FrozenWeights& instance() {
    static FrozenWeights* weights = new FrozenWeights;  // never destroyed, as memory.h's Pool
    return *weights;
  }

  void set(const at::Tensor& w, bool frozen) {
    const std::lock_guard lock(mutex_);
    for (auto entry = entries_.begin(); entry != entries_.end();)
      entry = entry->second.weight.expired() ? entries_.erase(entry) : std::next(entry);
    if (frozen) {
      entries_.try_emplace(
          w.unsafeGetTensorImpl(),
          Entry{c10::weak_intrusive_ptr<c10::TensorImpl>(w.getIntrusivePtr()), nullptr});
    } else {
      entries_.erase(w.unsafeGetTensorImpl());
    }
    count_ = entries_.size();
  }
  bool has(const at::Tensor& w) {
    const std::lock_guard lock(mutex_);
    return entries_.count(w.unsafeGetTensorImpl()) > 0;
  }

  // The panels of w, as it is now, in this form: `filled` if kept from an earlier call, otherwise
  // memory of so many bytes for the caller to fill and `keep`. Null for a weight that is not
  // frozen, or cannot be kept now.
  std::shared_ptr<FrozenPanels> find(const at::Tensor& w, const PanelForm& form, size_t bytes) {
    if (count_ == 0 || w.is_inference() || !w.is_contiguous()) return nullptr;
    const std::unique_lock lock(mutex_, std::try_to_lock);  // see Pool
    const auto entry = lock ? entries_.find(w.unsafeGetTensorImpl()) : entries_.end();
    if (entry == entries_.end()) return nullptr;
    const auto& kept = entry->second.panels;
    WeightState now(w);
    if (kept && kept->of == now && kept->form == form) return kept;
    return std::make_shared<FrozenPanels>(
        FrozenPanels{std::move(now), form, Pool::instance().allocate(bytes), false});
  }
  void keep(const at::Tensor& w, std::shared_ptr<FrozenPanels> panels) {
    panels->filled = true;
    const std::unique_lock lock(mutex_, std::try_to_lock);
    const auto entry = lock ? entries_.find(w.unsafeGetTensorImpl()) : entries_.end();
    if (entry != entries_.end()) entry->second.panels = std::move(panels);
  }

  // Around a fork, as Pool's.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  struct Entry {
    c10::weak_intrusive_ptr<c10::TensorImpl> weight;  // weak, as in WeightState
    std::shared_ptr<FrozenPanels> panels;
  };
  std::mutex mutex_;
  std::unordered_map<c10::TensorImpl*, Entry> entries_;
  std::atomic<size_t> count_{0};
};

}  // namespace rnnfast::cpu
