// OpenMP threads. Compile with -fopenmp.
#pragma once

#ifdef _OPENMP

#include <cstddef>

#include "thread_pool.hpp"

MOTE_BEGIN_NAMESPACE

class openmp {
 public:
  explicit openmp(threads n = threads::all()) : threads_(n.count == 0 ? 1 : n.count) {}

  std::size_t concurrency() const { return threads_; }

  template <class F>
  void parallel_for(std::size_t count, std::size_t grain, F&& f) {
    if (grain == 0) grain = 1;
    const std::size_t pieces = count / grain + (count % grain != 0);
#pragma omp parallel for schedule(dynamic, 1) num_threads(static_cast <int>(threads_)) if (pieces > 1)
    for (std::size_t i = 0; i < pieces; ++i) {
      const std::size_t begin = i * grain;
      f(begin, begin + grain < count ? begin + grain : count);
    }
  }

  template <class F>
  auto single(F&& f) {
    return f();
  }

 private:
  std::size_t threads_;
};

static_assert(executor<openmp>);

MOTE_END_NAMESPACE

#endif
