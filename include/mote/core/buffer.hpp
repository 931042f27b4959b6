// `buffer<T>`: owned, 64-byte aligned memory for users who want it; kernels take views.
#pragma once

#include <cstddef>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "config.hpp"
#include "error.hpp"
#include "view.hpp"

MOTE_BEGIN_NAMESPACE

inline constexpr std::size_t buffer_alignment = 64;

namespace detail {

// Large buffers lie in huge pages where the system has them: weights are read from front to back, and walking the tables of
// small pages costs a sixth of the bandwidth (Zen 3 in a virtual machine, one thread: 16 to 19 GB/s). Only large ones,
// since each is an area of its own to the system, which has a limited number of them.
inline constexpr std::size_t huge_page = std::size_t{1} << 21, large_buffer = 8 * huge_page;

inline std::align_val_t alignment_of(std::size_t bytes) {
  return std::align_val_t{bytes < large_buffer ? buffer_alignment : huge_page};
}

inline void* allocate_zeros(std::size_t bytes) {
  void* const data = ::operator new(bytes, alignment_of(bytes));
#if defined(__linux__)
  if (bytes >= large_buffer) ::madvise(data, bytes / huge_page * huge_page, MADV_HUGEPAGE);  // may be left untaken
#endif
  return std::memset(data, 0, bytes);
}

}  // namespace detail

template <class T>
class buffer {
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

 public:
  using value_type = T;

  buffer() = default;

  // `size` elements, all bytes zero.
  explicit buffer(std::size_t size) : size_(size) {
    if (size == 0) return;
    check(size <= std::numeric_limits<std::size_t>::max() / 2 / sizeof(T), "buffer", "size overflows memory");
    data_ = static_cast<T*>(detail::allocate_zeros(size * sizeof(T)));
  }

  buffer(buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  buffer& operator=(buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  buffer(const buffer&) = delete;
  buffer& operator=(const buffer&) = delete;
  ~buffer() { ::operator delete(data_, detail::alignment_of(size_ * sizeof(T))); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }

  // The buffer seen as [extents...]; throws shape_error unless the sizes agree.
  template <class... Extents>
  view<T, sizeof...(Extents)> as(Extents... extents) {
    const view<T, sizeof...(Extents)> v(data_, extents...);
    check(v.size() == size_, "buffer", "as(): the extents' product differs from the size");
    return v;
  }
  template <class... Extents>
  view<const T, sizeof...(Extents)> as(Extents... extents) const {
    const view<const T, sizeof...(Extents)> v(data_, extents...);
    check(v.size() == size_, "buffer", "as(): the extents' product differs from the size");
    return v;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

MOTE_END_NAMESPACE
