// `buffer<T>`: owned, 64-byte aligned memory for users who want it; kernels take views.
#pragma once

#include <cstddef>
#include <cstring>
#include <limits>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

#include "config.hpp"
#include "error.hpp"
#include "view.hpp"

MOTE_BEGIN_NAMESPACE

inline constexpr std::size_t buffer_alignment = 64;

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
    data_ = static_cast<T*>(::operator new (size * sizeof(T), std::align_val_t{buffer_alignment}));
    std::memset(static_cast<void*>(data_), 0, size * sizeof(T));
  }

  buffer(buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  buffer& operator=(buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  buffer(const buffer&) = delete;
  buffer& operator=(const buffer&) = delete;
  ~buffer() { ::operator delete (data_, std::align_val_t{buffer_alignment}); }

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
