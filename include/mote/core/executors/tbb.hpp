// oneTBB's task scheduler. Needs oneTBB's headers and library; not part of <mote/mote.hpp>.
#pragma once

#if __has_include(<oneapi/tbb/parallel_for.h>)

#include <oneapi/tbb/blocked_range.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>

#include <cstddef>

#include "thread_pool.hpp"

MOTE_BEGIN_NAMESPACE

class onetbb {
 public:
  explicit onetbb(threads n = threads::all()) : arena_(static_cast<int>(n.count == 0 ? 1 : n.count)) {}

  std::size_t concurrency() const { return static_cast<std::size_t>(arena_.max_concurrency()); }

  template <class F>
  void parallel_for(std::size_t count, std::size_t grain, F&& f) {
    if (grain == 0) grain = 1;
    const std::size_t pieces = count / grain + (count % grain != 0);
    arena_.execute([&] {
      oneapi::tbb::parallel_for(std::size_t{0}, pieces, [&](std::size_t i) {
        const std::size_t begin = i * grain;
        f(begin, begin + grain < count ? begin + grain : count);
      });
    });
  }

  template <class F>
  auto single(F&& f) {
    return f();
  }

 private:
  oneapi::tbb::task_arena arena_;
};

static_assert(executor<onetbb>);

MOTE_END_NAMESPACE

#endif
