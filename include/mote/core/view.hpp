// `view<T, Rank>`: a pointer, extents and strides. It never owns; the last dimension is contiguous unless an op's
// contract says otherwise. Extents and strides count elements.
//
// Views are made for free from raw pointers, ranges with data() and size() (std::span, std::vector, mote::buffer),
// row-major Eigen maps, references and matrices, and std::mdspan:
//
//   view<const float, 2> x(pointer, tokens, hidden);
//   view<float, 2> padded(pointer, {tokens, hidden}, {row_stride, 1});
//   view<float, 2> from_eigen(eigen_row_major_matrix);
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <iterator>
#include <type_traits>

#include "config.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

template <class R>
concept matrix_like = requires(R& r) {
  r.rows();
};

template <class R>
concept mdspan_like = requires(R& r) {
  r.data_handle();
};

template <class R, class T>
concept contiguous_of = !matrix_like<R> && !mdspan_like<R> && requires(R & r) {
  { r.data() } -> std::convertible_to<T*>;
  { r.size() } -> std::convertible_to<std::size_t>;
};

template <class M, class T>
concept eigen_of = requires(M& m) {
  { m.data() } -> std::convertible_to<T*>;
  m.rows();
  m.cols();
  m.outerStride();
  m.innerStride();
  M::IsRowMajor;
};

template <class M, class T, std::size_t Rank>
concept mdspan_of = (M::rank() == Rank) && requires(M& m) {
  { m.data_handle() } -> std::convertible_to<T*>;
  m.extent(0);
  m.stride(0);
};

// One number for each dimension: std::array, whose members CUDA kernels cannot call.
template <std::size_t Rank>
struct dimensions {
  std::size_t values[Rank];

  MOTE_HD constexpr std::size_t& operator[](std::size_t i) { return values[i]; }
  MOTE_HD constexpr const std::size_t& operator[](std::size_t i) const { return values[i]; }
  MOTE_HD static constexpr std::size_t size() { return Rank; }
  MOTE_HD constexpr const std::size_t* data() const { return values; }
  MOTE_HD constexpr const std::size_t* begin() const { return values; }
  MOTE_HD constexpr const std::size_t* end() const { return values + Rank; }
  friend constexpr bool operator==(const dimensions&, const dimensions&) = default;
  friend constexpr bool operator==(const dimensions& a, const std::array<std::size_t, Rank>& b) {
    for (std::size_t i = 0; i < Rank; ++i) {
      if (a[i] != b[i]) return false;
    }
    return true;
  }
};

}  // namespace detail

template <class T, std::size_t Rank>
class view {
  static_assert(Rank >= 1);

 public:
  using element_type = T;
  using value_type = std::remove_cv_t<T>;
  static constexpr std::size_t rank = Rank;
  using extents_type = detail::dimensions<Rank>;

  constexpr view() = default;

  MOTE_HD constexpr view(T* data, const extents_type& extents, const extents_type& strides)
      : data_(data), extents_(extents), strides_(strides) {}

  template <std::convertible_to<std::size_t>... Extents>
    requires(sizeof...(Extents) == Rank)
  MOTE_HD constexpr view(T* data, Extents... extents) : data_(data), extents_{static_cast<std::size_t>(extents)...} {
    set_contiguous_strides();
  }

  MOTE_HD constexpr view(T* data, const extents_type& extents) : data_(data), extents_(extents) {
    set_contiguous_strides();
  }

  // view<T> converts to view<const T>.
  template <class U>
  requires std::convertible_to<U (*)[], T (*)[]> MOTE_HD constexpr view(const view<U, Rank>& other)
      : data_(other.data()), extents_(other.extents()), strides_(other.strides()) {}

  template <class R>
    requires(Rank == 1 && detail::contiguous_of<R, T> && !std::is_same_v<std::remove_cvref_t<R>, view>)
  constexpr view(R&& range) : data_(range.data()), extents_{static_cast<std::size_t>(range.size())}, strides_{1} {}

  // Eigen: vectors (rank 1) and row-major matrices (rank 2).
  template <class M>
    requires(detail::eigen_of<std::remove_reference_t<M>, T> &&
             (Rank == 2 || (Rank == 1 && bool{std::remove_cvref_t<M>::IsVectorAtCompileTime})))
  constexpr view(M&& m) : data_(m.data()) {
    if constexpr (Rank == 1) {
      extents_ = {static_cast<std::size_t>(m.size())};
      strides_ = {static_cast<std::size_t>(m.innerStride())};
    } else {
      static_assert(std::remove_cvref_t<M>::IsRowMajor, "mote::view of rank 2 needs a row-major Eigen matrix");
      extents_ = {static_cast<std::size_t>(m.rows()), static_cast<std::size_t>(m.cols())};
      strides_ = {static_cast<std::size_t>(m.outerStride()), static_cast<std::size_t>(m.innerStride())};
    }
  }

  template <class M>
    requires detail::mdspan_of<std::remove_cvref_t<M>, T, Rank>
  constexpr view(M&& m) : data_(m.data_handle()) {
    for (std::size_t i = 0; i < Rank; ++i) {
      extents_[i] = static_cast<std::size_t>(m.extent(i));
      strides_[i] = static_cast<std::size_t>(m.stride(i));
    }
  }

  MOTE_HD constexpr T* data() const { return data_; }
  MOTE_HD constexpr std::size_t extent(std::size_t i) const { return extents_[i]; }
  MOTE_HD constexpr std::size_t stride(std::size_t i) const { return strides_[i]; }
  MOTE_HD constexpr const extents_type& extents() const { return extents_; }
  MOTE_HD constexpr const extents_type& strides() const { return strides_; }

  // Number of elements.
  MOTE_HD constexpr std::size_t size() const {
    std::size_t n = 1;
    for (std::size_t i = 0; i < Rank; ++i) n *= extents_[i];
    return n;
  }
  MOTE_HD constexpr bool empty() const { return size() == 0; }

  template <std::convertible_to<std::size_t>... Indices>
    requires(sizeof...(Indices) == Rank)
  MOTE_HD constexpr T& operator()(Indices... indices) const {
    const std::size_t index[] = {static_cast<std::size_t>(indices)...};
    std::size_t offset = 0;
    for (std::size_t i = 0; i < Rank; ++i) offset += index[i] * strides_[i];
    return data_[offset];
  }

  // Rank 1: the element. Higher ranks: the view of one rank less at index i of the first dimension.
  MOTE_HD constexpr decltype(auto) operator[](std::size_t i) const {
    if constexpr (Rank == 1) {
      return (data_[i * strides_[0]]);
    } else {
      detail::dimensions<Rank - 1> extents{}, strides{};
      for (std::size_t d = 1; d < Rank; ++d) {
        extents[d - 1] = extents_[d];
        strides[d - 1] = strides_[d];
      }
      return view<T, Rank - 1>(data_ + i * strides_[0], extents, strides);
    }
  }

  // The first element of row i of the first dimension.
  MOTE_HD constexpr T* row(std::size_t i) const { return data_ + i * strides_[0]; }

  // Indices [begin, begin + count) of one dimension. Of null data, which an empty view may have, null data.
  MOTE_HD constexpr view slice(std::size_t dimension, std::size_t begin, std::size_t count) const {
    view part = *this;
    if (data_ != nullptr) part.data_ += begin * strides_[dimension];
    part.extents_[dimension] = count;
    return part;
  }

  // The same elements with dimensions in another order, e.g. transposed({1, 0, 2}).
  MOTE_HD constexpr view transposed(const extents_type& order) const {
    view other = *this;
    for (std::size_t i = 0; i < Rank; ++i) {
      other.extents_[i] = extents_[order[i]];
      other.strides_[i] = strides_[order[i]];
    }
    return other;
  }

  // Whether elements lie one after another, without gaps.
  MOTE_HD constexpr bool contiguous() const {
    std::size_t expected = 1;
    for (std::size_t i = Rank; i-- > 0;) {
      if (extents_[i] != 1 && strides_[i] != expected) return false;
      expected *= extents_[i];
    }
    return true;
  }

  // The same contiguous elements with other extents; the caller guarantees `contiguous()` and equal sizes.
  template <std::convertible_to<std::size_t>... Extents>
  MOTE_HD constexpr view<T, sizeof...(Extents)> reshaped(Extents... extents) const {
    return view<T, sizeof...(Extents)>(data_, static_cast<std::size_t>(extents)...);
  }

 private:
  MOTE_HD constexpr void set_contiguous_strides() {
    std::size_t stride = 1;
    for (std::size_t i = Rank; i-- > 0;) {
      strides_[i] = stride;
      stride *= extents_[i];
    }
  }

  T* data_ = nullptr;
  extents_type extents_{};
  extents_type strides_{};
};

MOTE_END_NAMESPACE
