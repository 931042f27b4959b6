// mote's own pool: the calling thread and n - 1 workers pull ranges from one counter.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

#include "serial.hpp"

MOTE_BEGIN_NAMESPACE

// A number of threads, as in `simd<> cpu{threads{8}}`.
struct threads {
  std::size_t count = 1;

  // One for each processor of the machine.
  static threads all() {
    const unsigned n = std::thread::hardware_concurrency();
    return {n == 0 ? 1 : n};
  }
};

namespace detail {

inline void spin_pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `a` differs from `old`: spins for some microseconds, then sleeps.
template <class T>
T wait_for_change(const std::atomic<T>& a, T old) {
  for (int i = 0; i < 4000; ++i) {
    const T now = a.load(std::memory_order_acquire);
    if (now != old) return now;
    spin_pause();
  }
  a.wait(old, std::memory_order_acquire);
  return a.load(std::memory_order_acquire);
}

}  // namespace detail

class thread_pool {
 public:
  // Delegates so that the workers already there are stopped if starting another one throws.
  explicit thread_pool(threads n = {}) : thread_pool(no_workers{}) {
    for (std::size_t i = 1; i < n.count; ++i) workers_.emplace_back([this] { work(); });
  }
  ~thread_pool() {
    stop_.store(true, std::memory_order_relaxed);
    publish();
    for (auto& worker : workers_) worker.join();
  }
  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;

  std::size_t concurrency() const { return workers_.size() + 1; }

  template <class F>
  void parallel_for(std::size_t count, std::size_t grain, F&& f) {
    if (count == 0) return;
    if (grain == 0) grain = 1;
    if (workers_.empty() || count <= grain) {
      f(std::size_t{0}, count);
      return;
    }
    using function = std::remove_reference_t<F>;
    context_ = const_cast<void*>(static_cast<const void*>(&f));
    call_ = [](void* context, std::size_t begin, std::size_t end) { (*static_cast<function*>(context))(begin, end); };
    count_ = count;
    grain_ = grain;
    next_.store(0, std::memory_order_relaxed);
    job_.store(open, std::memory_order_release);
    publish();
    run();
    // Nothing is left to take: close the job and wait for those still at work. A worker that has not come yet, because the
    // machine is busy with something else, is not waited for.
    for (std::size_t left = job_.fetch_and(~open, std::memory_order_acq_rel) & ~open; left != 0;) {
      left = detail::wait_for_change(job_, left);
    }
  }

  template <class F>
  auto single(F&& f) {
    return f();
  }

 private:
  struct no_workers {};
  explicit thread_pool(no_workers) {}

  void publish() {
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
  }

  // A function that throws ends the program: workers may still be calling it.
  void run() noexcept {
    for (;;) {
      const std::size_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
      if (begin >= count_) return;
      call_(context_, begin, begin + grain_ < count_ ? begin + grain_ : count_);
    }
  }

  void work() {
    for (std::uint32_t seen = 0;;) {
      seen = detail::wait_for_change(generation_, seen);
      if (stop_.load(std::memory_order_relaxed)) return;
      if (!enter()) continue;
      run();
      if (job_.fetch_sub(1, std::memory_order_acq_rel) == 1) job_.notify_one();
    }
  }

  // Joins the open job, if there is one.
  bool enter() {
    std::size_t state = job_.load(std::memory_order_relaxed);
    while ((state & open) != 0) {
      if (job_.compare_exchange_weak(state, state + 1, std::memory_order_acquire, std::memory_order_relaxed))
        return true;
    }
    return false;
  }

  static constexpr std::size_t open = ~(~std::size_t{0} >> 1);  // of job_: whether workers may join

  std::vector<std::thread> workers_;
  void* context_ = nullptr;
  void (*call_)(void*, std::size_t, std::size_t) = nullptr;
  std::size_t count_ = 0, grain_ = 1;
  alignas(64) std::atomic<std::size_t> next_{0};
  alignas(64) std::atomic<std::size_t> job_{0};  // `open` and the number of workers at work
  alignas(64) std::atomic<std::uint32_t> generation_{0};
  std::atomic<bool> stop_{false};
};

static_assert(executor<thread_pool>);

MOTE_END_NAMESPACE
