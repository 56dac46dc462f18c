// csrc/cuda/device/threads.h on the emulator.
#pragma once

#include <cstdint>
#include <cstring>

#include "simt/emulator.h"

namespace rnnfast::dev {

using emu::machine;

// ---- where a thread is ----

DEVICE int tid() { return machine->fiber().thread; }
DEVICE int threads() { return machine->shape().threads; }
DEVICE int block_x() { return machine->cta().x; }
DEVICE int block_y() { return machine->cta().y; }
DEVICE int grid_x() { return machine->shape().grid_x; }
DEVICE int grid_y() { return machine->shape().grid_y; }
DEVICE uint8_t* smem() { return machine->cta().smem->data(); }
DEVICE int cluster_rank() { return machine->cta().rank; }
DEVICE void trap(const char* reason) { machine->fail(std::string("trap: ") + reason); }

// ---- waiting ----

DEVICE void pause() { machine->pause(); }

template <class Condition>
DEVICE void wait_until(Condition condition) {
  while (!condition()) pause();
}

// ---- barriers ----

// What the threads that met stored before is ordered before what `stores` stands for does next.
DEVICE void order_stores(const std::vector<emu::Fiber*>& met, std::vector<emu::Store>& stores) {
  for (emu::Fiber* f : met) {
    stores.insert(stores.end(), f->stores.begin(), f->stores.end());
    f->stores.clear();
  }
}

// A barrier of threads of one CTA: of whole warps.
DEVICE void cta_barrier(emu::Barrier& barrier, int threads, const char* where) {
  machine->arrive(barrier, threads, where, [&](const std::vector<emu::Fiber*>& met) {
    emu::Cta& cta = machine->cta();
    std::vector<int> lanes(cta.warps.size());
    for (const emu::Fiber* f : met) ++lanes[static_cast<size_t>(f->thread / emu::kWarp)];
    for (int n : lanes)
      if (n != 0 && n != emu::kWarp) machine->fail(std::string(where) + " by a part of a warp");
    for (emu::Warp& warp : cta.warps) {
      cta.stores.insert(cta.stores.end(), warp.stores.begin(), warp.stores.end());
      warp.stores.clear();
    }
    order_stores(met, cta.stores);
  });
}

DEVICE void cta_sync() { cta_barrier(machine->cta().barrier, threads(), "cta_sync"); }

DEVICE void group_sync(int id, int threads) {
  if (id < 1 || id >= emu::kNamedBarriers) machine->fail("group_sync with a wrong id");
  if (threads < emu::kWarp || threads % emu::kWarp != 0 || threads > dev::threads())
    machine->fail("group_sync of " + std::to_string(threads) + " threads");
  cta_barrier(machine->cta().named[id], threads, "group_sync");
}

// All lanes meet; the last one calls `compute` on what they brought.
template <class Compute>
DEVICE void collective(const char* name, Compute compute) {
  emu::Warp& warp = machine->warp();
  if (warp.barrier.arrived > 0 && std::strcmp(warp.collective, name) != 0)
    machine->fail(std::string("divergent warp: ") + name + " while other lanes are at " +
                  warp.collective);
  warp.collective = name;
  machine->arrive(warp.barrier, emu::kWarp, name,
                  [&](const std::vector<emu::Fiber*>& met) { compute(warp, met); });
}

DEVICE void warp_sync() {
  collective("warp_sync", [](emu::Warp& warp, const std::vector<emu::Fiber*>& met) {
    order_stores(met, warp.stores);
  });
}

DEVICE void keep_order() {}

DEVICE void cluster_sync() {
  emu::Cluster& cluster = *machine->cta().cluster;
  const int all = static_cast<int>(cluster.ctas.size()) * threads();
  machine->arrive(cluster.barrier, all, "cluster_sync", [&](const std::vector<emu::Fiber*>& met) {
    for (emu::Fiber* f : met) machine->publish(f->stores);
    for (emu::Cta& cta : cluster.ctas) {
      for (emu::Warp& warp : cta.warps) machine->publish(warp.stores);
      machine->publish(cta.stores);
    }
  });
}

// ---- shared memory of the cluster ----

DEVICE emu::Mbar& own_mbar(uint64_t* bar, const char* primitive) {
  for (const uint64_t* known : machine->cta().mbars)
    if (known == bar) return *reinterpret_cast<emu::Mbar*>(bar);
  machine->fail(std::string(primitive) + " without mbar_init");
}

DEVICE void mbar_init(uint64_t* bar, int arrivals) {
  emu::Cta& cta = machine->cta();
  if (!cta.smem->holds(bar, sizeof *bar) || reinterpret_cast<uintptr_t>(bar) % sizeof *bar != 0)
    machine->fail("mbar_init outside shared memory, or not aligned");
  for (const uint64_t* known : cta.mbars)
    if (known == bar) machine->fail("mbar_init of the same mbarrier again");
  if (arrivals < 1) machine->fail("mbar_init with no arrivals");
  cta.mbars.push_back(bar);
  const auto n = static_cast<int16_t>(arrivals);
  *reinterpret_cast<emu::Mbar*>(bar) = {n, n, 0, 0};
  machine->maybe_yield();
}

DEVICE void mbar_expect(uint64_t* bar, uint32_t bytes) {
  emu::Mbar& m = own_mbar(bar, "mbar_expect");
  m.bytes = m.bytes + static_cast<int>(bytes);
  --m.pending;
  machine->check_phase(machine->cta(), bar);
  machine->maybe_yield();
}

DEVICE void mbar_wait(uint64_t* bar, uint32_t parity) {
  const emu::Mbar& m = own_mbar(bar, "mbar_wait");
  if (parity > 1) machine->fail("mbar_wait with a parity above 1");
  machine->maybe_yield();
  emu::Fiber& fiber = machine->fiber();
  fiber.bar = bar;
  fiber.parity = parity;
  while (m.phase == parity) {  // again where a slow thread has missed the phase
    machine->cta().mbar_waiting.push_back(&fiber);
    machine->block("mbar_wait");
  }
  fiber.bar = nullptr;
}

struct Remote {
  emu::Cta* cta;
  int64_t offset;
};
DEVICE Remote operator+(Remote r, int bytes) { return {r.cta, r.offset + bytes}; }

DEVICE Remote remote(const void* p, int rank) {
  auto& ctas = machine->cta().cluster->ctas;
  if (rank < 0 || static_cast<size_t>(rank) >= ctas.size())
    machine->fail("remote: no rank " + std::to_string(rank) + " in this cluster");
  return {&ctas[static_cast<size_t>(rank)], static_cast<const uint8_t*>(p) - smem()};
}

DEVICE void st_async(Remote to, uint4 v, int bytes, Remote bar) {
  const auto end = static_cast<int64_t>(machine->shape().smem_bytes);
  if (to.cta != bar.cta) machine->fail("st_async: data and mbarrier in different CTAs");
  if (to.offset < 0 || to.offset + bytes > end || bar.offset < 0 || bar.offset + 8 > end)
    machine->fail("st_async outside shared memory");
  if (to.offset % bytes != 0) machine->fail("st_async to a misaligned address");
  uint8_t* base = to.cta->smem->data();
  machine->send({to.cta, base + to.offset, reinterpret_cast<uint64_t*>(base + bar.offset), v,
                 static_cast<size_t>(bytes)});
  machine->maybe_yield();
}
DEVICE void st_async16(Remote to, uint4 v, Remote bar) { st_async(to, v, 16, bar); }
DEVICE void st_async4(Remote to, uint32_t v, Remote bar) { st_async(to, {v, 0, 0, 0}, 4, bar); }

}  // namespace rnnfast::dev
