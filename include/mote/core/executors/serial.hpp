// Executors decide which threads run an op.
//
// An executor has
//   concurrency()                    the number of threads that may run at once,
//   parallel_for(count, grain, f)    calls f(begin, end) for ranges that cover [0, count) once, every `begin` being a
//                                    multiple of `grain`, and returns when all are done; calls do not nest,
//   single(f)                        runs f once and gives its result (a trivially copyable value) to every caller.
// An op's results never depend on how the ranges were shared out.
#pragma once

#include <concepts>
#include <cstddef>
#include <utility>

#include "../config.hpp"

MOTE_BEGIN_NAMESPACE

template <class E>
concept executor = requires(E& e) {
  { e.concurrency() } -> std::convertible_to<std::size_t>;
  e.parallel_for(std::size_t{1}, std::size_t{1}, std::declval<void (*)(std::size_t, std::size_t)>());
  { e.single(std::declval<int (*)()>()) } -> std::same_as<int>;
};

// Everything on the calling thread.
class serial {
 public:
  std::size_t concurrency() const { return 1; }

  template <class F>
  void parallel_for(std::size_t count, std::size_t, F&& f) {
    if (count != 0) f(std::size_t{0}, count);
  }

  template <class F>
  auto single(F&& f) {
    return f();
  }
};

static_assert(executor<serial>);

MOTE_END_NAMESPACE
