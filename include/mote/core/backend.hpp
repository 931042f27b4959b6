// Back ends: the object passed first to every op. It owns the threads and the scratch memory and picks, by overload, the
// implementation. `reference` runs plain loops: the oracle and the textbook.
#pragma once

#include <concepts>
#include <cstddef>
#include <type_traits>
#include <utility>

#include "executors/serial.hpp"
#include "workspace.hpp"

MOTE_BEGIN_NAMESPACE

// What the back ends that run on the host have in common.
template <executor Executor>
class host_backend {
 public:
  using executor_type = Executor;

  template <class... Args>
    requires std::constructible_from<Executor, Args...>
  explicit host_backend(Args&&... args) : executor_(std::forward<Args>(args)...) {}
  host_backend(const host_backend&) = delete;
  host_backend& operator=(const host_backend&) = delete;

  std::size_t concurrency() const { return executor_.concurrency(); }

  template <class F>
  void parallel_for(std::size_t count, std::size_t grain, F&& f) {
    executor_.parallel_for(count, grain, std::forward<F>(f));
  }

  template <class F>
  auto single(F&& f) {
    return executor_.single(std::forward<F>(f));
  }

  // Scratch memory, returned at the end of the scope.
  workspace_scope<Executor> scope() { return {executor_, arena()}; }

  // The arena that scopes draw from.
  workspace& arena() {
    if constexpr (requires { executor_.shared_workspace(); }) {
      return executor_.shared_workspace();
    } else {
      return own_;
    }
  }

 private:
  Executor executor_;
  workspace own_;
};

class reference : public host_backend<serial> {};

template <class B>
concept backend = requires(B& be) {
  be.scope();
};

// A back end whose memory is the host's: reference and simd.
template <class B>
concept host = backend<B> && requires(B& be) {
  be.parallel_for(std::size_t{1}, std::size_t{1}, std::declval<void (*)(std::size_t, std::size_t)>());
};

MOTE_END_NAMESPACE
