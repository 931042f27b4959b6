// Scratch memory: an arena that grows once and a scope that gives back what it took.
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <new>
#include <vector>

#include "buffer.hpp"
#include "view.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// Bytes of a tensor; throws shape_error if they overflow memory.
template <class T, class... Extents>
std::size_t tensor_bytes(Extents... extents) {
  std::size_t count = 1;
  for (const std::size_t extent : {static_cast<std::size_t>(extents)...}) {
    check(extent == 0 || count <= std::numeric_limits<std::size_t>::max() / 4 / sizeof(T) / extent, "workspace",
          "size overflows memory");
    count *= extent;
  }
  return count * sizeof(T);
}

}  // namespace detail

// A stack of 64-byte aligned allocations. It grows by further blocks, which never move what was handed out; when it is
// empty again the blocks are merged into one, so that the next round of the same work allocates nothing.
class workspace {
 public:
  struct mark {
    std::size_t block = 0, used = 0;
  };

  workspace() = default;
  // For many allocations that stay: a further block is as large as those before it together, `largest_step` bytes at most,
  // unless more is asked for at once.
  explicit workspace(std::size_t largest_step) : largest_step_(largest_step) {}

  void* allocate(std::size_t bytes) {
    check(bytes <= std::numeric_limits<std::size_t>::max() / 4, "workspace", "size overflows memory");
    bytes = (bytes + buffer_alignment - 1) / buffer_alignment * buffer_alignment;
    while (top_.block < blocks_.size() && blocks_[top_.block].size() - top_.used < bytes) top_ = {top_.block + 1, 0};
    if (top_.block == blocks_.size()) {
      blocks_.emplace_back(std::max(bytes, std::max(minimum_block, std::min(capacity(), largest_step_))));
    }
    void* p = blocks_[top_.block].data() + top_.used;
    top_.used += bytes;
    return p;
  }

  mark top() const { return top_; }

  // Gives back everything taken since `m`.
  void release(mark m) {
    top_ = m;
    if (m.block == 0 && m.used == 0 && blocks_.size() > 1) {
      const std::size_t total = capacity();
      blocks_.clear();
      grow(total);
    }
  }

  // Bytes held.
  std::size_t capacity() const {
    std::size_t total = 0;
    for (const auto& block : blocks_) total += block.size();
    return total;
  }

 private:
  // Without memory the next allocation takes a block of its own.
  void grow(std::size_t bytes) noexcept {
#if MOTE_EXCEPTIONS
    try {
      blocks_.emplace_back(bytes);
    } catch (const std::bad_alloc&) {
    }
#else
    blocks_.emplace_back(bytes);
#endif
  }

  static constexpr std::size_t minimum_block = std::size_t{1} << 16;

  std::size_t largest_step_ = minimum_block;
  std::vector<buffer<std::byte>> blocks_;
  mark top_;
};

// Scratch tensors that live until the end of the scope. Memory is not initialised. Scopes nest like a stack.
template <class Executor>
class workspace_scope {
 public:
  workspace_scope(Executor& executor, workspace& arena)
      : executor_(executor), arena_(arena), mark_(executor.single([&] { return arena.top(); })) {}
  ~workspace_scope() {
    executor_.single([&] {
      arena_.release(mark_);
      return 0;
    });
  }
  workspace_scope(const workspace_scope&) = delete;
  workspace_scope& operator=(const workspace_scope&) = delete;

  template <class T, class... Extents>
  view<T, sizeof...(Extents)> tensor(Extents... extents) {
    const std::size_t bytes = detail::tensor_bytes<T>(extents...);
    T* data = executor_.single([&] { return static_cast<T*>(arena_.allocate(bytes)); });
    return view<T, sizeof...(Extents)>(data, static_cast<std::size_t>(extents)...);
  }

 private:
  Executor& executor_;
  workspace& arena_;
  workspace::mark mark_;
};

MOTE_END_NAMESPACE
