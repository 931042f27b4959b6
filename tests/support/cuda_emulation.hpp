// CUDA kernels on the host: a back end that gives each CUDA thread of a block a thread of its own, with a barrier,
// shuffles, shared memory and atomics. Sanitizers understand threads, so the thread sanitizer names a missing sync().
//
// Blocks run one after another, each with shared memory full of NaN. Not emulated: weak memory order, races between
// blocks, speed. A shuffle orders the memory of its warp here, which CUDA does not promise.
#pragma once

#include <atomic>
#include <barrier>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <type_traits>
#include <vector>

#include <mote/core/cuda.cuh>

namespace test {

// The threads of one warp: where they meet, and what they show each other.
struct emulated_warp {
  std::barrier<> barrier{32};
  std::uint64_t values[32] = {};
};

struct emulated_block {
  explicit emulated_block(unsigned threads) : barrier(static_cast<std::ptrdiff_t>(threads)) {
    for (unsigned w = 0; w < threads / 32; ++w) warps.push_back(std::make_unique<emulated_warp>());
  }

  std::barrier<> barrier;
  std::vector<std::unique_ptr<emulated_warp>> warps;
};

class emulated_context {
 public:
  emulated_context(emulated_block& group, unsigned block, unsigned thread)
      : group_(&group), block_(block), thread_(thread) {}

  unsigned block() const { return block_; }
  unsigned thread() const { return thread_; }
  unsigned lane() const { return thread_ % 32; }
  unsigned warp() const { return thread_ / 32; }

  void sync() const { group_->barrier.arrive_and_wait(); }

  template <class T>
  T shuffle_xor(T value, unsigned mask) const {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(std::uint64_t));
    emulated_warp& mine = *group_->warps[warp()];
    std::memcpy(&mine.values[lane()], &value, sizeof value);
    mine.barrier.arrive_and_wait();
    std::memcpy(&value, &mine.values[lane() ^ mask], sizeof value);
    mine.barrier.arrive_and_wait();
    return value;
  }

  template <class T>
  T atomic_add(T* target, T value) const {
    return std::atomic_ref<T>(*target).fetch_add(value, std::memory_order_relaxed);
  }

  mote::float_quad load4(const float* p) const {
    if (reinterpret_cast<std::uintptr_t>(p) % 16 != 0)
      throw std::logic_error("load4 of an address not 16-byte aligned");
    return {{p[0], p[1], p[2], p[3]}};
  }

 private:
  emulated_block* group_;
  unsigned block_, thread_;
};

// The back end: memory is the host's. An exception in a kernel is thrown again by the launch.
class cuda_emulation {
 public:
  using kernel_context = emulated_context;

  mote::workspace_scope<mote::serial> scope() { return {executor_, workspace_}; }

  template <class Kernel>
  void launch(const char* op, std::size_t blocks, const Kernel& kernel) {
    static_assert(Kernel::threads % 32 == 0 && Kernel::threads <= 128);
    static_assert(std::is_trivially_copyable_v<Kernel>);
    static_assert(std::is_trivially_default_constructible_v<typename Kernel::shared_memory>);
    if (mote::detail::check_blocks(op, blocks) == 0) return;

    emulated_block group(Kernel::threads);
    typename Kernel::shared_memory memory;
    std::exception_ptr failure;
    std::mutex failing;
    const auto run = [&](unsigned thread) {
      try {
        for (unsigned b = 0; b < blocks; ++b) {
          if (thread == 0) std::memset(static_cast<void*>(&memory), 0xFF, sizeof memory);
          group.barrier.arrive_and_wait();
          kernel(emulated_context(group, b, thread), memory);
          group.barrier.arrive_and_wait();
        }
      } catch (...) {
        const std::lock_guard lock(failing);
        failure = std::current_exception();
      }
      // A thread that failed must not keep the others waiting.
      group.warps[thread / 32]->barrier.arrive_and_drop();
      group.barrier.arrive_and_drop();
    };
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < Kernel::threads; ++t) threads.emplace_back(run, t);
    for (auto& thread : threads) thread.join();
    if (failure) std::rethrow_exception(failure);
  }

 private:
  mote::serial executor_;
  mote::workspace workspace_;
};

static_assert(mote::launches_kernels<cuda_emulation>);

}  // namespace test
