// mote 0.1.0: everything but files, tokenizers, compression and CUDA, in one file. Written by scripts/single_include from include/mote.
// SPDX-License-Identifier: Apache-2.0
#pragma once

// ---- mote/mote.hpp
// All of mote but files and tokenizers (mote/io/), compression (mote/compress/), CUDA and oneTBB. Written by
// scripts/single_include.

// ---- mote/blocks/decoder_layer.hpp
// A pre-norm transformer layer of the DeepSeek family.
//
//   x += MLA(RMSNorm(x));   x += FFN(RMSNorm(x))   with a dense network or a mixture of experts as FFN
//
// Source: DeepSeek-V2 and DeepSeek-V3 model code.

#include <cstddef>
#include <variant>

// ---- mote/ops/rms_norm/rms_norm.hpp
// Root mean square normalisation.
//
//   y[t, i] = gain[i] · x[t, i] / sqrt(mean_j x[t, j]² + eps)
//
// x, y: [tokens, hidden], rows may be strided, y may be x; gain: [hidden], a checkpoint's `weight`, or empty for the
// unweighted form.
// Accumulated in float32. Throws shape_error when the shapes differ.
// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019); DeepSeek-V3 model code.

// ---- mote/core/error.hpp
// Errors: one message that names what is wrong and where.
//
// With exceptions mote throws `shape_error` (a caller's argument) or `format_error` (a file's content). Compiled with
// -fno-exceptions the same message reaches the handler set by `set_error_handler`, which must not return.

#include <exception>
#include <initializer_list>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

// ---- mote/core/config.hpp
// Version, instruction-set tag and the namespace every declaration of mote lives in.
//
// The inline namespace is keyed by version and by the instruction set the file was compiled for: mote's inline functions in
// files of different tags have different names and are never merged. The tag names what mote's kernels tell apart, less than
// -march does, and functions of the standard library have none; mote_add_variant keeps those apart, too.

#define MOTE_VERSION_MAJOR 0
#define MOTE_VERSION_MINOR 1
#define MOTE_VERSION_PATCH 0

#if defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && defined(__AVX512CD__)
#define MOTE_TAG_BASE avx512
#elif defined(__AVX512F__)
#define MOTE_TAG_BASE avx512f
#elif defined(__AVX2__)
#define MOTE_TAG_BASE avx2
#elif defined(__AVX__)
#define MOTE_TAG_BASE avx
#elif defined(__SSE4_2__)
#define MOTE_TAG_BASE sse42
#elif defined(__SSE4_1__)
#define MOTE_TAG_BASE sse41
#elif defined(__SSSE3__)
#define MOTE_TAG_BASE ssse3
#elif defined(__SSE3__)
#define MOTE_TAG_BASE sse3
#elif defined(__SSE2__)
#define MOTE_TAG_BASE sse2
#elif defined(__ARM_FEATURE_MATMUL_INT8)
#define MOTE_TAG_BASE neon_i8mm
#elif defined(__ARM_FEATURE_DOTPROD)
#define MOTE_TAG_BASE neon_dotprod
#elif defined(__ARM_NEON)
#define MOTE_TAG_BASE neon
#else
#define MOTE_TAG_BASE generic
#endif

#ifdef __FMA__
#define MOTE_TAG_FMA _fma
#else
#define MOTE_TAG_FMA
#endif
#ifdef __F16C__
#define MOTE_TAG_F16C _f16c
#else
#define MOTE_TAG_F16C
#endif
#ifdef __AVX512VNNI__
#define MOTE_TAG_VNNI _vnni
#else
#define MOTE_TAG_VNNI
#endif
#ifdef __AVXVNNI__
#define MOTE_TAG_AVXVNNI _avxvnni
#else
#define MOTE_TAG_AVXVNNI
#endif
#ifdef __AVX512BF16__
#define MOTE_TAG_BF16 _bf16
#else
#define MOTE_TAG_BF16
#endif
#if defined(__AMX_INT8__) || defined(__AMXINT8__)
#define MOTE_TAG_AMX _amx
#else
#define MOTE_TAG_AMX
#endif
#if defined(__cpp_exceptions) || defined(__CUDACC__)
#define MOTE_EXCEPTIONS 1
#define MOTE_TAG_EXCEPTIONS
#else
#define MOTE_EXCEPTIONS 0
#define MOTE_TAG_EXCEPTIONS _noexcept
#endif

#define MOTE_PASTE_(a, b, c, d, e, f, g, h) v0_1_0_##a##b##c##d##e##f##g##h
#define MOTE_PASTE(a, b, c, d, e, f, g, h) MOTE_PASTE_(a, b, c, d, e, f, g, h)
#define MOTE_ABI                                                                                                       \
  MOTE_PASTE(MOTE_TAG_BASE, MOTE_TAG_FMA, MOTE_TAG_F16C, MOTE_TAG_VNNI, MOTE_TAG_AVXVNNI, MOTE_TAG_BF16, MOTE_TAG_AMX, \
             MOTE_TAG_EXCEPTIONS)

#define MOTE_BEGIN_NAMESPACE \
  namespace mote {           \
  inline namespace MOTE_ABI {
#define MOTE_END_NAMESPACE \
  }                        \
  }

// Functions that CUDA kernels call as well.
#ifdef __CUDACC__
#define MOTE_HD __host__ __device__
#else
#define MOTE_HD
#endif

#define MOTE_STRINGIFY_(x) #x
#define MOTE_STRINGIFY(x) MOTE_STRINGIFY_(x)

MOTE_BEGIN_NAMESPACE

inline constexpr int version_major = MOTE_VERSION_MAJOR;
inline constexpr int version_minor = MOTE_VERSION_MINOR;
inline constexpr int version_patch = MOTE_VERSION_PATCH;

// Version and instruction set of this file's mote, e.g. "v0_1_0_avx2_fma_f16c".
inline constexpr const char* abi_name = MOTE_STRINGIFY(MOTE_ABI);

MOTE_END_NAMESPACE

// ---- mote/core/error.hpp
MOTE_BEGIN_NAMESPACE

class error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// An argument whose shape or value does not fit the op's contract: "op: argument: expected …, got …".
class shape_error : public error {
  using error::error;
};

// A file, configuration or other outside data that breaks its format: "file: tensor or offset: expected …".
class format_error : public error {
  using error::error;
};

#if MOTE_EXCEPTIONS
template <class Error>
[[noreturn]] void raise(const std::string& message) {
  throw Error(message);
}
#else
using error_handler = void (*)(const char* message);

inline error_handler& current_error_handler() {
  static error_handler handler = nullptr;
  return handler;
}

// Sets what receives the message of an error in a build without exceptions; a handler must not return.
inline void set_error_handler(error_handler handler) { current_error_handler() = handler; }

template <class Error>
[[noreturn]] void raise(const std::string& message) {
  if (current_error_handler() != nullptr) current_error_handler()(message.c_str());
  std::terminate();
}
#endif

namespace detail {

// Appended one by one: where `a + b + c` is inlined, GCC 12 warns of a bound that is not passed (bug 105651).
inline std::string concatenate(std::initializer_list<std::string_view> parts) {
  std::string text;
  for (const std::string_view part : parts) text.append(part);
  return text;
}

}  // namespace detail

// "[2, 3]"
inline std::string shape_text(std::span<const std::size_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

// Throws shape_error unless `got` equals `expected`, e.g. "rms_norm: gain: expected shape [64], got [32]".
inline void check_shape(std::string_view op, std::string_view argument, std::span<const std::size_t> got,
                        std::initializer_list<std::size_t> expected) {
  const std::span<const std::size_t> want(expected.begin(), expected.size());
  bool equal = got.size() == want.size();
  for (std::size_t i = 0; equal && i < got.size(); ++i) equal = got[i] == want[i];
  if (!equal) {
    raise<shape_error>(
        detail::concatenate({op, ": ", argument, ": expected shape ", shape_text(want), ", got ", shape_text(got)}));
  }
}

// The same for a view, whose last dimension must be contiguous as well: kernels read its rows by pointer.
template <class View>
void check_view(std::string_view op, std::string_view argument, const View& v,
                std::initializer_list<std::size_t> expected) {
  check_shape(op, argument, v.extents(), expected);
  constexpr std::size_t last = View::rank - 1;
  if (v.stride(last) != 1 && v.extent(last) > 1) {
    raise<shape_error>(
        detail::concatenate({op, ": ", argument, ": expected a contiguous last dimension, got a stride of ",
                             std::to_string(v.stride(last))}));
  }
}

// Throws shape_error "op: message" unless `condition` holds.
inline void check(bool condition, std::string_view op, std::string_view message) {
  if (!condition) raise<shape_error>(detail::concatenate({op, ": ", message}));
}

MOTE_END_NAMESPACE

// ---- mote/core/view.hpp
// `view<T, Rank>`: a pointer, extents and strides. It never owns; the last dimension is contiguous unless an op's
// contract says otherwise. Extents and strides count elements.
//
// Views are made for free from raw pointers, ranges with data() and size() (std::span, std::vector, mote::buffer),
// row-major Eigen maps, references and matrices, and std::mdspan:
//
//   view<const float, 2> x(pointer, tokens, hidden);
//   view<float, 2> padded(pointer, {tokens, hidden}, {row_stride, 1});
//   view<float, 2> from_eigen(eigen_row_major_matrix);

#include <array>
#include <concepts>
#include <iterator>
#include <type_traits>

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

// ---- mote/ops/rms_norm/reference.hpp
#include <cmath>

// ---- mote/core/backend.hpp
// Back ends: the object passed first to every op. It owns the threads and the scratch memory and picks, by overload, the
// implementation. `reference` runs plain loops: the oracle and the textbook.

#include <utility>

// ---- mote/core/executors/serial.hpp
// Executors decide which threads run an op.
//
// An executor has
//   concurrency()                    the number of threads that may run at once,
//   parallel_for(count, grain, f)    calls f(begin, end) for ranges that cover [0, count) once, every `begin` being a
//                                    multiple of `grain`, and returns when all are done; calls do not nest,
//   single(f)                        runs f once and gives its result (a trivially copyable value) to every caller.
// An op's results never depend on how the ranges were shared out.

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

// ---- mote/core/workspace.hpp
// Scratch memory: an arena that grows once and a scope that gives back what it took.

#include <algorithm>
#include <limits>
#include <new>
#include <vector>

// ---- mote/core/buffer.hpp
// `buffer<T>`: owned, 64-byte aligned memory for users who want it; kernels take views.

#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

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

// ---- mote/core/workspace.hpp
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

// ---- mote/core/backend.hpp
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

// ---- mote/ops/rms_norm/reference.hpp
MOTE_BEGIN_NAMESPACE

inline void rms_norm_impl(reference&, view<const float, 2> x, view<const float, 1> gain, float eps,
                          view<float, 2> y) noexcept {
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    float squares = 0.0f;
    for (std::size_t i = 0; i < x.extent(1); ++i) squares += x(t, i) * x(t, i);
    const float scale = 1.0f / std::sqrt(squares / static_cast<float>(x.extent(1)) + eps);
    for (std::size_t i = 0; i < x.extent(1); ++i) y(t, i) = x(t, i) * scale * (gain.empty() ? 1.0f : gain(i));
  }
}

MOTE_END_NAMESPACE

// ---- mote/core/simd.hpp
// `simd<Arch, Executor>`: the vector back end, on xsimd.
//
// `Arch` is an xsimd architecture tag; the default is the best one this file was compiled for. Code inside mote always
// spells the architecture (`batch<float, Arch>`), so that one file can hold kernels for several.

// g++ 12 takes the undefined operands inside its AVX-512 intrinsics for a mistake of the caller's (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <xsimd/xsimd.hpp>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

// ---- mote/core/executors/thread_pool.hpp
// mote's own pool: the calling thread and n - 1 workers pull ranges from one counter.

#include <atomic>
#include <cstdint>
#include <thread>

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

// ---- mote/core/simd.hpp
MOTE_BEGIN_NAMESPACE

using default_arch = xsimd::default_arch;

template <class Arch = default_arch, executor Executor = thread_pool>
class simd : public host_backend<Executor> {
 public:
  using arch = Arch;
  using host_backend<Executor>::host_backend;
};

template <class T, class Arch>
using batch = xsimd::batch<T, Arch>;

// a · b + c, rounded once wherever this file's instruction set can. xsimd's tags below FMA, and 8.1's
// for AVX-512, spell a product and a sum, which compilers may or may not join: bits would depend on where the code is
// inlined, and clang 14 would do without the instruction.
template <class Arch>
batch<float, Arch> fused_multiply_add(const batch<float, Arch>& a, const batch<float, Arch>& b,
                                      const batch<float, Arch>& c) {
#ifdef __AVX512F__
  if constexpr (batch<float, Arch>::size == 16) return batch<float, Arch>(_mm512_fmadd_ps(a, b, c));
#endif
#ifdef __FMA__
  if constexpr (batch<float, Arch>::size == 8) {
    return batch<float, Arch>(_mm256_fmadd_ps(a, b, c));
  } else if constexpr (batch<float, Arch>::size == 4) {
    return batch<float, Arch>(_mm_fmadd_ps(a, b, c));
  } else {
    return xsimd::fma(a, b, c);
  }
#else
  return xsimd::fma(a, b, c);
#endif
}

namespace detail {

// Keeps what a vector register holds there, and lets the compiler assume nothing of it: g++ would otherwise load weights
// again for every product that uses them, and add integers in an order for which it lacks registers.
template <class Register>
[[gnu::always_inline]] inline void keep_in_register([[maybe_unused]] Register& x) {
#if defined(__x86_64__)
  if constexpr (sizeof(x) == 64) {
    asm("" : "+v"(x));
  } else {
    asm("" : "+x"(x));
  }
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
}
template <class T, class Arch>
[[gnu::always_inline]] inline void keep_in_register(xsimd::batch<T, Arch>& x) {
  keep_in_register(x.data);
}

}  // namespace detail

// Horizontal sum; xsimd 8 calls it hadd, later versions reduce_add.
template <class Arch>
float sum(const batch<float, Arch>& x) {
  if constexpr (requires { reduce_add(x); }) {
    return reduce_add(x);
  } else {
    return hadd(x);
  }
}

MOTE_END_NAMESPACE

// ---- mote/core/vector_math.hpp
// What the vector kernels need beyond xsimd: a fast exponential and loads and stores of a row's last, partial vector.

MOTE_BEGIN_NAMESPACE

namespace detail {

// The same bits as another element type; xsimd 8 names the result's batch, later versions its element.
template <class To, class From, class Arch>
batch<To, Arch> bits_as(const batch<From, Arch>& x) {
  if constexpr (requires {
                  { xsimd::bitwise_cast<To>(x) } -> std::same_as<batch<To, Arch>>;
                }) {
    return xsimd::bitwise_cast<To>(x);
  } else {
    return xsimd::bitwise_cast<batch<To, Arch>>(x);
  }
}

// Of two bf16 in each word the first, in the lower half; the second.
template <class Arch>
batch<float, Arch> first_bf16(const batch<std::uint32_t, Arch>& both) {
  return bits_as<float>(both << 16);
}
template <class Arch>
batch<float, Arch> second_bf16(const batch<std::uint32_t, Arch>& both) {
  return bits_as<float>(both & batch<std::uint32_t, Arch>(0xFFFF0000u));
}

// exp(x) to about 2 ulp; 0 below -87.3 (where float32 turns subnormal), infinity above 88.72, NaN stays NaN.
//
// exp(x) = 2^n exp(r), n = round(x / ln 2). Adding 1.5 · 2^23 rounds to a whole number and leaves n in the low bits, from
// where a shift moves it into the exponent. The polynomial is that of Moshier's Cephes library.
template <class Arch>
batch<float, Arch> exp_vector(const batch<float, Arch>& x) {
  using vector = batch<float, Arch>;
  const vector magic(12582912.0f);
  const vector shifted = fused_multiply_add(x, vector(1.44269504088896341f), magic);
  const vector n = shifted - magic;
  vector r = fused_multiply_add(n, vector(-0.693359375f), x);
  r = fused_multiply_add(n, vector(2.12194440e-4f), r);
  vector p(1.9875691500e-4f);
  p = fused_multiply_add(p, r, vector(1.3981999507e-3f));
  p = fused_multiply_add(p, r, vector(8.3334519073e-3f));
  p = fused_multiply_add(p, r, vector(4.1665795894e-2f));
  p = fused_multiply_add(p, r, vector(1.6666665459e-1f));
  p = fused_multiply_add(p, r, vector(5.0000001201e-1f));
  p = fused_multiply_add(p, r * r, r + vector(1.0f));
  const vector y = bits_as<float>(bits_as<std::int32_t>(p) + (bits_as<std::int32_t>(shifted) << 23));
  const vector infinity(std::numeric_limits<float>::infinity());
  return xsimd::select(x < vector(-87.3f), vector(0.0f), xsimd::select(x <= vector(88.72f), y, x * infinity));
}

// exp(x) for x <= 0, at about half the cost: what a softmax needs. The relative error is 2 ulp near 0 and grows with |x|
// as that of rounding x does, to 4e-6 at -87.3; 0 below, NaN stays NaN. Other than NaN, positive x has no meaning.
//
// 2^t, t = x / ln 2: the polynomial has the least relative error for t - n in [-1/2, 1/2] with exp(0) = 1.
template <class Arch>
batch<float, Arch> exp_nonpositive(const batch<float, Arch>& x) {
  using vector = batch<float, Arch>;
  const vector t = x * vector(1.44269504088896341f);
  const auto n = xsimd::nearbyint_as_int(t);
  const vector f = t - xsimd::to_float(n);
  vector p(0.0013264727f);
  p = fused_multiply_add(p, f, vector(0.009671513f));
  p = fused_multiply_add(p, f, vector(0.055507336f));
  p = fused_multiply_add(p, f, vector(0.24022242f));
  p = fused_multiply_add(p, f, vector(0.693147f));
  p = fused_multiply_add(p, f, vector(1.0f));
  const vector y = bits_as<float>(bits_as<std::int32_t>(p) + (n << 23));
  return xsimd::select(t < vector(-126.0f), vector(0.0f), y);
}

// Bit i: whether lane i holds. xsimd 8 has no name for it, but AVX-512 keeps its comparisons in that form.
template <class Arch>
std::uint64_t lane_mask(const xsimd::batch_bool<float, Arch>& x) {
  if constexpr (requires { x.mask(); }) {
    return x.mask();
  } else if constexpr (requires { static_cast<std::uint64_t>(x.data); }) {
    return static_cast<std::uint64_t>(x.data);
  } else {
    bool lanes[batch<float, Arch>::size];
    x.store_unaligned(lanes);
    std::uint64_t mask = 0;
    for (std::size_t i = 0; i < batch<float, Arch>::size; ++i) mask |= static_cast<std::uint64_t>(lanes[i]) << i;
    return mask;
  }
}

// 0, 1, 2 …
template <class Arch>
batch<float, Arch> lane_numbers() {
  float lanes[batch<float, Arch>::size];
  for (std::size_t i = 0; i < batch<float, Arch>::size; ++i) lanes[i] = static_cast<float>(i);
  return batch<float, Arch>::load_unaligned(lanes);
}

// The first n < size lanes from p, the others `fill`; reads nothing past p[n - 1].
template <class Arch>
batch<float, Arch> load_first(const float* p, std::size_t n, float fill = 0.0f) {
  constexpr std::size_t size = batch<float, Arch>::size;
  float lanes[size];
  for (std::size_t i = 0; i < size; ++i) lanes[i] = i < n ? p[i] : fill;
  return batch<float, Arch>::load_unaligned(lanes);
}

// Writes the first n < size lanes to p.
template <class Arch>
void store_first(float* p, std::size_t n, const batch<float, Arch>& x) {
  float lanes[batch<float, Arch>::size];
  x.store_unaligned(lanes);
  for (std::size_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// The largest lane.
template <class Arch>
float largest(const batch<float, Arch>& x) {
  constexpr std::size_t size = batch<float, Arch>::size;
  float lanes[size];
  x.store_unaligned(lanes);
  const auto fold = [&]<std::size_t Half>(auto self, std::integral_constant<std::size_t, Half>) {
    for (std::size_t i = 0; i < Half; ++i) lanes[i] = lanes[i] > lanes[i + Half] ? lanes[i] : lanes[i + Half];
    if constexpr (Half > 1) self(self, std::integral_constant<std::size_t, Half / 2>{});
  };
  fold(fold, std::integral_constant<std::size_t, size / 2>{});
  return lanes[0];
}

// Asks for the cache line of p[i], one request a line as i runs over vectors.
inline void prefetch(const float* p, std::size_t i) {
  if (i % 16 == 0) __builtin_prefetch(p + i);
}

// How many rows of n floats ahead to ask for while working on one: 16 KiB come in before they are used, and half of a
// first-level cache of 32 KiB stays for the row itself.
inline std::size_t rows_ahead(std::size_t n) { return 1 + 4096 / (n + 1); }

// f(i, load, store) for every vector of a row of n elements: `load(p)` and `store(p, x)` move the lanes that exist at p,
// which is the row's element i of any array; lanes past the row load as `fill`.
template <class Arch, class F>
[[gnu::always_inline]] inline void for_each_vector(std::size_t n, F&& f, float fill = 0.0f) {
  using vector = batch<float, Arch>;
  const std::size_t whole = n / vector::size * vector::size, rest = n - whole;
  for (std::size_t i = 0; i < whole; i += vector::size) {
    f(
        i, [](const float* p) { return vector::load_unaligned(p); },
        [](float* p, const vector& x) { x.store_unaligned(p); });
  }
  if (rest != 0) {
    f(
        whole, [&](const float* p) { return load_first<Arch>(p, rest, fill); },
        [&](float* p, const vector& x) { store_first<Arch>(p, rest, x); });
  }
}

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/ops/rms_norm/simd.hpp
MOTE_BEGIN_NAMESPACE

namespace detail {

// Σ x². Four sums hide the latency of the additions.
template <class Arch>
float sum_of_squares(const float* x, std::size_t n) {
  using vector = batch<float, Arch>;
  vector sums[4] = {vector(0.0f), vector(0.0f), vector(0.0f), vector(0.0f)};
  std::size_t i = 0;
  for (; i + 4 * vector::size <= n; i += 4 * vector::size) {
    for (std::size_t j = 0; j < 4; ++j) {
      const vector v = vector::load_unaligned(x + i + j * vector::size);
      sums[j] = fused_multiply_add(v, v, sums[j]);
    }
  }
  for_each_vector<Arch>(n - i, [&](std::size_t k, auto load, auto) {
    const vector v = load(x + i + k);
    sums[0] = fused_multiply_add(v, v, sums[0]);
  });
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

}  // namespace detail

template <class Arch, class Executor>
void rms_norm_impl(simd<Arch, Executor>& be, view<const float, 2> x, view<const float, 1> gain, float eps,
                   view<float, 2> y) noexcept {
  using vector = batch<float, Arch>;
  const std::size_t n = x.extent(1), grain = 1 + std::size_t{16384} / (n + 1);
  const std::size_t ahead = detail::rows_ahead(n);
  const bool weighted = !gain.empty();
  be.parallel_for(x.extent(0), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) {
      const float *in = x.row(t), *w = gain.data();
      float* out = y.row(t);
      const float squares = detail::sum_of_squares<Arch>(in, n);
      const vector scale(1.0f / std::sqrt(squares / static_cast<float>(n) + eps));
      // Both passes read from the cache: a later row comes in meanwhile.
      const float* later = t + ahead < end ? x.row(t + ahead) : in;
      detail::for_each_vector<Arch>(n, [&](std::size_t i, auto load, auto store) {
        detail::prefetch(later, i);
        const vector v = load(in + i) * scale;
        store(out + i, weighted ? v * load(w + i) : v);
      });
    }
  });
}

MOTE_END_NAMESPACE

// ---- mote/ops/rms_norm/rms_norm.hpp
MOTE_BEGIN_NAMESPACE

template <backend Backend>
void rms_norm(Backend& be, view<const float, 2> x, view<const float, 1> gain, float eps, view<float, 2> y) {
  if (!gain.empty()) check_view("rms_norm", "gain", gain, {x.extent(1)});
  check_view("rms_norm", "x", x, {x.extent(0), x.extent(1)});
  check_view("rms_norm", "y", y, {x.extent(0), x.extent(1)});
  rms_norm_impl(be, x, gain, eps, y);
}

MOTE_END_NAMESPACE

// ---- mote/blocks/ffn.hpp
// The SwiGLU feed-forward network.
//
//   FFN(x) = down( silu(gate x) ⊙ (up x) )
//
// x: [tokens, hidden]; y: [tokens, hidden], set or added to. Throws shape_error when the shapes differ.
// Source: Shazeer, "GLU Variants Improve Transformer" (2020).

// ---- mote/core/output.hpp
// What an op does with the values already in its output.

MOTE_BEGIN_NAMESPACE

enum class output { overwrite, accumulate };

MOTE_END_NAMESPACE

// ---- mote/ops/matmul/matmul.hpp
// Dense linear layer.
//
//   y[t, n] = Σ_k x[t, k] · W[n, k]            (output::overwrite)
//   y[t, n] += Σ_k x[t, k] · W[n, k]           (output::accumulate)
//
// x: [tokens, in] float32, rows may be strided; W: [out, in], a `weight` (quant/weight.hpp) or a matrix of any one form;
// y: [tokens, out], rows may be strided, must not overlap x.
//
//   float32, bf16, f16   products and sums in float32
//   scaled (fp8 …)       each number rounded to float32, scale · (code - zero), then as float32: the same bits
//   int8                 x is quantized to int8 per token; y = scale_x · scale_w · Σ q_x q_w, the sum exact in int32, of at
//                        most 131072 columns
//   packed bf16          x is rounded to bf16, sums in float32
//   integer formats      x is quantized to int8 in blocks of 32; each group's sum is exact in int32, then scaled and added
//                        (nvfp4: at the end times the tensor's scale)
//   other block formats  decoded, then as float32
//
// A token's result does not depend on the other tokens or on the number of threads.
// Throws shape_error when the shapes differ, or int8 has more columns.

// ---- mote/quant/weight.hpp
// `weight`: a matrix [out, in] in one of the forms that matmul reads. A model's layers may carry different forms; the
// variant is visited once for each matmul, never for each element. A weight does not own its memory.
//
//   view<const T, 2>                               rows of float, bf16 or f16 as checkpoints store them
//   int8_matrix                                    int8 with one scale for each row
//   scaled_matrix                                  fp8, int8 or int4 with a scale for each tile, and zero points
//   view<const F, 2>                               blocks of a format F as files store them, [out, in / F::block_size]
//   packed_matrix<F>                               the same numbers in the order of the vector kernels: faster
//   packed_matrix<std::int8_t>                     an int8_matrix in that order
//   packed_matrix<bf16>                            bf16 in that order, for activations rounded to bf16

// ---- mote/core/types.hpp
// Element types narrower than float32. Each holds its published bit pattern; conversion to float is exact, conversion
// from float rounds to nearest, ties to even, subnormals included.
//
//   type      sign/exponent/mantissa  bias  largest   special values
//   bf16      1/8/7                   127   3.39e38   IEEE
//   f16       1/5/10                  15    65504     IEEE
//   f8_e4m3   1/4/3                   7     448       no infinity, NaN is 0x7F and 0xFF ("e4m3fn")
//   f8_e5m2   1/5/2                   15    57344     IEEE-like
//   f8_e8m0   0/8/0                   127   2^127     a power of two; 255 is NaN; no zero, no sign
//   f4_e2m1   1/2/1                   1     6         none
//
// Source: OCP Microscaling Formats (MX) v1.0 and OCP 8-bit Floating Point v1.0 specifications; IEEE 754.

#include <bit>

MOTE_BEGIN_NAMESPACE

static_assert(std::endian::native == std::endian::little, "mote: files and packed weights are read as little-endian");

namespace detail {

// std::bit_cast, which CUDA kernels cannot call.
template <class To, class From>
MOTE_HD constexpr To bit_cast(From x) {
  return __builtin_bit_cast(To, x);
}

// |x| rounded to a format with `MantissaBits` and `Bias`, as the unsigned code exponent:mantissa. The code keeps
// counting past the format's largest value: the caller compares with its own largest code.
template <int MantissaBits, int Bias>
MOTE_HD constexpr std::uint32_t round_magnitude(std::uint32_t magnitude_bits) {
  const int exponent = static_cast<int>(magnitude_bits >> 23);
  if (exponent == 0) {
    if constexpr (Bias < 127) return 0;  // a float32 subnormal is below half of any smaller format's last place
  }
  const std::uint32_t mantissa = (magnitude_bits & 0x7FFFFFu) | (exponent == 0 ? 0u : 0x800000u);
  const int normal_exponent = (exponent == 0 ? 1 : exponent) - 127 + Bias;
  const int shift = 23 - MantissaBits + (normal_exponent < 1 ? 1 - normal_exponent : 0);
  if (shift > 24) return 0;
  const std::uint32_t kept = mantissa >> shift;
  const std::uint32_t rest = mantissa & ((1u << shift) - 1u);
  const std::uint32_t half = 1u << (shift - 1);
  const std::uint32_t rounded = kept + ((rest > half || (rest == half && (kept & 1u) != 0)) ? 1u : 0u);
  const std::uint32_t base = normal_exponent < 1 ? 0u : static_cast<std::uint32_t>(normal_exponent - 1) << MantissaBits;
  return base + rounded;
}

// The value of an unsigned code exponent:mantissa of a finite number.
template <int MantissaBits, int Bias>
MOTE_HD constexpr float expand_magnitude(std::uint32_t code) {
  std::uint32_t mantissa = code & ((1u << MantissaBits) - 1u);
  int exponent = static_cast<int>(code >> MantissaBits);
  if (exponent == 0) {
    if (mantissa == 0) return 0.0f;
    exponent = 1;
    while ((mantissa >> MantissaBits) == 0) {
      mantissa <<= 1;
      --exponent;
    }
    mantissa &= (1u << MantissaBits) - 1u;
  }
  const std::uint32_t bits =
      (static_cast<std::uint32_t>(exponent + 127 - Bias) << 23) | (mantissa << (23 - MantissaBits));
  return detail::bit_cast<float>(bits);
}

inline constexpr std::uint32_t float_infinity_bits = 0x7F800000u;
inline constexpr std::uint32_t float_nan_bits = 0x7FC00000u;

}  // namespace detail

struct bf16 {
  std::uint16_t bits = 0;

  bf16() = default;
  MOTE_HD constexpr explicit bf16(float x) {
    const std::uint32_t u = detail::bit_cast<std::uint32_t>(x);
    if ((u & 0x7FFFFFFFu) > detail::float_infinity_bits) {
      bits = static_cast<std::uint16_t>((u >> 16) | 0x40u);
    } else {
      bits = static_cast<std::uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
    }
  }
  MOTE_HD constexpr explicit operator float() const {
    return detail::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }
  MOTE_HD static constexpr bf16 from_bits(std::uint16_t b) {
    bf16 y;
    y.bits = b;
    return y;
  }
};

struct f16 {
  std::uint16_t bits = 0;

  f16() = default;
  MOTE_HD constexpr explicit f16(float x) {
    const std::uint32_t u = detail::bit_cast<std::uint32_t>(x), magnitude = u & 0x7FFFFFFFu;
    std::uint32_t code = 0x7E00u;
    if (magnitude <= detail::float_infinity_bits) {
      code = detail::round_magnitude<10, 15>(magnitude);
      if (code > 0x7C00u) code = 0x7C00u;
    }
    bits = static_cast<std::uint16_t>(((u >> 16) & 0x8000u) | code);
  }
  MOTE_HD constexpr explicit operator float() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16, code = bits & 0x7FFFu;
    if (code >= 0x7C00u) {
      return detail::bit_cast<float>(sign | detail::float_infinity_bits | ((code & 0x3FFu) << 13));
    }
    return detail::bit_cast<float>(sign | detail::bit_cast<std::uint32_t>(detail::expand_magnitude<10, 15>(code)));
  }
  MOTE_HD static constexpr f16 from_bits(std::uint16_t b) {
    f16 y;
    y.bits = b;
    return y;
  }
};

// What becomes of a finite value beyond the largest one, and of infinity: the largest value, or NaN (infinity in e5m2).
enum class overflow { saturate, to_special };

struct f8_e4m3 {
  std::uint8_t bits = 0;

  f8_e4m3() = default;
  MOTE_HD constexpr explicit f8_e4m3(float x, overflow mode = overflow::saturate) {
    const std::uint32_t u = detail::bit_cast<std::uint32_t>(x), magnitude = u & 0x7FFFFFFFu;
    std::uint32_t code = 0x7Fu;
    if (magnitude <= detail::float_infinity_bits) {
      code = detail::round_magnitude<3, 7>(magnitude);
      if (code > 0x7Eu) code = mode == overflow::saturate ? 0x7Eu : 0x7Fu;
    }
    bits = static_cast<std::uint8_t>(((u >> 24) & 0x80u) | code);
  }
  MOTE_HD constexpr explicit operator float() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x80u) << 24, code = bits & 0x7Fu;
    if (code == 0x7Fu) return detail::bit_cast<float>(sign | detail::float_nan_bits);
    return detail::bit_cast<float>(sign | detail::bit_cast<std::uint32_t>(detail::expand_magnitude<3, 7>(code)));
  }
  MOTE_HD static constexpr f8_e4m3 from_bits(std::uint8_t b) {
    f8_e4m3 y;
    y.bits = b;
    return y;
  }
};

struct f8_e5m2 {
  std::uint8_t bits = 0;

  f8_e5m2() = default;
  MOTE_HD constexpr explicit f8_e5m2(float x, overflow mode = overflow::saturate) {
    const std::uint32_t u = detail::bit_cast<std::uint32_t>(x), magnitude = u & 0x7FFFFFFFu;
    std::uint32_t code = 0x7Eu;
    if (magnitude <= detail::float_infinity_bits) {
      code = detail::round_magnitude<2, 15>(magnitude);
      if (code > 0x7Bu) code = mode == overflow::saturate ? 0x7Bu : 0x7Cu;
    }
    bits = static_cast<std::uint8_t>(((u >> 24) & 0x80u) | code);
  }
  MOTE_HD constexpr explicit operator float() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x80u) << 24, code = bits & 0x7Fu;
    if (code >= 0x7Cu) {
      return detail::bit_cast<float>(sign | detail::float_infinity_bits | ((code & 3u) << 21));
    }
    return detail::bit_cast<float>(sign | detail::bit_cast<std::uint32_t>(detail::expand_magnitude<2, 15>(code)));
  }
  MOTE_HD static constexpr f8_e5m2 from_bits(std::uint8_t b) {
    f8_e5m2 y;
    y.bits = b;
    return y;
  }
};

// How a positive float becomes a power of two: down (the MX rule) or up (a scale that never overflows).
enum class exponent_rounding { floor, ceil };

struct f8_e8m0 {
  std::uint8_t bits = 0;

  f8_e8m0() = default;
  MOTE_HD constexpr explicit f8_e8m0(float x, exponent_rounding mode = exponent_rounding::floor) {
    const std::uint32_t u = detail::bit_cast<std::uint32_t>(x), magnitude = u & 0x7FFFFFFFu;
    if (magnitude > detail::float_infinity_bits) {
      bits = 255;
      return;
    }
    std::uint32_t code = magnitude >> 23;
    const std::uint32_t mantissa = magnitude & 0x7FFFFFu;
    if (mode == exponent_rounding::ceil) {
      if (code == 0) {
        code = mantissa > 0x400000u ? 1u : 0u;  // code 0 is 2^-127, a float32 subnormal
      } else if (mantissa != 0) {
        ++code;
      }
    }
    bits = static_cast<std::uint8_t>(code > 254u ? 254u : code);
  }
  MOTE_HD constexpr explicit operator float() const {
    if (bits == 255) return detail::bit_cast<float>(detail::float_nan_bits);
    return detail::bit_cast<float>(bits == 0 ? 0x400000u : static_cast<std::uint32_t>(bits) << 23);
  }
  MOTE_HD static constexpr f8_e8m0 from_bits(std::uint8_t b) {
    f8_e8m0 y;
    y.bits = b;
    return y;
  }
};

// One code in the low four bits; packing two into a byte is the business of the block formats.
struct f4_e2m1 {
  std::uint8_t bits = 0;

  f4_e2m1() = default;
  MOTE_HD constexpr explicit f4_e2m1(float x) {
    const std::uint32_t u = detail::bit_cast<std::uint32_t>(x), magnitude = u & 0x7FFFFFFFu;
    std::uint32_t code = 7u;  // NaN has no code: the largest value by convention
    if (magnitude <= detail::float_infinity_bits) {
      code = detail::round_magnitude<1, 1>(magnitude);
      if (code > 7u) code = 7u;
      bits = static_cast<std::uint8_t>((u >> 28) & 0x8u);
    }
    bits = static_cast<std::uint8_t>(bits | code);
  }
  MOTE_HD constexpr explicit operator float() const {
    const float magnitude = detail::expand_magnitude<1, 1>(bits & 7u);
    return (bits & 8u) != 0 ? -magnitude : magnitude;
  }
  MOTE_HD static constexpr f4_e2m1 from_bits(std::uint8_t b) {
    f4_e2m1 y;
    y.bits = b;
    return y;
  }
};

MOTE_END_NAMESPACE

// ---- mote/quant/formats.hpp
// Every block format, one after another.

// ---- mote/quant/formats/iq4_nl.hpp
// GGUF IQ4_NL: 32 numbers of a table that is denser near zero, and their scale, 18 bytes. value = d · T[code].
//
//   encode: the scale of least squared error among those that put the largest element at or near either end of T

// ---- mote/quant/format.hpp
// A block format: how a run of `block_size` numbers is stored. The struct of one block is the format, byte for byte; a
// matrix [out, in] in format F is a view<const F, 2> of shape [out, in / block_size].
//
//   struct q8_0 {
//     static constexpr std::string_view name = "q8_0";
//     static constexpr std::size_t block_size = 32;
//     f16 d;                                     // the stored fields, in the published order
//     std::int8_t q[32];
//     static q8_0 encode(const float* x);        // x[block_size], finite; so is what it decodes to
//     void decode(float* y) const;               // y[block_size]
//   };
//
// From that alone matmul, caches and quantization work, and from its place in the list of formats.hpp every op; docs/formats.md
// shows it with a made-up format.

MOTE_BEGIN_NAMESPACE

template <class F>
concept block_format = std::is_trivially_copyable_v<F> && alignof(F) <= 2 &&
                       requires(const F block, const float* x, float* y) {
  { F::name } -> std::convertible_to<std::string_view>;
  { F::block_size } -> std::convertible_to<std::size_t>;
  { F::encode(x) } -> std::same_as<F>;
  { block.decode(y) } -> std::same_as<void>;
};

namespace detail {

// Codes of at most four bits, looked up: q[i] = code_values[code(i)].
template <class F>
concept table_codes = requires(const F block, std::size_t i) {
  requires(F::code_bits >= 1 && F::code_bits <= 4);
  { F::code_values } -> std::convertible_to<const std::array<std::int8_t, 16>&>;
  { block.code(i) } -> std::same_as<std::uint8_t>;
};

// Wider codes are the integers themselves: q[i] = code(i), with a sign as std::int8_t, without as std::uint8_t.
template <class F>
concept wide_codes = requires(const F block, std::size_t i) {
  requires(F::code_bits > 4 && F::code_bits <= 8);
  requires std::same_as<decltype(block.code(i)), std::int8_t> ||
      (std::same_as<decltype(block.code(i)), std::uint8_t> && F::code_bits < 8);
};
template <class F>
concept unsigned_wide_codes = wide_codes<F> && requires(const F block, std::size_t i) {
  { block.code(i) } -> std::same_as<std::uint8_t>;
};

}  // namespace detail

// A format whose elements are small integers times a scale shared by `group_size` of them, which integer dot products
// can use without decoding:
//
//   value[i] = scale(i / group_size) · q[i] - min(i / group_size),    q[i] = code_values[code(i)], or code(i) if wider
//
// `scale_type` holds every scale exactly in the fewest bytes; a format without `min` has none to subtract. Where
// code_values holds multiples of the numbers meant, a constant `F::unit` says what to multiply scales by.
template <class F>
concept integer_format = block_format<F> &&
    (detail::table_codes<F> || detail::wide_codes<F>)&&requires(const F block, std::size_t group) {
  { F::group_size } -> std::convertible_to<std::size_t>;
  requires(F::group_size == 16 || F::group_size == 32);
  requires(F::block_size % F::group_size == 0);
  { block.scale(group) } -> std::same_as<typename F::scale_type>;
  static_cast<float>(block.scale(group));
};

// Integer formats that subtract a minimum.
template <class F>
concept format_with_min = integer_format<F> && requires(const F block, std::size_t group) {
  { block.min(group) } -> std::same_as<float>;
};

// Integer formats whose scales are integers themselves: scale(g) = super_scale() · sub_scale(g), and with a minimum
// min(g) = super_min() · sub_min(g). Sub-scales and sub-minimums are from -128 to 127.
template <class F>
concept two_level_format = integer_format<F> && requires(const F block, std::size_t group) {
  { block.super_scale() } -> std::same_as<f16>;
  { block.sub_scale(group) } -> std::same_as<int>;
};

// Integer formats whose matrices may have one more scale, of the whole matrix: value = tensor scale · (what the blocks hold). It
// is kept beside the blocks, and in packed matrices behind each panel.
template <class F>
concept format_with_tensor_scale = integer_format<F> && F::has_tensor_scale;

// The integer q[i] of an element.
template <integer_format F>
int integer_value(const F& block, std::size_t i) {
  if constexpr (detail::table_codes<F>) {
    return F::code_values[block.code(i)];
  } else {
    return block.code(i);
  }
}

// code(i) to code(i + 3) as the bytes of a word, the first in the lowest, i a multiple of four. A format may have a shorter
// way, for packing: `four_codes`.
template <integer_format F>
std::uint32_t four_codes(const F& block, std::size_t i) {
  if constexpr (requires {
                  { block.four_codes(i) } -> std::same_as<std::uint32_t>;
                }) {
    return block.four_codes(i);
  } else {
    const auto byte = [&](std::size_t j) { return std::uint32_t{static_cast<std::uint8_t>(block.code(i + j))}; };
    return byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24;
  }
}

// The scale of a group as float32.
template <integer_format F>
float group_scale(const F& block, std::size_t g) {
  const auto scale = static_cast<float>(block.scale(g));
  if constexpr (requires { F::unit; }) {
    return F::unit * scale;
  } else {
    return scale;
  }
}

// decode() spelled out by the formula above.
template <integer_format F>
void decode_codes(const F& block, float* y) {
  for (std::size_t g = 0; g < F::block_size / F::group_size; ++g) {
    const float scale = group_scale(block, g);
    float min = 0.0f;
    if constexpr (format_with_min<F>) min = block.min(g);
    for (std::size_t i = g * F::group_size; i < (g + 1) * F::group_size; ++i) {
      y[i] = scale * static_cast<float>(integer_value(block, i)) - min;
    }
  }
}

MOTE_END_NAMESPACE

// ---- mote/quant/formats/search.hpp
// Scales that lose least: encoders of formats without a published rule try several ways to round a group of elements to
// its integers q, and take for each the scale (and minimum) of least squared error, which has a closed form.

// ---- mote/quant/formats/bits.hpp
// What the formats' encoders share: largest magnitudes, published roundings, saturation and nibbles.

MOTE_BEGIN_NAMESPACE

namespace detail {

inline constexpr float largest_f16 = 65504.0f;

inline f16 saturated_f16(float x) { return f16(std::clamp(x, -largest_f16, largest_f16)); }

// 1 / x, and 0 where that would not be finite.
inline float finite_inverse(float x) { return std::fabs(x) < 0x1p-126f ? 0.0f : 1.0f / x; }

// max |x[i]|. As integers, because those maxima are vectorized under strict floating-point rules.
inline float largest_magnitude(const float* x, std::size_t n) {
  std::int32_t largest = 0;
  for (std::size_t i = 0; i < n; ++i) {
    largest = std::max(largest, static_cast<std::int32_t>(bit_cast<std::uint32_t>(x[i]) & 0x7FFFFFFFu));
  }
  return bit_cast<float>(largest);
}

inline bool all_finite(const float* x, std::size_t n) { return std::isfinite(largest_magnitude(x, n)); }

// The first element of largest magnitude.
inline float largest_element(const float* x, std::size_t n) {
  const float magnitude = largest_magnitude(x, n);
  std::size_t i = 0;
  while (i + 1 < n && std::fabs(x[i]) != magnitude) ++i;
  return x[i];
}

// Nearest integer, halves away from zero. |x| < 2^30.
inline int round_half_away(float x) {
  const int whole = static_cast<int>(x);
  const float rest = x - static_cast<float>(whole);
  return whole + (rest >= 0.5f ? 1 : 0) - (rest <= -0.5f ? 1 : 0);
}

// y = x · factor, each product rounded to float32: compilers may not fuse it with what the caller adds to it.
template <std::size_t N>
void rounded_products(const float* x, float factor, float (&y)[N]) {
  for (std::size_t i = 0; i < N; ++i) y[i] = x[i] * factor;
  asm("" : "+m"(y));
}

// GGUF's rule for codes from 0 to `largest` of numbers m + d · code: m is the smallest number, m + d · largest the largest.
template <std::size_t N>
void codes_from_smallest(const float* x, float largest, f16& d, f16& m, std::uint8_t (&codes)[N]) {
  const float low = std::clamp(*std::min_element(x, x + N), -largest_f16, largest_f16);
  const float high = std::min(*std::max_element(x, x + N), low + largest * largest_f16);
  const float scale = std::max(high - low, 0.0f) / largest;
  float scaled[N];
  for (std::size_t i = 0; i < N; ++i) scaled[i] = x[i] - low;
  rounded_products(scaled, finite_inverse(scale), scaled);
  for (std::size_t i = 0; i < N; ++i) codes[i] = static_cast<std::uint8_t>(std::clamp(scaled[i] + 0.5f, 0.0f, largest));
  d = f16(scale);
  m = f16(low);
}

// The e2m1 codes nearest to x, the numbers doubled: 0, 1, 2, 3, 4, 6, 8, 12 times `unit`. Of two as near the smaller;
// zero has no sign.
template <std::size_t N>
void nearest_e2m1(const float* x, float unit, std::uint8_t (&codes)[N]) {
  std::int32_t magnitude_codes[N] = {};
  for (const float middle : {0.5f, 1.5f, 2.5f, 3.5f, 5.0f, 7.0f, 10.0f}) {
    for (std::size_t i = 0; i < N; ++i) magnitude_codes[i] += std::fabs(x[i]) > middle * unit ? 1 : 0;
  }
  for (std::size_t i = 0; i < N; ++i) {
    codes[i] = static_cast<std::uint8_t>(magnitude_codes[i] + (x[i] < 0.0f && magnitude_codes[i] > 0 ? 8 : 0));
  }
}

// Twice the e2m1 numbers, ascending.
inline constexpr std::array<std::int8_t, 15> e2m1_numbers = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12};

// Four bytes as a word, the first in the lowest.
inline std::uint32_t four_bytes(const void* p) {
  std::uint32_t four;
  std::memcpy(&four, p, sizeof four);
  return four;
}

// The lowest four bits, each in a byte of its own.
inline std::uint32_t four_bits(unsigned bits) { return (bits & 15u) * 0x00204081u & 0x01010101u; }

// Four-bit codes of 32 elements: byte i holds element i low, element i + 16 high.
inline std::uint8_t nibble(const std::uint8_t (&bytes)[16], std::size_t i) {
  return i < 16 ? bytes[i] & 15u : static_cast<std::uint8_t>(bytes[i - 16] >> 4);
}
inline std::uint32_t four_nibbles(const std::uint8_t (&bytes)[16], std::size_t i) {
  return four_bytes(bytes + i % 16) >> (i / 16 * 4) & 0x0F0F0F0Fu;
}
inline void pack_nibbles(const std::uint8_t (&codes)[32], std::uint8_t (&bytes)[16]) {
  for (std::size_t i = 0; i < 16; ++i) bytes[i] = static_cast<std::uint8_t>(codes[i] | (codes[i + 16] << 4));
}

// 256 codes of 1, 2 or 4 bits as GGUF's K formats have them, in runs of `Run` bytes: the first `Run` codes are the lowest bits of
// their bytes, the next ones the bits above; where bytes are full the next run follows.
template <unsigned Bits, std::size_t Run = 32>
struct packed_runs {
  std::uint8_t bytes[32 * Bits];

  static constexpr unsigned in_byte = 8 / Bits, mask = (1u << Bits) - 1;
  static constexpr std::size_t at(std::size_t i) { return i / (Run * in_byte) * Run + i % Run; }
  static constexpr unsigned shift(std::size_t i) { return static_cast<unsigned>(i / Run % in_byte) * Bits; }

  unsigned get(std::size_t i) const { return bytes[at(i)] >> shift(i) & mask; }
  // Of elements i to i + 3, i a multiple of four, as bytes.
  std::uint32_t four(std::size_t i) const { return four_bytes(bytes + at(i)) >> shift(i) & mask * 0x01010101u; }
  // Of an element that is zero.
  void set(std::size_t i, unsigned code) { bytes[at(i)] |= static_cast<std::uint8_t>(code << shift(i)); }
};

// Eight pairs of six-bit scales and minima, as Q4_K and Q5_K have them.
struct packed_scales {
  // Bytes 0-3: six bits of scales 0-3; 4-7: of minima 0-3; 8-11: four bits of scales (low) and minima (high) 4-7, whose upper
  // two top the bytes 0-7.
  std::uint8_t bytes[12];

  int scale(std::size_t g) const { return g < 4 ? bytes[g] & 63 : (bytes[g + 4] & 15) | (bytes[g - 4] >> 6 << 4); }
  int min(std::size_t g) const { return g < 4 ? bytes[g + 4] & 63 : (bytes[g + 4] >> 4) | (bytes[g] >> 6 << 4); }

  static packed_scales of(const std::uint8_t (&scale)[8], const std::uint8_t (&min)[8]) {
    packed_scales packed;
    for (std::size_t g = 0; g < 4; ++g) {
      packed.bytes[g] = static_cast<std::uint8_t>(scale[g] | (scale[g + 4] >> 4 << 6));
      packed.bytes[g + 4] = static_cast<std::uint8_t>(min[g] | (min[g + 4] >> 4 << 6));
      packed.bytes[g + 8] = static_cast<std::uint8_t>((scale[g + 4] & 15) | (min[g + 4] & 15) << 4);
    }
    return packed;
  }
};

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/quant/formats/search.hpp
MOTE_BEGIN_NAMESPACE

namespace detail {

using search_batch = batch<float, default_arch>;

// A magnitude below half of the smallest f16: every format here stores zero for it.
inline constexpr float negligible = 0x1p-25f;

// q = the integer in [0, largest] nearest to (x + min) / scale.
struct affine_round {
  float inverse, min, largest;
  search_batch operator()(const search_batch& x) const {
    const search_batch q = xsimd::nearbyint((x + search_batch(min)) * search_batch(inverse));
    return xsimd::min(xsimd::max(q, search_batch(0.0f)), search_batch(largest));
  }
};

// q = the integer in [-largest - 1, largest] nearest to x / scale.
struct integer_round {
  float inverse, largest;
  search_batch operator()(const search_batch& x) const {
    const search_batch q = xsimd::nearbyint(x * search_batch(inverse));
    return xsimd::min(xsimd::max(q, search_batch(-largest - 1.0f)), search_batch(largest));
  }
};

// q = the number of an ascending table nearest to x / scale.
template <std::size_t Size>
struct table_round {
  const std::array<std::int8_t, Size>& table;
  float inverse;
  search_batch operator()(const search_batch& x) const {
    const search_batch scaled = x * search_batch(inverse);
    search_batch q(table[0]);
    for (std::size_t i = 1; i < Size; ++i) {
      const search_batch middle(0.5f * static_cast<float>(table[i - 1] + table[i]));
      q = xsimd::select(scaled > middle, search_batch(table[i]), q);
    }
    return q;
  }
};

// The index of the number nearest to x.
template <std::size_t Size>
std::uint8_t nearest_code(const std::array<std::int8_t, Size>& table, float x) {
  int code = 0;
  for (std::size_t i = 1; i < Size; ++i) code += x > 0.5f * static_cast<float>(table[i - 1] + table[i]) ? 1 : 0;
  return static_cast<std::uint8_t>(code);
}

struct code_sums {
  float q = 0, qq = 0, xq = 0;
};

// Σ q, Σ q², Σ x q over N elements.
template <std::size_t N, class Round>
code_sums sums_of(const float* x, const Round& round) {
  search_batch q_sum(0.0f), qq(0.0f), xq(0.0f);
  for (std::size_t i = 0; i < N; i += search_batch::size) {
    const auto v = search_batch::load_unaligned(x + i);
    const search_batch q = round(v);
    q_sum += q;
    qq = fused_multiply_add<default_arch>(q, q, qq);
    xq = fused_multiply_add<default_arch>(v, q, xq);
  }
  return {sum<default_arch>(q_sum), sum<default_arch>(qq), sum<default_arch>(xq)};
}

struct code_error {
  float error = 0, q = 0;
};

// Σ (scale · q - min - x)² and Σ q.
template <std::size_t N, class Round>
code_error error_of(const float* x, float scale, float min, const Round& round) {
  search_batch error(0.0f), q_sum(0.0f);
  for (std::size_t i = 0; i < N; i += search_batch::size) {
    const auto v = search_batch::load_unaligned(x + i);
    const search_batch q = round(v);
    const search_batch r = search_batch(scale) * q - search_batch(min) - v;
    error = fused_multiply_add<default_arch>(r, r, error);
    q_sum += q;
  }
  return {sum<default_arch>(error), sum<default_arch>(q_sum)};
}

// The scale of least squared error whose codes are those of one of the scales x_peak / peak, x_peak being the element of
// largest magnitude: it is either sign's largest code, or lies a little inside or outside.
template <std::size_t N, class Peaks, class MakeRound>
float fit_scale(const float* x, const Peaks& peaks, const MakeRound& round) {
  const float inverse = finite_inverse(largest_element(x, N));
  float best = 0.0f, best_gain = 0.0f;
  for (const float peak : peaks) {
    const auto s = sums_of<N>(x, round(peak * inverse));
    if (s.xq * s.xq > best_gain * s.qq) {
      best = s.xq / s.qq;
      best_gain = s.xq * best;
    }
  }
  return best;
}

struct affine {
  float scale = 0, min = 0;
};

// The scale >= 0 and min >= 0 whose codes 0..largest reproduce x best, over several ranges that clip none, some or no
// more than the outermost elements; then the codes nearest to x by the scale and min found, as long as that helps.
template <std::size_t N>
affine fit_affine(const float* x, float largest) {
  const float low = std::min(0.0f, *std::min_element(x, x + N)), high = *std::max_element(x, x + N);
  if (!(high - low > 0.0f)) return {0.0f, -low};
  // Relative to `low`: sums of x itself would cancel where all elements lie far from zero.
  float z[N], z_sum = 0.0f;
  for (std::size_t i = 0; i < N; ++i) z_sum += z[i] = x[i] - low;
  affine best{0.0f, -low};
  float best_error = 0.0f;
  // Takes the scale and min of least squared error for a way to round, if none before had less.
  const auto consider = [&](const affine_round& round) {
    const auto s = sums_of<N>(z, round);
    const float n = static_cast<float>(N), determinant = n * s.qq - s.q * s.q;
    float scale = (n * s.xq - z_sum * s.q) / determinant;
    float min = (scale * s.q - z_sum) / n;
    if (!(determinant > 0.0f && min >= low)) {
      min = low;
      scale = s.qq > 0.0f ? (s.xq + low * s.q) / s.qq : 0.0f;
    }
    const float error = scale * scale * s.qq + n * min * min + 2.0f * (min * z_sum - scale * (min * s.q + s.xq));
    // By more than rounding: many ranges reproduce two values without error, and then groups alike shall have the same.
    if (!(error < 1.000002f * best_error)) return false;
    best_error = error;
    best = {scale, min - low};
    return true;
  };
  for (const int step : {0, -10, -8, -6, -4, -2, 2, 4, 6, 8, 10}) {
    consider({(largest + 0.1f * static_cast<float>(step)) / (high - low), 0.0f, largest});
  }
  // A few elements far above the others: those below, which are many, may all have code 0.
  for (const float part : {0.0f, 0.5f}) {
    consider({largest * finite_inverse(std::max(high - part * low, 0.0f)), (1.0f - part) * low, largest});
  }
  for (int again = 0; again < 4 && consider({finite_inverse(best.scale), best.min + low, largest}); ++again) {
  }
  return best;
}

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/quant/formats/iq4_nl.hpp
MOTE_BEGIN_NAMESPACE

namespace detail {

// T, for encoders.
struct iq4_codes {
  static constexpr std::array<std::int8_t, 16> values = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                         1,    13,   25,  38,  53,  69,  89,  113};
  static constexpr float largest = 127.0f;  // of the numbers' magnitudes
  // Of fit_scale.
  static constexpr std::array<float, 15> peaks = {-127, -123, -119, -115, -111, -107, -131, -135,
                                                  113,  109,  105,  101,  97,   117,  121};
  static table_round<16> round(float inverse) { return {values, inverse}; }
  static std::uint8_t nearest(float x) { return nearest_code(values, x); }
};

}  // namespace detail

struct iq4_nl {
  static constexpr std::string_view name = "iq4_nl";
  static constexpr std::size_t block_size = 32, group_size = 32;
  static constexpr int code_bits = 4;
  static constexpr std::array<std::int8_t, 16> code_values = detail::iq4_codes::values;
  using scale_type = f16;

  f16 d;
  std::uint8_t q[16];  // byte i: element i low, element i + 16 high

  std::uint8_t code(std::size_t i) const { return detail::nibble(q, i); }
  std::uint32_t four_codes(std::size_t i) const { return detail::four_nibbles(q, i); }
  f16 scale(std::size_t) const { return d; }

  static iq4_nl encode(const float* values) {
    using table = detail::iq4_codes;
    constexpr float limit = table::largest * detail::largest_f16;
    float x[block_size];
    for (std::size_t i = 0; i < block_size; ++i) x[i] = std::clamp(values[i], -limit, limit);
    iq4_nl block{};
    if (detail::largest_magnitude(x, block_size) >= detail::negligible) {
      const auto error = [&](f16 scale) {
        const float s = static_cast<float>(scale);
        return detail::error_of<block_size>(x, s, 0.0f, table::round(detail::finite_inverse(s))).error;
      };
      const f16 fitted = detail::saturated_f16(detail::fit_scale<block_size>(x, table::peaks, table::round));
      const f16 plain = detail::saturated_f16(detail::largest_element(x, block_size) / -table::largest);
      block.d = error(plain) < error(fitted) ? plain : fitted;
    }
    const float inverse = detail::finite_inverse(static_cast<float>(block.d));
    std::uint8_t codes[block_size];
    for (std::size_t i = 0; i < block_size; ++i) codes[i] = table::nearest(x[i] * inverse);
    detail::pack_nibbles(codes, block.q);
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(integer_format<iq4_nl> && sizeof(iq4_nl) == 18);

MOTE_END_NAMESPACE

// ---- mote/quant/formats/iq4_xs.hpp
// GGUF IQ4_XS: 256 numbers of IQ4_NL's table in 8 groups of 32, each with a six-bit scale, 136 bytes.
// value = d · scale[group] · T[code].
//
//   encode: the scale of least squared error for each group; then, with d rounded, the best of the integer scales nearby;
//   then d of least squared error for those integers

// ---- mote/quant/formats/search_two_level.hpp
// The search behind the encoders of formats of two levels without a minimum (Q3_K, Q6_K, IQ4_XS).

MOTE_BEGIN_NAMESPACE

namespace detail {

// Integers from -Largest - 1 to Largest.
template <int Largest>
struct integer_codes {
  static constexpr float largest = Largest + 1;  // of the numbers' magnitudes
  // Of fit_scale.
  static constexpr std::array<float, 10> peaks = [] {
    std::array<float, 10> values{-0.0f, 0.25f, 0.5f, 0.75f, -0.25f, -0.5f, -1.0f};
    for (float& v : values) v -= largest;
    for (std::size_t i = 0; i < 3; ++i) values[7 + i] = static_cast<float>(Largest) + 0.25f * static_cast<float>(i);
    return values;
  }();
  static integer_round round(float inverse) { return {inverse, static_cast<float>(Largest)}; }
  static int nearest(float x) { return round_half_away(std::clamp(x, -largest, largest - 1.0f)); }
};

// A block as integers: value = d · scale[group] · (the number of code), scales from -LargestScale - 1 to LargestScale.
template <std::size_t Groups, std::size_t GroupSize, int LargestScale, class Codes>
struct two_level_fit {
  static constexpr std::size_t size = Groups * GroupSize;
  f16 d;
  std::int8_t scale[Groups], codes[size];

  // The fit to x[size].
  explicit two_level_fit(const float* values) : two_level_fit() {
    constexpr float limit = static_cast<float>(LargestScale + 1) * Codes::largest * largest_f16;
    if (largest_magnitude(values, size) < negligible) return;
    float x[size];
    for (std::size_t i = 0; i < size; ++i) x[i] = std::clamp(values[i], -limit, limit);

    float target[Groups];
    for (std::size_t g = 0; g < Groups; ++g) {
      target[g] = fit_scale<GroupSize>(x + g * GroupSize, Codes::peaks, Codes::round);
    }
    const float largest = largest_element(target, Groups);
    float error = -1.0f;
    const auto consider = [&](float super) {
      two_level_fit other = *this;
      other.d = saturated_f16(super);
      if (other.d.bits << 1 == 0) other.d.bits |= 1;  // no integer scale could save the block
      const float other_error = other.fit_groups(x, target);
      const bool better = error < 0.0f || other_error < error;
      if (better) {
        *this = other;
        error = other_error;
      }
      return better;
    };
    // The largest integers that the groups may use, as -128, -126, -123 and 127 of 128.
    constexpr float top = LargestScale + 1;
    for (const float part : {-top, -126.0f / 128.0f * top, -123.0f / 128.0f * top, top - 1.0f}) {
      consider(largest / part);
    }
    consider(refitted(x));

    for (std::size_t g = 0; g < Groups; ++g) {
      const float inverse = finite_inverse(static_cast<float>(d) * scale[g]);
      for (std::size_t i = g * GroupSize; i < (g + 1) * GroupSize; ++i) {
        codes[i] = static_cast<std::int8_t>(Codes::nearest(x[i] * inverse));
      }
    }
  }

 private:
  two_level_fit() : d(), scale(), codes() {}

  // Chooses every scale[g] around `target` for d and returns the block's squared error.
  float fit_groups(const float* x, const float (&target)[Groups]) {
    constexpr int least = -LargestScale - 1;
    const float super = static_cast<float>(d), inverse = finite_inverse(super);
    float total = 0.0f;
    for (std::size_t g = 0; g < Groups; ++g) {
      const int nearest =
          round_half_away(std::clamp(target[g] * inverse, static_cast<float>(least), static_cast<float>(LargestScale)));
      float best = -1.0f;
      for (int s = std::max(nearest - 1, least); s <= std::min(nearest + 1, LargestScale); ++s) {
        const float group_scale = super * static_cast<float>(s);
        const auto round = Codes::round(finite_inverse(group_scale));
        const float error = error_of<GroupSize>(x + g * GroupSize, group_scale, 0.0f, round).error;
        if (best >= 0.0f && error >= best) continue;
        best = error;
        scale[g] = static_cast<std::int8_t>(s);
      }
      total += best;
    }
    return total;
  }

  // d of least squared error for the integers chosen.
  float refitted(const float* x) const {
    float aa = 0.0f, ax = 0.0f;
    for (std::size_t g = 0; g < Groups; ++g) {
      const float s = scale[g];
      const auto sums = sums_of<GroupSize>(x + g * GroupSize, Codes::round(finite_inverse(static_cast<float>(d) * s)));
      aa += s * s * sums.qq;
      ax += s * sums.xq;
    }
    return aa > 0.0f ? ax / aa : 0.0f;
  }
};

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/quant/formats/iq4_xs.hpp
MOTE_BEGIN_NAMESPACE

struct iq4_xs {
  static constexpr std::string_view name = "iq4_xs";
  static constexpr std::size_t block_size = 256, group_size = 32;
  static constexpr int code_bits = 4;
  static constexpr std::array<std::int8_t, 16> code_values = iq4_nl::code_values;
  using scale_type = float;

  f16 d;
  std::uint8_t scales_high[2];  // two bits of each group's scale + 32, from the lowest up
  std::uint8_t scales_low[4];   // four bits: byte i: group 2 i low, group 2 i + 1 high
  detail::packed_runs<4, 16> q;

  std::uint8_t code(std::size_t i) const { return static_cast<std::uint8_t>(q.get(i)); }
  std::uint32_t four_codes(std::size_t i) const { return q.four(i); }
  f16 super_scale() const { return d; }
  int sub_scale(std::size_t g) const {
    return ((scales_low[g / 2] >> (g % 2 * 4) & 15) | (scales_high[g / 4] >> (g % 4 * 2) & 3) << 4) - 32;
  }
  float scale(std::size_t g) const { return static_cast<float>(d) * static_cast<float>(sub_scale(g)); }

  static iq4_xs encode(const float* x) {
    const detail::two_level_fit<8, 32, 31, detail::iq4_codes> fit(x);
    iq4_xs block{};
    block.d = fit.d;
    for (std::size_t g = 0; g < 8; ++g) {
      const auto scale = static_cast<unsigned>(fit.scale[g] + 32);
      block.scales_low[g / 2] |= static_cast<std::uint8_t>((scale & 15u) << (g % 2 * 4));
      block.scales_high[g / 4] |= static_cast<std::uint8_t>(scale >> 4 << (g % 4 * 2));
    }
    for (std::size_t i = 0; i < block_size; ++i) block.q.set(i, static_cast<unsigned>(fit.codes[i]));
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(two_level_format<iq4_xs> && sizeof(iq4_xs) == 136);

MOTE_END_NAMESPACE

// ---- mote/quant/formats/mxfp4.hpp
// MXFP4 as GGUF stores it: 32 e2m1 numbers and a power of two, 17 bytes. value = e2m1(code) · 2^(e - 127).
//
//   encode: e - 127 = ⌊log2 amax⌋ - 2, at least -127; the nearest code, the first of two as near
//
// The safetensors layout of the same numbers is in quant/microscaling.hpp. Source: OCP Microscaling Formats v1.0.

MOTE_BEGIN_NAMESPACE

struct mxfp4 {
  static constexpr std::string_view name = "mxfp4";
  static constexpr std::size_t block_size = 32, group_size = 32;
  static constexpr int code_bits = 4;
  // Twice the e2m1 number, so that it is an integer.
  static constexpr std::array<std::int8_t, 16> code_values = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  static constexpr float unit = 0.5f;
  using scale_type = f8_e8m0;

  f8_e8m0 e;
  std::uint8_t q[16];  // byte i: element i low, element i + 16 high

  std::uint8_t code(std::size_t i) const { return detail::nibble(q, i); }
  std::uint32_t four_codes(std::size_t i) const { return detail::four_nibbles(q, i); }
  f8_e8m0 scale(std::size_t) const { return e; }

  static mxfp4 encode(const float* x) {
    mxfp4 block;
    const std::uint8_t exponent = f8_e8m0(detail::largest_magnitude(x, block_size)).bits;
    block.e = f8_e8m0::from_bits(exponent > 2 ? static_cast<std::uint8_t>(exponent - 2) : std::uint8_t{0});
    std::uint8_t codes[block_size];
    detail::nearest_e2m1(x, group_scale(block, 0), codes);
    detail::pack_nibbles(codes, block.q);
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(integer_format<mxfp4> && sizeof(mxfp4) == 17);

MOTE_END_NAMESPACE

// ---- mote/quant/formats/nvfp4.hpp
// NVFP4 as GGUF stores it: 64 e2m1 numbers in 4 groups of 16, each with an unsigned e4m3 scale, 36 bytes.
// value = e2m1(code) · e4m3(scale); scale codes 0 and 0x7F mean 0.
//
//   encode: for each group the scale of least squared error around amax / 6; the nearest code, the first of two as near
//
// The safetensors layout, with a scale of the whole tensor, is in quant/microscaling.hpp. Source: NVIDIA's NVFP4.

MOTE_BEGIN_NAMESPACE

struct nvfp4 {
  static constexpr std::string_view name = "nvfp4";
  static constexpr std::size_t block_size = 64, group_size = 16;
  static constexpr int code_bits = 4;
  static constexpr bool has_tensor_scale = true;
  static constexpr std::array<std::int8_t, 16> code_values = mxfp4::code_values;  // twice e2m1
  using scale_type = f16;

  std::uint8_t scales[4];
  std::uint8_t q[32];  // byte 8 g + i: element 16 g + i low, element 16 g + 8 + i high

  std::uint8_t code(std::size_t i) const {
    const unsigned byte = q[i / 16 * 8 + i % 8];
    return static_cast<std::uint8_t>(i / 8 % 2 == 0 ? byte & 15u : byte >> 4);
  }
  std::uint32_t four_codes(std::size_t i) const {
    return detail::four_bytes(q + i / 16 * 8 + i % 8) >> (i / 8 % 2 * 4) & 0x0F0F0F0Fu;
  }
  f16 scale(std::size_t g) const { return f16(half_e4m3(scales[g])); }

  // The scale code of a group.
  static std::uint8_t fit(const float* x) {
    const int nearest = f8_e4m3(std::min(detail::largest_magnitude(x, group_size) / 6.0f, 448.0f)).bits;
    float best = -1.0f;
    std::uint8_t scale = 0;
    for (int code = std::max(nearest - 4, 0); code <= std::min(nearest + 4, 0x7E); ++code) {
      const float unit = half_e4m3(static_cast<std::uint8_t>(code));
      const detail::table_round<15> round{detail::e2m1_numbers, detail::finite_inverse(unit)};
      const float error = detail::error_of<group_size>(x, unit, 0.0f, round).error;
      if (best >= 0.0f && error >= best) continue;
      best = error;
      scale = static_cast<std::uint8_t>(code);
    }
    return scale;
  }

  static nvfp4 encode(const float* values) {
    constexpr float limit = 1e15f;  // whose squared errors float32 holds
    nvfp4 block{};
    for (std::size_t g = 0; g < 4; ++g) {
      float x[group_size];
      for (std::size_t i = 0; i < group_size; ++i) x[i] = std::clamp(values[g * group_size + i], -limit, limit);
      block.scales[g] = fit(x);
      std::uint8_t codes[group_size];
      detail::nearest_e2m1(x, group_scale(block, g), codes);
      for (std::size_t i = 0; i < 8; ++i) block.q[g * 8 + i] = static_cast<std::uint8_t>(codes[i] | codes[i + 8] << 4);
    }
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }

 private:
  static float half_e4m3(std::uint8_t code) {
    return code == 0x7F ? 0.0f : 0.5f * detail::expand_magnitude<3, 7>(code & 0x7Fu);
  }
};
static_assert(integer_format<nvfp4> && sizeof(nvfp4) == 36);

MOTE_END_NAMESPACE

// ---- mote/quant/formats/q2_k.hpp
// GGUF Q2_K: 256 elements in 16 groups of 16, each with a four-bit scale and minimum, 84 bytes.
// value = d · scale[group] · code - dmin · min[group].
//
//   encode: scale and min of least squared error for each group; then, with d and dmin rounded, the best of the integer
//   scales and minima nearby; then d and dmin of least squared error for those integers

// ---- mote/quant/formats/search_two_level_min.hpp
// The search behind the encoders of formats of two levels with a minimum (Q2_K, Q4_K, Q5_K).

MOTE_BEGIN_NAMESPACE

namespace detail {

// The f16 nearest to x >= 0; not zero unless x is: then no integer scale could save the group.
inline f16 positive_f16(float x) {
  const f16 y = saturated_f16(x);
  return y.bits == 0 && x > 0.0f ? f16::from_bits(1) : y;
}

// A block as integers: value = d · scale[group] · code - dmin · min[group], codes from 0 to LargestCode, scales and minima from
// 0 to LargestScale.
template <std::size_t Groups, std::size_t GroupSize, int LargestCode, int LargestScale>
struct two_level_min_fit {
  static constexpr std::size_t size = Groups * GroupSize;
  static constexpr float largest_code = LargestCode, largest_scale = LargestScale;
  f16 d, dmin;
  std::uint8_t scale[Groups], min[Groups], codes[size];

  // The fit to x[size].
  explicit two_level_min_fit(const float* values) : two_level_min_fit() {
    constexpr float limit = largest_scale * largest_code * largest_f16;
    if (largest_magnitude(values, size) < negligible) return;
    float x[size];
    for (std::size_t i = 0; i < size; ++i) x[i] = std::clamp(values[i], -limit, limit);

    affine target[Groups];
    affine largest;
    for (std::size_t g = 0; g < Groups; ++g) {
      target[g] = fit_affine<GroupSize>(x + g * GroupSize, largest_code);
      largest.scale = std::max(largest.scale, target[g].scale);
      largest.min = std::max(largest.min, target[g].min);
    }
    float error = -1.0f;
    const auto consider = [&](const affine& super) {
      two_level_min_fit other = *this;
      other.d = positive_f16(super.scale);
      other.dmin = positive_f16(super.min);
      float other_error = 0.0f;
      for (std::size_t g = 0; g < Groups; ++g) other_error += other.fit_group(x + g * GroupSize, g, target[g]);
      const bool better = error < 0.0f || other_error < error;
      if (better) {
        *this = other;
        error = other_error;
      }
      return better;
    };
    // The largest integers that the groups may use, as 63, 61 and 58 of 63.
    for (const float spared : {0.0f, 2.0f, 5.0f}) {
      const float top = largest_scale - spared * largest_scale / 63.0f;
      consider({largest.scale / top, largest.min / top});
    }
    for (int round = 0; round < 2; ++round) {
      const affine super = refitted(x);
      if (!(super.scale > 0.0f && super.min >= 0.0f && consider(super))) break;
    }
    set_codes(x);
  }

 private:
  two_level_min_fit() : d(), dmin(), scale(), min(), codes() {}

  static int integer(float x) { return static_cast<int>(std::clamp(x + 0.5f, 0.0f, largest_scale)); }
  static float sum(const float* x) {
    float sum = 0.0f;
    for (std::size_t i = 0; i < GroupSize; ++i) sum += x[i];
    return sum;
  }

  // Chooses scale[g] and min[g] around `target`, with d and dmin given; returns the group's squared error.
  float fit_group(const float* x, std::size_t g, const affine& target) {
    constexpr float n = GroupSize;
    const float super = static_cast<float>(d), super_min = static_cast<float>(dmin);
    const float inverse_min = finite_inverse(super_min);
    const float x_sum = sum(x);
    float best = -1.0f;
    // Takes this pair if it is the best so far; returns the minimum that suits its codes best.
    const auto consider = [&](int group_scale, int group_min) {
      const float s = super * static_cast<float>(group_scale), m = super_min * static_cast<float>(group_min);
      const auto result = error_of<GroupSize>(x, s, m, affine_round{finite_inverse(s), m, largest_code});
      if (best < 0.0f || result.error < best) {
        best = result.error;
        scale[g] = static_cast<std::uint8_t>(group_scale);
        min[g] = static_cast<std::uint8_t>(group_min);
      }
      return integer((s * result.q - x_sum) / n * inverse_min);
    };
    const int nearest = integer(target.scale * finite_inverse(super)), nearest_min = integer(target.min * inverse_min);
    for (int s = std::max(nearest - 1, 0); s <= std::min(nearest + 1, LargestScale); ++s) {
      const int centre = consider(s, nearest_min);
      for (int m = std::max(centre - 1, 0); m <= std::min(centre + 1, LargestScale); ++m) {
        if (m != nearest_min) consider(s, m);
      }
    }
    return best;
  }

  // d and dmin of least squared error for the integers chosen: Σ (d a - dmin b - x)², a = scale · code, b = min.
  affine refitted(const float* x) const {
    float aa = 0, ab = 0, bb = 0, ax = 0, bx = 0;
    for (std::size_t g = 0; g < Groups; ++g) {
      const float* group = x + g * GroupSize;
      const float a = scale[g], b = min[g];
      const float s = static_cast<float>(d) * a, m = static_cast<float>(dmin) * b;
      const auto sums = sums_of<GroupSize>(group, affine_round{finite_inverse(s), m, largest_code});
      aa += a * a * sums.qq;
      ab += a * b * sums.q;
      bb += b * b * static_cast<float>(GroupSize);
      ax += a * sums.xq;
      bx += b * sum(group);
    }
    const float determinant = aa * bb - ab * ab;
    if (determinant > 1e-6f * aa * bb) return {(ax * bb - ab * bx) / determinant, (ab * ax - aa * bx) / determinant};
    return {aa > 0.0f ? ax / aa : 0.0f, 0.0f};
  }

  void set_codes(const float* x) {
    for (std::size_t g = 0; g < Groups; ++g) {
      const float s = static_cast<float>(d) * scale[g], m = static_cast<float>(dmin) * min[g];
      const float inverse = finite_inverse(s);
      for (std::size_t i = g * GroupSize; i < (g + 1) * GroupSize; ++i) {
        codes[i] = static_cast<std::uint8_t>(std::clamp((x[i] + m) * inverse + 0.5f, 0.0f, largest_code));
      }
    }
  }
};

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/quant/formats/q2_k.hpp
MOTE_BEGIN_NAMESPACE

struct q2_k {
  static constexpr std::string_view name = "q2_k";
  static constexpr std::size_t block_size = 256, group_size = 16;
  static constexpr int code_bits = 2;
  static constexpr std::array<std::int8_t, 16> code_values = {0, 1, 2, 3};
  using scale_type = float;

  std::uint8_t scales[16];  // of each group scale low, min high
  detail::packed_runs<2> q;
  f16 d, dmin;

  std::uint8_t code(std::size_t i) const { return static_cast<std::uint8_t>(q.get(i)); }
  std::uint32_t four_codes(std::size_t i) const { return q.four(i); }
  f16 super_scale() const { return d; }
  f16 super_min() const { return dmin; }
  int sub_scale(std::size_t g) const { return scales[g] & 15; }
  int sub_min(std::size_t g) const { return scales[g] >> 4; }
  float scale(std::size_t g) const { return static_cast<float>(d) * static_cast<float>(sub_scale(g)); }
  float min(std::size_t g) const { return static_cast<float>(dmin) * static_cast<float>(sub_min(g)); }

  static q2_k encode(const float* x) {
    const detail::two_level_min_fit<16, 16, 3, 15> fit(x);
    q2_k block{};
    block.d = fit.d;
    block.dmin = fit.dmin;
    for (std::size_t g = 0; g < 16; ++g) {
      block.scales[g] = static_cast<std::uint8_t>(fit.scale[g] | fit.min[g] << 4);
    }
    for (std::size_t i = 0; i < block_size; ++i) block.q.set(i, fit.codes[i]);
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(format_with_min<q2_k> && two_level_format<q2_k> && sizeof(q2_k) == 84);

MOTE_END_NAMESPACE

// ---- mote/quant/formats/q3_k.hpp
// GGUF Q3_K: 256 integers in [-4, 3] in 16 groups of 16, each with a six-bit scale, 110 bytes.
// value = d · scale[group] · (code - 4).
//
//   encode: the scale of least squared error for each group; then, with d rounded, the best of the integer scales nearby;
//   then d of least squared error for those integers

MOTE_BEGIN_NAMESPACE

struct q3_k {
  static constexpr std::string_view name = "q3_k";
  static constexpr std::size_t block_size = 256, group_size = 16;
  static constexpr int code_bits = 3;
  static constexpr std::array<std::int8_t, 16> code_values = {-4, -3, -2, -1, 0, 1, 2, 3};
  using scale_type = float;

  detail::packed_runs<1> high;  // bit 2 of the codes
  detail::packed_runs<2> low;
  // Of scale + 32: bytes 0-7: four bits of groups g (low) and g + 8 (high); bytes 8-11: from the lowest up, two bits each of
  // groups g, g + 4, g + 8, g + 12.
  std::uint8_t scales[12];
  f16 d;

  std::uint8_t code(std::size_t i) const { return static_cast<std::uint8_t>(low.get(i) | high.get(i) << 2); }
  std::uint32_t four_codes(std::size_t i) const { return low.four(i) | high.four(i) << 2; }
  f16 super_scale() const { return d; }
  int sub_scale(std::size_t g) const {
    return ((scales[g % 8] >> (g / 8 * 4) & 15) | (scales[8 + g % 4] >> (g / 4 * 2) & 3) << 4) - 32;
  }
  float scale(std::size_t g) const { return static_cast<float>(d) * static_cast<float>(sub_scale(g)); }

  static q3_k encode(const float* x) {
    const detail::two_level_fit<16, 16, 31, detail::integer_codes<3>> fit(x);
    q3_k block{};
    block.d = fit.d;
    for (std::size_t g = 0; g < 16; ++g) {
      const auto scale = static_cast<unsigned>(fit.scale[g] + 32);
      block.scales[g % 8] |= static_cast<std::uint8_t>((scale & 15u) << (g / 8 * 4));
      block.scales[8 + g % 4] |= static_cast<std::uint8_t>(scale >> 4 << (g / 4 * 2));
    }
    for (std::size_t i = 0; i < block_size; ++i) {
      const auto code = static_cast<unsigned>(fit.codes[i] + 4);
      block.low.set(i, code & 3u);
      block.high.set(i, code >> 2);
    }
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(two_level_format<q3_k> && sizeof(q3_k) == 110);

MOTE_END_NAMESPACE

// ---- mote/quant/formats/q4_0.hpp
// GGUF Q4_0: 32 integers in [-8, 7] and their scale, 18 bytes. value = d · (code - 8).
//
//   encode: d = (the value of largest magnitude) / -8, code = min(15, ⌊x / d + 8.5⌋), with d still in float32

MOTE_BEGIN_NAMESPACE

struct q4_0 {
  static constexpr std::string_view name = "q4_0";
  static constexpr std::size_t block_size = 32, group_size = 32;
  static constexpr int code_bits = 4;
  static constexpr std::array<std::int8_t, 16> code_values = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
  using scale_type = f16;

  f16 d;
  std::uint8_t q[16];  // byte i: element i low, element i + 16 high

  std::uint8_t code(std::size_t i) const { return detail::nibble(q, i); }
  std::uint32_t four_codes(std::size_t i) const { return detail::four_nibbles(q, i); }
  f16 scale(std::size_t) const { return d; }

  static q4_0 encode(const float* x) {
    const float scale =
        std::clamp(detail::largest_element(x, block_size) / -8.0f, -detail::largest_f16, detail::largest_f16);
    float scaled[block_size];
    detail::rounded_products(x, detail::finite_inverse(scale), scaled);
    std::uint8_t codes[block_size];
    for (std::size_t i = 0; i < block_size; ++i) {
      codes[i] = static_cast<std::uint8_t>(std::clamp(scaled[i] + 8.5f, 0.0f, 15.0f));
    }
    q4_0 block;
    block.d = f16(scale);
    detail::pack_nibbles(codes, block.q);
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(integer_format<q4_0> && sizeof(q4_0) == 18);

MOTE_END_NAMESPACE

// ---- mote/quant/formats/q4_1.hpp
// GGUF Q4_1: 32 integers in [0, 15], their scale and the smallest number, 20 bytes. value = d · code + m.
//
//   encode: m = the smallest, d = (the largest - m) / 15, code = min(15, ⌊(x - m) / d + 0.5⌋), with d and m still in float32

MOTE_BEGIN_NAMESPACE

struct q4_1 {
  static constexpr std::string_view name = "q4_1";
  static constexpr std::size_t block_size = 32, group_size = 32;
  static constexpr int code_bits = 4;
  static constexpr std::array<std::int8_t, 16> code_values = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  using scale_type = f16;

  f16 d, m;
  std::uint8_t q[16];  // byte i: element i low, element i + 16 high

  std::uint8_t code(std::size_t i) const { return detail::nibble(q, i); }
  std::uint32_t four_codes(std::size_t i) const { return detail::four_nibbles(q, i); }
  f16 scale(std::size_t) const { return d; }
  float min(std::size_t) const { return -static_cast<float>(m); }

  static q4_1 encode(const float* x) {
    q4_1 block;
    std::uint8_t codes[block_size];
    detail::codes_from_smallest(x, 15.0f, block.d, block.m, codes);
    detail::pack_nibbles(codes, block.q);
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(format_with_min<q4_1> && sizeof(q4_1) == 20);

MOTE_END_NAMESPACE

// ---- mote/quant/formats/q4_k.hpp
// GGUF Q4_K: 256 elements in 8 groups of 32, each with a six-bit scale and minimum, 144 bytes.
// value = d · scale[group] · code - dmin · min[group].
//
//   encode: scale and min of least squared error for each group; then, with d and dmin rounded, the best of the integer
//   scales and minima nearby; then d and dmin of least squared error for those integers

MOTE_BEGIN_NAMESPACE

struct q4_k {
  static constexpr std::string_view name = "q4_k";
  static constexpr std::size_t block_size = 256, group_size = 32;
  static constexpr int code_bits = 4;
  static constexpr std::array<std::int8_t, 16> code_values = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  using scale_type = float;

  f16 d, dmin;
  detail::packed_scales scales;
  detail::packed_runs<4> q;

  std::uint8_t code(std::size_t i) const { return static_cast<std::uint8_t>(q.get(i)); }
  std::uint32_t four_codes(std::size_t i) const { return q.four(i); }
  f16 super_scale() const { return d; }
  f16 super_min() const { return dmin; }
  int sub_scale(std::size_t g) const { return scales.scale(g); }
  int sub_min(std::size_t g) const { return scales.min(g); }
  float scale(std::size_t g) const { return static_cast<float>(d) * static_cast<float>(sub_scale(g)); }
  float min(std::size_t g) const { return static_cast<float>(dmin) * static_cast<float>(sub_min(g)); }

  static q4_k encode(const float* x) {
    const detail::two_level_min_fit<8, 32, 15, 63> fit(x);
    q4_k block{};
    block.d = fit.d;
    block.dmin = fit.dmin;
    block.scales = detail::packed_scales::of(fit.scale, fit.min);
    for (std::size_t i = 0; i < block_size; ++i) block.q.set(i, fit.codes[i]);
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(format_with_min<q4_k> && two_level_format<q4_k> && sizeof(q4_k) == 144);

MOTE_END_NAMESPACE

// ---- mote/quant/formats/q5_0.hpp
// GGUF Q5_0: 32 integers in [-16, 15] and their scale, 22 bytes. value = d · (code - 16).
//
//   encode: d = (the value of largest magnitude) / -16, code = min(31, ⌊x / d + 16.5⌋), with d still in float32

MOTE_BEGIN_NAMESPACE

struct q5_0 {
  static constexpr std::string_view name = "q5_0";
  static constexpr std::size_t block_size = 32, group_size = 32;
  static constexpr int code_bits = 5;
  using scale_type = f16;

  f16 d;
  std::uint8_t high[4];  // bit i: bit 4 of element i
  std::uint8_t q[16];    // byte i: element i low, element i + 16 high

  std::int8_t code(std::size_t i) const {
    const int top = high[i / 8] >> (i % 8) & 1;
    return static_cast<std::int8_t>((detail::nibble(q, i) | (top << 4)) - 16);
  }
  std::uint32_t four_codes(std::size_t i) const {
    const std::uint32_t top = detail::four_bits(high[i / 8] >> (i % 8));
    const std::uint32_t below = (detail::four_nibbles(q, i) | top << 4) ^ 0x10101010u;
    return below | (below & 0x10101010u) * 14u;  // - 16
  }
  f16 scale(std::size_t) const { return d; }

  static q5_0 encode(const float* x) {
    const float scale =
        std::clamp(detail::largest_element(x, block_size) / -16.0f, -detail::largest_f16, detail::largest_f16);
    float scaled[block_size];
    detail::rounded_products(x, detail::finite_inverse(scale), scaled);
    q5_0 block{};
    block.d = f16(scale);
    std::uint8_t low[block_size];
    for (std::size_t i = 0; i < block_size; ++i) {
      const auto code = static_cast<unsigned>(std::clamp(scaled[i] + 16.5f, 0.0f, 31.0f));
      low[i] = static_cast<std::uint8_t>(code & 15u);
      block.high[i / 8] |= static_cast<std::uint8_t>((code >> 4) << (i % 8));
    }
    detail::pack_nibbles(low, block.q);
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(integer_format<q5_0> && sizeof(q5_0) == 22);

MOTE_END_NAMESPACE

// ---- mote/quant/formats/q5_1.hpp
// GGUF Q5_1: 32 integers in [0, 31], their scale and the smallest number, 24 bytes. value = d · code + m.
//
//   encode: m = the smallest, d = (the largest - m) / 31, code = min(31, ⌊(x - m) / d + 0.5⌋), with d and m still in float32

MOTE_BEGIN_NAMESPACE

struct q5_1 {
  static constexpr std::string_view name = "q5_1";
  static constexpr std::size_t block_size = 32, group_size = 32;
  static constexpr int code_bits = 5;
  using scale_type = f16;

  f16 d, m;
  std::uint8_t high[4];  // bit i: bit 4 of element i
  std::uint8_t q[16];    // byte i: element i low, element i + 16 high

  std::uint8_t code(std::size_t i) const {
    const int top = high[i / 8] >> (i % 8) & 1;
    return static_cast<std::uint8_t>(detail::nibble(q, i) | top << 4);
  }
  std::uint32_t four_codes(std::size_t i) const {
    return detail::four_nibbles(q, i) | detail::four_bits(high[i / 8] >> (i % 8)) << 4;
  }
  f16 scale(std::size_t) const { return d; }
  float min(std::size_t) const { return -static_cast<float>(m); }

  static q5_1 encode(const float* x) {
    q5_1 block{};
    std::uint8_t codes[block_size];
    detail::codes_from_smallest(x, 31.0f, block.d, block.m, codes);
    for (std::size_t i = 0; i < block_size; ++i) {
      block.high[i / 8] |= static_cast<std::uint8_t>(codes[i] >> 4 << (i % 8));
      codes[i] &= 15u;
    }
    detail::pack_nibbles(codes, block.q);
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(format_with_min<q5_1> && sizeof(q5_1) == 24);

MOTE_END_NAMESPACE

// ---- mote/quant/formats/q5_k.hpp
// GGUF Q5_K: 256 elements in 8 groups of 32, each with a six-bit scale and minimum, 176 bytes.
// value = d · scale[group] · code - dmin · min[group].
//
//   encode: scale and min of least squared error for each group; then, with d and dmin rounded, the best of the integer
//   scales and minima nearby; then d and dmin of least squared error for those integers

MOTE_BEGIN_NAMESPACE

struct q5_k {
  static constexpr std::string_view name = "q5_k";
  static constexpr std::size_t block_size = 256, group_size = 32;
  static constexpr int code_bits = 5;
  using scale_type = float;

  f16 d, dmin;
  detail::packed_scales scales;
  detail::packed_runs<1> high;  // bit 4 of the codes
  detail::packed_runs<4> low;

  std::uint8_t code(std::size_t i) const { return static_cast<std::uint8_t>(low.get(i) | high.get(i) << 4); }
  std::uint32_t four_codes(std::size_t i) const { return low.four(i) | high.four(i) << 4; }
  f16 super_scale() const { return d; }
  f16 super_min() const { return dmin; }
  int sub_scale(std::size_t g) const { return scales.scale(g); }
  int sub_min(std::size_t g) const { return scales.min(g); }
  float scale(std::size_t g) const { return static_cast<float>(d) * static_cast<float>(sub_scale(g)); }
  float min(std::size_t g) const { return static_cast<float>(dmin) * static_cast<float>(sub_min(g)); }

  static q5_k encode(const float* x) {
    const detail::two_level_min_fit<8, 32, 31, 63> fit(x);
    q5_k block{};
    block.d = fit.d;
    block.dmin = fit.dmin;
    block.scales = detail::packed_scales::of(fit.scale, fit.min);
    for (std::size_t i = 0; i < block_size; ++i) {
      block.low.set(i, fit.codes[i] & 15u);
      block.high.set(i, fit.codes[i] >> 4);
    }
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(format_with_min<q5_k> && two_level_format<q5_k> && sizeof(q5_k) == 176);

MOTE_END_NAMESPACE

// ---- mote/quant/formats/q6_k.hpp
// GGUF Q6_K: 256 integers in [-32, 31] in 16 groups of 16, each with an int8 scale, 210 bytes.
// value = d · scale[group] · q.
//
//   encode: the scale of least squared error for each group; then, with d rounded, the best of the integer scales nearby;
//   then d of least squared error for those integers

MOTE_BEGIN_NAMESPACE

struct q6_k {
  static constexpr std::string_view name = "q6_k";
  static constexpr std::size_t block_size = 256, group_size = 16;
  static constexpr int code_bits = 6;
  using scale_type = float;

  detail::packed_runs<4, 64> low;
  detail::packed_runs<2> high;  // the two bits above
  std::int8_t scales[16];
  f16 d;

  std::int8_t code(std::size_t i) const {
    return static_cast<std::int8_t>(static_cast<int>(low.get(i) | high.get(i) << 4) - 32);
  }
  std::uint32_t four_codes(std::size_t i) const {
    const std::uint32_t below = (low.four(i) | high.four(i) << 4) ^ 0x20202020u;
    return below | (below & 0x20202020u) * 6u;  // - 32
  }
  f16 super_scale() const { return d; }
  int sub_scale(std::size_t g) const { return scales[g]; }
  float scale(std::size_t g) const { return static_cast<float>(d) * static_cast<float>(scales[g]); }

  static q6_k encode(const float* x) {
    const detail::two_level_fit<16, 16, 127, detail::integer_codes<31>> fit(x);
    q6_k block{};
    block.d = fit.d;
    std::copy(fit.scale, fit.scale + 16, block.scales);
    for (std::size_t i = 0; i < block_size; ++i) {
      const auto code = static_cast<unsigned>(fit.codes[i] + 32);
      block.low.set(i, code & 15u);
      block.high.set(i, code >> 4);
    }
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(two_level_format<q6_k> && sizeof(q6_k) == 210);

MOTE_END_NAMESPACE

// ---- mote/quant/formats/q8_0.hpp
// GGUF Q8_0: 32 int8 and their scale, 34 bytes. value = d · q.
//
//   encode: d = amax / 127, q = round(x / d), halves away from zero, with d still in float32

MOTE_BEGIN_NAMESPACE

struct q8_0 {
  static constexpr std::string_view name = "q8_0";
  static constexpr std::size_t block_size = 32, group_size = 32;
  static constexpr int code_bits = 8;
  using scale_type = f16;

  f16 d;
  std::int8_t q[32];

  std::int8_t code(std::size_t i) const { return q[i]; }
  std::uint32_t four_codes(std::size_t i) const { return detail::four_bytes(q + i); }
  f16 scale(std::size_t) const { return d; }

  static q8_0 encode(const float* x) {
    const float scale = std::min(detail::largest_magnitude(x, block_size) / 127.0f, detail::largest_f16);
    float scaled[block_size];
    detail::rounded_products(x, detail::finite_inverse(scale), scaled);
    q8_0 block;
    block.d = f16(scale);
    for (std::size_t i = 0; i < block_size; ++i) {
      block.q[i] = static_cast<std::int8_t>(detail::round_half_away(std::clamp(scaled[i], -127.0f, 127.0f)));
    }
    return block;
  }

  void decode(float* y) const { decode_codes(*this, y); }
};
static_assert(integer_format<q8_0> && sizeof(q8_0) == 34);

MOTE_END_NAMESPACE

// ---- mote/quant/formats.hpp
MOTE_BEGIN_NAMESPACE

template <class... Types>
struct type_list {};

using formats = type_list<q8_0, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, mxfp4, nvfp4>;

// f.template operator()<F>() for each F of the list, in order: for_each_format([]<class F>() { … });
template <class Function, class... F>
void for_each_format(Function&& f, type_list<F...>) {
  (f.template operator()<F>(), ...);
}
template <class Function>
void for_each_format(Function&& f) {
  for_each_format(f, formats{});
}

// f.template operator()<F>() for the F of that name, where there is one.
template <class Function>
void with_format(std::string_view name, Function&& f) {
  for_each_format([&]<class F>() {
    if (F::name == name) f.template operator()<F>();
  });
}

MOTE_END_NAMESPACE

// ---- mote/quant/packed.hpp
// `packed_matrix<T>`: a matrix in the order in which vector kernels read it, T an integer format, std::int8_t or bf16.
//
// Rows come in panels of 32 (the last one padded with zeros), a panel's bytes one after another along k. Formats:
//
//   for each block of F:   two-level formats: f16 super_scale[32], and f16 super_min[32] where there is a minimum
//     for each group:      codes, by strips of `lanes` rows: for each four k, four bytes of every row of the strip;
//                          codes of at most four bits: for each eight k, the first four low, the next four high
//                          scale_type scale[32], and float min[32] where there is a minimum;
//                          two-level formats: int8 sub_scale[32], and int8 sub_min[32]
//   at the end of the panel, of formats with a tensor scale: float tensor_scale[32]
//
// so that one load holds four k of `lanes` rows, a product walks memory once from front to back, and no sum across lanes
// is needed. Codes wider than four bits are stored as bytes q + code_offset, see below. Elements, padded with zeros to
// whole quads, in the same order for every instruction set:
//
//   for each quad:           four bytes of every row: four codes of k, or two bf16
//   std::int8_t:             at the end of the panel float scale[32]

// ---- mote/core/amx.hpp
// Matrix tiles of Intel's AMX: eight registers of up to 16 rows of up to 64 bytes each.
//
//   c[m][n] += Σ_q Σ_{i<4} a[m][4 q + i] · b[q][4 n + i]     int8, summed in int32 (tdpbssd)
//   c[m][n] += Σ_q a[m][2 q] · b[q][2 n] + Σ_q a[m][2 q + 1] · b[q][2 n + 1]
//                                                            bf16, each sum and theirs in float32 (tdpbf16ps)
//
// Kernels take the engine as a template parameter: `amx_tiles` is the machine's, `software_tiles` does the same in plain
// loops, so that kernels are tested on every machine. An engine is configured where it is made and let go with it; others
// who use tiles in the same thread, as ggml does, find their configuration again.
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.

#include <cassert>

#if defined(__linux__) && (defined(__AMX_TILE__) || defined(__AMXTILE__))  // the latter by clang before 16
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

MOTE_BEGIN_NAMESPACE

namespace detail {

inline constexpr std::size_t tile_count = 8, tile_height = 16, tile_bytes = 64;

// A register's rows, at most tile_height, and their bytes, at most tile_bytes. A product takes a [m, k bytes], b [k / 4, n
// bytes] and c [m, n bytes].
struct tile_shape {
  std::size_t rows, bytes = tile_bytes;
};
using tile_shapes = std::array<tile_shape, tile_count>;

class software_tiles {
 public:
  explicit software_tiles(const tile_shapes& shapes) : shapes_(shapes) {}

  template <int I>
  void zero() {
    std::memset(tiles_[I], 0, sizeof tiles_[I]);
  }
  template <int I>
  void load(const void* p, std::size_t stride) {
    for (std::size_t r = 0; r < shapes_[I].rows; ++r) {
      std::memcpy(tiles_[I][r], static_cast<const std::uint8_t*>(p) + r * stride, shapes_[I].bytes);
    }
  }
  // The same of what is not read again soon.
  template <int I>
  void stream(const void* p, std::size_t stride) {
    load<I>(p, stride);
  }
  template <int I>
  void store(void* p, std::size_t stride) const {
    for (std::size_t r = 0; r < shapes_[I].rows; ++r) {
      std::memcpy(static_cast<std::uint8_t*>(p) + r * stride, tiles_[I][r], shapes_[I].bytes);
    }
  }
  template <int C, int A, int B>
  void dot_int8() {
    dot<C, A, B, std::int8_t, std::int32_t>();
  }
  // As the processor adds them, but for subnormal numbers, which are zero to it: see tile_sum_kernel.hpp.
  template <int C, int A, int B>
  void dot_bf16() {
    dot<C, A, B, bf16, float>();
  }

 private:
  // Of each quad of T the first elements are added up, then the second ones, …
  template <int C, int A, int B, class T, class Sum>
  void dot() {
    constexpr std::size_t quad = 4 / sizeof(T);
    const tile_shape a = shapes_[A], b = shapes_[B], c = shapes_[C];
    assert(a.rows == c.rows && b.bytes == c.bytes && a.bytes == b.rows * 4);  // else an invalid instruction
    for (std::size_t m = 0; m < c.rows; ++m) {
      for (std::size_t n = 0; n < c.bytes / 4; ++n) {
        Sum part[quad] = {}, all = 0;
        for (std::size_t k = 0; k < b.rows * quad; ++k) {
          part[k % quad] += static_cast<Sum>(read<T>(tiles_[A][m], k)) *
                            static_cast<Sum>(read<T>(tiles_[B][k / quad], n * quad + k % quad));
        }
        for (const Sum p : part) all += p;
        const Sum sum = read<Sum>(tiles_[C][m], n) + all;
        std::memcpy(tiles_[C][m] + n * 4, &sum, 4);
      }
    }
  }
  template <class T>
  static T read(const std::uint8_t* row, std::size_t i) {
    T value;
    std::memcpy(&value, row + i * sizeof value, sizeof value);
    return value;
  }

  tile_shapes shapes_;
  std::uint8_t tiles_[tile_count][tile_height][tile_bytes] = {};
};

#if defined(__linux__) && ((defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AMX_BF16__)) || \
                           (defined(__AMXTILE__) && defined(__AMXINT8__) && defined(__AMXBF16__)))

inline constexpr bool has_amx_tiles = true;

class amx_tiles {
 public:
  explicit amx_tiles(const tile_shapes& shapes) {
    asm volatile("sttilecfg %0" : "=m"(before_));
    configuration config;
    config.palette = 1;
    for (std::size_t i = 0; i < tile_count; ++i) {
      config.columns[i] = static_cast<std::uint16_t>(shapes[i].bytes);
      config.rows[i] = static_cast<std::uint8_t>(shapes[i].rows);
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  amx_tiles(const amx_tiles&) = delete;
  amx_tiles& operator=(const amx_tiles&) = delete;
  ~amx_tiles() {
    asm volatile("tilerelease");
    if (before_.palette != 0) asm volatile("ldtilecfg %0" ::"m"(before_));
  }

  // Whether the kernel lets this process use tiles; asked once, as Linux wants it.
  static bool available() {
    static const bool granted = [] {
      constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM
      return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
    }();
    return granted;
  }

  // Assembly, because g++ 12's intrinsics paste the register's number as text.
  template <int I>
  void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(I));
  }
  template <int I>
  void load(const void* p, std::size_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(I) : "memory");
  }
  template <int I>
  void stream(const void* p, std::size_t stride) {
    asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(I) : "memory");
  }
  template <int I>
  void store(void* p, std::size_t stride) const {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(I) : "memory");
  }
  template <int C, int A, int B>
  void dot_int8() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
  template <int C, int A, int B>
  void dot_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }

 private:
  struct alignas(64) configuration {
    std::uint8_t palette = 0, start_row = 0, reserved[14] = {};
    std::uint16_t columns[16] = {};
    std::uint8_t rows[16] = {};
  };
  configuration before_;  // palette 0: none
};

// While it lives, vectors take subnormal numbers for zero, as tiles do.
class subnormals_as_zero {
 public:
  subnormals_as_zero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  subnormals_as_zero(const subnormals_as_zero&) = delete;
  subnormals_as_zero& operator=(const subnormals_as_zero&) = delete;
  ~subnormals_as_zero() { _mm_setcsr(before_); }

 private:
  unsigned before_;
};

#else

inline constexpr bool has_amx_tiles = false;

class amx_tiles : public software_tiles {
 public:
  using software_tiles::software_tiles;
  static bool available() { return false; }
};

struct [[maybe_unused]] subnormals_as_zero {};

#endif

// Whether there are tiles, a row of whose sums is a vector.
template <class Arch>
inline constexpr bool has_tiles_beside = has_amx_tiles&& batch<float, Arch>::size == tile_height;

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/core/int8_dot.hpp
// int8_dot<Arch>: dot products of int8 codes with one weight row in each int32 lane, by instruction set.
//
//   operand   for each lane four codes of k, one row's; unsigned where `unsigned_limit` allows, else signed
//   dot       acc[lane] += Σ_{i<4} w[lane][i] · x[i], exact; the four signed codes x are the same for every lane
//
// `unsigned_limit` is the largest code that dot_unsigned takes without saturating: 0 where only dot_signed exists, 255
// where only dot_unsigned does; there flip_signs makes signed codes q + 128.
//
// Where a dot product is two instructions, the first of which leaves two sums of 16 bits in each lane, small codes need the
// second only now and then: narrow_dot starts or adds to such sums, which stay within 2 · 2^7 · Σ w, and widen adds them to acc.

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

MOTE_BEGIN_NAMESPACE

namespace detail {

// Any instruction set: what the vector ones must agree with.
template <class Arch, std::size_t Lanes = batch<float, Arch>::size>
struct int8_dot {
  static constexpr std::size_t lanes = Lanes;
  static constexpr int unsigned_limit = 0;
  using floats = batch<float, Arch>;
  struct ints {
    std::int32_t lane[Lanes];
  };
  struct operand {
    std::int8_t code[Lanes * 4];
  };
  static ints splat(std::int32_t x) {
    ints all;
    for (auto& lane : all.lane) lane = x;
    return all;
  }
  template <int Bits>
  static ints shift_left(ints x) {
    for (auto& lane : x.lane) lane = static_cast<std::int32_t>(static_cast<std::uint32_t>(lane) << Bits);
    return x;
  }
  static operand load(const std::uint8_t* p) {
    operand w;
    std::memcpy(w.code, p, sizeof w);
    return w;
  }
  static operand splat_codes(const std::int8_t* x) {
    operand all;
    for (std::size_t i = 0; i < Lanes * 4; ++i) all.code[i] = x[i % 4];
    return all;
  }
  static ints dot_signed(ints acc, const operand& w, const operand& x) {
    for (std::size_t i = 0; i < Lanes * 4; ++i) acc.lane[i / 4] += w.code[i] * x.code[i];
    return acc;
  }
  static operand low_nibbles(operand w) {
    for (auto& c : w.code) c = static_cast<std::int8_t>(c & 15);
    return w;
  }
  static operand high_nibbles(operand w) {
    for (auto& c : w.code) c = static_cast<std::int8_t>(static_cast<std::uint8_t>(c) >> 4);
    return w;
  }
  static operand lookup(const std::array<std::int8_t, 16>& table, operand w) {
    for (auto& c : w.code) c = table[static_cast<std::uint8_t>(c)];
    return w;
  }
  static floats to_float(const ints& x) {
    float lane[Lanes];
    for (std::size_t i = 0; i < Lanes; ++i) lane[i] = static_cast<float>(x.lane[i]);
    return floats::load_unaligned(lane);
  }
  // Codes round(x), |x| <= 127, ties to even. Adding 1.5 · 2^23 leaves them in the low bits.
  static void store_codes(std::int8_t* codes, const floats& x) {
    float lane[Lanes];
    floats rounded = x;
    keep_in_register(rounded);  // else compilers fuse the caller's product with this sum
    (rounded + floats(12582912.0f)).store_unaligned(lane);
    for (std::size_t i = 0; i < Lanes; ++i) {
      codes[i] = static_cast<std::int8_t>(static_cast<std::uint8_t>(bit_cast<std::uint32_t>(lane[i])));
    }
  }
  // Of all lanes.
  static std::int32_t largest(const ints& x) {
    std::int32_t most = x.lane[0];
    for (const std::int32_t lane : x.lane) most = lane > most ? lane : most;
    return most;
  }
};

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
template <class Arch>
struct int8_dot<Arch, 16> {
  static constexpr std::size_t lanes = 16;
  using floats = batch<float, Arch>;
  using ints = __m512i;
  using operand = __m512i;
  static ints splat(std::int32_t x) { return _mm512_set1_epi32(x); }
  template <int Bits>
  static ints shift_left(ints x) {
    return _mm512_slli_epi32(x, Bits);
  }
  static operand load(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
  static operand splat_codes(const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
  }
#if defined(__AVX512VNNI__)
  static constexpr int unsigned_limit = 255;
  static ints dot_unsigned(ints acc, operand w, operand x) { return _mm512_dpbusd_epi32(acc, w, x); }
  static operand flip_signs(operand w) { return _mm512_xor_si512(w, _mm512_set1_epi8(-128)); }
#else
  static constexpr int unsigned_limit = 127;
  static ints narrow_dot(operand w, operand x) { return _mm512_maddubs_epi16(w, x); }
  static ints narrow_dot(ints sums, operand w, operand x) { return in_order(_mm512_add_epi16(sums, narrow_dot(w, x))); }
  static ints widen(ints acc, ints sums) {
    return in_order(_mm512_add_epi32(acc, _mm512_madd_epi16(sums, _mm512_set1_epi16(1))));
  }
  static ints in_order(ints sums) {
    keep_in_register(sums);
    return sums;
  }
  static ints dot_unsigned(ints acc, operand w, operand x) { return widen(acc, narrow_dot(w, x)); }
  static ints dot_signed(ints acc, operand w, operand x) {
    const operand signed_x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
    return dot_unsigned(acc, _mm512_abs_epi8(w), signed_x);
  }
#endif
  static operand low_nibbles(operand w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
  static operand high_nibbles(operand w) { return low_nibbles(_mm512_srli_epi16(w, 4)); }
  static operand lookup(const std::array<std::int8_t, 16>& table, operand w) {
    const __m128i row = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table.data()));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(row), w);
  }
  static floats to_float(ints x) { return floats(_mm512_cvtepi32_ps(x)); }
  static void store_codes(std::int8_t* codes, const floats& x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
  }
  static std::int32_t largest(ints x) { return _mm512_reduce_max_epi32(x); }
};
#endif

#if defined(__AVX2__)
template <class Arch>
struct int8_dot<Arch, 8> {
  static constexpr std::size_t lanes = 8;
  using floats = batch<float, Arch>;
  using ints = __m256i;
  using operand = __m256i;
  static ints splat(std::int32_t x) { return _mm256_set1_epi32(x); }
  template <int Bits>
  static ints shift_left(ints x) {
    return _mm256_slli_epi32(x, Bits);
  }
  static operand load(const std::uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static operand splat_codes(const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
  }
#if defined(__AVXVNNI__)
  static constexpr int unsigned_limit = 255;
  static ints dot_unsigned(ints acc, operand w, operand x) { return _mm256_dpbusd_avx_epi32(acc, w, x); }
  static operand flip_signs(operand w) { return _mm256_xor_si256(w, _mm256_set1_epi8(-128)); }
#else
  static constexpr int unsigned_limit = 127;  // 2 · 127 · 127 fits 16 bits
  static ints narrow_dot(operand w, operand x) { return _mm256_maddubs_epi16(w, x); }
  static ints narrow_dot(ints sums, operand w, operand x) { return in_order(_mm256_add_epi16(sums, narrow_dot(w, x))); }
  static ints widen(ints acc, ints sums) {
    return in_order(_mm256_add_epi32(acc, _mm256_madd_epi16(sums, _mm256_set1_epi16(1))));
  }
  static ints in_order(ints sums) {
    keep_in_register(sums);
    return sums;
  }
  static ints dot_unsigned(ints acc, operand w, operand x) { return widen(acc, narrow_dot(w, x)); }
  static ints dot_signed(ints acc, operand w, operand x) {
    return dot_unsigned(acc, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
  }
#endif
  static operand low_nibbles(operand w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
  static operand high_nibbles(operand w) { return low_nibbles(_mm256_srli_epi16(w, 4)); }
  static operand lookup(const std::array<std::int8_t, 16>& table, operand w) {
    const __m128i row = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table.data()));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(row), w);
  }
  static floats to_float(ints x) { return floats(_mm256_cvtepi32_ps(x)); }
  static void store_codes(std::int8_t* codes, const floats& x) {
    const ints whole = _mm256_cvtps_epi32(x);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(codes), _mm_packs_epi16(words, words));
  }
  static std::int32_t largest(ints x) {
    __m128i most = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(most, _mm_shuffle_epi32(most, 0xB1)));
  }
};
#endif

#if defined(__SSE2__)
template <class Arch>
struct int8_dot<Arch, 4> {
  static constexpr std::size_t lanes = 4;
  static constexpr int unsigned_limit = 0;
  using floats = batch<float, Arch>;
  using ints = __m128i;
  using operand = __m128i;
  static ints splat(std::int32_t x) { return _mm_set1_epi32(x); }
  template <int Bits>
  static ints shift_left(ints x) {
    return _mm_slli_epi32(x, Bits);
  }
  static operand load(const std::uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static operand splat_codes(const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, 4);
    return _mm_set1_epi32(four);
  }
  static ints dot_signed(ints acc, operand w, operand x) {
    const operand none = _mm_setzero_si128(), sign = _mm_cmpgt_epi8(none, w), sign_x = _mm_cmpgt_epi8(none, x);
    const operand wide_x = _mm_unpacklo_epi8(x, sign_x);  // x repeats itself
    const __m128 low = _mm_castsi128_ps(_mm_madd_epi16(_mm_unpacklo_epi8(w, sign), wide_x));
    const __m128 high = _mm_castsi128_ps(_mm_madd_epi16(_mm_unpackhi_epi8(w, sign), wide_x));
    const ints even = _mm_castps_si128(_mm_shuffle_ps(low, high, 0x88));
    const ints odd = _mm_castps_si128(_mm_shuffle_ps(low, high, 0xDD));
    return _mm_add_epi32(acc, _mm_add_epi32(even, odd));
  }
  static operand low_nibbles(operand w) { return _mm_and_si128(w, _mm_set1_epi8(15)); }
  static operand high_nibbles(operand w) { return low_nibbles(_mm_srli_epi16(w, 4)); }
  static operand lookup(const std::array<std::int8_t, 16>& table, operand w) {
    alignas(16) std::uint8_t codes[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(codes), w);
    for (auto& c : codes) c = static_cast<std::uint8_t>(table[c]);
    return _mm_load_si128(reinterpret_cast<const __m128i*>(codes));
  }
  static floats to_float(ints x) { return floats(_mm_cvtepi32_ps(x)); }
  static void store_codes(std::int8_t* codes, const floats& x) {
    const ints whole = _mm_cvtps_epi32(x), words = _mm_packs_epi32(whole, whole);
    const std::int32_t four = _mm_cvtsi128_si32(_mm_packs_epi16(words, words));
    std::memcpy(codes, &four, 4);
  }
  static std::int32_t largest(ints x) {
    std::int32_t lane[lanes];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(lane), x);
    return std::max(std::max(lane[0], lane[1]), std::max(lane[2], lane[3]));
  }
};
#endif

#if defined(__aarch64__) && defined(__ARM_NEON)
template <class Arch>
struct int8_dot<Arch, 4> {
  static constexpr std::size_t lanes = 4;
  static constexpr int unsigned_limit = 0;
  using floats = batch<float, Arch>;
  using ints = int32x4_t;
  using operand = int8x16_t;
  static ints splat(std::int32_t x) { return vdupq_n_s32(x); }
  template <int Bits>
  static ints shift_left(ints x) {
    return vshlq_n_s32(x, Bits);
  }
  static operand load(const std::uint8_t* p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
  static operand splat_codes(const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
  }
  static ints dot_signed(ints acc, operand w, operand x) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(acc, w, x);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
    return vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
  }
  static operand low_nibbles(operand w) { return vandq_s8(w, vdupq_n_s8(15)); }
  static operand high_nibbles(operand w) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(w), 4)); }
  static operand lookup(const std::array<std::int8_t, 16>& table, operand w) {
    return vqtbl1q_s8(vld1q_s8(table.data()), vreinterpretq_u8_s8(w));
  }
  static floats to_float(ints x) { return floats(vcvtq_f32_s32(x)); }
  static void store_codes(std::int8_t* codes, const floats& x) {
    const int16x4_t words = vmovn_s32(vcvtnq_s32_f32(x));
    const std::int32_t four = vget_lane_s32(vreinterpret_s32_s8(vmovn_s16(vcombine_s16(words, words))), 0);
    std::memcpy(codes, &four, 4);
  }
  static std::int32_t largest(ints x) { return vmaxvq_s32(x); }
};
#endif

// The sum of sixteen codes.
inline std::int32_t sum_of_codes(const std::int8_t* codes) {
#if defined(__SSE2__)
  const __m128i flipped = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)), _mm_set1_epi8(-128));
  const __m128i sums = _mm_sad_epu8(flipped, _mm_setzero_si128());  // of the codes + 128, eight each
  return _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0x4E))) - 16 * 128;
#elif defined(__aarch64__) && defined(__ARM_NEON)
  return vaddlvq_s8(vld1q_s8(codes));
#else
  std::int32_t sum = 0;
  for (std::size_t i = 0; i < 16; ++i) sum += codes[i];
  return sum;
#endif
}

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/quant/packed.hpp
MOTE_BEGIN_NAMESPACE

// What kernels want of packed formats: rows that share a vector, and the largest unsigned code they multiply; 0 where codes
// are to be signed.
struct packing {
  std::size_t lanes = 0;
  int largest_code = 0;

  friend bool operator==(const packing&, const packing&) = default;
};

// Matrix tiles multiply signed codes where they lie.
template <class Arch>
inline constexpr packing packing_of = [] {
  using dot = detail::int8_dot<Arch>;
  if (detail::has_tiles_beside<Arch>) return packing{dot::lanes, 0};
  return packing{dot::lanes, dot::unsigned_limit > 0 ? dot::unsigned_limit : 127};
}();

namespace detail {

inline constexpr std::size_t packed_rows = 32;

// Kernels multiply q + offset >= 0 where that fits `largest_code` and subtract offset · Σ x at the end; with offset 0,
// where codes may be negative, q itself. A power of two.
template <integer_format F>
constexpr int code_offset(int largest_code) {
  int low = 0, high = 0;
  if constexpr (table_codes<F>) {
    for (const int v : F::code_values) {
      low = v < low ? v : low;
      high = v > high ? v : high;
    }
  } else {
    low = unsigned_wide_codes<F> ? 0 : -(1 << (F::code_bits - 1));
    high = low + (1 << F::code_bits) - 1;
  }
  int offset = low < 0 ? 1 : 0;
  while (offset < -low) offset *= 2;
  return high + offset <= largest_code ? offset : 0;
}

// Whether q + offset may be negative.
template <integer_format F>
constexpr bool has_negative_codes(int offset) {
  if constexpr (table_codes<F>) {
    for (const int v : F::code_values) {
      if (v + offset < 0) return true;
    }
    return false;
  } else {
    return offset == 0 && !unsigned_wide_codes<F>;
  }
}

// Where things are in a panel, in bytes.
template <class F>
struct packed_layout {
  static constexpr bool nibbles = table_codes<F>, two_level = two_level_format<F>, has_min = format_with_min<F>;
  static constexpr std::size_t groups = F::block_size / F::group_size;  // in a block
  static constexpr std::size_t scale_size = [] {
    if constexpr (two_level) {
      return std::size_t{1};
    } else {
      return sizeof(typename F::scale_type);
    }
  }();
  static constexpr std::size_t min_size = !has_min ? 0 : two_level ? 1 : sizeof(float);
  static constexpr std::size_t row_codes = nibbles ? F::group_size / 2 : F::group_size;  // of a row in a group

  static constexpr std::size_t super_bytes = two_level ? packed_rows * sizeof(f16) * (has_min ? 2 : 1) : 0;
  static constexpr std::size_t scales = packed_rows * row_codes;  // in a group
  static constexpr std::size_t mins = scales + packed_rows * scale_size;
  static constexpr std::size_t group_bytes = mins + packed_rows * min_size;
  static constexpr std::size_t block_bytes = super_bytes + groups * group_bytes;
  static constexpr std::size_t tensor_scale_bytes = format_with_tensor_scale<F> ? packed_rows * sizeof(float) : 0;

  static constexpr std::size_t tensor_scales(std::size_t in) { return in / F::block_size * block_bytes; }
  static constexpr std::size_t panel_bytes(std::size_t in) { return tensor_scales(in) + tensor_scale_bytes; }
};

// Elements of type T, `scale_bytes` a row behind them.
template <class T, std::size_t ScaleBytes>
struct packed_elements_layout {
  static constexpr std::size_t quad = 4 / sizeof(T), quad_bytes = packed_rows * 4;

  static constexpr std::size_t quads(std::size_t in) { return (in + quad - 1) / quad; }
  static constexpr std::size_t scales(std::size_t in) { return quads(in) * quad_bytes; }
  static constexpr std::size_t panel_bytes(std::size_t in) { return scales(in) + packed_rows * ScaleBytes; }
};
template <>
struct packed_layout<std::int8_t> : packed_elements_layout<std::int8_t, sizeof(float)> {};
template <>
struct packed_layout<bf16> : packed_elements_layout<bf16, 0> {};

}  // namespace detail

// Plain elements that may be packed.
template <class T>
concept packable_element = std::is_same_v<T, std::int8_t> || std::is_same_v<T, bf16>;

// Does not own its memory.
template <class T>
  requires integer_format<T> || packable_element<T>
class packed_matrix {
  using layout = detail::packed_layout<T>;

 public:
  static constexpr std::size_t panel_rows = detail::packed_rows;

  packed_matrix() = default;
  // A matrix [out, in] in `bytes`, which pack() has filled in that order; elements have one only. Throws shape_error.
  packed_matrix(view<const std::uint8_t, 1> bytes, std::size_t out, std::size_t in, const packing& order = {})
      : bytes_(bytes), out_(out), in_(in), order_(order) {
    check_view("packed_matrix", "bytes", bytes, {size(out, in)});
    if constexpr (integer_format<T>) {
      check(order.lanes > 0 && panel_rows % order.lanes == 0, "packed_matrix", "order: expected lanes that divide 32");
    }
  }

  // Bytes that a packed matrix [out, in] takes. Throws shape_error where `in` is no multiple of the block size, and where
  // std::size_t cannot hold them.
  static std::size_t size(std::size_t out, std::size_t in) {
    if constexpr (integer_format<T>) {
      if (in % T::block_size != 0) {
        raise<shape_error>("packed_matrix: " + std::string(std::string_view(T::name)) +
                           ": expected columns in multiples of " + std::to_string(T::block_size) + ", got " +
                           std::to_string(in));
      }
    }
    constexpr std::size_t most = std::numeric_limits<std::size_t>::max();
    const std::size_t panels = out / panel_rows + (out % panel_rows != 0 ? 1 : 0);
    // A panel's bytes are far fewer than 512 for each column.
    if (in > most / 512 || panels > most / std::max(panel_bytes(in), std::size_t{1})) {
      const std::size_t shape[] = {out, in};
      raise<shape_error>("packed_matrix: expected a shape that fits into memory, got " + shape_text(shape));
    }
    return panels * panel_bytes(in);
  }
  static constexpr std::size_t panel_bytes(std::size_t in) { return layout::panel_bytes(in); }

  std::size_t out_features() const { return out_; }
  std::size_t in_features() const { return in_; }
  const packing& order() const { return order_; }
  view<const std::uint8_t, 1> bytes() const { return bytes_; }
  const std::uint8_t* panel(std::size_t i) const { return bytes_.data() + i * panel_bytes(in_); }

 private:
  view<const std::uint8_t, 1> bytes_;
  std::size_t out_ = 0, in_ = 0;
  packing order_{};
};

namespace detail {

// Four sums of bytes, modulo 256.
inline std::uint32_t add_bytes(std::uint32_t a, std::uint32_t b) {
  return ((a & 0x7F7F7F7Fu) + (b & 0x7F7F7F7Fu)) ^ ((a ^ b) & 0x80808080u);
}

// Puts what row `row` of a panel holds in its block `block` where packed_layout wants it; `to` is the block's place.
template <integer_format F>
void pack_block(const F& block, std::size_t row, const packing& order, std::uint8_t* to) noexcept {
  using layout = packed_layout<F>;
  const auto put = [row](std::uint8_t* array, const auto& value) {
    std::memcpy(array + row * sizeof value, &value, sizeof value);
  };
  if constexpr (layout::two_level) {
    put(to, block.super_scale());
    if constexpr (layout::has_min) put(to + packed_rows * sizeof(f16), block.super_min());
  }
  const auto offset =
      static_cast<std::uint32_t>(layout::nibbles ? 0 : code_offset<F>(order.largest_code)) * 0x01010101u;
  for (std::size_t g = 0; g < layout::groups; ++g) {
    std::uint8_t* group = to + layout::super_bytes + g * layout::group_bytes;
    // The row's bytes of each four k lie `lanes` rows apart.
    std::uint8_t* strip = group + row / order.lanes * order.lanes * layout::row_codes + row % order.lanes * 4;
    for (std::size_t i = 0; i < layout::row_codes; i += 4) {
      std::uint32_t four;
      if constexpr (layout::nibbles) {
        const std::size_t first = g * F::group_size + 2 * i;
        four = four_codes(block, first) | four_codes(block, first + 4) << 4;
      } else {
        four = add_bytes(four_codes(block, g * F::group_size + i), offset);
      }
      std::memcpy(strip + i * order.lanes, &four, sizeof four);
    }
    if constexpr (layout::two_level) {
      put(group + layout::scales, static_cast<std::int8_t>(block.sub_scale(g)));
      if constexpr (layout::has_min) put(group + layout::mins, static_cast<std::int8_t>(block.sub_min(g)));
    } else {
      put(group + layout::scales, block.scale(g));
      if constexpr (layout::has_min) put(group + layout::mins, block.min(g));
    }
  }
}

// Panel rows [first, first + count) of w, blocks [begin, end), to `to`; the rest of the panel must be zeros.
template <integer_format F>
void pack_panel(const view<const F, 2>& w, std::size_t first, std::size_t count, std::size_t begin, std::size_t end,
                const packing& order, std::uint8_t* to) noexcept {
  for (std::size_t b = begin; b < end; ++b) {
    for (std::size_t r = 0; r < count; ++r) {
      pack_block(w.row(first + r)[b], r, order, to + (b - begin) * packed_layout<F>::block_bytes);
    }
  }
}

// Throws shape_error unless the matrix is packed as `Arch` reads it.
template <class Arch, class Matrix>
void check_packing(std::string_view, const Matrix&) {}
template <class Arch, integer_format F>
void check_packing(std::string_view op, const packed_matrix<F>& w) {
  check(w.order().lanes != 0, op, "w: an empty packed_matrix");
  check(w.order() == packing_of<Arch>, op, "w: packed for another instruction set");
}

}  // namespace detail

// One group of a row as integers: value[i] = scale · q[i] - min.
template <integer_format F>
struct code_group {
  int q[F::group_size];
  float scale, min;
};

template <integer_format F>
code_group<F> read_group(const view<const F, 2>& w, std::size_t row, std::size_t index) noexcept {
  constexpr std::size_t groups = F::block_size / F::group_size;
  const F& block = w.row(row)[index / groups];
  const std::size_t g = index % groups;
  code_group<F> group{};
  for (std::size_t i = 0; i < F::group_size; ++i) group.q[i] = integer_value(block, g * F::group_size + i);
  group.scale = group_scale(block, g);
  if constexpr (format_with_min<F>) group.min = block.min(g);
  return group;
}

template <integer_format F>
code_group<F> read_group(const packed_matrix<F>& w, std::size_t row, std::size_t index) noexcept {
  using layout = detail::packed_layout<F>;
  const std::size_t lanes = w.order().lanes, r = row % detail::packed_rows;
  const std::uint8_t* block = w.panel(row / detail::packed_rows) + index / layout::groups * layout::block_bytes;
  const std::uint8_t* group = block + layout::super_bytes + index % layout::groups * layout::group_bytes;
  const std::uint8_t* strip = group + r / lanes * lanes * layout::row_codes + r % lanes * 4;
  const auto get = [r]<class T>(const std::uint8_t* array, T value) {
    std::memcpy(&value, array + r * sizeof value, sizeof value);
    return static_cast<float>(value);
  };
  code_group<F> result{};
  for (std::size_t i = 0; i < layout::row_codes; ++i) {
    const std::uint8_t byte = strip[i / 4 * 4 * lanes + i % 4];
    if constexpr (layout::nibbles) {
      const std::size_t low = i / 4 * 8 + i % 4;
      result.q[low] = F::code_values[byte & 15u];
      result.q[low + 4] = F::code_values[byte >> 4];
    } else {
      const int offset = detail::code_offset<F>(w.order().largest_code);
      result.q[i] = offset > 0 ? byte - offset : static_cast<std::int8_t>(byte);
    }
  }
  if constexpr (layout::two_level) {
    result.scale = get(block, f16{}) * get(group + layout::scales, std::int8_t{});
    if constexpr (layout::has_min) {
      result.min = get(block + detail::packed_rows * sizeof(f16), f16{}) * get(group + layout::mins, std::int8_t{});
    }
  } else {
    result.scale = get(group + layout::scales, typename F::scale_type{});
    if constexpr (layout::has_min) result.min = get(group + layout::mins, 0.0f);
  }
  if constexpr (requires { F::unit; }) result.scale *= F::unit;
  if constexpr (format_with_tensor_scale<F>) {
    result.scale *= get(w.panel(row / detail::packed_rows) + layout::tensor_scales(w.in_features()), 0.0f);
  }
  return result;
}

// One element of a packed matrix as float32, without its scale.
template <packable_element T>
float read_element(const packed_matrix<T>& w, std::size_t row, std::size_t k) noexcept {
  constexpr std::size_t quad = detail::packed_layout<T>::quad;
  const std::size_t r = row % detail::packed_rows;
  T value;
  std::memcpy(&value,
              w.panel(row / detail::packed_rows) + k / quad * detail::packed_layout<T>::quad_bytes + r * 4 +
                  k % quad * sizeof(T),
              sizeof value);
  return static_cast<float>(value);
}

inline float read_scale(const packed_matrix<std::int8_t>& w, std::size_t row) noexcept {
  const std::uint8_t* scales =
      w.panel(row / detail::packed_rows) + detail::packed_layout<std::int8_t>::scales(w.in_features());
  float scale = 0.0f;
  std::memcpy(&scale, scales + row % detail::packed_rows * sizeof scale, sizeof scale);
  return scale;
}

namespace detail {

// fill(panel's bytes, first row, rows) for every panel of `packed`, which lies in `bytes`, shared out among the threads.
// Panels that are not full are zeros before.
template <class Backend, class Matrix, class Fill>
Matrix pack_panels(Backend& be, const Matrix& packed, const view<std::uint8_t, 1>& bytes, Fill&& fill) {
  const std::size_t out = packed.out_features(), panel_bytes = packed.panel_bytes(packed.in_features());
  be.parallel_for((out + packed_rows - 1) / packed_rows, 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      std::uint8_t* panel = bytes.data() + i * panel_bytes;
      const std::size_t first = i * packed_rows, count = first + packed_rows <= out ? packed_rows : out - first;
      if (count < packed_rows) std::fill_n(panel, panel_bytes, std::uint8_t{0});
      fill(panel, first, count);
    }
  });
  return packed;
}

// The elements of a panel's rows, quad by quad.
template <class T>
void pack_elements(const view<const T, 2>& w, std::size_t first, std::size_t count, std::uint8_t* panel) noexcept {
  using layout = packed_layout<T>;
  const std::size_t in = w.extent(1), whole = in / layout::quad;
  constexpr std::size_t step = 64;  // quads at a time: 8 KiB, so that the lines stay in the first-level cache
  for (std::size_t begin = 0; begin < whole; begin += step) {
    const std::size_t end = begin + step < whole ? begin + step : whole;
    for (std::size_t r = 0; r < count; ++r) {
      const T* row = w.row(first + r);
      for (std::size_t q = begin; q < end; ++q) {
        std::memcpy(panel + q * layout::quad_bytes + r * 4, row + q * layout::quad, 4);
      }
    }
  }
  if (whole * layout::quad == in) return;
  for (std::size_t r = 0; r < count; ++r) {
    T last[layout::quad] = {};
    for (std::size_t k = whole * layout::quad; k < in; ++k) last[k % layout::quad] = w.row(first + r)[k];
    std::memcpy(panel + whole * layout::quad_bytes + r * 4, last, 4);
  }
}

}  // namespace detail

// w [out, in / F::block_size], times `tensor_scale`, into `bytes`, packed_matrix<F>::size(out, in) of them, as `be` reads it;
// the panels are shared out among its threads. Only formats with a tensor scale take another than 1. Throws shape_error.
template <integer_format F, class Arch, class Executor>
packed_matrix<F> pack(simd<Arch, Executor>& be, const view<const F, 2>& w, const view<std::uint8_t, 1>& bytes,
                      float tensor_scale = 1.0f) {
  check_view("pack", "w", w, {w.extent(0), w.extent(1)});
  check(format_with_tensor_scale<F> || tensor_scale == 1.0f, "pack", "tensor_scale: the format has none");
  const packed_matrix<F> packed(bytes, w.extent(0), w.extent(1) * F::block_size, packing_of<Arch>);
  return detail::pack_panels(be, packed, bytes, [&](std::uint8_t* panel, std::size_t first, std::size_t count) {
    detail::pack_panel(w, first, count, 0, w.extent(1), packed.order(), panel);
    if constexpr (format_with_tensor_scale<F>) {
      std::uint8_t* scales = panel + detail::packed_layout<F>::tensor_scales(packed.in_features());
      for (std::size_t r = 0; r < count; ++r) std::memcpy(scales + r * sizeof(float), &tensor_scale, sizeof(float));
    }
  });
}

// w [out, in], the same for elements.
template <host Backend>
packed_matrix<bf16> pack(Backend& be, const view<const bf16, 2>& w, const view<std::uint8_t, 1>& bytes) {
  check_view("pack", "w", w, {w.extent(0), w.extent(1)});
  return detail::pack_panels(be, packed_matrix<bf16>(bytes, w.extent(0), w.extent(1)), bytes,
                             [&](std::uint8_t* panel, std::size_t first, std::size_t count) {
                               detail::pack_elements(w, first, count, panel);
                             });
}

MOTE_END_NAMESPACE

// ---- mote/quant/scaled_matrix.hpp
// `scaled_matrix`: a matrix [out, in] of small codes with float32 scales and, where codes are asymmetric, zero points, one for
// each tile of tile_rows by tile_columns of its numbers; tiles at the edges are partial.
//
//   W[n, k] = scale[n / tile_rows, k / tile_columns] · (code[n, k] - zero[n / tile_rows, k / tile_columns])
//
// as float32, rounded once; scales are below 2^119, where numbers of e4m3 become infinite. Codes lie as checkpoints store
// them, so that those of a mapped file are used in place:
//
//   f8_e4m3, f8_e5m2   one scale for the matrix, one a row, or DeepSeek's 128×128 blocks; no zero points
//   std::int8_t        one for the matrix, one a row, or one for each group of a row
//   int4_pair          the same, two codes a byte
//
// Source: DeepSeek-V3 (fp8); the package compressed-tensors (integers).

MOTE_BEGIN_NAMESPACE

// Two integers in [-8, 7], the even element in the low four bits, each stored as itself plus 8.
struct int4_pair {
  std::uint8_t bits = 0;

  static int4_pair of(int even, int odd) { return {static_cast<std::uint8_t>((even + 8) | (odd + 8) << 4)}; }
  int even() const { return (bits & 15) - 8; }
  int odd() const { return (bits >> 4) - 8; }
};

// Does not own its memory.
struct scaled_matrix {
  std::variant<view<const f8_e4m3, 2>, view<const f8_e5m2, 2>, view<const std::int8_t, 2>, view<const int4_pair, 2>>
      codes;                                    // [out, in]; pairs [out, in / 2]
  view<const float, 2> scale;                   // [⌈(first_row + out) / tile_rows⌉, ⌈in / tile_columns⌉]
  view<const std::int8_t, 2> zero = {};         // the same, or empty
  std::size_t tile_rows = 1, tile_columns = 1;  // for pairs tile_columns is even
  std::size_t first_row = 0;                    // of the rows, in the first tile
};

namespace detail {

template <class Code>
inline constexpr std::size_t codes_each = std::is_same_v<Code, int4_pair> ? 2 : 1;
template <class Code>
inline constexpr bool has_zero = std::is_same_v<Code, std::int8_t> || std::is_same_v<Code, int4_pair>;

// Element i of a row of codes, and the number it stands for.
template <class Code>
float code_value(const Code* row, std::size_t i) {
  if constexpr (std::is_same_v<Code, int4_pair>) {
    return static_cast<float>(i % 2 == 0 ? row[i / 2].even() : row[i / 2].odd());
  } else {
    return static_cast<float>(row[i]);
  }
}
template <class Code>
float code_number(const Code* row, std::size_t i, float scale, float zero) {
  return scale * (has_zero<Code> ? code_value(row, i) - zero : code_value(row, i));
}

// f(row of codes, first element, last, scale, zero) for every tile's part of the elements [begin, end) of a row.
template <class F>
void for_each_part(const scaled_matrix& w, std::size_t row, std::size_t begin, std::size_t end, F&& f) {
  const std::size_t tile_row = (w.first_row + row) / w.tile_rows;
  std::visit(
      [&](const auto& codes) {
        for (std::size_t k = begin, next = begin; k < end; k = next) {
          const std::size_t tile = k / w.tile_columns;
          next = std::min(end, (tile + 1) * w.tile_columns);
          f(codes.row(row), k, next, w.scale(tile_row, tile),
            w.zero.empty() ? 0.0f : static_cast<float>(w.zero(tile_row, tile)));
        }
      },
      w.codes);
}

}  // namespace detail

inline std::size_t out_features(const scaled_matrix& w) {
  return std::visit([](const auto& codes) { return codes.extent(0); }, w.codes);
}
inline std::size_t in_features(const scaled_matrix& w) {
  return std::visit(
      []<class Code>(const view<const Code, 2>& codes) { return codes.extent(1) * detail::codes_each<Code>; }, w.codes);
}

inline std::size_t bytes(const scaled_matrix& w) {
  return std::visit([](const auto& codes) { return codes.size(); }, w.codes) + w.scale.size() * sizeof(float) +
         w.zero.size();
}

inline void check_rows(std::string_view op, std::string_view argument, const scaled_matrix& w) {
  // Messages are put together for errors only: a decode step allocates nothing.
  const auto expect = [&](bool condition, const char* what) {
    if (!condition) raise<shape_error>(detail::concatenate({op, ": ", argument, ": ", what}));
  };
  const std::size_t out = out_features(w), in = in_features(w);
  expect(w.tile_rows > 0 && w.tile_columns > 0, "tiles must not be empty");
  std::visit(
      [&]<class Code>(const view<const Code, 2>& codes) {
        check_view(op, argument, codes, {out, codes.extent(1)});
        expect(detail::codes_each<Code> == 1 || w.tile_columns % 2 == 0 || w.tile_columns >= in,
               "tiles of int4 must have an even number of columns");
        expect(detail::has_zero<Code> || w.zero.empty(), "fp8 has no zero points");
      },
      w.codes);
  const std::size_t rows = out == 0 ? 0 : (w.first_row + out - 1) / w.tile_rows + 1,
                    columns = in == 0 ? 0 : (in - 1) / w.tile_columns + 1;
  const auto check_tiles = [&](const char* what, const auto& tiles) {
    if (tiles.extent(0) == rows && tiles.extent(1) == columns) return;
    check_view(op, detail::concatenate({argument, ": ", what}), tiles, {rows, columns});
  };
  check_tiles("scale", w.scale);
  if (!w.zero.empty()) check_tiles("zero", w.zero);
}

inline scaled_matrix slice_rows(const scaled_matrix& w, std::size_t begin, std::size_t count) {
  scaled_matrix part = w;
  const std::size_t first = (w.first_row + begin) / w.tile_rows;
  part.first_row = (w.first_row + begin) % w.tile_rows;
  const std::size_t rows = count == 0 ? 0 : (part.first_row + count - 1) / w.tile_rows + 1;
  std::visit([&](auto& codes) { codes = codes.slice(0, begin, count); }, part.codes);
  part.scale = w.scale.slice(0, first, rows);
  if (!w.zero.empty()) part.zero = w.zero.slice(0, first, rows);
  return part;
}

inline void dequantize_row(const scaled_matrix& w, std::size_t row, float* y) {
  detail::for_each_part(w, row, 0, in_features(w),
                        [y](const auto* codes, std::size_t k, std::size_t end, float scale, float zero) {
                          for (; k < end; ++k) y[k] = detail::code_number(codes, k, scale, zero);
                        });
}

MOTE_END_NAMESPACE

// ---- mote/quant/weight.hpp
MOTE_BEGIN_NAMESPACE

// int8 symmetric per output channel: W[n, k] = scale[n] · codes[n, k], codes in [-127, 127]. Made by quantize_int8
// (quant/int8.hpp).
struct int8_matrix {
  view<const std::int8_t, 2> codes;  // [out, in]
  view<const float, 1> scale;        // [out]
};

namespace detail {

// The forms of a format's matrices: only integer formats are packed.
template <class F>
struct forms_of_format {
  using type = std::variant<view<const F, 2>>;
};
template <integer_format F>
struct forms_of_format<F> {
  using type = std::variant<view<const F, 2>, packed_matrix<F>>;
};

template <class... Lists>
struct joined;
template <class... T>
struct joined<std::variant<T...>> {
  using type = std::variant<T...>;
};
template <class... T, class... U, class... Lists>
struct joined<std::variant<T...>, std::variant<U...>, Lists...> : joined<std::variant<T..., U...>, Lists...> {};

template <class List>
struct weight_of;
template <class... F>
struct weight_of<type_list<F...>> {
  using plain = std::variant<view<const float, 2>, view<const bf16, 2>, view<const f16, 2>, int8_matrix, scaled_matrix,
                             packed_matrix<std::int8_t>, packed_matrix<bf16>>;
  using type = typename joined<plain, typename forms_of_format<F>::type...>::type;
};

// Columns that one element of a row stands for.
template <class T>
inline constexpr std::size_t columns_of = 1;
template <block_format F>
inline constexpr std::size_t columns_of<F> = F::block_size;

}  // namespace detail

using weight = detail::weight_of<formats>::type;

namespace detail {

template <class M>
inline constexpr bool is_matrix = std::is_same_v<M, int8_matrix> || std::is_same_v<M, scaled_matrix>;
template <class T>
inline constexpr bool is_matrix<view<const T, 2>> = true;
template <class F>
inline constexpr bool is_matrix<packed_matrix<F>> = true;

}  // namespace detail

// One of the forms above, for a format of the list or any other.
template <class M>
concept matrix = detail::is_matrix<M>;

// A weight, or what becomes one, as a view of rows that may be written does.
template <class W>
concept any_weight = !matrix<W> && std::convertible_to<const W&, weight>;

namespace detail {

template <class Visitor>
decltype(auto) visit_form(const weight& w, Visitor&& visitor) {
  return std::visit(visitor, w);
}

}  // namespace detail

// --- Shape -----------------------------------------------------------------------------------------------------------

// What is asked of a weight is asked of the form it holds. The overloads for `weight` are templates, so that a file that uses
// one form does not compile visits of all of them.

template <class T>
std::size_t out_features(const view<const T, 2>& w) {
  return w.extent(0);
}
inline std::size_t out_features(const int8_matrix& w) { return w.codes.extent(0); }
template <class F>
std::size_t out_features(const packed_matrix<F>& w) {
  return w.out_features();
}
template <any_weight W>
std::size_t out_features(const W& w) {
  return detail::visit_form(w, [](const auto& m) { return out_features(m); });
}

template <class T>
std::size_t in_features(const view<const T, 2>& w) {
  return w.extent(1) * detail::columns_of<T>;
}
inline std::size_t in_features(const int8_matrix& w) { return w.codes.extent(1); }
template <class F>
std::size_t in_features(const packed_matrix<F>& w) {
  return w.in_features();
}
template <any_weight W>
std::size_t in_features(const W& w) {
  return detail::visit_form(w, [](const auto& m) { return in_features(m); });
}

// Throws shape_error unless the matrix's rows are contiguous.
template <class T>
void check_rows(std::string_view op, std::string_view argument, const view<const T, 2>& w) {
  check_view(op, argument, w, {w.extent(0), w.extent(1)});
}
// Rows of int8 are limited in length, so that their sums fit into int32.
inline constexpr std::size_t most_int8_columns = 131072;
inline void check_int8_columns(std::string_view op, std::string_view argument, std::size_t columns) {
  if (columns > most_int8_columns) {
    raise<shape_error>(
        detail::concatenate({op, ": ", argument, ": expected at most ", std::to_string(most_int8_columns),
                             " columns of int8, got ", std::to_string(columns)}));
  }
}
inline void check_rows(std::string_view op, std::string_view argument, const int8_matrix& w) {
  check_rows(op, argument, w.codes);
  check_view(op, argument, w.scale, {w.codes.extent(0)});
  check_int8_columns(op, argument, w.codes.extent(1));
}
template <class T>
void check_rows(std::string_view op, std::string_view argument, const packed_matrix<T>& w) {
  if constexpr (std::is_same_v<T, std::int8_t>) check_int8_columns(op, argument, w.in_features());
}
template <any_weight W>
void check_rows(std::string_view op, std::string_view argument, const W& w) {
  detail::visit_form(w, [&](const auto& m) { check_rows(op, argument, m); });
}

namespace detail {

template <class Arch>
void check_packing(std::string_view op, const weight& w) {
  detail::visit_form(w, [&](const auto& m) { check_packing<Arch>(op, m); });
}

}  // namespace detail

// --- Rows ------------------------------------------------------------------------------------------------------------

// Output rows [begin, begin + count). Packed matrices are cut at multiples of 32; other beginnings throw shape_error.
template <class T>
view<const T, 2> slice_rows(const view<const T, 2>& w, std::size_t begin, std::size_t count) {
  return w.slice(0, begin, count);
}
inline int8_matrix slice_rows(const int8_matrix& w, std::size_t begin, std::size_t count) {
  return {w.codes.slice(0, begin, count), w.scale.slice(0, begin, count)};
}
template <class F>
packed_matrix<F> slice_rows(const packed_matrix<F>& w, std::size_t begin, std::size_t count) {
  const std::size_t rows = packed_matrix<F>::panel_rows, in = w.in_features();
  if (begin % rows != 0) {
    raise<shape_error>("slice_rows: packed matrices are cut at multiples of " + std::to_string(rows) + ", got " +
                       std::to_string(begin));
  }
  check(begin <= w.out_features() && count <= w.out_features() - begin, "slice_rows", "rows: outside the matrix");
  const auto bytes = w.bytes().slice(0, begin / rows * w.panel_bytes(in), packed_matrix<F>::size(count, in));
  return {bytes, count, in, w.order()};
}
template <any_weight W>
weight slice_rows(const W& w, std::size_t begin, std::size_t count) {
  return detail::visit_form(w, [&](const auto& m) -> weight { return slice_rows(m, begin, count); });
}

// One row as float32, y[in_features(w)].
template <class T>
void dequantize_row(const view<const T, 2>& w, std::size_t row, float* y) {
  for (std::size_t i = 0; i < w.extent(1); ++i) {
    if constexpr (block_format<T>) {
      w.row(row)[i].decode(y + i * T::block_size);
    } else {
      y[i] = static_cast<float>(w.row(row)[i]);
    }
  }
}
inline void dequantize_row(const int8_matrix& w, std::size_t row, float* y) {
  for (std::size_t k = 0; k < w.codes.extent(1); ++k) y[k] = w.scale(row) * static_cast<float>(w.codes(row, k));
}
template <integer_format F>
void dequantize_row(const packed_matrix<F>& w, std::size_t row, float* y) {
  for (std::size_t g = 0; g < w.in_features() / F::group_size; ++g) {
    const code_group<F> group = read_group(w, row, g);
    for (const int q : group.q) *y++ = group.scale * static_cast<float>(q) - group.min;
  }
}
template <packable_element T>
void dequantize_row(const packed_matrix<T>& w, std::size_t row, float* y) {
  float scale = 1.0f;
  if constexpr (std::is_same_v<T, std::int8_t>) scale = read_scale(w, row);
  for (std::size_t k = 0; k < w.in_features(); ++k) y[k] = scale * read_element(w, row, k);
}
template <any_weight W>
void dequantize_row(const W& w, std::size_t row, float* y) {
  detail::visit_form(w, [&](const auto& m) { dequantize_row(m, row, y); });
}

// --- Memory ----------------------------------------------------------------------------------------------------------

// Bytes that one pass over the matrix reads.
template <class T>
std::size_t bytes(const view<const T, 2>& w) {
  return w.size() * sizeof(T);
}
inline std::size_t bytes(const int8_matrix& w) { return w.codes.size() + w.scale.size() * sizeof(float); }
template <class F>
std::size_t bytes(const packed_matrix<F>& w) {
  return w.bytes().size();
}
template <any_weight W>
std::size_t bytes(const W& w) {
  return detail::visit_form(w, [](const auto& m) { return bytes(m); });
}

// --- Packing ---------------------------------------------------------------------------------------------------------

// w into `bytes`, packed_matrix<std::int8_t>::size(out, in) of them; the panels are shared out among the threads of `be`.
// Throws shape_error.
template <host Backend>
packed_matrix<std::int8_t> pack(Backend& be, const int8_matrix& w, const view<std::uint8_t, 1>& bytes) {
  check_rows("pack", "w", w);
  const packed_matrix<std::int8_t> packed(bytes, out_features(w), in_features(w));
  return detail::pack_panels(be, packed, bytes, [&](std::uint8_t* panel, std::size_t first, std::size_t count) {
    detail::pack_elements(w.codes, first, count, panel);
    std::uint8_t* scales = panel + detail::packed_layout<std::int8_t>::scales(in_features(w));
    std::memcpy(scales, w.scale.data() + first, count * sizeof(float));
  });
}

// --- Feed-forward networks -------------------------------------------------------------------------------------------

// The three projections of a SwiGLU feed-forward network: gate and up [intermediate, hidden], down [hidden, intermediate].
struct ffn_weights {
  weight gate, up, down;
};

MOTE_END_NAMESPACE

// ---- mote/quant/activation_block.hpp
// Activations in int8 blocks of 32, as products with integer formats read them: made once for all matrices of a layer.
//
//   d = max |x| / 127,  q = round(x · 127 / max |x|), ties to even      x ≈ d · q
//
// A block below 2^-100 counts as zero; infinity and NaN make d infinite or NaN, and so every product with it.

MOTE_BEGIN_NAMESPACE

struct alignas(64) activation_block {
  static constexpr std::size_t size = 32;

  std::int8_t q[size];
  float d;
  std::int32_t minus_sum;          // -Σ q
  std::int32_t minus_half_sum[2];  // of 16 each
  float sum;                       // d · Σ q
  float half_sum[2];

  // Blocks for a row of n; the last one is padded with zeros.
  static constexpr std::size_t count(std::size_t n) { return (n + size - 1) / size; }

  // Sets d for the largest magnitude, given as the bits of a float32; returns what to multiply x by.
  float set_scale(std::int32_t magnitude) {
    const float amax = detail::bit_cast<float>(magnitude);
    const bool zero = amax < 0x1p-100f;
    d = zero ? 0.0f : amax / 127.0f;
    return zero ? 0.0f : 127.0f / amax;
  }
  // The sums of the codes of each half.
  void set_sums(std::int32_t first, std::int32_t second) {
    minus_sum = -(first + second);
    minus_half_sum[0] = -first;
    minus_half_sum[1] = -second;
    sum = d * static_cast<float>(first + second);
    half_sum[0] = d * static_cast<float>(first);
    half_sum[1] = d * static_cast<float>(second);
  }

  // The sums that groups of 16 or 32 weights need; `half` is 0 for 32.
  template <std::size_t Group>
  std::int32_t minus(std::size_t half) const {
    return Group == size ? minus_sum : minus_half_sum[half];
  }
  template <std::size_t Group>
  float scaled_sum(std::size_t half) const {
    return Group == size ? sum : half_sum[half];
  }
};

// x[n] to activation_block::count(n) blocks, in plain steps.
inline void quantize_activation_blocks(const float* x, std::size_t n, activation_block* blocks) {
  for (std::size_t begin = 0; begin < n; begin += activation_block::size) {
    activation_block& block = *blocks++;
    const std::size_t count = std::min(activation_block::size, n - begin);
    std::int32_t magnitude = 0;  // as integers, because NaN comes after infinity then
    for (std::size_t i = 0; i < count; ++i) {
      magnitude = std::max(magnitude, detail::bit_cast<std::int32_t>(std::fabs(x[begin + i])));
    }
    const float inverse = block.set_scale(magnitude);
    std::int32_t sums[2] = {};
    for (std::size_t i = 0; i < activation_block::size; ++i) {
      const float scaled = i < count ? x[begin + i] * inverse : 0.0f;
      block.q[i] = std::fabs(scaled) <= 127.5f ? static_cast<std::int8_t>(std::nearbyint(scaled)) : std::int8_t{0};
      sums[i / 16] += block.q[i];
    }
    block.set_sums(sums[0], sums[1]);
  }
}

MOTE_END_NAMESPACE

// ---- mote/quant/int8.hpp
// int8 quantization of rows: weights per output channel, activations per token.
//
//   symmetric   s = amax / 127,  q = clamp(round(x / s), -127, 127)                         x ≈ s q
//   asymmetric  s = (max - min) / 255 over a range that holds 0,  z = round(-min / s) - 128,
//               q = clamp(round(x / s) + z, -128, 127)                                      x ≈ s (q - z)
//
// Symmetric codes are those of an int8_matrix, asymmetric ones those of a scaled_matrix, each row a tile. Ties go to even; a
// zero row uses s = 1. A symmetric row that is not all finite has codes 0 and the scale NaN, which no product
// with it can hide.

MOTE_BEGIN_NAMESPACE

// Quantizes one row of n values; returns the scale.
inline float quantize_int8_row(const float* x, std::size_t n, std::int8_t* codes) {
  float amax = 0.0f;
  bool finite = true;
  for (std::size_t i = 0; i < n; ++i) {
    amax = std::fmax(amax, std::fabs(x[i]));
    finite = finite && std::isfinite(x[i]);
  }
  if (!finite) {
    std::fill_n(codes, n, std::int8_t{0});
    return std::numeric_limits<float>::quiet_NaN();
  }
  const float scale = amax / 127.0f > 0.0f ? amax / 127.0f : 1.0f;  // the quotient, which may vanish
  for (std::size_t i = 0; i < n; ++i) {
    codes[i] = static_cast<std::int8_t>(std::clamp(std::nearbyint(x[i] / scale), -127.0f, 127.0f));
  }
  return scale;
}

// w [out, in] to codes [out, in] and scale [out]. Throws shape_error when the shapes differ.
inline void quantize_int8(view<const float, 2> w, view<std::int8_t, 2> codes, view<float, 1> scale) {
  check_view("quantize_int8", "w", w, {w.extent(0), w.extent(1)});
  check_view("quantize_int8", "codes", codes, {w.extent(0), w.extent(1)});
  check_view("quantize_int8", "scale", scale, {w.extent(0)});
  for (std::size_t n = 0; n < w.extent(0); ++n) scale(n) = quantize_int8_row(w.row(n), w.extent(1), codes.row(n));
}

// How the integers of `bits` bits cover the range of n values, widened to hold 0: x ≈ scale · (q - zero).
struct asymmetric_range {
  float scale;
  std::int8_t zero;
  std::int8_t lowest, highest;

  asymmetric_range(const float* x, std::size_t n, int bits)
      : lowest(static_cast<std::int8_t>(-(1 << (bits - 1)))), highest(static_cast<std::int8_t>(-lowest - 1)) {
    float low = 0.0f, high = 0.0f;
    for (std::size_t i = 0; i < n; ++i) {
      low = std::fmin(low, x[i]);
      high = std::fmax(high, x[i]);
    }
    const auto steps = static_cast<float>(highest - lowest);
    const float step = std::fmin(high - low, std::numeric_limits<float>::max()) / steps;
    scale = step > 0.0f ? step : 1.0f;
    zero = static_cast<std::int8_t>(std::fmin(std::nearbyint(-low / scale), steps) + static_cast<float>(lowest));
  }

  std::int8_t code(float x) const {
    const float q = std::nearbyint(x / scale) + static_cast<float>(zero);
    return static_cast<std::int8_t>(std::fmin(std::fmax(q, static_cast<float>(lowest)), static_cast<float>(highest)));
  }
};

// Asymmetric, with zero [out].
inline void quantize_int8(view<const float, 2> w, view<std::int8_t, 2> codes, view<float, 1> scale,
                          view<std::int8_t, 1> zero) {
  check_view("quantize_int8", "w", w, {w.extent(0), w.extent(1)});
  check_view("quantize_int8", "codes", codes, {w.extent(0), w.extent(1)});
  check_view("quantize_int8", "scale", scale, {w.extent(0)});
  check_view("quantize_int8", "zero", zero, {w.extent(0)});
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    const asymmetric_range range(w.row(n), w.extent(1), 8);
    scale(n) = range.scale;
    zero(n) = range.zero;
    for (std::size_t k = 0; k < w.extent(1); ++k) codes(n, k) = range.code(w(n, k));
  }
}

MOTE_END_NAMESPACE

// ---- mote/ops/matmul/reference.hpp
MOTE_BEGIN_NAMESPACE

// std::fma, so that what is decoded to float32 first has the bits of float32 wherever the compiler would contract the sum.
template <class T>
void matmul_impl(reference&, view<const float, 2> x, const view<const T, 2>& w, view<float, 2> y,
                 output mode) noexcept {
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    for (std::size_t n = 0; n < w.extent(0); ++n) {
      float sum = 0.0f;
      for (std::size_t k = 0; k < w.extent(1); ++k) sum = std::fma(x(t, k), static_cast<float>(w(n, k)), sum);
      y(t, n) = mode == output::accumulate ? y(t, n) + sum : sum;
    }
  }
}

namespace detail {

// code(n, k) and scale(n) of the weights.
template <class Code, class Scale>
void int8_matmul(reference& be, view<const float, 2> x, view<float, 2> y, output mode, Code&& code, Scale&& scale) {
  auto scope = be.scope();
  const auto codes = scope.tensor<std::int8_t>(x.extent(1));
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    const float scale_x = quantize_int8_row(x.row(t), x.extent(1), codes.data());
    for (std::size_t n = 0; n < y.extent(1); ++n) {
      std::int32_t sum = 0;
      for (std::size_t k = 0; k < x.extent(1); ++k) sum += codes(k) * code(n, k);
      const float value = scale_x * scale(n) * static_cast<float>(sum);
      y(t, n) = mode == output::accumulate ? y(t, n) + value : value;
    }
  }
}

}  // namespace detail

inline void matmul_impl(reference& be, view<const float, 2> x, const int8_matrix& w, view<float, 2> y, output mode) {
  detail::int8_matmul(be, x, y, mode, w.codes, w.scale);
}
inline void matmul_impl(reference& be, view<const float, 2> x, const packed_matrix<std::int8_t>& w, view<float, 2> y,
                        output mode) {
  detail::int8_matmul(
      be, x, y, mode, [&](std::size_t n, std::size_t k) { return static_cast<int>(read_element(w, n, k)); },
      [&](std::size_t n) { return read_scale(w, n); });
}

inline void matmul_impl(reference&, view<const float, 2> x, const packed_matrix<bf16>& w, view<float, 2> y,
                        output mode) {
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    for (std::size_t n = 0; n < y.extent(1); ++n) {
      float sum = 0.0f;
      for (std::size_t k = 0; k < x.extent(1); ++k) sum += static_cast<float>(bf16(x(t, k))) * read_element(w, n, k);
      y(t, n) = mode == output::accumulate ? y(t, n) + sum : sum;
    }
  }
}

namespace detail {

// Integer formats: sums of integers, scaled group by group.
template <integer_format F, class Matrix>
void block_matmul(reference& be, view<const float, 2> x, const Matrix& w, view<float, 2> y, output mode) {
  constexpr std::size_t group = F::group_size;
  auto scope = be.scope();
  const auto blocks = scope.tensor<activation_block>(activation_block::count(x.extent(1)));
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    quantize_activation_blocks(x.row(t), x.extent(1), blocks.data());
    for (std::size_t n = 0; n < y.extent(1); ++n) {
      float total = 0.0f;
      for (std::size_t k = 0; k < x.extent(1); k += group) {
        const code_group<F> weights = read_group(w, n, k / group);
        const activation_block& block = blocks(k / activation_block::size);
        const std::size_t first = k % activation_block::size;
        std::int32_t sum = 0;
        for (std::size_t i = 0; i < group; ++i) sum += weights.q[i] * block.q[first + i];
        total += weights.scale * block.d * static_cast<float>(sum);
        total -= weights.min * block.scaled_sum<group>(first / 16);
      }
      y(t, n) = mode == output::accumulate ? y(t, n) + total : total;
    }
  }
}

}  // namespace detail

template <integer_format F>
void matmul_impl(reference& be, view<const float, 2> x, const view<const F, 2>& w, view<float, 2> y, output mode) {
  detail::block_matmul<F>(be, x, w, y, mode);
}
template <integer_format F>
void matmul_impl(reference& be, view<const float, 2> x, const packed_matrix<F>& w, view<float, 2> y, output mode) {
  detail::block_matmul<F>(be, x, w, y, mode);
}

namespace detail {

// Numbers that are decoded row by row.
template <class Matrix>
void decoded_matmul(reference& be, view<const float, 2> x, const Matrix& w, view<float, 2> y, output mode) {
  auto scope = be.scope();
  const auto row = scope.tensor<float>(1, x.extent(1));
  for (std::size_t n = 0; n < y.extent(1); ++n) {
    dequantize_row(w, n, row.data());
    matmul_impl(be, x, view<const float, 2>(row), y.slice(1, n, 1), mode);
  }
}

}  // namespace detail

// Formats of which only decode() is known.
template <block_format F>
void matmul_impl(reference& be, view<const float, 2> x, const view<const F, 2>& w, view<float, 2> y, output mode) {
  detail::decoded_matmul(be, x, w, y, mode);
}
inline void matmul_impl(reference& be, view<const float, 2> x, const scaled_matrix& w, view<float, 2> y, output mode) {
  detail::decoded_matmul(be, x, w, y, mode);
}

template <std::same_as<reference> Backend>
void matmul_impl(Backend& be, view<const float, 2> x, const weight& w, view<float, 2> y, output mode) {
  std::visit([&](const auto& matrix) { matmul_impl(be, x, matrix, y, mode); }, w);
}

MOTE_END_NAMESPACE

// ---- mote/ops/matmul/unit.hpp
// A unit: up to unit_rows weight rows against up to unit_tokens tokens, in which matrix products are shared out. Its weights
// stay in the second-level cache while tokens pass by, a tile's tokens in the first.

// ---- mote/ops/matmul/activations.hpp
// Rows of activations in the forms that weights multiply, made once for all matrices and units that read them.

// ---- mote/ops/matmul/activation_tile.hpp
// Activations as matrix tiles (core/amx.hpp) read them: sixteen tokens side by side, made once for all the units that
// multiply them.

MOTE_BEGIN_NAMESPACE

namespace detail {

// Blocks of the same columns.
struct tiled_blocks {
  alignas(64) std::int8_t q[tile_height][activation_block::size] = {};
  alignas(64) float d[tile_height] = {};
  float minus_sum[tile_height] = {}, minus_half_sum[2][tile_height] = {};  // -d Σ q

  void put(const activation_block& block, std::size_t place) {
    std::memcpy(q[place], block.q, sizeof block.q);
    d[place] = block.d;
    minus_sum[place] = -block.sum;
    minus_half_sum[0][place] = -block.half_sum[0];
    minus_half_sum[1][place] = -block.half_sum[1];
  }
  template <std::size_t Group>
  const float* minus(std::size_t half) const {
    return Group == activation_block::size ? minus_sum : minus_half_sum[half];
  }
};

struct activation_tile {
  const std::uint8_t *codes = nullptr, *halves = nullptr;  // int8, bf16: [bytes of a row / 64, 16, 64]
  const tiled_blocks* blocks = nullptr;                    // [columns / 32]
};

// Bytes of sixteen rows of `bytes` each, padded to whole tiles.
constexpr std::size_t tiled_size(std::size_t bytes) {
  return (bytes + tile_bytes - 1) / tile_bytes * tile_bytes * tile_height;
}

inline void put_in_tiles(const void* row, std::size_t bytes, std::size_t place, std::uint8_t* tiles) {
  const auto* const from = static_cast<const std::uint8_t*>(row);
  const std::size_t whole = bytes / tile_bytes * tile_bytes;
  std::uint8_t* to = tiles + place * tile_bytes;
  for (std::size_t i = 0; i < whole; i += tile_bytes, to += tile_height * tile_bytes) {
    std::memcpy(to, from + i, tile_bytes);
  }
  if (whole < bytes) {
    std::memcpy(to, from + whole, bytes - whole);
    std::memset(to + (bytes - whole), 0, tile_bytes - (bytes - whole));
  }
}

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/ops/matmul/element_kernel.hpp
// Products of packed elements (quant/packed.hpp), int8 codes or bf16: a tile of R vectors of output rows by C tokens.
//
//   std::int8_t   exact int32 sums of codes; activations are int8 codes too. x86 multiplies unsigned by signed: weights are
//                 read as q + 128, and 128 · Σ x is taken off before
//   bf16          activations are rounded to bf16, sums in float32; with AVX-512 BF16 as vdpbf16ps adds them, elsewhere
//                 one multiply-add after the other, for which activations are float32 again
//
// A token's result has the same bits alone and in a batch.

// ---- mote/ops/matmul/micro_kernel.hpp
// The inner loops of every matrix product: a tile of R weight rows by C tokens, vectors along k.
//
// Weights stay row-major as checkpoints store them. Each output has one accumulator vector, walked along k in the same
// steps whatever the tile's shape, and summed across lanes in one order at the end: a token's result has the same bits
// alone and in a batch. 4 rows by 6 tokens keep 24 accumulators in 32 registers, 10 loads for 24 multiply-adds.

// ---- mote/core/widen.hpp
// widen<Arch>(p): one vector of float32 from as many numbers of a narrower type at p.

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

MOTE_BEGIN_NAMESPACE

namespace detail {

template <class Arch>
batch<float, Arch> widen(const float* p) {
  return batch<float, Arch>::load_unaligned(p);
}

// One by one, for the types and instruction sets that have no conversion below.
template <class Arch, class T>
batch<float, Arch> widen(const T* p) {
  float lanes[batch<float, Arch>::size];
  for (std::size_t i = 0; i < batch<float, Arch>::size; ++i) lanes[i] = static_cast<float>(p[i]);
  return batch<float, Arch>::load_unaligned(lanes);
}

// bf16 is the upper half of a float32, so widening is exact.
template <class Arch>
batch<float, Arch> widen(const bf16* p) {
  using vector [[maybe_unused]] = batch<float, Arch>;
  if constexpr (vector::size == 16) {
#if defined(__AVX512F__)
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return vector(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16)));
#endif
  } else if constexpr (vector::size == 8) {
#if defined(__AVX2__)
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return vector(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16)));
#elif defined(__AVX__)
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), zero = _mm_setzero_si128();
    const __m128 low = _mm_castsi128_ps(_mm_unpacklo_epi16(zero, narrow));
    const __m128 high = _mm_castsi128_ps(_mm_unpackhi_epi16(zero, narrow));
    return vector(_mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1));
#endif
  } else {
#if defined(__SSE2__)
    const __m128i narrow = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return vector(_mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), narrow)));
#elif defined(__ARM_NEON)
    const uint16x4_t narrow = vld1_u16(reinterpret_cast<const std::uint16_t*>(p));
    return vector(vreinterpretq_f32_u32(vshll_n_u16(narrow, 16)));
#endif
  }
}

template <class Arch>
batch<float, Arch> widen(const f16* p) {
  using vector [[maybe_unused]] = batch<float, Arch>;
#if defined(__AVX512F__)
  if constexpr (vector::size == 16) {
    return vector(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
  }
#endif
#if defined(__F16C__)
  if constexpr (vector::size == 8) {
    return vector(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
#endif
#if defined(__aarch64__)
  return vector(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p)))));
#endif
  return widen<Arch, f16>(p);
}

#if defined(__aarch64__)
// Four bytes as the upper halves of 16-bit lanes.
template <class T>
uint16x4_t upper_bytes(const T* p) {
  std::uint32_t four = 0;
  std::memcpy(&four, p, 4);
  return vshl_n_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))), 8);
}
#endif

// fp8 as float16, whose exponent has the range of both: e5m2 is its upper byte; e4m3's bits one place lower are 2^-8 of the
// number, but that NaN has to be told from 480.
template <class Arch>
batch<float, Arch> widen(const f8_e5m2* p) {
  using vector [[maybe_unused]] = batch<float, Arch>;
#if defined(__AVX512F__)
  if constexpr (vector::size == 16) {
    const __m256i codes = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return vector(_mm512_cvtph_ps(_mm256_slli_epi16(codes, 8)));
  }
#endif
#if defined(__F16C__)
  if constexpr (vector::size == 8) {
    const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return vector(_mm256_cvtph_ps(_mm_unpacklo_epi8(_mm_setzero_si128(), codes)));
  }
#endif
#if defined(__aarch64__)
  return vector(vcvt_f32_f16(vreinterpret_f16_u16(upper_bytes(p))));
#endif
  return widen<Arch, f8_e5m2>(p);
}

#if defined(__AVX2__)
// Codes of e4m3, their signs extended to 16 bits, as float16.
inline __m256i e4m3_to_f16(__m256i codes) {
  const __m256i bits = _mm256_and_si256(_mm256_slli_epi16(codes, 7), _mm256_set1_epi16(~0x4000));
  const __m256i nan = _mm256_cmpeq_epi16(_mm256_slli_epi16(bits, 1), _mm256_set1_epi16(0x7F00));
  return _mm256_or_si256(bits, nan);
}
// Sixteen codes as float16, each 2^-8 of its number.
inline __m256i load_e4m3(const f8_e4m3* p) {
  return e4m3_to_f16(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
#endif
#if defined(__AVX512F__) && defined(__AVX512BW__)
// Thirty-two.
inline __m512i load_32_e4m3(const f8_e4m3* p) {
  const __m512i codes = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  const __m512i bits = _mm512_and_si512(_mm512_slli_epi16(codes, 7), _mm512_set1_epi16(~0x4000));
  const __mmask32 nan = _mm512_cmpeq_epi16_mask(_mm512_slli_epi16(bits, 1), _mm512_set1_epi16(0x7F00));
  return _mm512_mask_mov_epi16(bits, nan, _mm512_set1_epi16(-1));
}
#endif

template <class Arch>
batch<float, Arch> widen(const f8_e4m3* p) {
  using vector [[maybe_unused]] = batch<float, Arch>;
#if defined(__AVX512F__)
  if constexpr (vector::size == 16) return vector(_mm512_mul_ps(_mm512_cvtph_ps(load_e4m3(p)), _mm512_set1_ps(256.0f)));
#endif
#if defined(__F16C__) && defined(__AVX2__)
  if constexpr (vector::size == 8) {
    const __m128i codes = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const __m128i bits = _mm256_castsi256_si128(e4m3_to_f16(_mm256_castsi128_si256(codes)));
    return vector(_mm256_mul_ps(_mm256_cvtph_ps(bits), _mm256_set1_ps(256.0f)));
  }
#endif
#if defined(__aarch64__)
  const uint16x4_t codes = upper_bytes(p), magnitude = vand_u16(codes, vdup_n_u16(0x7F00));
  const uint16x4_t nan = vceq_u16(magnitude, vdup_n_u16(0x7F00));
  const uint16x4_t bits = vorr_u16(vsra_n_u16(vand_u16(codes, vdup_n_u16(0x8000)), magnitude, 1), nan);
  return vector(vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(bits)), 256.0f));
#endif
  return widen<Arch, f8_e4m3>(p);
}

template <class Arch>
batch<float, Arch> widen(const std::int8_t* p) {
  using vector [[maybe_unused]] = batch<float, Arch>;
#if defined(__AVX512F__)
  if constexpr (vector::size == 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return vector(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
  }
#endif
#if defined(__AVX2__)
  if constexpr (vector::size == 8) {
    return vector(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))));
  }
#endif
  return widen<Arch, std::int8_t>(p);
}

// 2^(e - 127): e in the exponent's place, but that float32 writes 2^-127 as a subnormal and NaN with another bit set.
template <class Arch>
batch<float, Arch> widen(const f8_e8m0* p) {
  using vector [[maybe_unused]] = batch<float, Arch>;
#if defined(__AVX512F__)
  if constexpr (vector::size == 16) {
    const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m512i next = _mm512_and_si512(_mm512_add_epi32(e, _mm512_set1_epi32(1)), _mm512_set1_epi32(255));
    const __mmask16 special = _mm512_cmplt_epi32_mask(next, _mm512_set1_epi32(2));
    const __m512i bits = _mm512_slli_epi32(e, 23);
    return vector(_mm512_castsi512_ps(_mm512_mask_or_epi32(bits, special, bits, _mm512_set1_epi32(0x400000))));
  }
#endif
#if defined(__AVX2__)
  if constexpr (vector::size == 8) {
    const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const __m256i next = _mm256_and_si256(_mm256_add_epi32(e, _mm256_set1_epi32(1)), _mm256_set1_epi32(255));
    const __m256i special = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), next);
    const __m256i extra = _mm256_and_si256(special, _mm256_set1_epi32(0x400000));
    return vector(_mm256_castsi256_ps(_mm256_or_si256(_mm256_slli_epi32(e, 23), extra)));
  }
#endif
  return widen<Arch, f8_e8m0>(p);
}

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/ops/matmul/micro_kernel.hpp
MOTE_BEGIN_NAMESPACE

namespace detail {

// Registers decide the tile: 32 of them with AVX-512 and on ARM, 16 elsewhere.
template <class Arch>
inline constexpr bool many_registers = batch<float, Arch>::size == 16
#if defined(__aarch64__)
                                       || true
#endif
    ;
template <class Arch>
inline constexpr std::size_t tile_rows = many_registers<Arch> ? 4 : 3;
template <class Arch>
inline constexpr std::size_t tile_tokens = many_registers<Arch> ? 6 : 4;

// The last n < size elements of a row, zeros behind them; reads nothing past them.
template <class Arch, class T>
batch<float, Arch> load_tail(const T* p, std::size_t n) {
  float lanes[batch<float, Arch>::size] = {};
  for (std::size_t i = 0; i < n; ++i) lanes[i] = static_cast<float>(p[i]);
  return batch<float, Arch>::load_unaligned(lanes);
}

// How often rows in memory are asked for: a vector that is less than a line asks for its line more than once anyway.
template <class Arch, class T>
inline constexpr std::size_t asks_of_memory = batch<float, Arch>::size * sizeof(T) >= 32 ? 3 : 2;

// f(0), f(1) … f(N - 1), always unrolled: the accumulators below must become registers.
template <std::size_t N, class F>
[[gnu::always_inline]] inline void unroll(F&& f) {
  [&]<std::size_t... I>(std::index_sequence<I...>) __attribute__((always_inline)) { (f(I), ...); }
  (std::make_index_sequence<N>{});
}

// One tile over k elements. k may come in blocks: `state` holds the R·C accumulators between them (`resume`: there is a
// block before this one). After the last block, where `out` is given, the sums go to out[r + c · out_stride].
//
// `Asks` times memory is asked for the rows that the next tile will read. That is for the tiles that are first to see their
// weights; where those come from a cache, it would only take turns from the loads. Zen 5, one thread, bf16: one token went
// from 45 % to 75 % of the read bandwidth with each row asked for beside its own reading, and to 90 % line after line. A busy
// processor drops some of what is asked of it, so that rows of memory are asked for again, further ahead and for the
// second-level cache. Zen 4, bf16, one, two and four tokens, GB/s of 37: once, for the first-level cache, 24, 15 and 15;
// three times, for the second, 35, 35 and 20.
template <class Arch, std::size_t R, std::size_t C, std::size_t Asks, class T>
void dot_tile(const T* const* w, const float* const* x, std::size_t k, bool resume, float* state, float* out,
              std::size_t out_stride) noexcept {
  using vector = batch<float, Arch>;
  vector acc[R][C];
  const T* row[R];
  const float* token[C];
  unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
    row[r] = w[r];
    unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
      acc[r][c] = resume ? vector::load_aligned(state + (r * C + c) * vector::size) : vector(0.0f);
    });
  });
  unroll<C>([&](std::size_t c) __attribute__((always_inline)) { token[c] = x[c]; });

  // Where the next tile's rows begin, and how far apart its next lines are: rows that follow each other without a gap are
  // asked for line after line, as memory likes it; others, each at the place of the row before it.
  const std::ptrdiff_t stride = R > 1 ? row[1] - row[0] : 0;
  const bool gapless = stride == static_cast<std::ptrdiff_t>(k);
  [[maybe_unused]] const T* const next = row[0] + stride * static_cast<std::ptrdiff_t>(R);
  [[maybe_unused]] const std::ptrdiff_t apart = gapless ? 64 / static_cast<std::ptrdiff_t>(sizeof(T)) : stride;
  [[maybe_unused]] const std::size_t pace = gapless ? R : 1;
  const std::size_t whole = k / vector::size * vector::size;
  const auto fetch = [&](std::size_t r, std::size_t i) __attribute__((always_inline)) {
    if constexpr (R > 1) {
      constexpr std::size_t again = 4608 / sizeof(T);
      const T* const line = next + i * pace + static_cast<std::ptrdiff_t>(r) * apart;
      unroll<Asks>([&](std::size_t a)
                       __attribute__((always_inline)) { __builtin_prefetch(line + a * again, 0, Asks == 1 ? 3 : 2); });
    }
  };
  const auto multiply = [&](const vector* weights, std::size_t i) __attribute__((always_inline)) {
    unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
      vector values = vector::load_unaligned(token[c] + i);
      keep_in_register(values);
      unroll<R>([&](std::size_t r)
                    __attribute__((always_inline)) { acc[r][c] = fused_multiply_add(weights[r], values, acc[r][c]); });
    });
  };
  for (std::size_t i = 0; i < whole; i += vector::size) {
    vector weights[R];
    unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
      vector values = widen<Arch>(row[r] + i);
      if constexpr (std::is_same_v<T, float>) keep_in_register(values);  // an array's element would go to memory, too
      weights[r] = values;
      fetch(r, i);
    });
    multiply(weights, i);
  }
  if (whole != k) {
    unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
      const vector values = load_tail<Arch>(token[c] + whole, k - whole);
      unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
        acc[r][c] = fused_multiply_add(load_tail<Arch>(row[r] + whole, k - whole), values, acc[r][c]);
      });
    });
  }

  unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
    unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
      if (out != nullptr) {
        out[r + c * out_stride] = sum<Arch>(acc[r][c]);
      } else {
        acc[r][c].store_aligned(state + (r * C + c) * vector::size);
      }
    });
  });
}

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/ops/matmul/element_kernel.hpp
MOTE_BEGIN_NAMESPACE

namespace detail {

// What a quad of weights and one of activations add to a vector of sums, a row in each lane, in one or two parts.
template <class Arch, class T>
struct element_dot;

template <class Arch>
struct element_dot<Arch, std::int8_t> {
  using dot = int8_dot<Arch>;
  using sums = typename dot::ints;
  using operand = typename dot::operand;
  static constexpr std::size_t lanes = dot::lanes, parts = 1;
  static constexpr bool unsigned_weights = dot::unsigned_limit == 255;
  static constexpr std::size_t x_bytes = 4;  // a quad of activations

  // 128 · Σ x is beyond int32 for rows of more than 131072; sums wrap, and so come out right.
  static sums start(std::int32_t code_sum) {
    const auto surplus = unsigned_weights ? 128 * static_cast<std::uint32_t>(code_sum) : 0u;
    return dot::splat(static_cast<std::int32_t>(-surplus));
  }
  template <std::size_t>
  static operand load(const std::uint8_t* w) {
    if constexpr (unsigned_weights) {
      return dot::flip_signs(dot::load(w));
    } else {
      return dot::load(w);
    }
  }
  template <std::size_t>
  static operand splat(const std::uint8_t* x) {
    return dot::splat_codes(reinterpret_cast<const std::int8_t*>(x));
  }
  static sums add(sums acc, const operand& w, const operand& x) {
    if constexpr (unsigned_weights) {
      return dot::dot_unsigned(acc, w, x);
    } else {
      return dot::dot_signed(acc, w, x);
    }
  }
};

template <class Arch>
struct element_dot<Arch, bf16> {
  using sums = batch<float, Arch>;
  static constexpr std::size_t lanes = sums::size;
#if defined(__AVX512BF16__)
  static constexpr bool dot_products = lanes == 16;
#else
  static constexpr bool dot_products = false;
#endif
  // Pairs as they are; or the even element of each, then the odd one, widened.
  using pairs = batch<std::uint32_t, Arch>;
  using operand = std::conditional_t<dot_products, pairs, sums>;
  static constexpr std::size_t parts = dot_products ? 1 : 2, x_bytes = dot_products ? 4 : 8;

  static sums start(std::int32_t) { return sums(0.0f); }
  template <std::size_t Part>
  static operand load(const std::uint8_t* w) {
    const auto both = pairs::load_unaligned(reinterpret_cast<const std::uint32_t*>(w));
    if constexpr (dot_products) {
      return both;
    } else {
      return Part == 0 ? first_bf16(both) : second_bf16(both);
    }
  }
  template <std::size_t Part>
  static operand splat(const std::uint8_t* x) {
    std::conditional_t<dot_products, std::uint32_t, float> value;
    std::memcpy(&value, x + Part * sizeof value, sizeof value);
    return operand(value);
  }
  static sums add(const sums& acc, const operand& w, const operand& x) {
    if constexpr (dot_products) {
#if defined(__AVX512BF16__)
      return sums(_mm512_dpbf16_ps(acc, bf16_lanes(w), bf16_lanes(x)));
#endif
    } else {
      return fused_multiply_add(w, x, acc);
    }
  }
#if defined(__AVX512BF16__)
  static __m512bh bf16_lanes(const batch<std::uint32_t, Arch>& x) {
    const __m512i bits = x;
    return reinterpret_cast<__m512bh>(bits);
  }
#endif
};

template <class Arch, class T>
struct element_kernel {
  using dot = element_dot<Arch, T>;
  using layout = packed_layout<T>;
  using sums = typename dot::sums;
  using operand = typename dot::operand;

  // Vectors of rows. One or two tokens take four, so that with AVX2 a panel is read from front to back.
  static constexpr std::size_t lanes = dot::lanes, strips = many_registers<Arch> ? 4 : 2, few_tokens = 2,
                               few_strips = 4;
  // Widened bf16 adds to each sum twice a quad: ten sums hide the latency of that, eight do not.
  static constexpr std::size_t tokens = many_registers<Arch> ? 6 : std::is_same_v<T, bf16> ? 5 : 4;
  // Rows that a tile covers, and that are shared out together: of two panels with AVX-512.
  static constexpr std::size_t rows = std::max(strips * lanes, packed_rows);
  // Bytes from what is multiplied to what is asked of memory; with AVX-512 there are two panels. Zen 4 with AVX-512, three and
  // four tokens, int8 and bf16: at 1 KiB 1.25 and 1.35 times as fast as at 4, six tokens 0.9 times; without 1.2 and 0.95 times.
  static constexpr std::size_t look_ahead(std::size_t token_count) {
    constexpr std::size_t near_tokens = lanes == 16 && !has_tiles_beside<Arch> ? 4 : few_tokens;
    return token_count > near_tokens ? 4096 : strips * lanes > packed_rows ? 1024 : 1536;
  }
  // Zen 4 with AVX-512 gives the second-level cache more than the first, at any distance: one token, int8, 35 and 32 GB/s,
  // four tokens 31 and 27. With AVX2 it gives more to the first, two tokens 26 and 25.
  static constexpr int locality = lanes == 16 && !has_tiles_beside<Arch> ? 2 : 3;

  // strip[R]: the first quad of each vector of rows; x[C]: the first quad of each token; sums go on from out[c · stride +
  // r · lanes], where there were quads before these (`resume`), and are left there as they are.
  template <std::size_t R, std::size_t C>
  static void tile(const std::uint8_t* const* strip, const std::uint8_t* const* x, std::size_t quads,
                   const std::int32_t* code_sum, bool resume, float* out, std::size_t stride) noexcept {
    sums acc[R][C];
    const std::uint8_t *w[R], *token[C];
    unroll<R>([&](std::size_t r) __attribute__((always_inline)) { w[r] = strip[r]; });
    unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
      token[c] = x[c];
      unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
        acc[r][c] = dot::start(code_sum[c]);
        if (resume) std::memcpy(&acc[r][c], out + c * stride + r * lanes, sizeof(sums));
      });
    });
    for (std::size_t q = 0; q < quads; ++q) {
      const auto multiply = [&]<std::size_t Part>() __attribute__((always_inline)) {
        operand weights[R];
        unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
          const std::uint8_t* from = w[r] + q * layout::quad_bytes;
          weights[r] = dot::template load<Part>(from);
          if (Part == 0 && r * lanes * 4 % 64 == 0) __builtin_prefetch(from + look_ahead(C), 0, locality);
        });
        unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
          const operand quad = dot::template splat<Part>(token[c] + q * dot::x_bytes);
          unroll<R>([&](std::size_t r)
                        __attribute__((always_inline)) { acc[r][c] = dot::add(acc[r][c], weights[r], quad); });
        });
      };
      multiply.template operator()<0>();
      if constexpr (dot::parts == 2) multiply.template operator()<1>();
    }
    unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
      unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
        std::memcpy(out + c * stride + r * lanes, &acc[r][c], sizeof(sums));
      });
    });
  }

  template <std::size_t R, std::size_t Most = tokens>
  static auto function(std::size_t count) {
    constexpr auto tiles = []<std::size_t... I>(std::index_sequence<I...>) {
      return std::array{&element_kernel::template tile<R, I + 1>...};
    }
    (std::make_index_sequence<Most>{});
    return tiles[count - 1];
  }

  // `panels` consecutive panels of w from panel `first` on against `count` tokens x[c] of in_features(w), padded to
  // whole quads: the sums, to out[row + c · stride].
  static void product(const packed_matrix<T>& w, std::size_t first, std::size_t panels, const std::uint8_t* const* x,
                      const std::int32_t* code_sum, std::size_t count, float* out, std::size_t stride) noexcept {
    constexpr std::size_t in_panel = packed_rows / lanes;
    // Quads at a time: what a tile's rows have of them stays in a cache while tokens pass by. Where a tile has not all the
    // rows of a panel, those of few passes must not lag far behind each other, or memory is read in pieces: Zen 3, four
    // tokens, went from 12 to 17 GB/s, Zen 4 with AVX2, six tokens, bf16, from 750 to 470 us.
    constexpr bool whole_panels = strips * lanes >= packed_rows;
    constexpr std::size_t few_passes_tokens = 24;  // with more it makes no difference
    const std::size_t quads = layout::quads(w.in_features());
    std::size_t step = std::max(quads, std::size_t{1});
    if constexpr (whole_panels) {
      if (count > tokens) step = 1024;
    } else {
      if (count > few_tokens) step = count > few_passes_tokens ? 128 : 16;
    }
    const std::size_t apart = quads == 0 ? 0 : lanes * 4;  // an empty matrix has no memory to step in
    for (std::size_t begin = 0; begin == 0 || begin < quads; begin += step) {
      const std::size_t part = std::min(step, quads - begin);
      for (std::size_t s = 0; s < panels * in_panel;) {
        const std::size_t available = panels * in_panel - s, wanted = count <= few_tokens ? few_strips : strips;
        const std::size_t taken = available >= wanted ? wanted : std::min(strips, in_panel);
        const std::uint8_t* strip[std::max(strips, few_strips)] = {};
        for (std::size_t r = 0; r < taken; ++r) {
          strip[r] = w.panel(first + (s + r) / in_panel) + begin * layout::quad_bytes + (s + r) % in_panel * apart;
        }
        // Evenly: a tile of one token takes as long as one of three.
        for (std::size_t t = 0, some = 0, left = (count + tokens - 1) / tokens; left != 0; t += some, --left) {
          some = (count - t + left - 1) / left;
          const std::uint8_t* token[tokens] = {};
          for (std::size_t c = 0; c < some; ++c) token[c] = x[t + c] + begin * dot::x_bytes;
          const auto run = taken == strips                              ? function<strips>(some)
                           : taken == few_strips && count <= few_tokens ? function<few_strips, few_tokens>(some)
                                                                        : function<std::min(strips, in_panel)>(some);
          run(strip, token, part, code_sum + t, begin != 0, out + t * stride + s * lanes, stride);
        }
        s += taken;
      }
    }
  }
};

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/ops/matmul/int8_kernel.hpp
// The inner loop of int8 products with weights in rows: exact int32 sums of int8 codes, vectors along k.
//
// x86's dot product multiplies unsigned by signed bytes: there weights are read as q + 128 (their sign bit flipped), and
// the surplus, 128 · Σ_k x, is taken off at the end (modulo 2^32, so it never matters that partial sums wrap). Where the
// dot product is missing, codes are widened and multiplied as 16-bit integers.

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

MOTE_BEGIN_NAMESPACE

namespace detail {

// An accumulator of int32 lanes, how many codes one step takes and what is added to weights: by instruction set.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
struct int8_lanes {
  static constexpr std::size_t step = 64, tile_rows = 4, tile_tokens = 6;
  static constexpr std::int32_t offset = 128;
  using accumulator = __m512i;
  static accumulator zero() { return _mm512_setzero_si512(); }
  static accumulator dot(accumulator a, const std::int8_t* x, const std::int8_t* w) {
    const __m512i ws = _mm512_xor_si512(_mm512_loadu_si512(w), _mm512_set1_epi8(-128));
    return _mm512_dpbusd_epi32(a, ws, _mm512_loadu_si512(x));
  }
  static std::int32_t sum(accumulator a) { return _mm512_reduce_add_epi32(a); }
};
#elif defined(__AVX2__)
struct int8_lanes {
  static constexpr std::size_t step = 32, tile_rows = 2, tile_tokens = 4;
  using accumulator = __m256i;
  static accumulator zero() { return _mm256_setzero_si256(); }
#if defined(__AVXVNNI__)
  static constexpr std::int32_t offset = 128;
  static accumulator dot(accumulator a, const std::int8_t* x, const std::int8_t* w) {
    const __m256i xs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    const __m256i ws = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
    return _mm256_dpbusd_avx_epi32(a, _mm256_xor_si256(ws, _mm256_set1_epi8(-128)), xs);
  }
#else
  static constexpr std::int32_t offset = 0;
  // |w| ≤ 127 by x with w's sign: 2 · 127 · 127 fits 16 bits.
  static accumulator dot(accumulator a, const std::int8_t* x, const std::int8_t* w) {
    const __m256i xs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    const __m256i ws = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(ws), _mm256_sign_epi8(xs, ws));
    return _mm256_add_epi32(a, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
#endif
  static std::int32_t sum(accumulator a) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1));
    return _mm_cvtsi128_si32(s);
  }
};
#elif defined(__SSE2__)
struct int8_lanes {
  static constexpr std::size_t step = 16, tile_rows = 2, tile_tokens = 4;
  static constexpr std::int32_t offset = 0;
  using accumulator = __m128i;
  static accumulator zero() { return _mm_setzero_si128(); }
  static accumulator dot(accumulator a, const std::int8_t* x, const std::int8_t* w) {
    const __m128i xs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x)), none = _mm_setzero_si128();
    const __m128i ws = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w));
    const __m128i sign = _mm_cmpgt_epi8(none, ws), sign_x = _mm_cmpgt_epi8(none, xs);
    const __m128i low = _mm_madd_epi16(_mm_unpacklo_epi8(xs, sign_x), _mm_unpacklo_epi8(ws, sign));
    const __m128i high = _mm_madd_epi16(_mm_unpackhi_epi8(xs, sign_x), _mm_unpackhi_epi8(ws, sign));
    return _mm_add_epi32(a, _mm_add_epi32(low, high));
  }
  static std::int32_t sum(accumulator a) {
    a = _mm_add_epi32(a, _mm_shuffle_epi32(a, 0x4E));
    a = _mm_add_epi32(a, _mm_shuffle_epi32(a, 0xB1));
    return _mm_cvtsi128_si32(a);
  }
};
#elif defined(__ARM_NEON)
struct int8_lanes {
  static constexpr std::size_t step = 16, tile_rows = 4, tile_tokens = 4;
  static constexpr std::int32_t offset = 0;
  using accumulator = int32x4_t;
  static accumulator zero() { return vdupq_n_s32(0); }
  static accumulator dot(accumulator a, const std::int8_t* x, const std::int8_t* w) {
    const int8x16_t ws = vld1q_s8(w), xs = vld1q_s8(x);
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(a, xs, ws);
#else
    a = vpadalq_s16(a, vmull_s8(vget_low_s8(xs), vget_low_s8(ws)));
    return vpadalq_s16(a, vmull_s8(vget_high_s8(xs), vget_high_s8(ws)));
#endif
  }
  static std::int32_t sum(accumulator a) { return vaddvq_s32(a); }
};
#else
struct int8_lanes {
  static constexpr std::size_t step = 1, tile_rows = 1, tile_tokens = 1;
  static constexpr std::int32_t offset = 0;
  using accumulator = std::int32_t;
  static accumulator zero() { return 0; }
  static accumulator dot(accumulator a, const std::int8_t* x, const std::int8_t* w) { return a + *x * *w; }
  static std::int32_t sum(accumulator a) { return a; }
};
#endif

// One row of activations to codes round(x / s), s = amax / 127, as quantize_int8_row does. Returns s; `sum` receives the
// codes' sum.
template <class Arch>
float quantize_activations(const float* x, std::size_t n, std::int8_t* codes, std::int32_t& sum) noexcept {
  using dot = int8_dot<Arch>;
  using vector = batch<float, Arch>;
  constexpr std::size_t at_once = 4, step = at_once * vector::size;
  const std::size_t steps = n / step * step;
  const auto larger = [](const vector& values, const vector& most) __attribute__((always_inline)) {
    const vector magnitude = xsimd::abs(values);
    return xsimd::select(magnitude > most, magnitude, most);  // not max, which may keep a NaN: that is found below
  };
  vector largest[at_once];  // so that no maximum waits for the one before
  for (auto& l : largest) l = vector(0.0f);
  for (std::size_t i = 0; i < steps; i += step) {
    unroll<at_once>([&](std::size_t v) __attribute__((always_inline)) {
      largest[v] = larger(vector::load_unaligned(x + i + v * vector::size), largest[v]);
    });
  }
  for_each_vector<Arch>(n - steps,
                        [&](std::size_t i, auto load, auto) { largest[0] = larger(load(x + steps + i), largest[0]); });
  float lanes[at_once * vector::size], amax = 0.0f;
  for (std::size_t v = 0; v < at_once; ++v) largest[v].store_unaligned(lanes + v * vector::size);
  for (const float lane : lanes) amax = lane > amax ? lane : amax;
  const float scale = amax / 127.0f > 0.0f ? amax / 127.0f : 1.0f;
  // A product with the inverse has the quotient's code, unless it ends within 127 · 3 · 2^-24 < 3e-5 of a tie (three
  // roundings) or is NaN; the inverse may be infinite or subnormal. Divisions are scalar: xsimd only approximates a
  // vector's for NEON.
  const vector inverse(1.0f / scale);
  const bool divides = !(scale > 0x1p-100f && scale < 0x1p100f);
  bool finite = std::isfinite(amax);
  const auto divided = [&](const vector& values) {
    float quotients[vector::size];
    values.store_unaligned(quotients);
    for (float& q : quotients) {
      q /= scale;
      finite = finite && !std::isnan(q);
      q = std::min(std::max(-127.0f, q), 127.0f);
    }
    return vector::load_unaligned(quotients);
  };
  const auto is_sure = [](const vector& q) {
    return xsimd::abs(q - xsimd::to_float(xsimd::nearbyint_as_int(q))) <= vector(0.49997f);
  };
  for (std::size_t i = 0; i < steps; i += step) {
    vector q[at_once];
    unroll<at_once>([&](std::size_t v) __attribute__((always_inline)) {
      q[v] = vector::load_unaligned(x + i + v * vector::size) * inverse;
    });
    if (divides || !xsimd::all(is_sure(q[0]) & is_sure(q[1]) & is_sure(q[2]) & is_sure(q[3]))) {
      for (std::size_t v = 0; v < at_once; ++v) q[v] = divided(vector::load_unaligned(x + i + v * vector::size));
    }
    unroll<at_once>([&](std::size_t v)
                        __attribute__((always_inline)) { dot::store_codes(codes + i + v * vector::size, q[v]); });
  }
  for (std::size_t i = steps; i < n; i += vector::size) {
    const std::size_t some = std::min(vector::size, n - i);
    std::int8_t last[vector::size];
    dot::store_codes(last, divided(load_tail<Arch>(x + i, some)));
    std::copy_n(last, some, codes + i);
  }
  sum = 0;
  if (!finite) {
    std::fill_n(codes, n, std::int8_t{0});
    return std::numeric_limits<float>::quiet_NaN();
  }
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) sum += sum_of_codes(codes + i);
  for (; i < n; ++i) sum += codes[i];
  return scale;
}

// R weight rows by C tokens over k codes: out[r + c · out_stride] = Σ_k x (w + offset), modulo 2^32.
template <std::size_t R, std::size_t C>
void dot_tile_int8(const std::int8_t* const* w, const std::int8_t* const* x, std::size_t k, std::int32_t* out,
                   std::size_t out_stride) noexcept {
  int8_lanes::accumulator acc[R][C];
  for (auto& row : acc) {
    for (auto& a : row) a = int8_lanes::zero();
  }
  const std::size_t whole = k / int8_lanes::step * int8_lanes::step;
  for (std::size_t i = 0; i < whole; i += int8_lanes::step) {
    for (std::size_t c = 0; c < C; ++c) {
      for (std::size_t r = 0; r < R; ++r) acc[r][c] = int8_lanes::dot(acc[r][c], x[c] + i, w[r] + i);
    }
  }
  for (std::size_t r = 0; r < R; ++r) {
    for (std::size_t c = 0; c < C; ++c) {
      auto total = static_cast<std::uint32_t>(int8_lanes::sum(acc[r][c]));
      for (std::size_t i = whole; i < k; ++i) {
        total += static_cast<std::uint32_t>(x[c][i] * (w[r][i] + int8_lanes::offset));
      }
      out[r + c * out_stride] = static_cast<std::int32_t>(total);
    }
  }
}

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/ops/matmul/tile_sum_kernel.hpp
// Products of packed bf16 by vectors with the bits that matrix tiles give (core/amx.hpp): for a few tokens, where memory is
// what is waited for, vectors ask more of it than tiles do (Sapphire Rapids, one and four tokens: 1.3 times as fast).
//
// Of each 32 elements of k, a tile sums the products of the even ones and of the odd ones, and adds both sums to what it
// has:
//
//   even = Σ w_2i x_2i,    odd = Σ w_2i+1 x_2i+1,    total += even + odd
//
// in float32, in this order, each product exact; what is subnormal is zero to it.

MOTE_BEGIN_NAMESPACE

namespace detail {

template <class Arch>
struct tile_sum_kernel {
  using floats = batch<float, Arch>;
  using pairs = batch<std::uint32_t, Arch>;
  using layout = packed_layout<bf16>;

  static constexpr std::size_t tokens = 4, lanes = floats::size, strips = 2;
  static constexpr std::size_t look_ahead = 1024;  // bytes from what is multiplied to what is asked of memory

  // As element_kernel::product, without surplus, for at most `tokens` tokens. Two panels side by side: memory gives more to
  // two streams than to one.
  static void product(const packed_matrix<bf16>& w, std::size_t first, std::size_t panels, const std::uint8_t* const* x,
                      std::size_t count, float* out, std::size_t stride) noexcept {
    const std::size_t quads = layout::quads(w.in_features());
    for (std::size_t i = 0; i < panels; i += 2) {
      const std::size_t abreast = std::min<std::size_t>(2, panels - i);
      for (std::size_t c = 0; c < count; ++c)
        std::fill_n(out + c * stride + i * packed_rows, abreast * packed_rows, 0.0f);
      for (std::size_t begin = 0; begin < quads; begin += tile_height) {
        const std::size_t some = std::min(tile_height, quads - begin);
        for (std::size_t p = i; p < i + abreast; ++p) {
          const std::uint8_t* const from = w.panel(first + p) + begin * layout::quad_bytes;
          for (std::size_t n = 0; n < packed_rows; n += strips * lanes) {
            step_of(count)(from + n * 4, some, x, begin * 4, out + p * packed_rows + n, stride);
          }
        }
      }
    }
  }

 private:
  // The `quads` pairs of k that a tile takes at once, of `strips` vectors of rows and C tokens: adds to out[row + c · stride].
  template <std::size_t C>
  static void step(const std::uint8_t* w, std::size_t quads, const std::uint8_t* const* x, std::size_t from, float* out,
                   std::size_t stride) noexcept {
    floats sum[2][strips][C];
    const std::uint8_t* token[C];
    unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
      token[c] = x[c] + from;
      unroll<strips>([&](std::size_t r) __attribute__((always_inline)) { sum[0][r][c] = sum[1][r][c] = floats(0.0f); });
    });
    for (std::size_t q = 0; q < quads; ++q, w += layout::quad_bytes) {
      pairs both[strips];
      unroll<strips>([&](std::size_t r) __attribute__((always_inline)) {
        both[r] = pairs::load_unaligned(reinterpret_cast<const std::uint32_t*>(w) + r * lanes);
        if (r * lanes * 4 % 64 == 0) __builtin_prefetch(w + look_ahead + r * lanes * 4, 0, 3);
      });
      unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
        std::uint32_t pair;
        std::memcpy(&pair, token[c] + q * 4, sizeof pair);
        const floats x_even = first_bf16(pairs(pair)), x_odd = second_bf16(pairs(pair));
        unroll<strips>([&](std::size_t r) __attribute__((always_inline)) {
          sum[0][r][c] = fused_multiply_add(first_bf16(both[r]), x_even, sum[0][r][c]);
          sum[1][r][c] = fused_multiply_add(second_bf16(both[r]), x_odd, sum[1][r][c]);
        });
      });
    }
    unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
      unroll<strips>([&](std::size_t r) __attribute__((always_inline)) {
        float* const to = out + c * stride + r * lanes;
        (floats::load_unaligned(to) + (sum[0][r][c] + sum[1][r][c])).store_unaligned(to);
      });
    });
  }
  static auto step_of(std::size_t count) {
    constexpr auto steps = []<std::size_t... I>(std::index_sequence<I...>) {
      return std::array{&tile_sum_kernel::template step<I + 1>...};
    }
    (std::make_index_sequence<tokens>{});
    return steps[count - 1];
  }
};

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/ops/matmul/activations.hpp
MOTE_BEGIN_NAMESPACE

namespace detail {

// Whether packed bf16 is multiplied as such, not as float32.
template <class Arch>
inline constexpr bool bf16_products = element_dot<Arch, bf16>::dot_products;

// Whether matrix tiles multiply packed matrices; whether they do those of this form.
template <class Arch>
inline constexpr bool uses_tiles = has_tiles_beside<Arch>&& bf16_products<Arch>;
template <class Arch, class Matrix>
inline constexpr bool multiplied_by_tiles = false;
template <class Arch, class T>
inline constexpr bool multiplied_by_tiles<Arch, packed_matrix<T>> = uses_tiles<Arch>;

// Tokens from which on they do: tiles take as long for a few of their rows as for all.
template <class Arch, class Matrix>
inline constexpr std::size_t tile_tokens_min = tile_height / 2;
template <class Arch>
inline constexpr std::size_t tile_tokens_min<Arch, packed_matrix<bf16>> = tile_sum_kernel<Arch>::tokens + 1;

// Whole blocks of quantize_activation_blocks by vectors, so many at once that none waits for the one before, nor reads codes
// that were only just written; the same bits where d is finite.
inline constexpr std::size_t blocks_at_once = 16;

template <class Arch>
void quantize_whole_blocks(const float* x, std::size_t count, activation_block* blocks) noexcept {
  using dot = int8_dot<Arch>;
  using floats = typename dot::floats;
  using ints = batch<std::int32_t, Arch>;
  constexpr std::size_t lanes = floats::size, size = activation_block::size;
  float inverse[blocks_at_once];
  for (std::size_t b = 0; b < count; ++b) {
    ints magnitudes(0);
    for (std::size_t i = 0; i < size; i += lanes) {
      const floats values = floats::load_unaligned(x + b * size + i);
      magnitudes = xsimd::max(magnitudes, bits_as<std::int32_t>(xsimd::abs(values)));
    }
    typename dot::ints all;
    static_assert(sizeof all == sizeof magnitudes);
    std::memcpy(&all, &magnitudes, sizeof all);
    inverse[b] = blocks[b].set_scale(dot::largest(all));
  }
  for (std::size_t b = 0; b < count; ++b) {
    for (std::size_t i = 0; i < size; i += lanes) {
      dot::store_codes(blocks[b].q + i, floats::load_unaligned(x + b * size + i) * floats(inverse[b]));
    }
  }
  for (std::size_t b = 0; b < count; ++b) {
    blocks[b].set_sums(sum_of_codes(blocks[b].q), sum_of_codes(blocks[b].q + size / 2));
  }
}

template <class Arch>
void quantize_blocks(const float* x, std::size_t n, activation_block* blocks) noexcept {
  constexpr std::size_t size = activation_block::size;
  const std::size_t whole = n / size, rest = n % size;
  for (std::size_t b = 0; b < whole; b += blocks_at_once) {
    quantize_whole_blocks<Arch>(x + b * size, std::min(blocks_at_once, whole - b), blocks + b);
  }
  if (rest == 0) return;
  float padded[size] = {};
  std::copy_n(x + whole * size, rest, padded);
  quantize_whole_blocks<Arch>(padded, 1, blocks + whole);
}

// A row of activations, in the forms that the weights at hand multiply: float32, int8 codes with one scale, bf16 or
// rounded to it, int8 blocks.
struct activation {
  const float* values = nullptr;
  const std::int8_t* codes = nullptr;
  std::int32_t code_sum = 0;
  float scale = 1.0f;
  const bf16* halves = nullptr;
  const float* rounded = nullptr;
  const activation_block* blocks = nullptr;
  const activation_tile* tile = nullptr;  // in which this row is one of sixteen, where tiles may multiply them
};

// The forms of activations that matrices read.
struct activation_forms {
  bool codes = false, halves = false, blocks = false;
  bool tiles = false;  // whether matrix tiles may read them

  friend activation_forms operator|(const activation_forms& a, const activation_forms& b) {
    return {a.codes || b.codes, a.halves || b.halves, a.blocks || b.blocks, a.tiles || b.tiles};
  }
};

template <class Matrix>
inline constexpr activation_forms forms_of{};
template <>
inline constexpr activation_forms forms_of<int8_matrix>{.codes = true};
template <>
inline constexpr activation_forms forms_of<packed_matrix<std::int8_t>>{.codes = true, .tiles = true};
template <>
inline constexpr activation_forms forms_of<packed_matrix<bf16>>{.halves = true, .tiles = true};
template <integer_format F>
inline constexpr activation_forms forms_of<view<const F, 2>>{.blocks = true};
template <integer_format F>
inline constexpr activation_forms forms_of<packed_matrix<F>>{.blocks = true, .tiles = true};

template <class Matrix>
activation_forms forms(const Matrix&) {
  return forms_of<Matrix>;
}
template <std::same_as<weight> W>
activation_forms forms(const W& w) {
  return std::visit([](const auto& m) { return forms_of<std::remove_cvref_t<decltype(m)>>; }, w);
}

// Rows i < count of n values at row(i) in the wanted forms, made once for all the units that read them; they live in
// `scope`, codes, halves and rounded padded with zeros to whole quads.
template <class Arch, class Backend, class Scope, class Row>
view<activation, 1> prepare_rows(Backend& be, Scope& scope, const activation_forms& wanted, std::size_t count,
                                 std::size_t n, Row&& row) {
  const std::size_t blocks_each = activation_block::count(n), padded = (n + 3) / 4 * 4;
  const auto rows = scope.template tensor<activation>(count);
  const auto codes = scope.template tensor<std::int8_t>(wanted.codes ? count : 0, padded);
  const auto halves = scope.template tensor<bf16>(wanted.halves && bf16_products<Arch> ? count : 0, padded);
  const auto rounded = scope.template tensor<float>(wanted.halves && !bf16_products<Arch> ? count : 0, padded);
  const auto blocks = scope.template tensor<activation_block>(wanted.blocks ? count : 0, blocks_each);
  const bool converts = wanted.codes || wanted.halves || wanted.blocks;
  be.parallel_for(count, converts ? 1 + 4096 / (n + 1) : 4096, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      activation x{.values = row(i)};
      if (wanted.codes) {
        x.scale = quantize_activations<Arch>(x.values, n, codes.row(i), x.code_sum);
        std::fill(codes.row(i) + n, codes.row(i) + padded, std::int8_t{0});
        x.codes = codes.row(i);
      }
      if (wanted.halves && bf16_products<Arch>) {
        std::transform(x.values, x.values + n, halves.row(i), [](float v) { return bf16(v); });
        std::fill(halves.row(i) + n, halves.row(i) + padded, bf16(0.0f));
        x.halves = halves.row(i);
      } else if (wanted.halves) {
        std::transform(x.values, x.values + n, rounded.row(i), [](float v) { return static_cast<float>(bf16(v)); });
        std::fill(rounded.row(i) + n, rounded.row(i) + padded, 0.0f);
        x.rounded = rounded.row(i);
      }
      if (wanted.blocks) {
        quantize_blocks<Arch>(x.values, n, blocks.row(i));
        x.blocks = blocks.row(i);
      }
      rows(i) = x;
    }
  });
  return rows;
}

// Lays rows of n values out for matrix tiles, in all wanted forms, where the machine has tiles: run r, the rows [first(r),
// first(r + 1)), are those that are multiplied together, sixteen at a time.
template <class Arch, class Backend, class Scope, class First>
void lay_out_tiles([[maybe_unused]] Backend& be, [[maybe_unused]] Scope& scope,
                   [[maybe_unused]] const activation_forms& wanted, [[maybe_unused]] std::size_t n,
                   [[maybe_unused]] const view<activation, 1>& rows, [[maybe_unused]] std::size_t runs,
                   [[maybe_unused]] First&& first) {
  if constexpr (uses_tiles<Arch>) {
    const std::size_t least =
        wanted.halves ? tile_tokens_min<Arch, packed_matrix<bf16>> : tile_tokens_min<Arch, packed_matrix<std::int8_t>>;
    std::size_t longest = 0;
    for (std::size_t r = 0; r < runs; ++r) longest = std::max(longest, first(r + 1) - first(r));
    if (!wanted.tiles || longest < least || !amx_tiles::available()) return;
    // Run r's first tile: no two runs of `least` rows share one.
    const auto first_tile = [&](std::size_t r) { return first(r) / tile_height + std::min(r, first(r) / least); };
    const std::size_t tiles = first_tile(runs), blocks_each = activation_block::count(n);
    const std::size_t codes_each = tiled_size(n), halves_each = tiled_size(n * sizeof(bf16));
    const auto tile = scope.template tensor<activation_tile>(tiles);
    const auto codes = scope.template tensor<std::uint8_t>(wanted.codes ? tiles : 0, codes_each);
    const auto halves = scope.template tensor<std::uint8_t>(wanted.halves ? tiles : 0, halves_each);
    const auto blocks = scope.template tensor<tiled_blocks>(wanted.blocks ? tiles : 0, blocks_each);
    be.parallel_for(tiles, 1 + 256 / (n + 1), [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        // The last run that begins at this tile or before.
        std::size_t r = 0;
        for (std::size_t more = runs; more > 1;) {
          const std::size_t half = more / 2;
          if (first_tile(r + half) <= i) r += half;
          more -= half;
        }
        const std::size_t row = first(r) + (i - first_tile(r)) * tile_height, last = first(r + 1);
        if (row >= last || last - first(r) < least) continue;
        const std::size_t some = std::min(tile_height, last - row);
        tile(i) = {wanted.codes ? codes.row(i) : nullptr, wanted.halves ? halves.row(i) : nullptr,
                   wanted.blocks ? blocks.row(i) : nullptr};
        if (wanted.blocks && some < tile_height) std::fill_n(blocks.row(i), blocks_each, tiled_blocks{});
        for (std::size_t c = 0; c < some; ++c) {
          activation& x = rows(row + c);
          if (wanted.codes) put_in_tiles(x.codes, n, c, codes.row(i));
          if (wanted.halves) put_in_tiles(x.halves, n * sizeof(bf16), c, halves.row(i));
          x.tile = &tile(i);
        }
        for (std::size_t b = 0; b < blocks_each && wanted.blocks; ++b) {
          for (std::size_t c = 0; c < some; ++c) blocks.row(i)[b].put(rows(row + c).blocks[b], c);
        }
      }
    });
  }
}

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/ops/matmul/block_kernel.hpp
// Products of block formats: a tile of R strips of a packed panel (quant/packed.hpp), or of two side by side, by C tokens,
// output rows in the lanes, so that nothing is summed across lanes.
//
// Activations are quantized to int8 in blocks of 32, once for all matrices that read them. For each group of weights
//
//   total += scale · d_x · Σ q q_x - min · d_x · Σ q_x,     the sums exact in int32
//
// in the order of k whatever the tile's shape: a token's result has the same bits alone and in a batch.

MOTE_BEGIN_NAMESPACE

namespace detail {

constexpr int log2_of(int power) {
  int exponent = 0;
  while (1 << exponent < power) ++exponent;
  return exponent;
}

// Whether a table of codes of F's width holds the codes.
template <integer_format F>
constexpr bool stand_for_themselves(const std::array<std::int8_t, 16>& values) {
  for (std::size_t i = 0; i < (std::size_t{1} << F::code_bits); ++i) {
    if (values[i] != static_cast<int>(i)) return false;
  }
  return true;
}

template <class Arch, integer_format F>
struct block_kernel {
  using dot = int8_dot<Arch>;
  using layout = packed_layout<F>;
  using ints = typename dot::ints;
  using floats = typename dot::floats;
  using operand = typename dot::operand;

  // Many passes over the same blocks share what they ask for, the blocks that follow: else the first would wait for memory
  // and the others leave it idle. A pass asks for every `passes`th line.
  struct shared_fetch {
    std::size_t pass = 0, passes;
    bool asks = false;  // whether a pass that shares nothing asks for any
  };
  static constexpr std::size_t most_passes_alone = 2, group_lines = (layout::group_bytes + 63) / 64;
  // Codes are multiplied as q + offset: those of at most four bits are made so as they are split, wider ones are stored so, or
  // signed and flipped where only unsigned weights are multiplied.
  static constexpr int stored_offset =
      code_offset<F>(layout::nibbles && dot::unsigned_limit > 0 ? dot::unsigned_limit : packing_of<Arch>.largest_code);
  static constexpr bool flipped =
      !layout::nibbles && has_negative_codes<F>(stored_offset) && dot::unsigned_limit == 255;
  static constexpr int offset = flipped ? 128 : stored_offset;
  static constexpr bool unsigned_codes = !has_negative_codes<F>(offset) && dot::unsigned_limit > 0;

  // What stored codes of at most four bits stand for, or nothing where they stand for themselves.
  static constexpr std::array<std::int8_t, 16> table = [] {
    std::array<std::int8_t, 16> values{};
    if constexpr (layout::nibbles) {
      for (std::size_t i = 0; i < 16; ++i) values[i] = static_cast<std::int8_t>(F::code_values[i] + offset);
    }
    return values;
  }();
  static constexpr bool looked_up = layout::nibbles && !stand_for_themselves<F>(table);

  // Quads of k whose products sum within 16 bits, where there are such sums; else 1. Activations' codes are -128 at the least.
  static constexpr std::size_t narrow_quads = [] {
    if constexpr (unsigned_codes && requires(operand w) { dot::narrow_dot(w, w); }) {
      int largest = (1 << F::code_bits) - 1;
      if constexpr (layout::nibbles) largest = *std::max_element(table.begin(), table.end());
      std::size_t quads = F::group_size / 4;
      while (quads > 1 && static_cast<int>(quads) * 2 * 128 * largest > 32767) quads /= 2;
      return quads;
    } else {
      return std::size_t{1};
    }
  }();

  static constexpr std::size_t tokens = many_registers<Arch> ? 6 : 4, few_tokens = 2;
  // Few tokens take all rows of a panel at once, so that they are read from front to back.
  static constexpr std::size_t strips(std::size_t token_count) {
    return token_count <= few_tokens ? std::min(std::size_t{4}, packed_rows / dot::lanes) : 2;
  }

  // So many tokens take two panels side by side on processors with AMX, where the sums find room in registers and memory gives
  // more to two streams than to one (Sapphire Rapids: 15 GB/s from one, 19 from two, as from four). Zen 4 gives less: 33 and 26.
  static constexpr std::size_t pair_tokens = has_tiles_beside<Arch> ? 4 : 0;

  // Whether so many tokens are multiplied faster than memory is read: wide codes, which need no splitting.
  static constexpr bool outruns_memory(std::size_t token_count) {
    return dot::lanes == 16 && !layout::nibbles && token_count <= 4;
  }
  // Bytes from what is multiplied to what is asked of memory. A busy processor drops some of what is asked of it, so that all is
  // asked for several times, and more often where products are faster. Zen 4, GB/s of 37: Q4_0, one and two tokens, once 26 and
  // 27, twice 30 and 32, thrice 35 and 36, with AVX2 once 26 and 21, thrice 34 and 30. Q8_0, one to four tokens: thrice 30, 29,
  // 28, 30; four times 32, 32, 34, 34; five times 35, 34, 33, 31; with AVX2, one token, thrice 31, four times 33. Distances of
  // whole pages are slower. Panels side by side, Sapphire Rapids, Q4_0: with 1 KiB 18 GB/s, with 2.5 KiB 20, with 4 KiB 18.
  template <std::size_t C, std::size_t P>
  static constexpr auto look_ahead() {
    if constexpr (P > 1) {
      return std::array<std::size_t, 1>{2560};
    } else if constexpr (outruns_memory(C) && C <= few_tokens) {
      return std::array<std::size_t, 5>{22016, 17664, 13312, 9216, 4352};
    } else if constexpr (outruns_memory(C) || (!layout::nibbles && C == 1)) {
      return std::array<std::size_t, 4>{17664, 13312, 9216, 4352};
    } else {
      return std::array<std::size_t, 3>{13312, 9216, 4352};
    }
  }

  static operand values(operand codes) {
    if constexpr (looked_up) {
      return dot::lookup(table, codes);
    } else {
      return codes;
    }
  }
  static ints multiply(ints acc, operand w, operand x) {
    if constexpr (unsigned_codes) {
      return dot::dot_unsigned(acc, w, x);
    } else {
      return dot::dot_signed(acc, w, x);
    }
  }

  // Of a block's rows from `row` on; then of a group's, which are those times the group's own in formats of two levels.
  [[gnu::always_inline]] static floats super_scales(const std::uint8_t* block, std::size_t row) {
    return widen<Arch>(reinterpret_cast<const f16*>(block) + row);
  }
  [[gnu::always_inline]] static floats super_mins(const std::uint8_t* block, std::size_t row) {
    return super_scales(block, packed_rows + row);
  }
  [[gnu::always_inline]] static floats scales(const std::uint8_t* group, std::size_t row,
                                              [[maybe_unused]] const floats& super) {
    using type = std::conditional_t<layout::two_level, std::int8_t, typename F::scale_type>;
    floats scale = widen<Arch>(reinterpret_cast<const type*>(group + layout::scales) + row);
    if constexpr (layout::two_level) scale = scale * super;
    if constexpr (requires { F::unit; }) scale = scale * floats(F::unit);
    return scale;
  }
  [[gnu::always_inline]] static floats mins(const std::uint8_t* group, std::size_t row,
                                            [[maybe_unused]] const floats& super) {
    if constexpr (layout::two_level) {
      return widen<Arch>(reinterpret_cast<const std::int8_t*>(group + layout::mins) + row) * super;
    } else {
      return floats::load_unaligned(reinterpret_cast<const float*>(group + layout::mins) + row);
    }
  }

  // `strip` [R] of each of P panels, their blocks [0, blocks), against tokens x[C]: adds to out[row + c · stride], which
  // starts as zeros unless there were blocks before these (`resume`).
  template <std::size_t C, std::size_t P = 1, bool Shared = false>
  static void tile(const std::uint8_t* const* panel, std::size_t strip, std::size_t blocks,
                   const activation_block* const* x, bool resume, [[maybe_unused]] shared_fetch fetch, float* out,
                   std::size_t stride) noexcept {
    constexpr std::size_t R = strips(C), lanes = dot::lanes, strip_bytes = lanes * layout::row_codes,
                          row_quads = layout::row_codes / 4;
    // Strips that are multiplied side by side; where memory is outrun, one after the other, so that a group is read in the
    // order of memory.
    constexpr std::size_t together = outruns_memory(C) && P == 1 ? 1 : R;
    static constexpr auto distances = look_ahead<C, P>();
    // Into the second-level cache only, but for panels side by side: activations keep the first busy.
    const auto ask_for = [](const std::uint8_t* line) __attribute__((always_inline)) {
      unroll<distances.size()>([&](std::size_t i) __attribute__((always_inline)) {
        __builtin_prefetch(line + distances[i], 0, P > 1 ? 3 : 2);
      });
    };
    floats total[P][R][C];
    const activation_block* token[C];
    float* const to = out + strip * lanes;
    const auto each_total = [&](auto&& f) __attribute__((always_inline)) {
      unroll<P * R>([&](std::size_t i) __attribute__((always_inline)) {
        unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
          f(total[i / R][i % R][c], to + c * stride + i / R * packed_rows + i % R * lanes);
        });
      });
    };
    each_total([&](floats & sum, const float* from)
                   __attribute__((always_inline)) { sum = resume ? floats::load_unaligned(from) : floats(0.0f); });
    unroll<C>([&](std::size_t c) __attribute__((always_inline)) { token[c] = x[c]; });
    const std::uint8_t* next[P];
    unroll<P>([&](std::size_t i) __attribute__((always_inline)) { next[i] = panel[i]; });
    [[maybe_unused]] const std::size_t panel_bytes = blocks * layout::block_bytes + layout::tensor_scale_bytes;
    // Panels side by side are followed by the panels behind both.
    const auto skipped = [&]() __attribute__((always_inline)) {
      return P > 1 && next[0] + distances[0] >= panel[0] + panel_bytes ? (P - 1) * panel_bytes : 0;
    };
    std::size_t half = 0;
    for (std::size_t b = 0; b < blocks; ++b) {
      [[maybe_unused]] floats super_scale[P][R], super_min[P][R];
      unroll<P>([&](std::size_t i) __attribute__((always_inline)) {
        for (std::size_t l = 0; l < layout::super_bytes; l += 64) {
          if constexpr (Shared) {
            if (fetch.pass == 0) __builtin_prefetch(next[i] + blocks * layout::block_bytes + l, 0, 2);
          } else if (fetch.asks) {
            ask_for(next[i] + skipped() + l);
          }
        }
        if constexpr (layout::two_level) {
          unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
            super_scale[i][r] = super_scales(next[i], (strip + r) * lanes);
            if constexpr (layout::has_min) super_min[i][r] = super_mins(next[i], (strip + r) * lanes);
          });
        }
        next[i] += layout::super_bytes;
      });
      const std::uint8_t* ahead[P];  // what is asked of memory lies behind these
      const auto add_group = [&](std::size_t which) __attribute__((always_inline)) {
        const std::uint8_t* const p = next[which];
        if constexpr (Shared) {
          for (std::size_t i = fetch.pass; i < group_lines; i += fetch.passes) {
            __builtin_prefetch(p + blocks * layout::block_bytes + i * 64, 0, 2);
          }
        }
        ints acc[R][C];
        [[maybe_unused]] ints narrow[R][C];
        unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
          ints start = dot::splat(0);
          if constexpr (offset > 0) {
            start =
                dot::template shift_left<log2_of(offset)>(dot::splat(token[c]->template minus<F::group_size>(half)));
          }
          unroll<R>([&](std::size_t r) __attribute__((always_inline)) { acc[r][c] = start; });
        });
        const std::uint8_t* codes = p + strip * strip_bytes;
        const auto multiply_quad = [&](const operand(&w)[together], std::size_t first, std::size_t quad)
            __attribute__((always_inline)) {
          unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
            const operand four = dot::splat_codes(token[c]->q + half * 16 + quad * 4);
            unroll<together>([&](std::size_t i) __attribute__((always_inline)) {
              const std::size_t r = first + i;
              if constexpr (narrow_quads == 1) {
                acc[r][c] = multiply(acc[r][c], w[i], four);
              } else {
                const bool begins = quad % narrow_quads == 0, ends = (quad + 1) % narrow_quads == 0;
                narrow[r][c] = begins ? dot::narrow_dot(w[i], four) : dot::narrow_dot(narrow[r][c], w[i], four);
                if (ends) acc[r][c] = dot::widen(acc[r][c], narrow[r][c]);
              }
            });
          });
        };
        unroll<R / together * row_quads>([&](std::size_t turn) __attribute__((always_inline)) {
          const std::size_t first = turn / row_quads * together, i = turn % row_quads;
          if constexpr (!Shared) {
            // Evenly: 1.05 times as fast as at each group's begin.
            constexpr std::size_t turns = P * R / together * row_quads;
            const std::size_t now = which * row_quads + turn;
            for (std::size_t l = now * group_lines / turns; fetch.asks && l < (now + 1) * group_lines / turns; ++l) {
              for (std::size_t j = 0; j < P; ++j) ask_for(ahead[j] + l * 64);
            }
          }
          operand stored[together], w[together];
          unroll<together>([&](std::size_t r) __attribute__((always_inline)) {
            stored[r] = dot::load(codes + (first + r) * strip_bytes + i * lanes * 4);
            if constexpr (layout::nibbles) {
              w[r] = values(dot::low_nibbles(stored[r]));
            } else if constexpr (flipped) {
              w[r] = dot::flip_signs(stored[r]);
            } else {
              w[r] = stored[r];
            }
          });
          multiply_quad(w, first, layout::nibbles ? 2 * i : i);
          if constexpr (layout::nibbles) {
            unroll<together>([&](std::size_t r)
                                 __attribute__((always_inline)) { w[r] = values(dot::high_nibbles(stored[r])); });
            multiply_quad(w, first, 2 * i + 1);
          }
        });
        floats scale[R];
        [[maybe_unused]] floats min[R];
        unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
          scale[r] = scales(p, (strip + r) * lanes, super_scale[which][r]);
          if constexpr (layout::has_min) min[r] = mins(p, (strip + r) * lanes, super_min[which][r]);
        });
        unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
          const floats d(token[c]->d);
          unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
            total[which][r][c] = fused_multiply_add(dot::to_float(acc[r][c]), scale[r] * d, total[which][r][c]);
          });
          if constexpr (layout::has_min) {
            const floats minus(-token[c]->template scaled_sum<F::group_size>(half));
            unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
              total[which][r][c] = fused_multiply_add(min[r], minus, total[which][r][c]);
            });
          }
        });
      };
      for (std::size_t g = 0; g < layout::groups; ++g) {
        unroll<P>([&](std::size_t i) __attribute__((always_inline)) { ahead[i] = next[i] + skipped(); });
        unroll<P>([&](std::size_t i) __attribute__((always_inline)) {
          add_group(i);
          next[i] += layout::group_bytes;
        });
        if (F::group_size == activation_block::size || half == 1) {
          unroll<C>([&](std::size_t c) __attribute__((always_inline)) { ++token[c]; });
          half = 0;
        } else {
          half = 1;
        }
      }
    }
    each_total([](const floats& sum, float* at) __attribute__((always_inline)) { sum.store_unaligned(at); });
  }

  static auto function(std::size_t count) {
    constexpr auto tiles = []<std::size_t... I>(std::index_sequence<I...>) {
      return std::array{&block_kernel::template tile<I + 1>...};
    }
    (std::make_index_sequence<tokens>{});
    return tiles[count - 1];
  }

  // Two panels side by side, one behind the other in memory, against 1 to pair_tokens tokens: as tile(), with all rows of both.
  static void pair(const std::uint8_t* first, const std::uint8_t* second, std::size_t blocks, bool from_memory,
                   const activation_block* const* x, std::size_t count, float* out, std::size_t stride) noexcept {
    constexpr auto tiles = []<std::size_t... I>(std::index_sequence<I...>) {
      return std::array{&block_kernel::template tile<I + 1, 2>...};
    }
    (std::make_index_sequence<pair_tokens>{});
    const std::uint8_t* const panels[] = {first, second};
    tiles[count - 1](panels, 0, blocks, x, false, shared_fetch{.passes = 1, .asks = from_memory}, out, stride);
  }

  // The whole panel against `count` tokens, as tile(). Where it comes from memory, and passes are too few to share it, the first
  // tokens ask for what follows: those that come later find it in a cache, and asking takes turns from loads.
  static void panel(const std::uint8_t* bytes, std::size_t blocks, bool from_memory, const activation_block* const* x,
                    std::size_t count, bool resume, float* out, std::size_t stride) noexcept {
    shared_fetch fetch{.passes = count / tokens * (packed_rows / dot::lanes / strips(tokens))};
    for (std::size_t t = 0; t < count; t += tokens) {
      const std::size_t some = std::min(tokens, count - t);
      fetch.asks = from_memory && t == 0;
      const bool shared = some == tokens && fetch.passes > most_passes_alone;
      const auto run = shared ? &block_kernel::template tile<tokens, 1, true> : function(some);
      for (std::size_t strip = 0; strip * dot::lanes < packed_rows; strip += strips(some)) {
        run(&bytes, strip, blocks, x + t, resume, fetch, out + t * stride, stride);
        ++fetch.pass;
      }
    }
  }
};

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/ops/matmul/block_tile_kernel.hpp
// Products of block formats by matrix tiles (core/amx.hpp), with the bits of block_kernel: 16 tokens by the 32 rows of a
// panel, a group of k at a time, whose sums are exact in int32 in either kernel.
//
// A packed strip of 16 rows is the order in which tiles read signed bytes: wide codes are multiplied where they lie, those of at
// most four bits split into bytes, a piece of a panel at a time, and scales widened to float32. Tokens are laid out in tiles
// (activation_tile.hpp). While tiles multiply two or four groups, vectors scale and add up the sums of those before, some of the
// tokens after each group. Sapphire Rapids, four groups, ns: tiles 63, vectors 66, together so 129, one after the other 147;
// tiles' and vectors' instructions hardly overlap.

#include <numeric>

MOTE_BEGIN_NAMESPACE

namespace detail {

// `Elements` of k at a time, or the fewest that are whole blocks.
template <class Tiles, class Arch, integer_format F, std::size_t Elements>
class block_tile_pieces {
  using vectors = block_kernel<Arch, F>;
  using layout = packed_layout<F>;
  using floats = typename vectors::floats;
  using ints = typename vectors::ints;
  using line = int8_dot<Arch, 16>;  // sixteen rows' four codes

  static constexpr std::size_t size = F::group_size, lanes = 16, strips = packed_rows / lanes,
                               in_panel = packed_rows / floats::size;     // vectors
  static constexpr std::size_t in_block = activation_block::size / size;  // groups
  // Bytes from what is multiplied to what is asked of memory, then of the second-level cache.
  static constexpr std::size_t look_ahead = 4096, near_ahead = 2048;

 public:
  static void product(const packed_matrix<F>& w, std::size_t first, std::size_t panels, const tiled_blocks* const* x,
                      std::size_t count, float* out, std::size_t stride) noexcept {
    for (std::size_t t = 0; t < count; ++t) std::fill_n(out + t * stride, panels * packed_rows, 0.0f);
    block_tile_pieces kernel;
    const std::size_t blocks = w.in_features() / F::block_size;
    assert(w.order() == (packing{lanes, 0}) || (layout::nibbles && w.order().lanes == lanes));
    // The tokens of one tile wait for memory, which gives more to two streams than to one: two panels, piece by piece
    // (16 tokens of Q8_0: 1.08 times as fast), but for long pieces of nibbles (of Q4_K: 0.93 times).
    const std::size_t abreast = count <= tile_height && (!layout::nibbles || depth <= 128) ? 2 : 1;
    for (std::size_t i = 0; i < panels; i += abreast) {
      const std::size_t last = std::min(i + abreast, panels);
      for (std::size_t begin = 0; begin < blocks; begin += piece) {
        const std::size_t part = std::min(piece, blocks - begin);
        for (std::size_t panel = i; panel < last; ++panel) {
          kernel.multiply_piece(w.panel(first + panel) + begin * layout::block_bytes, part, x,
                                begin * F::block_size / activation_block::size, count, out + panel * packed_rows,
                                stride);
        }
      }
    }
    kernel.finish();
  }

 private:
  // Blocks that are decoded at a time, whole blocks of activations, and groups that are multiplied before they are added up.
  static constexpr std::size_t period = std::lcm(F::block_size, activation_block::size),
                               depth = std::max(period, Elements / period * period), piece = depth / F::block_size,
                               most_groups = depth / size, at_once = Elements / 32;

  struct weight_scales {
    alignas(64) float scale[most_groups][packed_rows];
    alignas(64) float min[layout::has_min ? most_groups : 1][packed_rows];
  };

  // `blocks` blocks of a panel from p on by the tokens' blocks of activations from `first` on.
  void multiply_piece(const std::uint8_t* p, std::size_t blocks, const tiled_blocks* const* x, std::size_t first,
                      std::size_t count, float* out, std::size_t stride) {
    const weight_scales& scales = decode(p, blocks);
    const std::size_t bytes = blocks * layout::block_bytes, groups = blocks * layout::groups;
    following_ = fetch(p, bytes, (count + tile_height - 1) / tile_height * groups);
    for (std::size_t t = 0; t < count; t += tile_height) {
      const auto batch = [&](std::size_t group) {
        return group_batch{.codes = codes(p, group),
                           .scale = scales.scale[group],
                           .min = scales.min[layout::has_min ? group : 0],
                           .x = x[t / tile_height] + first + group / in_block,
                           .half = group % in_block,
                           .out = out + t * stride,
                           .stride = stride,
                           .count = std::min(tile_height, count - t)};
      };
      const std::size_t whole = groups / at_once * at_once;
      for (std::size_t group = 0; group < whole; group += at_once) advance(batch(group));
      for (std::size_t group = whole; group < groups; ++group) alone(batch(group));
    }
  }

  // `blocks` blocks of a panel from p on; the scales of the piece before stay, for its last sums.
  const weight_scales& decode(const std::uint8_t* p, std::size_t blocks) {
    weight_scales& to = scales_[piece_side_ ^= 1];
    for (std::size_t b = 0, g = 0; b < blocks; ++b) {
      [[maybe_unused]] floats super_scale[in_panel], super_min[in_panel];
      for (std::size_t v = 0; v < in_panel && layout::two_level; ++v) {
        super_scale[v] = vectors::super_scales(p, v * floats::size);
        if constexpr (layout::has_min) super_min[v] = vectors::super_mins(p, v * floats::size);
      }
      p += layout::super_bytes;
      for (std::size_t last = g + layout::groups; g < last; ++g, p += layout::group_bytes) {
        if constexpr (layout::nibbles) {
          for (std::size_t strip = 0; strip < strips; ++strip) {
            split_nibbles(p + strip * lanes * layout::row_codes, codes_[g][strip]);
          }
        }
        for (std::size_t v = 0; v < in_panel; ++v) {
          const std::size_t row = v * floats::size;
          vectors::scales(p, row, super_scale[v]).store_aligned(to.scale[g] + row);
          if constexpr (layout::has_min) vectors::mins(p, row, super_min[v]).store_aligned(to.min[g] + row);
        }
      }
    }
    return to;
  }
  static void split_nibbles(const std::uint8_t* p, std::int8_t (&to)[size / 4][tile_bytes]) {
    unroll<size / 8>([&](std::size_t i) __attribute__((always_inline)) {
      const auto both = line::load(p + i * tile_bytes);
      const auto low = value(line::low_nibbles(both)), high = value(line::high_nibbles(both));
      std::memcpy(to[2 * i], &low, tile_bytes);
      std::memcpy(to[2 * i + 1], &high, tile_bytes);
    });
  }
  static auto value(typename line::operand code) {
    if constexpr (stand_for_themselves<F>(F::code_values)) {
      return code;
    } else {
      return line::lookup(F::code_values, code);
    }
  }

  // Asks for what lies behind the `bytes` bytes at p in about `steps` steps: all at once, decoding would wait for the first.
  // Nibbles, which are read at once, are asked for once, a piece ahead (16 tokens: Q4_0 1.03, MXFP4 1.06 times as fast), wide
  // codes twice (Q8_0: 1.06 times).
  class fetch {
   public:
    fetch() = default;
    fetch(const std::uint8_t* p, std::size_t bytes, std::size_t steps)
        : next_(p), end_(p + bytes), lines_((bytes / 64 + steps) / steps) {}
    void step() {
      for (std::size_t i = 0; i < lines_ && next_ < end_; ++i, next_ += 64) {
        if constexpr (layout::nibbles) {
          __builtin_prefetch(next_ + piece * layout::block_bytes, 0, 3);
        } else {
          __builtin_prefetch(next_ + look_ahead, 0, 2);
          __builtin_prefetch(next_ + near_ahead, 0, 3);
        }
      }
    }

   private:
    const std::uint8_t *next_ = nullptr, *end_ = nullptr;
    std::size_t lines_ = 0;
  };

  using group_codes = std::int8_t[strips][size / 4][tile_bytes];
  using sums = std::int32_t[strips][tile_height][lanes];

  // Signed codes of a group of the piece at p, by strips; those of the next group lie `group_step` behind them.
  const std::int8_t* codes([[maybe_unused]] const std::uint8_t* p, std::size_t group) const {
    if constexpr (layout::nibbles) {
      return codes_[group][0][0];
    } else {
      const std::size_t supers = (group / layout::groups + 1) * layout::super_bytes;
      return reinterpret_cast<const std::int8_t*>(p + supers + group * layout::group_bytes);
    }
  }
  static constexpr std::size_t strip_step = sizeof(group_codes) / strips,
                               group_step = layout::nibbles ? sizeof(group_codes) : layout::group_bytes;

  // Groups that are multiplied, then added up, at once, for the tokens of a tile: from the first one's codes, scales and
  // activations on.
  struct group_batch {
    const std::int8_t* codes = nullptr;
    const float *scale = nullptr, *min = nullptr;
    const tiled_blocks* x = nullptr;
    std::size_t half = 0;  // of a block of activations; 0 where there are several groups
    float* out = nullptr;
    std::size_t stride = 0, count = 0;
    const sums* sum = nullptr;
  };

  // Multiplies the next groups and adds up those before.
  void advance(const group_batch& next) {
    constexpr std::size_t some = tile_height / at_once;
    sums* const to = sum_[batch_side_ ^= 1];
    for (std::size_t each = 0; each < at_once; each += 2) {
      multiply<0>(next, each);
      add<at_once>(each * some, (each + 1) * some);
      store<0>(to[each]);
      multiply<2>(next, each + 1);
      add<at_once>((each + 1) * some, (each + 2) * some);
      store<2>(to[each + 1]);
    }
    pending_ = next;
    pending_.sum = to;
  }
  void finish() {
    add<at_once>(0, pending_.count);
    pending_ = {};
  }
  // One group, at the end of a piece.
  void alone(const group_batch& next) {
    finish();
    multiply<0>(next, 0);
    store<0>(sum_[0][0]);
    pending_ = next;
    pending_.sum = sum_[0];
    add<1>(0, pending_.count);
    pending_ = {};
  }

  // Tiles C and C + 1: a group of the tokens.
  template <int C>
  void multiply(const group_batch& next, std::size_t each) {
    constexpr int A = C == 0 ? 4 : 5;
    const std::size_t half = next.half + each % in_block;
    following_.step();
    tiles_.template zero<C>();
    tiles_.template zero<C + 1>();
    tiles_.template load<A>(next.x[each / in_block].q[0] + half * size, activation_block::size);
    tiles_.template load<6>(next.codes + each * group_step, tile_bytes);
    tiles_.template load<7>(next.codes + each * group_step + strip_step, tile_bytes);
    tiles_.template dot_int8<C, A, 6>();
    tiles_.template dot_int8<C + 1, A, 7>();
  }
  template <int C>
  void store(sums& to) {
    tiles_.template store<C>(to[0], tile_bytes);
    tiles_.template store<C + 1>(to[1], tile_bytes);
  }

  // Scales and adds the pending sums of the tokens [begin, end).
  template <std::size_t Groups>
  void add(std::size_t begin, std::size_t end) {
    const group_batch batch = pending_;
    end = std::min(end, batch.count);
    if (begin >= end) return;
    floats scale[Groups][in_panel];
    [[maybe_unused]] floats min[Groups][in_panel];
    unroll<Groups>([&](std::size_t i) __attribute__((always_inline)) {
      unroll<in_panel>([&](std::size_t v) __attribute__((always_inline)) {
        scale[i][v] = floats::load_aligned(batch.scale + i * packed_rows + v * floats::size);
        if constexpr (layout::has_min) {
          min[i][v] = floats::load_aligned(batch.min + i * packed_rows + v * floats::size);
        }
      });
    });
    for (std::size_t c = begin; c < end; ++c) {
      float* const to = batch.out + c * batch.stride;
      floats total[in_panel];
      unroll<in_panel>([&](std::size_t v) __attribute__((always_inline)) {
        total[v] = floats::load_unaligned(to + v * floats::size);
      });
      unroll<Groups>([&](std::size_t i) __attribute__((always_inline)) {
        const tiled_blocks& x = batch.x[i / in_block];
        const floats d(x.d[c]);
        unroll<in_panel>([&](std::size_t v) __attribute__((always_inline)) {
          constexpr std::size_t in_strip = lanes / floats::size;
          ints exact;
          std::memcpy(&exact, batch.sum[i][v / in_strip][c] + v % in_strip * floats::size, sizeof exact);
          total[v] = fused_multiply_add(vectors::dot::to_float(exact), scale[i][v] * d, total[v]);
        });
        if constexpr (layout::has_min) {
          const std::size_t half = Groups == 1 ? batch.half : i % in_block;
          const floats minus(x.template minus<size>(half)[c]);
          unroll<in_panel>([&](std::size_t v) __attribute__((always_inline)) {
            total[v] = fused_multiply_add(min[i][v], minus, total[v]);
          });
        }
      });
      unroll<in_panel>([&](std::size_t v)
                           __attribute__((always_inline)) { total[v].store_unaligned(to + v * floats::size); });
    }
  }

  static constexpr tile_shape results{tile_height}, tokens{tile_height, size}, weights{size / 4};
  Tiles tiles_{tile_shapes{results, results, results, results, tokens, tokens, weights, weights}};
  alignas(64) group_codes codes_[layout::nibbles ? most_groups : 1];
  weight_scales scales_[2];
  alignas(64) sums sum_[2][at_once];
  std::size_t piece_side_ = 0, batch_side_ = 0;
  group_batch pending_;
  fetch following_;
};

template <class Tiles, class Arch, integer_format F>
struct block_tile_kernel {
  // As block_kernel::panel, all blocks of `panels` consecutive panels of w from panel `first` on, packed with signed codes; x[i]
  // holds the tokens from 16 i on. The tokens of one tile wait for memory, and the first cache has room for what is asked of it
  // where pieces are short (16 tokens of Q4_0 and MXFP4: 1.05 times as fast; 64 of Q4_0: 0.97 times).
  static void product(const packed_matrix<F>& w, std::size_t first, std::size_t panels, const tiled_blocks* const* x,
                      std::size_t count, float* out, std::size_t stride) noexcept {
    if (count <= tile_height) {
      block_tile_pieces<Tiles, Arch, F, 64>::product(w, first, panels, x, count, out, stride);
    } else {
      block_tile_pieces<Tiles, Arch, F, 128>::product(w, first, panels, x, count, out, stride);
    }
  }
};

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/ops/matmul/pair_kernel.hpp
// Products of packed int8 matrices by ARM's matrix products (i8mm): smmla multiplies two rows by two tokens over eight k.
// The sums are exact, so they are those of element_kernel.

#if defined(__ARM_FEATURE_MATMUL_INT8)
#include <arm_neon.h>
#endif

MOTE_BEGIN_NAMESPACE

namespace detail {

#if defined(__ARM_FEATURE_MATMUL_INT8)

inline constexpr bool has_int8_matrix_products = true;

// Tiles of 8 rows, two strips of four, by up to 6 tokens; an odd token is multiplied twice.
struct pair_kernel {
  using layout = packed_layout<std::int8_t>;
  static constexpr std::size_t strips = 2, tokens = 6;

  // Two strips' quads [q, q + 1] as pairs of rows of eight k each.
  static void load_rows(const std::uint8_t* w, bool two, int8x16_t (&rows)[2 * strips]) {
    for (std::size_t s = 0; s < strips; ++s) {
      const int32x4_t first = vreinterpretq_s32_u8(vld1q_u8(w + s * 16));
      const int32x4_t second = two ? vreinterpretq_s32_u8(vld1q_u8(w + s * 16 + layout::quad_bytes)) : vdupq_n_s32(0);
      rows[2 * s] = vreinterpretq_s8_s32(vzip1q_s32(first, second));
      rows[2 * s + 1] = vreinterpretq_s8_s32(vzip2q_s32(first, second));
    }
  }
  static int8x8_t load_codes(const std::uint8_t* x, bool two) {
    std::uint64_t codes = 0;
    std::memcpy(&codes, x, two ? 8 : 4);
    return vcreate_s8(codes);
  }

  // Pairs of tokens x[2 p], x[2 p + 1]; sums go on from out[row + t · stride] if `resume`.
  template <std::size_t Pairs>
  static void tile(const std::uint8_t* w, const std::uint8_t* const* x, std::size_t quads, bool resume, float* out,
                   std::size_t count, std::size_t stride) noexcept {
    int32x4_t acc[2 * strips][Pairs];
    unroll<Pairs>([&](std::size_t p) __attribute__((always_inline)) {
      const float* even = out + std::min(2 * p, count - 1) * stride;
      const float* odd = out + std::min(2 * p + 1, count - 1) * stride;
      unroll<strips>([&](std::size_t s) __attribute__((always_inline)) {
        int32x4_t first = vdupq_n_s32(0), second = first;
        if (resume) {
          first = vreinterpretq_s32_f32(vld1q_f32(even + s * 4));
          second = vreinterpretq_s32_f32(vld1q_f32(odd + s * 4));
        }
        acc[2 * s][p] = vzip1q_s32(first, second);
        acc[2 * s + 1][p] = vzip2q_s32(first, second);
      });
    });
    const auto step = [&](std::size_t q, bool two) __attribute__((always_inline)) {
      int8x16_t rows[2 * strips];
      load_rows(w + q * layout::quad_bytes, two, rows);
      unroll<Pairs>([&](std::size_t p) __attribute__((always_inline)) {
        const int8x16_t both = vcombine_s8(load_codes(x[2 * p] + q * 4, two), load_codes(x[2 * p + 1] + q * 4, two));
        unroll<2 * strips>([&](std::size_t r)
                               __attribute__((always_inline)) { acc[r][p] = vmmlaq_s32(acc[r][p], rows[r], both); });
      });
    };
    for (std::size_t q = 0; q + 2 <= quads; q += 2) step(q, true);
    if (quads % 2 != 0) step(quads - 1, false);
    unroll<Pairs>([&](std::size_t p) __attribute__((always_inline)) {
      unroll<strips>([&](std::size_t s) __attribute__((always_inline)) {
        const int32x4_t a = acc[2 * s][p], b = acc[2 * s + 1][p];
        vst1q_f32(out + 2 * p * stride + s * 4, vreinterpretq_f32_s32(vuzp1q_s32(a, b)));
        if (2 * p + 1 < count) {
          vst1q_f32(out + (2 * p + 1) * stride + s * 4, vreinterpretq_f32_s32(vuzp2q_s32(a, b)));
        }
      });
    });
  }

  // As element_kernel::product, without surplus.
  static void product(const packed_matrix<std::int8_t>& w, std::size_t first, std::size_t panels,
                      const std::uint8_t* const* x, std::size_t count, float* out, std::size_t stride) noexcept {
    constexpr std::size_t depth = 1024;  // quads at a time: a panel's lie in the second-level cache
    constexpr auto tiles = std::array{&pair_kernel::tile<1>, &pair_kernel::tile<2>, &pair_kernel::tile<3>};
    const std::size_t quads = layout::quads(w.in_features());
    for (std::size_t begin = 0; begin == 0 || begin < quads; begin += depth) {
      const std::size_t part = std::min(depth, quads - begin);
      for (std::size_t t = 0; t < count; t += tokens) {
        const std::size_t some = std::min(tokens, count - t);
        const std::uint8_t* token[tokens] = {};
        for (std::size_t c = 0; c < tokens; ++c) token[c] = x[t + std::min(c, some - 1)] + begin * 4;
        for (std::size_t row = 0; row < panels * packed_rows; row += strips * 4) {
          const std::uint8_t* panel = w.panel(first + row / packed_rows) + begin * layout::quad_bytes;
          tiles[(some - 1) / 2](panel + row % packed_rows * 4, token, part, begin != 0, out + t * stride + row, some,
                                stride);
        }
      }
    }
  }
};

#else

inline constexpr bool has_int8_matrix_products = false;
struct pair_kernel;

#endif

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/ops/matmul/scaled_kernel.hpp
// Products of scaled matrices (quant/scaled_matrix.hpp). Codes become float32 numbers in the registers, and those are
// multiplied as float32 matrices are: the bits are those of the dequantized matrix.
//
// Up to four tokens are multiplied on the way (`scaled_kernel`); for more, a piece of some rows is first decoded into the
// cache, once for many of them (`decode`).

#if defined(__x86_64__)
#include <immintrin.h>
#endif

MOTE_BEGIN_NAMESPACE

namespace detail {

// Two vectors of codes from the even element i on, in multiples of 1 / unit.
template <class Arch, class Code>
struct code_vectors {
  using vector = batch<float, Arch>;
  static constexpr float unit = 1.0f;
  static void load(const Code* row, std::size_t i, vector (&out)[2]) {
    if constexpr (codes_each<Code> == 1) {
      out[0] = widen<Arch>(row + i);
      out[1] = widen<Arch>(row + i + vector::size);
    } else {
      float lanes[2 * vector::size];
      for (std::size_t l = 0; l < 2 * vector::size; ++l) lanes[l] = code_value(row, i + l);
      for (std::size_t v = 0; v < 2; ++v) out[v] = vector::load_unaligned(lanes + v * vector::size);
    }
  }
};

#if defined(__AVX2__) && defined(__F16C__)
#if defined(__AVX512F__) && defined(__AVX512BW__)
inline constexpr std::size_t most_e4m3_lanes = 16;
#else
inline constexpr std::size_t most_e4m3_lanes = 8;
#endif
template <class Arch>
  requires(batch<float, Arch>::size == 8 || batch<float, Arch>::size == most_e4m3_lanes)
struct code_vectors<Arch, f8_e4m3> {
  using vector = batch<float, Arch>;
  static constexpr float unit = 256.0f;
  static void load(const f8_e4m3* row, std::size_t i, vector (&out)[2]) {
    if constexpr (vector::size == 8) {
      const __m256i halves = load_e4m3(row + i);
      out[0] = vector(_mm256_cvtph_ps(_mm256_castsi256_si128(halves)));
      out[1] = vector(_mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)));
    } else {
#if defined(__AVX512F__) && defined(__AVX512BW__)
      const __m512i halves = load_32_e4m3(row + i);
      out[0] = vector(_mm512_cvtph_ps(_mm512_castsi512_si256(halves)));
      out[1] = vector(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)));
#endif
    }
  }
};
#endif

#if defined(__AVX2__)
template <class Arch>
  requires(batch<float, Arch>::size >= 8)
struct code_vectors<Arch, int4_pair> {
  using vector = batch<float, Arch>;
  static constexpr float unit = 1.0f;
  static __m128i sixteen(const int4_pair* p) {
    const __m128i pairs = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), mask = _mm_set1_epi8(15);
    const __m128i low = _mm_and_si128(pairs, mask), high = _mm_and_si128(_mm_srli_epi16(pairs, 4), mask);
    return _mm_sub_epi8(_mm_unpacklo_epi8(low, high), _mm_set1_epi8(8));
  }
  static void load(const int4_pair* row, std::size_t i, vector (&out)[2]) {
    const __m128i codes = sixteen(row + i / 2);
    if constexpr (vector::size == 8) {
      out[0] = vector(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)));
      out[1] = vector(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(codes, 8))));
    } else {
#if defined(__AVX512F__)
      out[0] = vector(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)));
      out[1] = vector(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sixteen(row + i / 2 + 8))));
#endif
    }
  }
};
#endif

// scale · (code - zero): what code_number is to one code; `scale` holds the unit. Only integers have zero points.
template <class Arch, class Code>
[[gnu::always_inline]] inline void load_numbers(const Code* row, std::size_t i, const batch<float, Arch>& scale,
                                                const batch<float, Arch>& zero, batch<float, Arch> (&out)[2]) {
  code_vectors<Arch, Code>::load(row, i, out);
  for (auto& numbers : out) {
    if constexpr (has_zero<Code>) {
      numbers = (numbers - zero) * scale;
    } else {
      numbers = numbers * scale;
    }
  }
}

// Elements [begin, begin + count) of a row to y, as dequantize_row; `begin` is even.
template <class Arch>
void decode(const scaled_matrix& w, std::size_t row, std::size_t begin, std::size_t count, float* y) noexcept {
  using vector = batch<float, Arch>;
  for_each_part(w, row, begin, begin + count,
                [&]<class Code>(const Code* codes, std::size_t k, std::size_t end, float scale, float zero) {
                  const vector scales(scale * code_vectors<Arch, Code>::unit), zeros(zero);
                  for (; k + 2 * vector::size <= end; k += 2 * vector::size) {
                    vector numbers[2];
                    load_numbers<Arch>(codes, k, scales, zeros, numbers);
                    numbers[0].store_unaligned(y + (k - begin));
                    numbers[1].store_unaligned(y + (k - begin) + vector::size);
                  }
                  for (; k < end; ++k) y[k - begin] = code_number(codes, k, scale, zero);
                });
}

// Whether no two vectors along k hold numbers of two tiles.
template <class Arch>
bool whole_vectors(const scaled_matrix& w) {
  return w.tile_columns % (2 * batch<float, Arch>::size) == 0 || w.tile_columns >= in_features(w);
}

inline constexpr std::size_t few_scaled_tokens = 4;

// A tile of R rows by C <= few_scaled_tokens tokens, in the order of dot_tile.
template <class Arch, class Code, std::size_t C>
struct scaled_kernel {
  using vector = batch<float, Arch>;
  static constexpr std::size_t R = many_registers<Arch> || C <= 2 ? 4 : 2;

  // out[r + c · stride] for rows first + r, r < count <= R, and tokens x[c], c < tokens <= C.
  static void tile(const scaled_matrix& w, const view<const Code, 2>& codes, std::size_t first, std::size_t count,
                   const float* const* x, std::size_t tokens, float* out, std::size_t stride) noexcept {
    const std::size_t in = codes.extent(1) * codes_each<Code>, whole = in / (2 * vector::size) * (2 * vector::size);
    vector acc[R][C];
    const Code* row[R];
    std::size_t tile_row[R];
    unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
      const std::size_t n = first + std::min(r, count - 1);  // a row that is not there does as one that is
      row[r] = codes.row(n);
      tile_row[r] = (w.first_row + n) / w.tile_rows;
      unroll<C>([&](std::size_t c) __attribute__((always_inline)) { acc[r][c] = vector(0.0f); });
    });
    const float* token[C];
    for (std::size_t c = 0; c < C; ++c) token[c] = x[std::min(c, tokens - 1)];
    // The next tile's rows are asked of memory line after line where they follow without a gap, as dot_tile does.
    const bool gapless = codes.stride(0) == codes.extent(1);
    const Code* const next = row[0] + R * codes.stride(0);
    const std::size_t pace = gapless ? R : 1, apart = gapless ? 64 : codes.stride(0);
    for (std::size_t begin = 0, tile = 0; begin < whole; begin += w.tile_columns, ++tile) {
      vector scale[R], zero[R];
      unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
        scale[r] = vector(w.scale(tile_row[r], tile) * code_vectors<Arch, Code>::unit);
        zero[r] = vector(w.zero.empty() ? 0.0f : static_cast<float>(w.zero(tile_row[r], tile)));
      });
      const std::size_t end = std::min(whole - begin, w.tile_columns) + begin;
      for (std::size_t k = begin; k < end; k += 2 * vector::size) {
        unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
          vector weights[2];
          load_numbers<Arch>(row[r], k, scale[r], zero[r], weights);
          __builtin_prefetch(next + k / codes_each<Code> * pace + r * apart, 0, 3);
          unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
            for (std::size_t v = 0; v < 2; ++v) {
              const vector values = vector::load_unaligned(token[c] + k + v * vector::size);
              acc[r][c] = fused_multiply_add(weights[v], values, acc[r][c]);
            }
          });
        });
      }
    }
    unroll<R>([&](std::size_t r) __attribute__((always_inline)) {
      float last[2 * vector::size] = {};
      if (r < count && whole != in) decode<Arch>(w, first + r, whole, in - whole, last);
      unroll<C>([&](std::size_t c) __attribute__((always_inline)) {
        if (r >= count || c >= tokens) return;
        for (std::size_t i = whole; i < in; i += vector::size) {
          const std::size_t some = std::min(vector::size, in - i);
          acc[r][c] = fused_multiply_add(vector::load_unaligned(last + (i - whole)),
                                         load_tail<Arch>(token[c] + i, some), acc[r][c]);
        }
        out[r + c * stride] = sum<Arch>(acc[r][c]);
      });
    });
  }

  static void product(const scaled_matrix& w, const view<const Code, 2>& codes, std::size_t first, std::size_t rows,
                      const float* const* x, std::size_t tokens, float* out, std::size_t stride) noexcept {
    for (std::size_t n = 0; n < rows; n += R) {
      tile(w, codes, first + n, std::min(R, rows - n), x, tokens, out + n, stride);
    }
  }
};

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/ops/matmul/tile_kernel.hpp
// Products of packed elements by matrix tiles (core/amx.hpp): 32 tokens by the 32 rows of a panel, or 16 tokens by two
// panels, in four tiles of sums, 64 bytes of k at a time. A quad of a panel's strip of 16 rows is a row of a tile, as packed;
// tokens are laid out in tiles (activation_tile.hpp).
//
// int8 sums are exact, so they are those of element_kernel; bf16 sums differ from its in their last bits.

MOTE_BEGIN_NAMESPACE

namespace detail {

template <class Tiles, packable_element T>
struct tile_kernel {
  using layout = packed_layout<T>;

  static constexpr std::size_t tokens = 2 * tile_height;
  // Bytes from what is multiplied to what is asked of memory, then of the second-level cache: tiles themselves wait for one
  // line at a time. Sapphire Rapids, bf16: with both 18 GB/s up to 16 tokens, with one 15.
  static constexpr std::size_t look_ahead = 8192, near_ahead = 4096;

  template <int C, int A, int B>
  static void dot(Tiles& tiles) {
    if constexpr (std::is_same_v<T, std::int8_t>) {
      tiles.template dot_int8<C, A, B>();
    } else {
      tiles.template dot_bf16<C, A, B>();
    }
  }

  // Tokens of one tile or two by one panel or, for tokens of one tile, two, over `quads` quads of k, whose sums are added to
  // those in `out` if `resume`. ahead(w) asks for what is multiplied after the 64 bytes of k at w[p] of each panel.
  template <std::size_t TokenTiles, std::size_t Panels, class Ahead>
  static void tile(Tiles& tiles, const std::uint8_t* const* panel, std::size_t quads, const std::uint8_t* const* x,
                   bool resume, float* out, std::size_t stride, Ahead&& ahead) {
    static_assert(TokenTiles * Panels <= 2);
    float* const other = out + (TokenTiles == 2 ? tile_height * stride : packed_rows);
    if (resume) {
      tiles.template load<0>(out, stride * 4);
      tiles.template load<1>(out + 16, stride * 4);
      if constexpr (TokenTiles * Panels == 2) {
        tiles.template load<2>(other, stride * 4);
        tiles.template load<3>(other + 16, stride * 4);
      }
    } else {
      tiles.template zero<0>();
      tiles.template zero<1>();
      tiles.template zero<2>();
      tiles.template zero<3>();
    }
    const auto step = [&](const std::uint8_t* const* w, std::size_t quad) {
      ahead(w);
      tiles.template load<4>(x[0] + quad * tile_bytes, tile_bytes);
      tiles.template stream<6>(w[0], layout::quad_bytes);
      tiles.template stream<7>(w[0] + tile_bytes, layout::quad_bytes);
      dot<0, 4, 6>(tiles);
      dot<1, 4, 7>(tiles);
      if constexpr (TokenTiles == 2) {
        tiles.template load<5>(x[1] + quad * tile_bytes, tile_bytes);
        dot<2, 5, 6>(tiles);
        dot<3, 5, 7>(tiles);
      } else if constexpr (Panels == 2) {
        tiles.template stream<5>(w[1], layout::quad_bytes);
        tiles.template stream<6>(w[1] + tile_bytes, layout::quad_bytes);
        dot<2, 4, 5>(tiles);
        dot<3, 4, 6>(tiles);
      }
    };
    const std::size_t whole = quads / tile_height * tile_height;
    const std::uint8_t* next[Panels];
    std::copy_n(panel, Panels, next);
    for (std::size_t q = 0; q < whole; q += tile_height) {
      step(next, q);
      for (const std::uint8_t*& p : next) p += tile_height * layout::quad_bytes;
    }
    if (whole < quads) {
      std::uint8_t last[Panels][tile_height * layout::quad_bytes] = {};
      for (std::size_t p = 0; p < Panels; ++p) {
        std::memcpy(last[p], next[p], (quads - whole) * layout::quad_bytes);
        next[p] = last[p];
      }
      step(next, whole);
    }
    tiles.template store<0>(out, stride * 4);
    tiles.template store<1>(out + 16, stride * 4);
    if constexpr (TokenTiles * Panels == 2) {
      tiles.template store<2>(other, stride * 4);
      tiles.template store<3>(other + 16, stride * 4);
    }
  }

  // As element_kernel::product, without surplus; x[i] holds the tokens from 16 i on.
  static void product(const packed_matrix<T>& w, std::size_t first, std::size_t panels, const std::uint8_t* const* x,
                      std::size_t count, float* out, std::size_t stride) {
    const std::size_t whole = count / tokens * tokens;
    if (whole > few && layout::quads(w.in_features()) > depth) {
      multiply_many(w, first, panels, x, whole, out, stride);
    } else if (whole > 0) {
      multiply_tokens(w, first, panels, x, 0, whole, tokens, out, stride);
    }
    if (count - whole > tile_height) {
      multiply_tokens(w, first, panels, x, whole, count, count - whole, out, stride);
    } else if (count > whole) {
      multiply_one(w, first, panels, x, whole, count - whole, out, stride);
    }
  }

 private:
  // Tokens, in pairs of whole tiles, up to which a panel is read from front to back, as memory is fastest.
  static constexpr std::size_t few = 64;
  // Quads of k that more tokens take at a time: 32 tokens' 16 KiB of it stay in the first cache while the panels pass.
  static constexpr std::size_t depth = 8 * tile_height;

  struct nothing {
    void operator()(const std::uint8_t* const*) const {}
  };
  template <std::size_t Panels>
  struct same_panels {
    void operator()(const std::uint8_t* const* w) const {
      for (std::size_t p = 0; p < Panels; ++p) {
        for (std::size_t i = 0; i < tile_height * layout::quad_bytes; i += 64) {
          __builtin_prefetch(w[p] + look_ahead + i, 0, 2);
          __builtin_prefetch(w[p] + near_ahead + i, 0, 3);
        }
      }
    }
  };

  // Asks the second-level cache for `bytes` bytes from p on, in equal steps of whole lines.
  class even_fetch {
   public:
    even_fetch(const std::uint8_t* p, std::size_t bytes, std::size_t steps)
        : next_(p), lines_((bytes / 64 + steps - 1) / steps) {}
    void step() {
      for (std::size_t i = 0; i < lines_; ++i, next_ += 64) __builtin_prefetch(next_, 0, 2);
    }

   private:
    const std::uint8_t* next_;
    std::size_t lines_;
  };

  // The tokens [0, end), two tiles at once, a piece of k at a time: sums wait in `out` for the next piece. Meanwhile each
  // panel's next piece and the next tokens are asked for, evenly.
  static void multiply_many(const packed_matrix<T>& w, std::size_t first, std::size_t panels,
                            const std::uint8_t* const* x, std::size_t end, float* out, std::size_t stride) {
    const tile_shape full{tile_height};
    Tiles tiles(tile_shapes{full, full, full, full, full, full, full, full});
    const std::size_t quads = layout::quads(w.in_features()), pairs = end / tokens;
    for (std::size_t begin = 0; begin < quads; begin += depth) {
      const std::size_t some = std::min(depth, quads - begin), steps = (some + tile_height - 1) / tile_height;
      const std::size_t following = begin + some < quads ? begin + some : 0;  // other panels begin again
      const std::size_t panel_share = following > 0 ? some * layout::quad_bytes / pairs : 0;
      const std::size_t token_share = some * tile_bytes / panels;
      for (std::size_t pair = 0; pair < pairs; ++pair) {
        const std::uint8_t* const now[] = {x[2 * pair] + begin * tile_bytes, x[2 * pair + 1] + begin * tile_bytes};
        const std::size_t next = pair + 1 < pairs ? 2 * pair + 2 : 0;
        const std::size_t next_begin = (next > 0 ? begin : following) * tile_bytes;
        for (std::size_t i = 0; i < panels; ++i) {
          const std::uint8_t* const panel = w.panel(first + i) + begin * layout::quad_bytes;
          even_fetch weights(panel + some * layout::quad_bytes + pair * panel_share, panel_share, steps);
          even_fetch above(x[next] + next_begin + i * token_share, token_share, steps);
          even_fetch below(x[next + 1] + next_begin + i * token_share, token_share, steps);
          tile<2, 1>(tiles, &panel, some, now, begin > 0, out + pair * tokens * stride + i * packed_rows, stride,
                     [&](const std::uint8_t* const*) {
                       weights.step();
                       above.step();
                       below.step();
                     });
        }
      }
    }
  }

  // The tokens [begin, end), `each` at once, in two tiles; a panel is read for all of them before the next.
  static void multiply_tokens(const packed_matrix<T>& w, std::size_t first, std::size_t panels,
                              const std::uint8_t* const* x, std::size_t begin, std::size_t end, std::size_t each,
                              float* out, std::size_t stride) {
    const tile_shape above{tile_height}, below{each - tile_height}, weights{tile_height};
    Tiles tiles(tile_shapes{above, above, below, below, above, below, weights, weights});
    const std::size_t quads = layout::quads(w.in_features());
    for (std::size_t i = 0; i < panels; ++i) {
      const std::uint8_t* const panel = w.panel(first + i);
      for (std::size_t t = begin; t < end; t += tokens) {
        float* const to = out + t * stride + i * packed_rows;
        if (t == 0) {
          tile<2, 1>(tiles, &panel, quads, x, false, to, stride, same_panels<1>{});
        } else {
          tile<2, 1>(tiles, &panel, quads, x + t / tile_height, false, to, stride, nothing{});
        }
      }
    }
  }

  // The tokens [begin, begin + count) of one tile. Two panels side by side: memory gives more to two streams than to one.
  static void multiply_one(const packed_matrix<T>& w, std::size_t first, std::size_t panels,
                           const std::uint8_t* const* x, std::size_t begin, std::size_t count, float* out,
                           std::size_t stride) {
    const tile_shape rows{count}, weights{tile_height};
    Tiles tiles(tile_shapes{rows, rows, rows, rows, rows, weights, weights, weights});
    const std::size_t quads = layout::quads(w.in_features());
    x += begin / tile_height;
    out += begin * stride;
    const auto multiply = [&](auto&& two_ahead, auto&& one_ahead) {
      for (std::size_t i = 0; i < panels; i += 2) {
        const std::uint8_t* const panel[] = {w.panel(first + i), i + 1 < panels ? w.panel(first + i + 1) : nullptr};
        if (i + 1 < panels) {
          tile<1, 2>(tiles, panel, quads, x, false, out + i * packed_rows, stride, two_ahead);
        } else {
          tile<1, 1>(tiles, panel, quads, x, false, out + i * packed_rows, stride, one_ahead);
        }
      }
    };
    if (begin == 0) {
      multiply(same_panels<2>{}, same_panels<1>{});
    } else {
      multiply(nothing{}, nothing{});  // tokens before these have read the panels
    }
  }
};

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/ops/matmul/unit.hpp
MOTE_BEGIN_NAMESPACE

namespace detail {

inline constexpr std::size_t unit_tokens = has_amx_tiles ? 128 : 48;  // with their results on the stack
inline constexpr std::size_t tile_unit_rows = 128;  // tiles are fast: tokens that all units read come often enough
// From one token's results to the next one's; with tiles a line further than rows.
inline constexpr std::size_t unit_stride = has_amx_tiles ? tile_unit_rows + 16 : 64;
inline constexpr std::size_t float_depth = 1024;   // elements of k a block: a tile's rows and tokens fit 48 KiB
inline constexpr std::size_t float_tokens = 24;    // whose accumulators are kept between blocks of k, of all rows
inline constexpr std::size_t decoded_depth = 512;  // elements of k that are decoded at a time, of some rows
inline constexpr std::size_t decoded_tokens =
    std::min<std::size_t>(unit_tokens, 64);  // for which they are decoded once

// Rows of a unit for so many tokens: a panel's, or what the kernel takes at once. Blocks take two panels, which some kernels read
// side by side; where tokens come in several units, one panel, which stays in a cache of 512 KiB. Units begin at multiples of it.
template <class Arch, class Matrix>
inline constexpr std::size_t unit_rows = packed_rows;
template <class Arch, packable_element T>
inline constexpr std::size_t unit_rows<Arch, packed_matrix<T>> = element_kernel<Arch, T>::rows;
template <class Arch, integer_format F>
inline constexpr std::size_t unit_rows<Arch, packed_matrix<F>> = 2 * packed_rows;
template <class Matrix>
inline constexpr bool is_packed_blocks = false;
template <integer_format F>
inline constexpr bool is_packed_blocks<packed_matrix<F>> = true;
template <class Arch, class Matrix>
std::size_t unit_rows_for(std::size_t tokens) {
  if (multiplied_by_tiles<Arch, Matrix> && tokens >= tile_tokens_min<Arch, Matrix>) return tile_unit_rows;
  if (is_packed_blocks<Matrix> && tokens > unit_tokens) return packed_rows;
  return unit_rows<Arch, Matrix>;
}

// Kernel::tile<r, c> for every r <= Kernel::rows and c <= Kernel::tokens, to be chosen at run time.
template <class Kernel>
inline constexpr auto tile_functions = []<std::size_t... I>(std::index_sequence<I...>) {
  return std::array{&Kernel::template tile<I / Kernel::tokens + 1, I % Kernel::tokens + 1>...};
}
(std::make_index_sequence<Kernel::rows * Kernel::tokens>{});

template <class Kernel>
auto tile_function(std::size_t rows, std::size_t tokens) {
  return tile_functions<Kernel>[(rows - 1) * Kernel::tokens + tokens - 1];
}

// Walks rows × tokens in tiles: f(first row, rows, first token, tokens).
template <class Kernel, class F>
void for_each_tile(std::size_t rows, std::size_t tokens, F&& f) {
  for (std::size_t t = 0; t < tokens; t += Kernel::tokens) {
    for (std::size_t n = 0; n < rows; n += Kernel::rows) {
      f(n, std::min(Kernel::rows, rows - n), t, std::min(Kernel::tokens, tokens - t));
    }
  }
}

// `Asks`: of memory, for the rows of the next tile (dot_tile).
template <class Arch, class T, std::size_t Asks>
struct float_kernel {
  static constexpr std::size_t rows = tile_rows<Arch>, tokens = tile_tokens<Arch>;
  template <std::size_t R, std::size_t C>
  static void tile(const T* const* w, const float* const* x, std::size_t k, bool resume, float* state,
                   float* out) noexcept {
    dot_tile<Arch, R, C, (C < tokens ? Asks : 0)>(w, x, k, resume, state, out, unit_stride);
  }
  // The same for a full number of tokens that is the first to see its weights.
  template <std::size_t R>
  static void first_tile(const T* const* w, const float* const* x, std::size_t k, bool resume, float* state,
                         float* out) noexcept {
    dot_tile<Arch, R, tokens, Asks>(w, x, k, resume, state, out, unit_stride);
  }
  static auto function(std::size_t row_count, std::size_t token_count, bool first) {
    constexpr auto first_tiles = []<std::size_t... I>(std::index_sequence<I...>) {
      return std::array{&float_kernel::template first_tile<I + 1>...};
    }
    (std::make_index_sequence<rows>{});
    return first && token_count == tokens ? first_tiles[row_count - 1]
                                          : tile_function<float_kernel>(row_count, token_count);
  }
};

struct int8_kernel {
  static constexpr std::size_t rows = int8_lanes::tile_rows, tokens = int8_lanes::tile_tokens;
  template <std::size_t R, std::size_t C>
  static void tile(const std::int8_t* const* w, const std::int8_t* const* x, std::size_t k,
                   std::int32_t* out) noexcept {
    dot_tile_int8<R, C>(w, x, k, out, rows);
  }
};

// float32 products with rows that `fetch(begin, depth, row)` provides, `depth` elements of k from `begin` at a time:
// row[n] for n < rows.
template <class Arch, class T, std::size_t Asks, class Fetch>
void float_product(std::size_t rows, std::size_t k, std::size_t block, const activation* x, std::size_t tokens,
                   float* out, Fetch&& fetch) noexcept {
  using kernel = float_kernel<Arch, T, Asks>;
  constexpr std::size_t lanes = batch<float, Arch>::size;
  alignas(64) float state[packed_rows * float_tokens * lanes];
  for (std::size_t begin = 0; begin == 0 || begin < k; begin += block) {
    const std::size_t depth = std::min(block, k - begin);
    const bool last = begin + depth == k;
    const T* row[packed_rows + kernel::rows] = {};
    fetch(begin, depth, row);
    float* accumulators = state;
    for_each_tile<kernel>(
        rows, tokens, [&](std::size_t n, std::size_t row_count, std::size_t t, std::size_t token_count) {
          const float* token[kernel::tokens] = {};
          for (std::size_t c = 0; c < token_count; ++c) token[c] = x[t + c].values + begin;
          kernel::function(row_count, token_count, t == 0)(row + n, token, depth, begin != 0, accumulators,
                                                           last ? out + n + t * unit_stride : nullptr);
          accumulators += row_count * token_count * lanes;
        });
  }
}

// out[n + t · unit_stride] = Σ_k W[first + n, k] · x[t][k] for n < rows <= unit_rows, t < tokens, of which there are 1 to
// unit_tokens; `first` is a multiple of packed_rows where W is packed.
template <class Arch, class T>
void unit_product(const view<const T, 2>& w, std::size_t first, std::size_t rows, const activation* x,
                  std::size_t tokens, float* out) noexcept {
  const std::size_t k = w.extent(1);
  // One or two tokens use a weight at once: whole rows, which memory is faster at.
  const std::size_t block = tokens <= 2 ? std::max(k, std::size_t{1}) : float_depth;
  for (std::size_t t = 0; t < tokens; t += float_tokens) {
    float_product<Arch, T, asks_of_memory<Arch, T>>(rows, k, block, x + t, std::min(float_tokens, tokens - t),
                                                    out + t * unit_stride,
                                                    [&](std::size_t begin, std::size_t, const T** row) {
                                                      for (std::size_t n = 0; n < rows; ++n)
                                                        row[n] = w.row(first + n) + begin;
                                                    });
  }
}

// Numbers that are decoded piece by piece, a few rows and `Step` elements of k at a time: decode(row, begin, count, y).
template <class Arch, std::size_t Step, class Decode>
void decoded_product(std::size_t rows, std::size_t k, const activation* x, std::size_t tokens, float* out,
                     Decode&& decode) noexcept {
  // As many as leave room for the accumulators of decoded_tokens tokens.
  constexpr std::size_t group = packed_rows * float_tokens / decoded_tokens / tile_rows<Arch> * tile_rows<Arch>;
  float decoded[group][Step + 16];  // rows apart in the cache
  for (std::size_t t = 0; t < tokens; t += decoded_tokens) {
    const std::size_t some = std::min(decoded_tokens, tokens - t);
    for (std::size_t first = 0; first < rows; first += group) {
      const std::size_t count = std::min(group, rows - first);
      float_product<Arch, float, 1>(count, k, Step, x + t, some, out + first + t * unit_stride,
                                    [&](std::size_t begin, std::size_t depth, const float** row) {
                                      for (std::size_t n = 0; n < count; ++n) {
                                        row[n] = decoded[n];
                                        decode(first + n, begin, depth, decoded[n]);
                                      }
                                    });
    }
  }
}

// Formats of which only decode() is known.
template <class Arch, block_format F>
void unit_product(const view<const F, 2>& w, std::size_t first, std::size_t rows, const activation* x,
                  std::size_t tokens, float* out) noexcept {
  constexpr std::size_t step = (decoded_depth - 1) / F::block_size * F::block_size + F::block_size;
  decoded_product<Arch, step>(rows, in_features(w), x, tokens, out,
                              [&](std::size_t n, std::size_t begin, std::size_t count, float* y) {
                                for (std::size_t i = 0; i < count; i += F::block_size) {
                                  w.row(first + n)[(begin + i) / F::block_size].decode(y + i);
                                }
                              });
}

template <class Arch>
void unit_product(const scaled_matrix& w, std::size_t first, std::size_t rows, const activation* x, std::size_t tokens,
                  float* out) noexcept {
  if (tokens <= few_scaled_tokens && whole_vectors<Arch>(w)) {
    const float* token[few_scaled_tokens] = {};
    for (std::size_t c = 0; c < tokens; ++c) token[c] = x[c].values;
    std::visit(
        [&]<class Code>(const view<const Code, 2>& codes) {
          const auto product = tokens == 1   ? &scaled_kernel<Arch, Code, 1>::product
                               : tokens == 2 ? &scaled_kernel<Arch, Code, 2>::product
                                             : &scaled_kernel<Arch, Code, few_scaled_tokens>::product;
          product(w, codes, first, rows, token, tokens, out, unit_stride);
        },
        w.codes);
    return;
  }
  decoded_product<Arch, decoded_depth>(rows, in_features(w), x, tokens, out,
                                       [&](std::size_t n, std::size_t begin, std::size_t count, float* y) {
                                         decode<Arch>(w, first + n, begin, count, y);
                                       });
}

// Integer formats: `bytes(begin, count)` provides those blocks of the packed panel, at most `step` of them at a time.
template <class Arch, integer_format F, class Bytes>
void block_product(std::size_t blocks, std::size_t step, bool from_memory, const activation* x, std::size_t tokens,
                   float* out, Bytes&& bytes) noexcept {
  const activation_block* token[unit_tokens] = {};
  for (std::size_t t = 0; t < tokens && blocks == 0; ++t) std::fill_n(out + t * unit_stride, packed_rows, 0.0f);
  for (std::size_t begin = 0; begin < blocks; begin += step) {
    const std::size_t count = std::min(step, blocks - begin);
    for (std::size_t t = 0; t < tokens; ++t) token[t] = x[t].blocks + begin * F::block_size / activation_block::size;
    block_kernel<Arch, F>::panel(bytes(begin, count), count, from_memory, token, tokens, begin != 0, out, unit_stride);
  }
}

// Blocks of about k columns: whole blocks of activations.
template <integer_format F>
constexpr std::size_t blocks_within(std::size_t k) {
  return std::max(std::size_t{2}, k / F::block_size / 2 * 2);
}
template <integer_format F>
inline constexpr std::size_t block_step = blocks_within<F>(float_depth);

// Matrices of so many bytes are taken to be in a cache already, as those of small models are: asking memory for them costs more
// than many small ones that are not would gain. Zen 4, one token, 256x512: Q4_0 1.8 and 1.4 us, Q8_0 4.0 and 1.6.
inline constexpr std::size_t cached_bytes = std::size_t{1} << 18;

// Packed blocks by vectors: `panels` panels of w from panel `first` on, without a tensor's scales.
template <class Arch, integer_format F>
void vector_product(const packed_matrix<F>& w, std::size_t first, std::size_t panels, const activation* x,
                    std::size_t tokens, float* out) noexcept {
  using kernel = block_kernel<Arch, F>;
  const std::size_t blocks = w.in_features() / F::block_size;
  const bool from_memory = w.bytes().size() > cached_bytes;
  std::size_t i = 0;
  if constexpr (kernel::pair_tokens > 0) {
    const activation_block* token[kernel::pair_tokens] = {};
    for (std::size_t t = 0; t < tokens && tokens <= kernel::pair_tokens; ++t) token[t] = x[t].blocks;
    for (; tokens <= kernel::pair_tokens && i + 2 <= panels; i += 2) {
      kernel::pair(w.panel(first + i), w.panel(first + i + 1), blocks, from_memory, token, tokens,
                   out + i * packed_rows, unit_stride);
    }
  }
  // One tile's tokens read a panel from front to back; where they take several passes, a short piece at a time, so that
  // memory is read once and in order.
  std::size_t step = block_step<F>;
  if (tokens <= kernel::tokens) {
    step = kernel::strips(tokens) * kernel::dot::lanes < packed_rows ? blocks_within<F>(512) : blocks;
  }
  for (; i < panels; ++i) {
    block_product<Arch, F>(
        blocks, step, from_memory, x, tokens, out + i * packed_rows,
        [&](std::size_t begin, std::size_t) { return w.panel(first + i) + begin * packed_layout<F>::block_bytes; });
  }
}

template <class Arch, integer_format F>
void unit_product(const packed_matrix<F>& w, std::size_t first, std::size_t rows, const activation* x,
                  std::size_t tokens, float* out) noexcept {
  const std::size_t panels = (rows + packed_rows - 1) / packed_rows;
  bool done = false;
  if constexpr (multiplied_by_tiles<Arch, packed_matrix<F>>) {
    if (tokens >= tile_tokens_min<Arch, packed_matrix<F>> && x->tile) {
      const tiled_blocks* tile[unit_tokens / tile_height] = {};
      for (std::size_t t = 0; t < tokens; t += tile_height) tile[t / tile_height] = x[t].tile->blocks;
      block_tile_kernel<amx_tiles, Arch, F>::product(w, first / packed_rows, panels, tile, tokens, out, unit_stride);
      done = true;
    }
  }
  if (!done) vector_product<Arch>(w, first / packed_rows, panels, x, tokens, out);
  if constexpr (format_with_tensor_scale<F>) {
    using floats = batch<float, Arch>;
    for (std::size_t i = 0; i < panels; ++i) {
      const auto* scale = reinterpret_cast<const float*>(w.panel(first / packed_rows + i) +
                                                         packed_layout<F>::tensor_scales(w.in_features()));
      for (std::size_t t = 0; t < tokens; ++t) {
        for (std::size_t n = 0; n < packed_rows; n += floats::size) {
          float* to = out + t * unit_stride + i * packed_rows + n;
          (floats::load_unaligned(to) * floats::load_unaligned(scale + n)).store_unaligned(to);
        }
      }
    }
  }
}

// Blocks as files store them are packed on the way.
template <class Arch, integer_format F>
void unit_product(const view<const F, 2>& w, std::size_t first, std::size_t rows, const activation* x,
                  std::size_t tokens, float* out) noexcept {
  constexpr bool from_memory = false;
  alignas(64) std::uint8_t packed[block_step<F> * packed_layout<F>::block_bytes];
  if (rows < packed_rows) std::fill(std::begin(packed), std::end(packed), std::uint8_t{0});
  block_product<Arch, F>(w.extent(1), block_step<F>, from_memory, x, tokens, out,
                         [&](std::size_t begin, std::size_t count) {
                           pack_panel(w, first, rows, begin, begin + count, packing_of<Arch>, packed);
                           return packed;
                         });
}

template <class Arch>
void unit_product(const int8_matrix& w, std::size_t first, std::size_t rows, const activation* x, std::size_t tokens,
                  float* out) noexcept {
  for_each_tile<int8_kernel>(
      rows, tokens, [&](std::size_t n, std::size_t row_count, std::size_t t, std::size_t token_count) {
        const std::int8_t* row[int8_kernel::rows] = {};
        const std::int8_t* token[int8_kernel::tokens] = {};
        std::int32_t sums[int8_kernel::rows * int8_kernel::tokens];
        for (std::size_t r = 0; r < row_count; ++r) row[r] = w.codes.row(first + n + r);
        for (std::size_t c = 0; c < token_count; ++c) token[c] = x[t + c].codes;
        tile_function<int8_kernel>(row_count, token_count)(row, token, w.codes.extent(1), sums);
        for (std::size_t c = 0; c < token_count; ++c) {
          const auto surplus =
              static_cast<std::uint32_t>(int8_lanes::offset) * static_cast<std::uint32_t>(x[t + c].code_sum);
          for (std::size_t r = 0; r < row_count; ++r) {
            const auto exact =
                static_cast<std::int32_t>(static_cast<std::uint32_t>(sums[r + c * int8_kernel::rows]) - surplus);
            out[n + r + (t + c) * unit_stride] = x[t + c].scale * w.scale(first + n + r) * static_cast<float>(exact);
          }
        }
      });
}

// Packed bf16 against at most tile_sum_kernel::tokens tokens, with the bits of tiles. Not inlined, so that no sum leaves the
// scope in which subnormals are zero.
template <class Arch>
[[gnu::noinline]] void few_tile_sums(const packed_matrix<bf16>& w, std::size_t first, std::size_t panels,
                                     const activation* x, std::size_t tokens, float* out) noexcept {
  const std::uint8_t* token[tile_sum_kernel<Arch>::tokens] = {};
  for (std::size_t t = 0; t < tokens; ++t) token[t] = reinterpret_cast<const std::uint8_t*>(x[t].halves);
  tile_sum_kernel<Arch>::product(w, first, panels, token, tokens, out, unit_stride);
}

// Packed elements by vectors: `panels` panels of w from panel `first` on, without int8's scales.
template <class Arch, packable_element T>
void vector_product(const packed_matrix<T>& w, std::size_t first, std::size_t panels, const activation* x,
                    std::size_t tokens, float* out) noexcept {
  const std::uint8_t* token[unit_tokens] = {};
  std::int32_t code_sum[unit_tokens] = {};
  for (std::size_t t = 0; t < tokens; ++t) {
    const void* row = bf16_products<Arch> ? static_cast<const void*>(x[t].halves) : x[t].rounded;
    token[t] = static_cast<const std::uint8_t*>(std::is_same_v<T, std::int8_t> ? x[t].codes : row);
    code_sum[t] = x[t].code_sum;
  }
  if constexpr (std::is_same_v<T, std::int8_t> && has_int8_matrix_products) {
    if (tokens > 1) {
      // Incomplete where the instruction is missing.
      using pairs = std::conditional_t<std::is_same_v<T, std::int8_t>, pair_kernel, void>;
      pairs::product(w, first, panels, token, tokens, out, unit_stride);
      return;
    }
  }
  element_kernel<Arch, T>::product(w, first, panels, token, code_sum, tokens, out, unit_stride);
}

template <class Arch, packable_element T>
void unit_product(const packed_matrix<T>& w, std::size_t first, std::size_t rows, const activation* x,
                  std::size_t tokens, float* out) noexcept {
  constexpr bool int8 = std::is_same_v<T, std::int8_t>;
  const std::size_t panels = (rows + packed_rows - 1) / packed_rows;
  // Vectors are faster for a few tokens. int8 sums are the same any way; bf16 sums are those of tiles where there are tiles.
  bool done = false;
  if constexpr (multiplied_by_tiles<Arch, packed_matrix<T>>) {
    if constexpr (!int8) {
      if (tokens <= tile_sum_kernel<Arch>::tokens && amx_tiles::available()) {
        const subnormals_as_zero scope;
        few_tile_sums<Arch>(w, first / packed_rows, panels, x, tokens, out);
        done = true;
      }
    }
    if (!done && tokens >= tile_tokens_min<Arch, packed_matrix<T>> && x->tile) {
      const std::uint8_t* tile[unit_tokens / tile_height] = {};
      for (std::size_t t = 0; t < tokens; t += tile_height) {
        tile[t / tile_height] = int8 ? x[t].tile->codes : x[t].tile->halves;
      }
      tile_kernel<amx_tiles, T>::product(w, first / packed_rows, panels, tile, tokens, out, unit_stride);
      done = true;
    }
  }
  if (!done) vector_product<Arch>(w, first / packed_rows, panels, x, tokens, out);
  if constexpr (int8) {
    using floats = batch<float, Arch>;
    for (std::size_t n = 0; n < panels * packed_rows; n += floats::size) {
      const std::size_t row = first + n;
      const floats scale =
          floats::load_unaligned(reinterpret_cast<const float*>(w.panel(row / packed_rows) +
                                                                packed_layout<std::int8_t>::scales(w.in_features())) +
                                 row % packed_rows);
      for (std::size_t t = 0; t < tokens; ++t) {
        float* to = out + n + t * unit_stride;
        typename int8_dot<Arch>::ints sums;
        std::memcpy(&sums, to, sizeof sums);
        (floats(x[t].scale) * scale * int8_dot<Arch>::to_float(sums)).store_unaligned(to);
      }
    }
  }
}

// A weight's form is looked up here and nowhere else above, so that one instantiation holds every kernel: programs of many
// files include kernels/extern.hpp and compile the kernels once.
template <class Arch>
void unit_product(const weight& w, std::size_t first, std::size_t rows, const activation* x, std::size_t tokens,
                  float* out) noexcept {
  std::visit([&](const auto& matrix) { unit_product<Arch>(matrix, first, rows, x, tokens, out); }, w);
}

template <class Arch, class Matrix>
std::size_t unit_rows_of(const Matrix&, std::size_t tokens) {
  return unit_rows_for<Arch, Matrix>(tokens);
}
template <class Arch>
std::size_t unit_rows_of(const weight& w, std::size_t tokens) {
  return std::visit([&](const auto& m) { return unit_rows_for<Arch, std::remove_cvref_t<decltype(m)>>(tokens); }, w);
}

// Units that a thread takes at once, of `units` in all of matrices like w, for so many tokens. Neighbours lie one behind the
// other in memory: where memory is what few tokens wait for, long pieces are faster than a short one for each thread in turn
// (Sapphire Rapids, two threads, one token: Q4_0 1.06 to 1.12 times as fast, Q8_0 1.03 times; experts 1.1 to 1.25 times).
template <class Matrix>
std::size_t units_at_once(const Matrix& w, std::size_t unit, std::size_t units, std::size_t tokens,
                          std::size_t concurrency) {
  const std::size_t unit_bytes = bytes(w) / std::max(out_features(w), std::size_t{1}) * unit + 1;
  return std::clamp<std::size_t>((std::size_t{1} << 21) / unit_bytes / (tokens + 1), 1,
                                 std::max(units / (8 * concurrency), std::size_t{1}));
}

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/ops/matmul/simd.hpp
MOTE_BEGIN_NAMESPACE

namespace detail {

// Rows of y from what is written to what is asked of memory.
inline constexpr std::size_t written_ahead = 4;

// One unit's weight rows for all tokens; `target(t)` is the row of y.
template <class Arch, class Matrix, class Target>
void matmul_unit(const Matrix& w, std::size_t first, std::size_t rows, const activation* x, std::size_t tokens,
                 output mode, Target&& target) noexcept {
  alignas(64) float out[unit_stride * unit_tokens];
  for (std::size_t t = 0; t < tokens; t += unit_tokens) {
    const std::size_t count = std::min(unit_tokens, tokens - t);
    unit_product<Arch>(w, first, rows, x + t, count, out);
    for (std::size_t c = 0; c < count; ++c) {
      float* y = target(t + c) + first;
      if (c + written_ahead < count) {
        const float* const next = target(t + c + written_ahead) + first;
        for (std::size_t n = 0; n < rows; n += 64 / sizeof(float)) __builtin_prefetch(next + n, 1, 3);
      }
      for (std::size_t n = 0; n < rows; ++n) {
        y[n] = mode == output::accumulate ? y[n] + out[n + c * unit_stride] : out[n + c * unit_stride];
      }
    }
  }
}

}  // namespace detail

template <class Arch, class Executor, class Matrix>
void matmul_impl(simd<Arch, Executor>& be, view<const float, 2> x, const Matrix& w, view<float, 2> y, output mode) {
  const std::size_t tokens = x.extent(0), out = out_features(w);
  detail::check_packing<Arch>("matmul", w);
  if (tokens == 0 || out == 0) return;
  auto scope = be.scope();
  const detail::activation_forms forms = detail::forms(w);
  const auto rows =
      detail::prepare_rows<Arch>(be, scope, forms, tokens, x.extent(1), [&](std::size_t t) { return x.row(t); });
  detail::lay_out_tiles<Arch>(be, scope, forms, x.extent(1), rows, 1, [&](std::size_t r) { return r * tokens; });
  const std::size_t unit = detail::unit_rows_of<Arch>(w, tokens);
  const std::size_t grain = unit * detail::units_at_once(w, unit, out / unit, tokens, be.concurrency());
  be.parallel_for(out, grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t n = begin; n < end; n += unit) {
      detail::matmul_unit<Arch>(w, n, std::min(unit, end - n), rows.data(), tokens, mode,
                                [&](std::size_t t) { return y.row(t); });
    }
  });
}

MOTE_END_NAMESPACE

// ---- mote/ops/matmul/matmul.hpp
MOTE_BEGIN_NAMESPACE

template <backend Backend, matrix Matrix>
void matmul(Backend& be, view<const float, 2> x, const Matrix& w, view<float, 2> y, output mode = output::overwrite) {
  check_view("matmul", "x", x, {x.extent(0), in_features(w)});
  check_rows("matmul", "w", w);
  check_view("matmul", "y", y, {x.extent(0), out_features(w)});
  matmul_impl(be, x, w, y, mode);
}

template <backend Backend>
void matmul(Backend& be, view<const float, 2> x, const weight& w, view<float, 2> y, output mode = output::overwrite) {
  check_view("matmul", "x", x, {x.extent(0), in_features(w)});
  check_rows("matmul", "w", w);
  check_view("matmul", "y", y, {x.extent(0), out_features(w)});
  matmul_impl(be, x, w, y, mode);
}

MOTE_END_NAMESPACE

// ---- mote/ops/swiglu/swiglu.hpp
// Gated activation of the feed-forward network.
//
//   y[t, i] = silu(gate[t, i]) · up[t, i],   silu(a) = a / (1 + exp(-a))
//
// gate, up, y: [tokens, intermediate], rows may be strided; y may be gate or up. Throws shape_error when shapes differ.
// Source: Shazeer, "GLU Variants Improve Transformer" (2020).

// ---- mote/ops/swiglu/reference.hpp
MOTE_BEGIN_NAMESPACE

inline float silu(float a) { return a / (1.0f + std::exp(-a)); }

inline void swiglu_impl(reference&, view<const float, 2> gate, view<const float, 2> up, view<float, 2> y) noexcept {
  for (std::size_t t = 0; t < y.extent(0); ++t) {
    for (std::size_t i = 0; i < y.extent(1); ++i) y(t, i) = silu(gate(t, i)) * up(t, i);
  }
}

MOTE_END_NAMESPACE

// ---- mote/ops/swiglu/simd.hpp
MOTE_BEGIN_NAMESPACE

template <class Arch, class Executor>
void swiglu_impl(simd<Arch, Executor>& be, view<const float, 2> gate, view<const float, 2> up,
                 view<float, 2> y) noexcept {
  using vector = batch<float, Arch>;
  const std::size_t n = y.extent(1), grain = 1 + std::size_t{16384} / (n + 1);
  be.parallel_for(y.extent(0), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) {
      const float *g = gate.row(t), *u = up.row(t);
      float* out = y.row(t);
      detail::for_each_vector<Arch>(n, [&](std::size_t i, auto load, auto store) {
        const vector a = load(g + i);
        store(out + i, a / (vector(1.0f) + detail::exp_vector<Arch>(-a)) * load(u + i));
      });
    }
  });
}

MOTE_END_NAMESPACE

// ---- mote/ops/swiglu/swiglu.hpp
MOTE_BEGIN_NAMESPACE

template <backend Backend>
void swiglu(Backend& be, view<const float, 2> gate, view<const float, 2> up, view<float, 2> y) {
  check_view("swiglu", "gate", gate, {gate.extent(0), gate.extent(1)});
  check_view("swiglu", "up", up, {gate.extent(0), gate.extent(1)});
  check_view("swiglu", "y", y, {gate.extent(0), gate.extent(1)});
  swiglu_impl(be, gate, up, y);
}

MOTE_END_NAMESPACE

// ---- mote/blocks/ffn.hpp
MOTE_BEGIN_NAMESPACE

template <backend Backend>
void ffn(Backend& be, view<const float, 2> x, const ffn_weights& w, view<float, 2> y, output mode = output::overwrite) {
  auto scratch = be.scope();
  const auto gate = scratch.template tensor<float>(x.extent(0), out_features(w.gate));
  const auto up = scratch.template tensor<float>(x.extent(0), out_features(w.up));
  matmul(be, x, w.gate, gate);
  matmul(be, x, w.up, up);
  swiglu(be, gate, up, gate);
  matmul(be, gate, w.down, y, mode);
}

MOTE_END_NAMESPACE

// ---- mote/blocks/mla.hpp
// Multi-head latent attention: all heads' keys and values are rebuilt from one small latent vector per token, and the
// cache holds only that vector and one rotary key.
//
//   q = W_q x   or   W_qb RMSNorm(W_qa x)                  -> heads of [nope | rope]
//   [c' | k'] = W_kva x;   c = RMSNorm(c');   q_r, k_r = rope(q rope part), rope(k');   cache row: [c | k_r]
//   expanded:  k_n = W_uk c, v = W_uv c;   s = scale (q_n · k_n + q_r · k_r);   o = softmax(s) v
//   absorbed:  q_lat = W_ukᵀ q_n;          s = scale (q_lat · c + q_r · k_r);   o = W_uv (softmax(s) c)
//   y = W_o [o^0 | … | o^{H-1}]
//
// Both forms are equal in real arithmetic, but not in their last bits. The absorbed form reads the cache as it is; in it a
// token's bits depend on the sequence up to it alone, whether it is computed by itself or with others. The expanded form
// first rebuilds keys and values of the whole context: fewer operations once enough tokens share that work.
// Source: DeepSeek-V2 (2024), section 2.1 and appendix C; DeepSeek-V3 model code.

#include <optional>

// ---- mote/core/paged.hpp
// Paged caches: rows of one sequence, stored in pages that a block table lists in order.

MOTE_BEGIN_NAMESPACE

// Rows [0, length) of one sequence. Row i is pages[block_table[i / page_size]][i % page_size].
template <class T>
struct paged_rows {
  view<T, 3> pages;                           // [pages, page_size, width]
  std::span<const std::int32_t> block_table;  // [ceil(length / page_size)]
  std::size_t length = 0;

  std::size_t page_size() const { return pages.extent(1); }
  std::size_t width() const { return pages.extent(2); }
  T* row(std::size_t i) const {
    return &pages(static_cast<std::size_t>(block_table[i / page_size()]), i % page_size(), std::size_t{0});
  }

  template <class U = T>
    requires(!std::is_const_v<U>)
  operator paged_rows<const U>() const { return {pages, block_table, length}; }
};

// Throws shape_error "op: argument: …" unless the block table covers the length. That its entries are pages of the pool is for
// the caller to see to.
template <class T>
void check_pages(std::string_view op, std::string_view argument, const paged_rows<T>& rows) {
  if (rows.length != 0 && (rows.page_size() == 0 || (rows.length - 1) / rows.page_size() >= rows.block_table.size())) {
    raise<shape_error>(detail::concatenate(
        {op, ": ", argument, ": its block table must cover its length, ", std::to_string(rows.length), " rows"}));
  }
}

// What each of the sequence's last contexts.size() tokens sees: every row up to its own. Runs on a host back end.
template <class Backend, class T>
void causal_contexts(Backend& be, const paged_rows<T>& rows, view<paged_rows<const T>, 1> contexts) {
  const std::size_t tokens = contexts.extent(0);
  be.parallel_for(1, 1, [&](std::size_t, std::size_t) {
    for (std::size_t t = 0; t < tokens; ++t) {
      contexts(t) = rows;
      contexts(t).length = rows.length - tokens + t + 1;
    }
  });
}

MOTE_END_NAMESPACE

// ---- mote/ops/add_bias/add_bias.hpp
// Adds one vector to every row: y[t, i] += bias[i].
//
// y: [tokens, n], rows may be strided; bias: [n]. Throws shape_error when the shapes differ.

// ---- mote/ops/add_bias/reference.hpp
MOTE_BEGIN_NAMESPACE

inline void add_bias_impl(reference&, view<const float, 1> bias, view<float, 2> y) noexcept {
  for (std::size_t t = 0; t < y.extent(0); ++t) {
    for (std::size_t i = 0; i < y.extent(1); ++i) y(t, i) += bias(i);
  }
}

MOTE_END_NAMESPACE

// ---- mote/ops/add_bias/simd.hpp
MOTE_BEGIN_NAMESPACE

template <class Arch, class Executor>
void add_bias_impl(simd<Arch, Executor>& be, view<const float, 1> bias, view<float, 2> y) noexcept {
  using vector = batch<float, Arch>;
  const std::size_t n = y.extent(1), whole = n / vector::size * vector::size;
  const std::size_t grain = 1 + std::size_t{16384} / (n + 1);
  be.parallel_for(y.extent(0), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) {
      float* row = y.row(t);
      for (std::size_t i = 0; i < whole; i += vector::size) {
        (vector::load_unaligned(row + i) + vector::load_unaligned(bias.data() + i)).store_unaligned(row + i);
      }
      for (std::size_t i = whole; i < n; ++i) row[i] += bias.data()[i];
    }
  });
}

MOTE_END_NAMESPACE

// ---- mote/ops/add_bias/add_bias.hpp
MOTE_BEGIN_NAMESPACE

template <backend Backend>
void add_bias(Backend& be, view<const float, 1> bias, view<float, 2> y) {
  check_view("add_bias", "bias", bias, {y.extent(1)});
  check_view("add_bias", "y", y, {y.extent(0), y.extent(1)});
  add_bias_impl(be, bias, y);
}

MOTE_END_NAMESPACE

// ---- mote/ops/batched_matmul/batched_matmul.hpp
// One linear layer for each entry of a batch (in MLA: for each head).
//
//   y[b, t, n] = Σ_k x[b, t, k] · W[b · out + n, k]
//
// x: [batch, tokens, in], y: [batch, tokens, out], both with any strides but a contiguous last dimension;
// W: [batch · out, in] in any weight format; where it is packed and the batch is more than 1, `out` is a multiple of its
// panels' rows. Numbers as in matmul. Throws shape_error when the shapes differ.

// ---- mote/ops/batched_matmul/reference.hpp
MOTE_BEGIN_NAMESPACE

inline void batched_matmul_impl(reference& be, view<const float, 3> x, const weight& w, view<float, 3> y) {
  for (std::size_t b = 0; b < x.extent(0); ++b) {
    matmul_impl(be, x[b], slice_rows(w, b * y.extent(2), y.extent(2)), y[b], output::overwrite);
  }
}

MOTE_END_NAMESPACE

// ---- mote/ops/batched_matmul/simd.hpp
MOTE_BEGIN_NAMESPACE

template <class Arch, class Executor>
void batched_matmul_impl(simd<Arch, Executor>& be, view<const float, 3> x, const weight& w, view<float, 3> y) {
  const std::size_t entries = x.extent(0), tokens = x.extent(1), out = y.extent(2);
  detail::check_packing<Arch>("batched_matmul", w);
  if (tokens == 0 || out == 0) return;
  const std::size_t unit = detail::unit_rows_of<Arch>(w, tokens);
  const std::size_t units = (out + unit - 1) / unit;
  auto scope = be.scope();
  const detail::activation_forms forms = detail::forms(w);
  const auto rows = detail::prepare_rows<Arch>(be, scope, forms, entries * tokens, x.extent(2), [&](std::size_t i) {
    return &x(i / tokens, i % tokens, std::size_t{0});
  });
  detail::lay_out_tiles<Arch>(be, scope, forms, x.extent(2), rows, entries, [&](std::size_t b) { return b * tokens; });
  be.parallel_for(entries * units, 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      const std::size_t b = i / units, n = i % units * unit;
      detail::matmul_unit<Arch>(slice_rows(w, b * out, out), n, std::min(unit, out - n), rows.data() + b * tokens,
                                tokens, output::overwrite, [&](std::size_t t) { return &y(b, t, std::size_t{0}); });
    }
  });
}

MOTE_END_NAMESPACE

// ---- mote/ops/batched_matmul/batched_matmul.hpp
MOTE_BEGIN_NAMESPACE

namespace detail {

// Throws shape_error unless w is cut at multiples of `rows` (slice_rows).
inline void check_cut(std::string_view op, std::string_view argument, const weight& w, std::size_t rows) {
  std::visit(
      [&]<class Matrix>(const Matrix&) {
        if constexpr (requires { Matrix::panel_rows; }) {
          if (rows % Matrix::panel_rows == 0) return;
          raise<shape_error>(concatenate({op, ": ", argument, ": is packed, expected a multiple of ",
                                          std::to_string(Matrix::panel_rows), " rows for each entry of the batch, got ",
                                          std::to_string(rows)}));
        }
      },
      w);
}

}  // namespace detail

template <backend Backend>
void batched_matmul(Backend& be, view<const float, 3> x, const weight& w, view<float, 3> y) {
  check_view("batched_matmul", "x", x, {x.extent(0), x.extent(1), in_features(w)});
  check_rows("batched_matmul", "w", w);
  check(x.extent(0) != 0 && out_features(w) % x.extent(0) == 0, "batched_matmul",
        "w: its rows must be a multiple of the batch");
  if (x.extent(0) > 1) detail::check_cut("batched_matmul", "w", w, out_features(w) / x.extent(0));
  check_view("batched_matmul", "y", y, {x.extent(0), x.extent(1), out_features(w) / x.extent(0)});
  batched_matmul_impl(be, x, w, y);
}

MOTE_END_NAMESPACE

// ---- mote/ops/mla_decode/mla_decode.hpp
// Multi-head latent attention in its absorbed form, on the paged latent cache: multi-query attention whose key is
// [latent | rope key] and whose value is the latent.
//
//   s[t, h, c] = scale · (q_latent[t, h] · latent[c] + q_rope[t, h] · k_rope[c]),   c < length of token t's context
//   y[t, h] = Σ_c softmax_c(s[t, h, :]) latent[c]
//
// q_latent, y: [tokens, heads, kv_lora_rank]; q_rope: [tokens, heads, qk_rope_head_dim]; context[t] are the cached rows
// [latent | rope key] that token t sees, its own included, float32 or any other row_element (quant/rows.hpp): tokens may
// belong to one sequence or to several. Consecutive tokens of one sequence share the reading of its rows.
// A token's bits depend on its queries and its context alone, not on the other tokens, on threads or on pages.
// Throws shape_error when shapes differ, a context is empty or its block table too short.
// Source: DeepSeek-V2 (2024), section 2.1 and appendix C.

#include <ranges>

// ---- mote/quant/rows.hpp
// Rows of numbers as caches store them, and `cache_rows`: rows of a paged cache in any of those forms but f16. The variant is
// visited once for each op, never for each row. Rows do not own their memory.
//
//   float, bf16, f16   one number an element of a row
//   F                  F::block_size numbers, for any block format F
//
// Of the formats, mxfp8 is the fp8 cache and q8_0 the int8 cache: both scale 32 numbers together.

// ---- mote/quant/formats/mxfp8.hpp
// MXFP8: 32 e4m3 numbers and a power of two, 33 bytes. value = e4m3(code) · 2^(e - 127).
//
//   encode: 2^(e - 127) is the least power of two not below amax / 448, so that nothing saturates; codes to nearest,
//           ties to even
//
// For caches: the dynamic range of a float in a byte. Source: OCP Microscaling Formats v1.0.

MOTE_BEGIN_NAMESPACE

struct mxfp8 {
  static constexpr std::string_view name = "mxfp8";
  static constexpr std::size_t block_size = 32;

  f8_e8m0 e;
  f8_e4m3 q[block_size];

  static mxfp8 encode(const float* x) {
    mxfp8 block;
    block.e = f8_e8m0(detail::largest_magnitude(x, block_size) / 448.0f, exponent_rounding::ceil);
    const float inverse = 1.0f / static_cast<float>(block.e);
    for (std::size_t i = 0; i < block_size; ++i) block.q[i].bits = code(x[i] * inverse);
    return block;
  }

  // e4m3's exponent and mantissa in float32's places are the number times 2^-120.
  void decode(float* y) const {
    const float scale = static_cast<float>(e);
    for (std::size_t i = 0; i < block_size; ++i) {
      const std::uint32_t code = q[i].bits, magnitude = code & 0x7Fu;
      const float value = detail::bit_cast<float>((code & 0x80u) << 24 | magnitude << 20) * 0x1p120f;
      y[i] = (magnitude == 0x7Fu ? std::numeric_limits<float>::quiet_NaN() : value) * scale;
    }
  }

 private:
  // f8_e4m3(v).bits for |v| <= 448, without branches, that loops become vectors: normal numbers round in their place,
  // subnormal ones as multiples of 2^-9, which is the last place of what is added to them.
  static std::uint8_t code(float v) {
    const std::uint32_t bits = detail::bit_cast<std::uint32_t>(v), magnitude = bits & 0x7FFFFFFFu;
    const std::uint32_t normal = ((magnitude + 0x7FFFFu + (magnitude >> 20 & 1u)) >> 20) - (120u << 3);
    const std::uint32_t subnormal =
        detail::bit_cast<std::uint32_t>(detail::bit_cast<float>(magnitude) + 0x1.8p14f) - 0x46C00000u;
    const std::uint32_t rounded = magnitude < 0x3C800000u ? subnormal : normal;
    return static_cast<std::uint8_t>((bits >> 24 & 0x80u) | rounded);
  }
};
static_assert(block_format<mxfp8> && sizeof(mxfp8) == 33);

MOTE_END_NAMESPACE

// ---- mote/quant/rows.hpp
MOTE_BEGIN_NAMESPACE

template <class T>
concept row_element = std::same_as<T, float> || std::same_as<T, bf16> || std::same_as<T, f16> || block_format<T>;

// x[n] to a row; n is whole blocks. Values must be finite where T is a block format.
template <row_element T>
void encode_row(const float* x, std::size_t n, T* row) {
  if constexpr (block_format<T>) {
    for (std::size_t i = 0; i < n; i += T::block_size) *row++ = T::encode(x + i);
  } else {
    std::transform(x, x + n, row, [](float v) { return static_cast<T>(v); });
  }
}

// The first n numbers of a row to y.
template <row_element T>
void decode_row(const T* row, std::size_t n, float* y) {
  if constexpr (block_format<T>) {
    for (std::size_t i = 0; i < n; i += T::block_size) row++->decode(y + i);
  } else {
    std::transform(row, row + n, y, [](T v) { return static_cast<float>(v); });
  }
}

namespace detail {

// The same by vectors.
template <class Arch, row_element T>
void decode_row(const T* row, std::size_t n, float* y) noexcept {
  std::size_t i = 0;
  if constexpr (!block_format<T>) {
    constexpr std::size_t size = batch<float, Arch>::size;
    for (; i + size <= n; i += size) widen<Arch>(row + i).store_unaligned(y + i);
  }
  mote::decode_row(row + i, n - i, y + i);
}

}  // namespace detail

// The form of a row, known at run time.
struct row_format {
  std::string_view name = "f32";
  std::size_t block_size = 1;         // numbers an element
  std::size_t bytes = sizeof(float);  // of an element

  template <row_element T>
  static constexpr row_format of() {
    if constexpr (block_format<T>) {
      return {T::name, T::block_size, sizeof(T)};
    } else {
      return {std::same_as<T, float> ? "f32" : std::same_as<T, bf16> ? "bf16" : "f16", 1, sizeof(T)};
    }
  }

  // Bytes of a row of so many numbers, which are whole blocks.
  std::size_t row_bytes(std::size_t columns) const { return columns / block_size * bytes; }

  friend bool operator==(const row_format&, const row_format&) = default;
};

// Throws shape_error "op: argument: …" unless so many numbers are whole blocks.
inline void check_whole_blocks(std::string_view op, std::string_view argument, std::size_t columns,
                               const row_format& format) {
  if (columns % format.block_size == 0) return;
  raise<shape_error>(
      detail::concatenate({op, ": ", argument, ": expected whole blocks of ", std::to_string(format.block_size),
                           " for ", format.name, ", got ", std::to_string(columns)}));
}

// Numbers in a row.
template <class T>
std::size_t columns(const paged_rows<T>& rows) {
  return rows.width() * row_format::of<std::remove_const_t<T>>().block_size;
}

namespace detail {

template <class List>
struct row_elements_with;
template <class... F>
struct row_elements_with<type_list<F...>> {
  using elements = type_list<float, bf16, mxfp8, F...>;
  using rows = std::variant<paged_rows<float>, paged_rows<bf16>, paged_rows<mxfp8>, paged_rows<F>...>;
};

}  // namespace detail

// The forms that can be chosen at run time, one after another: for_each_format(f, row_elements{}).
using row_elements = detail::row_elements_with<formats>::elements;
using cache_rows = detail::row_elements_with<formats>::rows;

// Rows in use.
template <class T>
std::size_t length(const paged_rows<T>& rows) {
  return rows.length;
}
inline std::size_t length(const cache_rows& rows) {
  return std::visit([](const auto& r) { return r.length; }, rows);
}

MOTE_END_NAMESPACE

// ---- mote/ops/mla_decode/reference.hpp
MOTE_BEGIN_NAMESPACE

template <class T>
void mla_decode_impl(reference& be, view<const float, 3> q_latent, view<const float, 3> q_rope,
                     std::span<const paged_rows<const T>> context, float scale, view<float, 3> y) {
  const std::size_t rank = q_latent.extent(2), rope_dim = q_rope.extent(2);
  for (std::size_t t = 0; t < q_latent.extent(0); ++t) {
    const auto& rows = context[t];
    auto scope = be.scope();
    const auto p = scope.tensor<float>(rows.length);
    const auto row = scope.tensor<float>(rows.length, rank + rope_dim);
    for (std::size_t c = 0; c < rows.length; ++c) decode_row(rows.row(c), rank + rope_dim, row.row(c));
    for (std::size_t h = 0; h < q_latent.extent(1); ++h) {
      float maximum = -INFINITY, total = 0.0f;
      for (std::size_t c = 0; c < rows.length; ++c) {
        float s = 0.0f;
        for (std::size_t i = 0; i < rank; ++i) s += q_latent(t, h, i) * row(c, i);
        for (std::size_t i = 0; i < rope_dim; ++i) s += q_rope(t, h, i) * row(c, rank + i);
        p(c) = s * scale;
        maximum = std::fmax(maximum, p(c));
      }
      for (std::size_t c = 0; c < rows.length; ++c) total += p(c) = std::exp(p(c) - maximum);
      for (std::size_t i = 0; i < rank; ++i) {
        float sum = 0.0f;
        for (std::size_t c = 0; c < rows.length; ++c) sum += p(c) * row(c, i);
        y(t, h, i) = sum / total;
      }
    }
  }
}

MOTE_END_NAMESPACE

// ---- mote/ops/attention/products.hpp
// Which products attention takes: matrix tiles' where the machine has them, else vectors'.

// ---- mote/ops/attention/block.hpp
// The loop that attention ops share: a block of queries against tiles of keys, with the online softmax.
//
// Lanes are queries, so that maxima, exponentials and sums need no work across lanes. After tile i the outputs hold
// Σ exp(s - m) v over the keys so far, m being their largest score; the next tile rescales them if m grew. Products of
// queries and keys, and of probabilities and values, are `Products`': vector_products.hpp or tile_products.hpp.
//
// One lane's result does not depend on what the other lanes hold: sums of products are fused where they are said to be, for
// a compiler may fuse others in one copy of this code and not in the next.
// Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Dao et al., "FlashAttention" (2022).

MOTE_BEGIN_NAMESPACE

namespace detail {

// Dimensions of an attention: a query and a key are [first | second], two runs of floats.
struct attention_shape {
  std::size_t first, second, value;
};

// Keys and their values.
struct attention_keys {
  static constexpr std::size_t size = 64;

  const float* first[size];
  const float* second[size];
  const float* value[size];
};

// The outputs of a block's `count` first queries, rows of floats; how the last tile's maxima grew and which of its keys a
// query sees, the first seen[lane].
template <std::size_t Lanes>
struct attention_outputs {
  float* row[Lanes];
  std::size_t count = 0;
  alignas(64) float growth[Lanes];
  alignas(64) float seen[Lanes];
};

// A block of up to Products::lanes queries. attend() below takes several through a tile of keys.
template <class Arch, class Products>
class attention_block {
  using vector = batch<float, Arch>;
  static constexpr std::size_t vectors = Products::lanes / vector::size;

 public:
  using products = Products;
  static constexpr std::size_t lanes = Products::lanes;

  // Queries as Products::pack leaves them, `count` rows of shape.value floats that take the outputs, and `memory`, scratch of
  // Products::block_floats(shape) floats.
  void start(const attention_shape& shape, const float* queries, float* memory, float* const* out, std::size_t count) {
    shape_ = shape;
    out_.count = count;
    std::copy_n(out, count, out_.row);
    products_.start(shape, queries, memory, out_);
    for (std::size_t v = 0; v < vectors; ++v) {
      maximum_[v] = vector(-INFINITY);
      total_[v] = vector(0.0f);
    }
  }

  // Of the next tile's `count` keys query `lane` sees the first visible[lane], none where that is negative; no query fewer
  // than the one before it.
  void see(std::size_t count, const std::ptrdiff_t (&visible)[lanes]) {
    const auto own = [count](std::ptrdiff_t keys) {
      return static_cast<std::size_t>(std::clamp<std::ptrdiff_t>(keys, 0, static_cast<std::ptrdiff_t>(count)));
    };
    keys_ = own(visible[lanes - 1]);
    causal_ = own(visible[0]) < keys_;
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      out_.seen[lane] = static_cast<float>(causal_ ? own(visible[lane]) : keys_);
    }
  }
  bool sees_keys() const { return keys_ > 0; }
  bool sees_all(std::size_t count) const { return !causal_ && keys_ == count; }

  void score(typename Products::engine& engine, const typename Products::keys& keys, std::size_t chunk) {
    products_.score(engine, keys, chunk, keys_, scores_);
  }

  // scores_ become exp(s - new maximum), `total_` follows.
  [[gnu::noinline]] void weigh() {
    for (std::size_t v = 0; v < vectors; ++v) {
      float* const s = scores_ + v * vector::size;
      if (causal_) {
        const vector limit = vector::load_aligned(out_.seen + v * vector::size);
        for (std::size_t c = 0; c < keys_; ++c) {
          const vector seen = xsimd::select(vector(static_cast<float>(c)) < limit, vector::load_aligned(s + c * lanes),
                                            vector(-INFINITY));
          seen.store_aligned(s + c * lanes);
        }
      }
      vector maximum = maximum_[v];
      for (std::size_t c = 0; c < keys_; ++c) maximum = xsimd::max(maximum, vector::load_aligned(s + c * lanes));
      const vector growth = exp_nonpositive<Arch>(maximum_[v] - maximum);
      vector total(0.0f);
      for (std::size_t c = 0; c < keys_; ++c) {
        const vector p = exp_nonpositive<Arch>(vector::load_aligned(s + c * lanes) - maximum);
        p.store_aligned(s + c * lanes);
        total += p;
      }
      growth.store_aligned(out_.growth + v * vector::size);
      maximum_[v] = maximum;
      total_[v] = fused_multiply_add(total_[v], growth, total);
    }
    products_.weigh(scores_, keys_);
  }

  void add_values(typename Products::engine& engine, const typename Products::keys& keys, std::size_t chunk) {
    products_.add_values(engine, keys, chunk, keys_, scores_, out_);
  }

  // The largest score of a query and its sum of exp(s - largest).
  struct state {
    float maximum, total;
  };
  state state_of(std::size_t lane) const {
    float lanes_of[vector::size];
    maximum_[lane / vector::size].store_unaligned(lanes_of);
    const float maximum = lanes_of[lane % vector::size];
    total_[lane / vector::size].store_unaligned(lanes_of);
    return {maximum, lanes_of[lane % vector::size]};
  }

  // Leaves the outputs in their rows; then divides them by the sums.
  void finish() { products_.finish(out_); }
  void normalise() {
    for (std::size_t lane = 0; lane < out_.count; ++lane) {
      float* o = out_.row[lane];
      const vector scale(1.0f / state_of(lane).total);
      for_each_vector<Arch>(shape_.value,
                            [&](std::size_t i, auto load, auto store) { store(o + i, load(o + i) * scale); });
    }
  }

 private:
  attention_shape shape_{};
  Products products_;
  attention_outputs<lanes> out_;
  vector maximum_[vectors], total_[vectors];
  std::size_t keys_ = 0;
  bool causal_ = false;
  alignas(64) float scores_[Products::padded_keys * lanes];  // [keys, lanes]
};

// Takes `count` blocks through a tile of `key_count` keys, after each has been told what it sees of it. Products may take the
// dimensions of keys and the columns of values in chunks, each of which is made ready once for all blocks.
template <class Block>
void attend(Block* blocks, std::size_t count, const attention_keys& rows, std::size_t key_count,
            typename Block::products::keys& keys) {
  keys.take(rows, key_count,
            std::all_of(blocks, blocks + count, [&](const Block& block) { return block.sees_all(key_count); }));
  const auto each = [&](auto&& f) {
    for (std::size_t b = 0; b < count; ++b) {
      if (blocks[b].sees_keys()) f(blocks[b]);
    }
  };
  typename Block::products::engine engine;
  for (std::size_t chunk = 0; chunk < keys.score_chunks(); ++chunk) {
    keys.ready_scores(chunk);
    each([&](Block& block) { block.score(engine, keys, chunk); });
  }
  each([](Block& block) { block.weigh(); });
  for (std::size_t chunk = 0; chunk < keys.value_chunks(); ++chunk) {
    keys.ready_values(chunk);
    each([&](Block& block) { block.add_values(engine, keys, chunk); });
  }
}

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/ops/attention/tile_products.hpp
// Attention's products by matrix tiles (core/amx.hpp), as exact as in float32: each number is the sum of three bf16, x = x0 +
// x1 + x2 with |x1| < 2^-7 |x| and |x2| < 2^-15 |x|, and of a product all but about 2^-21 of it is added up,
//
//   x y  =  x0 y2 + x0 y1 + x1 y1 + x1 y0 + x0 y0 + x2 y0        in float32
//
// Keys and values that are bf16 themselves, as caches of bf16, mxfp8 or mxfp4 hold them, have no lower parts: three of the
// six products are zeros and are left out, which changes no bit.
//
// Less exact are numbers below 2^-110, whose lower parts are subnormal, zero to tiles; infinities become NaN.
//
// Scores are tiles of 16 keys by 16 queries, outputs of 16 queries by 16 columns. Tiles read pairs of bf16: elements i and
// i + 16 of 32 dimensions, or of 32 keys, share a word, so that making one takes no shuffles.
// Source: Henry et al., "Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations" (2019).

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

MOTE_BEGIN_NAMESPACE

namespace detail {

// to[j][i] = from[i][j].
inline void transpose_words(const std::uint32_t (&from)[16][16], std::uint32_t* to) {
#if defined(__AVX512F__)
  // With masks, for g++ 12 takes the undefined operands of those without for a mistake of the caller's (GCC bug 105593).
  constexpr __mmask16 all = 0xFFFF;
  constexpr __mmask8 all_pairs = 0xFF;
  __m512i row[16], next[16];
  for (int i = 0; i < 16; ++i) row[i] = _mm512_load_si512(from[i]);
  for (int i = 0; i < 16; i += 2) {
    next[i] = _mm512_maskz_unpacklo_epi32(all, row[i], row[i + 1]);
    next[i + 1] = _mm512_maskz_unpackhi_epi32(all, row[i], row[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      row[i + 2 * j] = _mm512_maskz_unpacklo_epi64(all_pairs, next[i + j], next[i + j + 2]);
      row[i + 2 * j + 1] = _mm512_maskz_unpackhi_epi64(all_pairs, next[i + j], next[i + j + 2]);
    }
  }
  // row[4 a + b] holds column 4 l + b of rows 4 a .. 4 a + 3 in its quarter l.
  for (int b = 0; b < 4; ++b) {
    const __m512i even = _mm512_maskz_shuffle_i32x4(all, row[b], row[4 + b], 0x88);
    const __m512i odd = _mm512_maskz_shuffle_i32x4(all, row[b], row[4 + b], 0xDD);
    const __m512i even_below = _mm512_maskz_shuffle_i32x4(all, row[8 + b], row[12 + b], 0x88);
    const __m512i odd_below = _mm512_maskz_shuffle_i32x4(all, row[8 + b], row[12 + b], 0xDD);
    _mm512_storeu_si512(to + b * 16, _mm512_maskz_shuffle_i32x4(all, even, even_below, 0x88));
    _mm512_storeu_si512(to + (4 + b) * 16, _mm512_maskz_shuffle_i32x4(all, odd, odd_below, 0x88));
    _mm512_storeu_si512(to + (8 + b) * 16, _mm512_maskz_shuffle_i32x4(all, even, even_below, 0xDD));
    _mm512_storeu_si512(to + (12 + b) * 16, _mm512_maskz_shuffle_i32x4(all, odd, odd_below, 0xDD));
  }
#else
  for (std::size_t i = 0; i < 16; ++i) {
    for (std::size_t j = 0; j < 16; ++j) to[j * 16 + i] = from[i][j];
  }
#endif
}

// Queries in Vectors tiles of sixteen.
template <class Tiles, class Arch, std::size_t Vectors>
class tile_products {
  using floats = batch<float, Arch>;
  using words = batch<std::uint32_t, Arch>;
  using word = std::uint32_t;

  // A step is 32 dimensions of a query and a key, or 32 keys of probabilities and values: a tile of keys has two halves.
  static constexpr std::size_t step = 32, step_words = step / 2, halves = attention_keys::size / step;
  static constexpr std::size_t tile_words = tile_height * step_words;
  static constexpr std::size_t parts = 3;  // bf16 numbers that a float32 is the sum of
  static constexpr tile_shape whole{tile_height};
  static constexpr float zeros[tile_height] = {};
  // Steps and columns that are split at once: they stay in the first-level cache while all blocks multiply them.
  static constexpr std::size_t depth = 2, width = 64;
  static constexpr std::size_t tiles_across = 4;  // of 64 keys or columns
  static constexpr std::size_t part_words = tiles_across * tile_words, step_size = parts * part_words,
                               group_size = halves * parts * part_words;

 public:
  static constexpr std::size_t lanes = Vectors * tile_height, padded_keys = attention_keys::size;
  // That share a tile of keys: splitting one costs most of what a block's products do.
  static constexpr std::size_t blocks_together = 8;
  using outputs = attention_outputs<lanes>;

  struct engine : Tiles {
    engine() : Tiles({whole, whole, whole, whole, whole, whole, whole, whole}) {}
  };

  // Steps of a query and a key; groups of columns of values.
  static std::size_t steps(std::size_t dim) { return (dim + step - 1) / step; }
  static std::size_t steps(const attention_shape& shape) { return steps(shape.first) + steps(shape.second); }
  static std::size_t groups(const attention_shape& shape) { return (shape.value + width - 1) / width; }

  static std::size_t query_floats(const attention_shape& shape) { return steps(shape) * step_words * lanes * parts; }
  static std::size_t key_floats(const attention_shape&) { return std::max(depth * step_size, group_size); }
  static std::size_t block_floats(const attention_shape& shape) {
    return groups(shape) * width * lanes + halves * parts * Vectors * tile_words;
  }

  // A tile of keys, of which a chunk at a time is split: `depth` steps, each [part][4 tiles][16 keys][16 words], or a group of
  // values [half][part][4 tiles][16 words][16 columns].
  class keys {
   public:
    keys(const attention_shape& shape, float* memory) : shape_(shape), chunk_(reinterpret_cast<word*>(memory)) {}

    void take(const attention_keys& rows, std::size_t count, bool seen_by_all) {
      rows_ = &rows;
      count_ = count;
      const float* const value = rows.value[0];  // a few numbers tell whether it is worth trying
      seem_bf16_ = std::all_of(value, value + std::min(shape_.value, std::size_t{4}),
                               [](float x) { return bit_cast<word>(x) << 16 == 0; });
      spoilt_ = 0;
      for (std::size_t c = 0; c < count && !seen_by_all; ++c) {
        if (!finite(rows.value[c], shape_.value)) spoilt_ |= std::uint64_t{1} << c;
      }
    }

    std::size_t score_chunks() const { return std::max<std::size_t>((steps(shape_) + depth - 1) / depth, 1); }
    std::size_t value_chunks() const { return groups(shape_); }
    void ready_scores(std::size_t chunk) {
      lower_parts_ = !(seem_bf16_ && split_steps<1>(chunk));
      if (lower_parts_) split_steps<parts>(chunk);
    }
    void ready_values(std::size_t chunk) {
      lower_parts_ = !(seem_bf16_ && split_group<1>(chunk));
      if (lower_parts_) split_group<parts>(chunk);
    }

    const word* chunk() const { return chunk_; }
    // Whether the chunk holds them: else they are zeros, and what stands in their place is not to be read.
    bool lower_parts() const { return lower_parts_; }
    const attention_keys& rows() const { return *rows_; }
    // Bit c: whether value c holds infinities or NaN, which queries that do not see it must not add up, not even times zero:
    // they are zeros to the tiles.
    std::uint64_t spoilt() const { return spoilt_; }

   private:
    static bool finite(const float* x, std::size_t n) {
      floats nothing(0.0f);
      std::size_t i = 0;
      for (; i + floats::size <= n; i += floats::size) {
        nothing = fused_multiply_add(floats::load_unaligned(x + i), floats(0.0f), nothing);
      }
      float all = sum(nothing);
      for (; i < n; ++i) all += x[i] * 0.0f;
      return all == 0.0f;
    }
    // The first Parts parts of a chunk's numbers. False, the rest of the chunk unwritten, where a number has more.
    template <std::size_t Parts>
    bool split_steps(std::size_t chunk) const {
      const std::size_t begin = chunk * depth, end = std::min(begin + depth, steps(shape_));
      for (std::size_t s = begin; s < end; ++s) {
        if (!split_step<Parts>(s, chunk_ + (s - begin) * step_size)) return false;
      }
      return true;
    }
    template <std::size_t Parts>
    bool split_step(std::size_t s, word* to) const {
      const bool first = s < steps(shape_.first);
      const float* const* const row = first ? rows_->first : rows_->second;
      const std::size_t i = (first ? s : s - steps(shape_.first)) * step, dim = first ? shape_.first : shape_.second;
      for (std::size_t c = 0; c < count_; ++c) {
        if (!split_row<Parts>(row[c] + i, dim - i, 1.0f, to + c * step_words, part_words)) return false;
      }
      return true;
    }
    template <std::size_t Parts>
    bool split_group(std::size_t group) const {
      word* to = chunk_;
      for (std::size_t half = 0; half < halves; ++half, to += parts * part_words) {
        for (std::size_t tile = 0; tile < tiles_across; ++tile) {
          const std::size_t d = group * width + tile * tile_height;
          for (std::size_t i = 0; i < step_words; ++i) {
            const std::size_t c = half * step + i;
            alignas(64) float padded[2][tile_height];
            if (!split<Parts>(value(c, d, padded[0]), value(c + step_words, d, padded[1]), 1.0f,
                              to + tile * tile_words + i * step_words, part_words)) {
              return false;
            }
          }
        }
      }
      return true;
    }
    // Sixteen columns from d on of value c: in `padded` where there are fewer or some are zeros to the tiles.
    const float* value(std::size_t c, std::size_t d, float* padded) const {
      if (c >= count_) return zeros;
      const bool spoilt = (spoilt_ >> c & 1) != 0;
      if (d + tile_height <= shape_.value && !spoilt) return rows_->value[c] + d;
      for (std::size_t i = 0; i < tile_height; ++i) {
        const float x = d + i < shape_.value ? rows_->value[c][d + i] : 0.0f;
        padded[i] = spoilt && !std::isfinite(x) ? 0.0f : x;
      }
      return padded;
    }

    attention_shape shape_;
    word* chunk_;
    const attention_keys* rows_ = nullptr;
    std::size_t count_ = 0;
    std::uint64_t spoilt_ = 0;
    bool seem_bf16_ = false, lower_parts_ = true;
  };

  // [step][part][tile of queries][16 words][16 queries].
  static void pack(const attention_shape& shape, const float* const* first, const float* const* second,
                   std::size_t count, float scale, float* to) {
    word* next = reinterpret_cast<word*>(to);
    pack(shape.first, first, count, scale, next);
    pack(shape.second, second, count, scale, next);
  }

  void start(const attention_shape& shape, const float* queries, float* memory, const outputs&) {
    shape_ = shape;
    queries_ = reinterpret_cast<const word*>(queries);
    sums_ = memory;
    probabilities_ = reinterpret_cast<word*>(memory + groups(shape) * width * lanes);
    empty_ = true;
  }

  void score(engine& tiles, const keys& tile, std::size_t chunk, std::size_t count, float* scores) const {
    // Keys behind the last are multiplied too, as far as tiles reach; nobody reads their scores.
    const std::size_t begin = chunk * depth, end = std::min(begin + depth, steps(shape_));
    constexpr std::size_t rows = 4 / Vectors;  // tiles of keys at once
    for (std::size_t c = 0; c < count; c += rows * tile_height) {
      float* const to = scores + c * lanes;
      load_sums<rows, Vectors>(tiles, begin == 0 ? nullptr : to, tile_height * lanes, tile_height, lanes);
      for (std::size_t s = begin; s < end; ++s) {
        multiply<rows, Vectors>(
            tiles, {tile.chunk() + (s - begin) * step_size + c * step_words, part_words, tile.lower_parts()},
            {queries_ + s * parts * Vectors * tile_words, Vectors * tile_words});
      }
      store_sums<rows, Vectors>(tiles, to, tile_height * lanes, tile_height, lanes);
    }
  }

  // Splits the probabilities of `count` keys, zeros behind them.
  void weigh(const float* p, std::size_t count) {
    for (std::size_t half = 0; half < halves; ++half) {
      for (std::size_t v = 0; v < Vectors; ++v) {
        alignas(64) word split_up[parts][step_words][tile_height];
        for (std::size_t pair = 0; pair < step_words; ++pair) {
          const std::size_t c = half * step + pair, other = c + step_words;
          const auto row = [&](std::size_t key) { return key < count ? p + key * lanes + v * tile_height : zeros; };
          split<parts>(row(c), row(other), 1.0f, split_up[0][pair], tile_words);
        }
        for (std::size_t part = 0; part < parts; ++part) {
          transpose_words(split_up[part], probabilities_ + ((half * parts + part) * Vectors + v) * tile_words);
        }
      }
    }
  }

  void add_values(engine& tiles, const keys& tile, std::size_t chunk, std::size_t, const float*, const outputs& out) {
    float* const sums = sums_ + chunk * width * lanes;
    if (!empty_) rescale(sums, out);
    constexpr std::size_t columns = 4 / Vectors;  // tiles of them at once
    for (std::size_t d = 0; d < tiles_across; d += columns) {
      float* const to = sums + d * lanes * tile_height;
      load_sums<Vectors, columns>(tiles, empty_ ? nullptr : to, tile_words, lanes * tile_height, tile_height);
      for (std::size_t half = 0; half < halves; ++half) {
        multiply<Vectors, columns>(
            tiles, {probabilities_ + half * parts * Vectors * tile_words, Vectors * tile_words},
            {tile.chunk() + half * parts * part_words + d * tile_words, part_words, tile.lower_parts()});
      }
      store_sums<Vectors, columns>(tiles, to, tile_words, lanes * tile_height, tile_height);
    }
    for (std::uint64_t left = tile.spoilt(); left != 0; left &= left - 1) {
      const auto c = static_cast<std::size_t>(std::countr_zero(left));
      spoil(tile.rows().value[c], chunk, c, out);
    }
    if (chunk + 1 == groups(shape_)) empty_ = false;
  }

  void finish(outputs& out) const {
    for (std::size_t lane = 0; lane < out.count; ++lane) {
      const float* sum = sums_ + lane * tile_height;
      float* const to = out.row[lane];
      std::size_t i = 0;
      for (; i + tile_height <= shape_.value; i += tile_height, sum += lanes * tile_height) {
        std::memcpy(to + i, sum, tile_height * sizeof(float));
      }
      std::copy_n(sum, shape_.value - i, to + i);
    }
  }

 private:
  void rescale(float* sums, const outputs& out) const {
    for (std::size_t lane = 0; lane < out.count; ++lane) {
      if (out.growth[lane] == 1.0f) continue;
      const floats growth(out.growth[lane]);
      for (std::size_t d = 0; d < tiles_across; ++d) {
        float* const sum = sums + (d * lanes + lane) * tile_height;
        for (std::size_t i = 0; i < tile_height; i += floats::size) {
          (floats::load_aligned(sum + i) * growth).store_aligned(sum + i);
        }
      }
    }
  }

  // NaN for queries that see key c, in the columns where its value holds infinities or NaN.
  void spoil(const float* value, std::size_t chunk, std::size_t c, const outputs& out) {
    for (std::size_t i = chunk * width; i < std::min((chunk + 1) * width, shape_.value); ++i) {
      for (std::size_t lane = 0; lane < out.count && !std::isfinite(value[i]); ++lane) {
        if (out.seen[lane] > static_cast<float>(c)) {
          sums_[(i / tile_height * lanes + lane) * tile_height + i % tile_height] = std::nanf("");
        }
      }
    }
  }

  // Sixteen numbers at a and those at b, times `scale`, in a word each; their first Parts parts, `part_step` words apart.
  // Returns whether those are all of the numbers.
  template <std::size_t Parts>
  static bool split(const float* a, const float* b, float scale, word* to, std::size_t part_step) {
    const words top(0xFFFF0000u);
    words rest(0u);
    for (std::size_t i = 0; i < step_words; i += floats::size) {
      floats x = floats::load_unaligned(a + i) * floats(scale), y = floats::load_unaligned(b + i) * floats(scale);
      for (std::size_t part = 0; part < Parts; ++part) {
        const words y_top = bits_as<word>(y) & top;
        ((bits_as<word>(x) >> 16) | y_top).store_unaligned(to + part * part_step + i);
        x = x - bits_as<float>(bits_as<word>(x) & top);
        y = y - bits_as<float>(y_top);
      }
      rest = rest | bits_as<word>(x) | bits_as<word>(y);
    }
    return Parts == parts || xsimd::all(rest == words(0u));
  }
  // The first 32 of `count` numbers, or all and zeros behind them.
  template <std::size_t Parts>
  static bool split_row(const float* x, std::size_t count, float scale, word* to, std::size_t part_step) {
    alignas(64) float row[step];
    if (count < step) {
      std::fill(std::copy_n(x, count, row), std::end(row), 0.0f);
      x = row;
    }
    return split<Parts>(x, x + step_words, scale, to, part_step);
  }

  static void pack(std::size_t dim, const float* const* query, std::size_t count, float scale, word*& to) {
    for (std::size_t i = 0; i < dim; i += step, to += parts * Vectors * tile_words) {
      for (std::size_t v = 0; v < Vectors; ++v) {
        alignas(64) word split_up[parts][tile_height][step_words] = {};
        for (std::size_t q = 0; q < tile_height && v * tile_height + q < count; ++q) {
          split_row<parts>(query[v * tile_height + q] + i, dim - i, scale, split_up[0][q], tile_words);
        }
        for (std::size_t part = 0; part < parts; ++part) {
          transpose_words(split_up[part], to + (part * Vectors + v) * tile_words);
        }
      }
    }
  }

  // R by S = 4 tiles of sums, tile (r, s) in register r S + s, at p + r · row_step + s · column_step; zeros for no p.
  template <std::size_t R, std::size_t S>
  static void load_sums(Tiles& tiles, const float* p, std::size_t row_step, std::size_t column_step,
                        std::size_t stride) {
    each_sum([&]<int I>() {
      if (p == nullptr) {
        tiles.template zero<I>();
      } else {
        tiles.template load<I>(p + I / S * row_step + I % S * column_step, stride * sizeof(float));
      }
    });
  }
  template <std::size_t R, std::size_t S>
  static void store_sums(Tiles& tiles, float* p, std::size_t row_step, std::size_t column_step, std::size_t stride) {
    each_sum(
        [&]<int I>() { tiles.template store<I>(p + I / S * row_step + I % S * column_step, stride * sizeof(float)); });
  }
  template <class F>
  static void each_sum(F&& f) {
    f.template operator()<0>(), f.template operator()<1>(), f.template operator()<2>(), f.template operator()<3>();
  }

  // Tiles one behind the other, their parts `part_step` words apart; lower ones may be left out of keys and values.
  struct operand {
    const word* tiles;
    std::size_t part_step;
    bool lower_parts = true;
  };

  // Adds the products of R tiles of rows and S of columns to the sums; four rows are keys, one is probabilities. A query's bits
  // depend on the order of the six, which is the same for every R.
  template <std::size_t R, std::size_t S>
  static void multiply(Tiles& tiles, const operand& a, const operand& b) {
    const auto rows = [&]<int I>(std::size_t part, std::size_t r) {
      tiles.template load<I>(a.tiles + part * a.part_step + r * tile_words, tile_bytes);
    };
    const auto columns = [&]<int I>(std::size_t part, std::size_t s) {
      tiles.template load<I>(b.tiles + part * b.part_step + s * tile_words, tile_bytes);
    };
    if constexpr (R == 2) {
      const auto load_rows = [&](std::size_t part) {
        rows.template operator()<4>(part, 0), rows.template operator()<5>(part, 1);
      };
      const auto load_columns = [&](std::size_t part) {
        columns.template operator()<6>(part, 0), columns.template operator()<7>(part, 1);
      };
      const auto dot = [&] {
        tiles.template dot_bf16<0, 4, 6>();
        tiles.template dot_bf16<1, 4, 7>();
        tiles.template dot_bf16<2, 5, 6>();
        tiles.template dot_bf16<3, 5, 7>();
      };
      load_rows(0);
      if (b.lower_parts) {
        load_columns(2), dot();
        load_columns(1), dot();
      }
      if (a.lower_parts) {
        load_rows(1);
        if (b.lower_parts) dot();
        load_columns(0), dot();
        load_rows(0), dot();
        load_rows(2), dot();
      } else {
        load_columns(0), dot();
      }
    } else if constexpr (R == 4) {
      columns.template operator()<5>(0, 0), columns.template operator()<6>(1, 0), columns.template operator()<7>(2, 0);
      each_sum([&]<int I>() {
        rows.template operator()<4>(0, I);
        tiles.template dot_bf16<I, 4, 7>(), tiles.template dot_bf16<I, 4, 6>();
        if (a.lower_parts) {
          rows.template operator()<4>(1, I);
          tiles.template dot_bf16<I, 4, 6>(), tiles.template dot_bf16<I, 4, 5>();
          rows.template operator()<4>(0, I);
        }
        tiles.template dot_bf16<I, 4, 5>();
        if (a.lower_parts) {
          rows.template operator()<4>(2, I);
          tiles.template dot_bf16<I, 4, 5>();
        }
      });
    } else {
      rows.template operator()<5>(0, 0), rows.template operator()<6>(1, 0), rows.template operator()<7>(2, 0);
      each_sum([&]<int I>() {
        if (b.lower_parts) {
          columns.template operator()<4>(2, I);
          tiles.template dot_bf16<I, 5, 4>();
          columns.template operator()<4>(1, I);
          tiles.template dot_bf16<I, 5, 4>(), tiles.template dot_bf16<I, 6, 4>();
        }
        columns.template operator()<4>(0, I);
        tiles.template dot_bf16<I, 6, 4>(), tiles.template dot_bf16<I, 5, 4>(), tiles.template dot_bf16<I, 7, 4>();
      });
    }
  }

  attention_shape shape_{};
  const word* queries_ = nullptr;
  float* sums_ = nullptr;          // [16 columns][lanes][16]
  word* probabilities_ = nullptr;  // [half][part][tile of queries][16 queries][16 words]
  bool empty_ = true;
};

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/ops/attention/vector_products.hpp
// Attention's products in float32 vectors: queries are stored transposed, [dim][lanes], and every key element is broadcast;
// for values, every probability.

MOTE_BEGIN_NAMESPACE

namespace detail {

template <class Arch, std::size_t Vectors>
class vector_products {
  using vector = batch<float, Arch>;

  // Register tiles: 16 accumulators where there are 32 registers, 12 where there are 16. `depth` elements of a block's
  // queries stay in the first-level cache while the tile's keys pass by.
  static constexpr bool wide = vector::size == 16;
  static constexpr std::size_t keys_at_once = wide ? 16 / Vectors : Vectors == 2 ? 6 : 8;
  static constexpr std::size_t rows_at_once = 4, columns_at_once = wide ? 4 : 3;  // four rows divide every block
  static constexpr std::size_t depth = 128;

 public:
  static constexpr std::size_t lanes = Vectors * vector::size;
  static constexpr std::size_t padded_keys = (attention_keys::size + keys_at_once - 1) / keys_at_once * keys_at_once;
  static constexpr std::size_t blocks_together = 4;  // that share a tile of keys, decoded once
  using outputs = attention_outputs<lanes>;

  struct engine {};

  // Keys are multiplied where they lie.
  class keys {
   public:
    keys(const attention_shape&, float*) {}
    void take(const attention_keys& rows, std::size_t, bool) { rows_ = &rows; }
    std::size_t score_chunks() const { return 1; }
    std::size_t value_chunks() const { return 1; }
    void ready_scores(std::size_t) {}
    void ready_values(std::size_t) {}
    const attention_keys& rows() const { return *rows_; }

   private:
    const attention_keys* rows_ = nullptr;
  };

  // Floats of a block's packed queries, of a tile of keys, of what else a block needs.
  static std::size_t query_floats(const attention_shape& shape) { return (shape.first + shape.second) * lanes; }
  static std::size_t key_floats(const attention_shape&) { return 0; }
  static std::size_t block_floats(const attention_shape&) { return 0; }

  // Queries [first[i] | second[i]] times `scale`, i < count, zeros in the lanes behind them.
  static void pack(const attention_shape& shape, const float* const* first, const float* const* second,
                   std::size_t count, float scale, float* to) {
    std::fill_n(to, query_floats(shape), 0.0f);
    for (std::size_t lane = 0; lane < count; ++lane) {
      float* q = to + lane;
      for (std::size_t i = 0; i < shape.first; ++i, q += lanes) *q = first[lane][i] * scale;
      for (std::size_t i = 0; i < shape.second; ++i, q += lanes) *q = second[lane][i] * scale;
    }
  }

  void start(const attention_shape& shape, const float* queries, float*, const outputs& out) {
    shape_ = shape;
    queries_ = queries;
    for (std::size_t lane = 0; lane < out.count; ++lane) std::fill_n(out.row[lane], shape.value, 0.0f);
  }

  // scores[key · lanes + lane] for the first `count` keys.
  [[gnu::noinline]] void score(engine&, const keys& tile, std::size_t, std::size_t count, float* scores) const {
    multiply_add(queries_, shape_.first, tile.rows().first, count, false, scores);
    if (shape_.second != 0) {
      multiply_add(queries_ + shape_.first * lanes, shape_.second, tile.rows().second, count, true, scores);
    }
  }

  void weigh(const float*, std::size_t) {}

  // Rescales the outputs and adds the values of the keys that a query sees, times p[key · lanes + lane].
  [[gnu::noinline]] void add_values(engine&, const keys& tile, std::size_t, std::size_t count, const float* p,
                                    outputs& out) const {
    const attention_keys& rows = tile.rows();
    std::size_t column = 0;
    for (; column + columns_at_once * vector::size <= shape_.value; column += columns_at_once * vector::size) {
      add_values<columns_at_once>(rows, p, column, out);
    }
    for (; column + vector::size <= shape_.value; column += vector::size) add_values<1>(rows, p, column, out);
    for (; column < shape_.value; ++column) add_value_column(rows, count, p, column, out);
  }

  void finish(outputs&) const {}

 private:
  // Products of the queries' elements from `queries` on and the keys' to scores, added to what is there if `resume`.
  static void multiply_add(const float* queries, std::size_t dim, const float* const* keys, std::size_t count,
                           bool resume, float* scores) {
    for (std::size_t begin = 0; begin == 0 || begin < dim; begin += depth) {
      const std::size_t part = std::min(depth, dim - begin);
      for (std::size_t c = 0; c < count; c += keys_at_once) {
        const float* key[keys_at_once];
        for (std::size_t r = 0; r < keys_at_once; ++r) key[r] = keys[std::min(c + r, count - 1)] + begin;
        multiply_add(queries + begin * lanes, part, key, resume || begin != 0, scores + c * lanes);
      }
    }
  }

  static void multiply_add(const float* queries, std::size_t dim, const float* const (&key)[keys_at_once], bool resume,
                           float* scores) {
    vector sums[keys_at_once][Vectors];
    for (std::size_t r = 0; r < keys_at_once; ++r) {
      for (std::size_t v = 0; v < Vectors; ++v) {
        sums[r][v] = resume ? vector::load_aligned(scores + r * lanes + v * vector::size) : vector(0.0f);
      }
    }
    for (std::size_t k = 0; k < dim; ++k) {
      vector q[Vectors];
      for (std::size_t v = 0; v < Vectors; ++v) q[v] = vector::load_unaligned(queries + k * lanes + v * vector::size);
      for (std::size_t r = 0; r < keys_at_once; ++r) {
        const vector x(key[r][k]);
        for (std::size_t v = 0; v < Vectors; ++v) sums[r][v] = fused_multiply_add(x, q[v], sums[r][v]);
      }
    }
    for (std::size_t r = 0; r < keys_at_once; ++r) {
      for (std::size_t v = 0; v < Vectors; ++v) sums[r][v].store_aligned(scores + r * lanes + v * vector::size);
    }
  }

  // Keys that a lane does not see are not touched: a query's bits, and a NaN in a later row, are its own affair.
  template <std::size_t Columns>
  static void add_values(const attention_keys& keys, const float* p, std::size_t column, outputs& out) {
    std::size_t lane = 0;
    for (; lane + rows_at_once <= out.count; lane += rows_at_once) {
      const float* seen = out.seen + lane;
      const auto all = static_cast<std::size_t>(*std::min_element(seen, seen + rows_at_once));
      add_values<rows_at_once, Columns>(keys, p, lane, column, 0, all, true, out);
      for (std::size_t r = 0; r < rows_at_once; ++r) {
        const auto own = static_cast<std::size_t>(seen[r]);
        if (own > all) add_values<1, Columns>(keys, p, lane + r, column, all, own, false, out);
      }
    }
    for (; lane < out.count; ++lane) {
      add_values<1, Columns>(keys, p, lane, column, 0, static_cast<std::size_t>(out.seen[lane]), true, out);
    }
  }

  // Keys [begin, end), `rescale`d before where they are a tile's first.
  template <std::size_t Rows, std::size_t Columns>
  static void add_values(const attention_keys& keys, const float* all_p, std::size_t lane, std::size_t column,
                         std::size_t begin, std::size_t end, bool rescale, outputs& out) {
    vector sums[Rows][Columns];
    for (std::size_t r = 0; r < Rows; ++r) {
      const vector growth(rescale ? out.growth[lane + r] : 1.0f);
      for (std::size_t j = 0; j < Columns; ++j) {
        sums[r][j] = vector::load_unaligned(out.row[lane + r] + column + j * vector::size) * growth;
      }
    }
    const float* p = all_p + begin * lanes + lane;
    for (std::size_t c = begin; c < end; ++c, p += lanes) {
      vector v[Columns];
      for (std::size_t j = 0; j < Columns; ++j)
        v[j] = vector::load_unaligned(keys.value[c] + column + j * vector::size);
      for (std::size_t r = 0; r < Rows; ++r) {
        const vector x(p[r]);
        for (std::size_t j = 0; j < Columns; ++j) sums[r][j] = fused_multiply_add(x, v[j], sums[r][j]);
      }
    }
    for (std::size_t r = 0; r < Rows; ++r) {
      for (std::size_t j = 0; j < Columns; ++j)
        sums[r][j].store_unaligned(out.row[lane + r] + column + j * vector::size);
    }
  }

  // A column past the last whole vector: lanes are queries here as well.
  static void add_value_column(const attention_keys& keys, std::size_t count, const float* all_p, std::size_t column,
                               outputs& out) {
    for (std::size_t v = 0; v < Vectors && v * vector::size < out.count; ++v) {
      const vector seen = vector::load_aligned(out.seen + v * vector::size);
      vector s(0.0f);
      for (std::size_t c = 0; c < count; ++c) {
        const vector p = vector::load_aligned(all_p + c * lanes + v * vector::size);
        s = xsimd::select(vector(static_cast<float>(c)) < seen, fused_multiply_add(p, vector(keys.value[c][column]), s),
                          s);
      }
      float sums[vector::size];
      s.store_unaligned(sums);
      for (std::size_t i = 0; i < vector::size && v * vector::size + i < out.count; ++i) {
        const std::size_t lane = v * vector::size + i;
        out.row[lane][column] = std::fma(out.row[lane][column], out.growth[lane], sums[i]);
      }
    }
  }

  attention_shape shape_{};
  const float* queries_ = nullptr;
};

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/ops/attention/products.hpp
MOTE_BEGIN_NAMESPACE

namespace detail {

// f.operator()<Products>() for blocks of one vector or tile of queries, or of two for more than that.
template <class Arch, class F>
void with_attention_products(std::size_t queries, F&& f) {
  if constexpr (has_tiles_beside<Arch>) {
    if (amx_tiles::available()) {
      if (queries > tile_height) {
        f.template operator()<tile_products<amx_tiles, Arch, 2>>();
      } else {
        f.template operator()<tile_products<amx_tiles, Arch, 1>>();
      }
      return;
    }
  }
  if (queries > batch<float, Arch>::size) {
    f.template operator()<vector_products<Arch, 2>>();
  } else {
    f.template operator()<vector_products<Arch, 1>>();
  }
}

// Floats, rounded up to whole lines of the cache.
constexpr std::size_t whole_lines(std::size_t floats) { return (floats + 15) / 16 * 16; }

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/ops/mla_decode/simd.hpp
MOTE_BEGIN_NAMESPACE

namespace detail {

// Contexts are cut into parts that threads take on their own and that are merged in order. The cut depends on the
// context's length alone, so that results do not depend on the threads nor on the other tokens.
inline std::size_t mla_decode_part(std::size_t length) {
  std::size_t part = 8 * attention_keys::size;
  while ((length + part - 1) / part > 32) part *= 2;
  return part;
}

inline std::size_t mla_decode_parts(std::size_t length) {
  const std::size_t part = mla_decode_part(length);
  return (length + part - 1) / part;
}

// Queries that go over the same keys together: those of consecutive tokens of one sequence whose contexts are cut alike.
// Query i of the group is head (lane + i) % heads of token (lane + i) / heads, counted from `token`.
struct mla_decode_group {
  std::size_t token, lane, count;
};

// Rows of any form: their bytes, and how they become float32. Everything below is compiled once for all forms.
using row_bytes = paged_rows<const std::byte>;
using row_decoder = void (*)(const std::byte* row, std::size_t n, float* y) noexcept;

template <class T>
row_bytes as_bytes(const paged_rows<const T>& rows) {
  const view<const T, 3>& pages = rows.pages;
  return {{reinterpret_cast<const std::byte*>(pages.data()),
           {pages.extent(0), pages.extent(1), pages.extent(2) * sizeof(T)},
           {pages.stride(0) * sizeof(T), pages.stride(1) * sizeof(T), 1}},
          rows.block_table,
          rows.length};
}

// None for float32, whose rows are read where they lie.
template <class Arch, class T>
constexpr row_decoder decoder_of() {
  if constexpr (std::is_same_v<T, float>) {
    return nullptr;
  } else {
    return [](const std::byte* row, std::size_t n, float* y) noexcept {
      decode_row<Arch>(reinterpret_cast<const T*>(row), n, y);
    };
  }
}

// f(group) for groups of at most `most` queries of the tokens [first, last), in order.
template <class F>
void for_each_group(std::span<const row_bytes> context, std::size_t first, std::size_t last, std::size_t heads,
                    std::size_t most, F&& f) {
  for (std::size_t t = first; t < last;) {
    const row_bytes& rows = context[t];
    const auto alike = [&](std::size_t other) {
      const row_bytes& o = context[other];
      return o.pages.data() == rows.pages.data() && o.block_table.data() == rows.block_table.data() &&
             o.length == rows.length + (other - t) && mla_decode_part(o.length) == mla_decode_part(rows.length) &&
             mla_decode_parts(o.length) == mla_decode_parts(rows.length);
    };
    std::size_t end = t + 1;
    while (end < last && alike(end)) ++end;
    const std::size_t queries = (end - t) * heads;
    for (std::size_t q = 0; q < queries; q += most) f(mla_decode_group{t, q, std::min(most, queries - q)});
    t = end;
  }
}

// Keys [first, first + count) of a context, `width` numbers each: where they lie, or decoded into `tile`.
inline void take_keys(const row_bytes& rows, row_decoder decode, std::size_t first, std::size_t count, std::size_t rank,
                      std::size_t width, float* tile, attention_keys& keys) noexcept {
  for (std::size_t i = 0; i < count; ++i) {
    const float* row = reinterpret_cast<const float*>(rows.row(first + i));
    if (decode != nullptr) {
      decode(rows.row(first + i), width, tile + i * width);
      row = tile + i * width;
    }
    keys.first[i] = row;
    keys.second[i] = row + rank;
    keys.value[i] = row;
  }
}

// At most `together` queries go over the same keys together.
template <class Products, class Arch, class Executor>
void mla_decode_blocks(simd<Arch, Executor>& be, view<const float, 3> q_latent, view<const float, 3> q_rope,
                       std::span<const row_bytes> context, std::size_t together, row_decoder decode, float scale,
                       view<float, 3> y) {
  using vector = batch<float, Arch>;
  using block = attention_block<Arch, Products>;
  constexpr std::size_t lanes = block::lanes, most_blocks = Products::blocks_together;
  const std::size_t tokens = q_latent.extent(0), heads = q_latent.extent(1);
  const std::size_t rank = q_latent.extent(2), rope = q_rope.extent(2), width = rank + rope;
  const attention_shape shape{rank, rope, rank};
  std::size_t parts = 1, longest = 1;
  for (const auto& rows : context) {
    parts = std::max(parts, mla_decode_parts(rows.length));
    longest = std::max(longest, std::min(rows.length, mla_decode_part(rows.length)));
  }

  // Tokens are taken in rounds whose queries and unmerged parts stay within 16 MiB each, if one token's do.
  const std::size_t query_floats = Products::query_floats(shape);  // of a block
  const std::size_t token_floats = heads * std::max(query_floats / lanes, parts == 1 ? 0 : parts * (rank + 2));
  const std::size_t round = std::clamp<std::size_t>((std::size_t{1} << 22) / (token_floats + 1), 1, tokens);
  // Blocks of queries that share a tile of keys, as long as there are items enough for threads.
  const std::size_t all_blocks = (round * heads + lanes - 1) / lanes;
  const std::size_t blocks =
      std::clamp<std::size_t>(all_blocks * parts / 16, 1, std::min(most_blocks, (together + lanes - 1) / lanes));

  // The most groups that any round has.
  std::size_t most_groups = 0;
  for (std::size_t first = 0; first < tokens; first += round) {
    std::size_t groups = 0;
    for_each_group(context, first, std::min(first + round, tokens), heads, blocks * lanes,
                   [&](const mla_decode_group&) { ++groups; });
    most_groups = std::max(most_groups, groups);
  }
  // A chunk of items shares memory: sixteen chunks a thread, fewer where that is much memory.
  const std::size_t decoded_floats = decode == nullptr ? 0 : whole_lines(attention_keys::size * width);
  const std::size_t key_floats = whole_lines(Products::key_floats(shape));
  const std::size_t block_floats = whole_lines(Products::block_floats(shape));
  const std::size_t chunk_floats = decoded_floats + key_floats + blocks * block_floats;
  const std::size_t items = most_groups * parts, threads = be.concurrency();
  const std::size_t chunks = std::clamp((std::size_t{1} << 24) / (chunk_floats + 1), 4 * threads, 16 * threads);
  const std::size_t chunk =
      1 + std::max(items / chunks, (std::size_t{1} << 19) / (blocks * lanes * longest * (rank + width) + 1));
  auto scope = be.scope();
  const auto groups = scope.template tensor<mla_decode_group>(most_groups);
  const auto packed = scope.template tensor<float>(most_groups * blocks, query_floats);
  const auto partial = scope.template tensor<float>(parts == 1 ? 0 : round * heads, parts, rank);
  const auto states = scope.template tensor<typename block::state>(parts == 1 ? 0 : round * heads, parts);
  const auto scratch = scope.template tensor<float>((items + chunk - 1) / chunk, chunk_floats);
  const std::size_t pack_grain = 1 + (std::size_t{1} << 16) / (blocks * lanes * width + 1);
  const std::size_t merge_grain = 1 + (std::size_t{1} << 16) / (parts * rank + 1);

  for (std::size_t first = 0; first < tokens; first += round) {
    const std::size_t count = std::min(round, tokens - first);
    std::size_t group_count = 0;
    for_each_group(context, first, first + count, heads, blocks * lanes,
                   [&](const mla_decode_group&) { ++group_count; });
    be.parallel_for(1, 1, [&](std::size_t, std::size_t) {
      std::size_t g = 0;
      for_each_group(context, first, first + count, heads, blocks * lanes,
                     [&](const mla_decode_group& group) { groups(g++) = group; });
    });

    be.parallel_for(group_count, pack_grain, [&](std::size_t begin, std::size_t end) {
      for (std::size_t g = begin; g < end; ++g) {
        const mla_decode_group& group = groups(g);
        for (std::size_t q = 0; q < group.count; q += lanes) {
          const float *latent[lanes], *roped[lanes];
          const std::size_t count_here = std::min(lanes, group.count - q);
          for (std::size_t lane = 0; lane < count_here; ++lane) {
            const std::size_t t = group.token + (group.lane + q + lane) / heads, h = (group.lane + q + lane) % heads;
            latent[lane] = &q_latent(t, h, std::size_t{0});
            roped[lane] = &q_rope(t, h, std::size_t{0});
          }
          Products::pack(shape, latent, roped, count_here, scale, packed.row(g * blocks + q / lanes));
        }
      }
    });

    be.parallel_for(group_count * parts, chunk, [&](std::size_t begin, std::size_t end) {
      for (std::size_t item = begin; item < end; ++item) {
        const std::size_t p = item % parts;
        const mla_decode_group& group = groups(item / parts);
        const auto token_of = [&](std::size_t q) { return group.token + (group.lane + q) / heads; };
        // The last query's token sees most: its rows hold what the others see.
        const row_bytes& rows = context[token_of(group.count - 1)];
        const std::size_t part = mla_decode_part(rows.length), own_parts = mla_decode_parts(rows.length);
        if (p >= own_parts) continue;
        const std::size_t own_blocks = (group.count + lanes - 1) / lanes;
        float* const memory = scratch.row(begin / chunk);
        std::array<block, most_blocks> attention;
        for (std::size_t b = 0; b < own_blocks; ++b) {
          const std::size_t in_block = std::min(lanes, group.count - b * lanes);
          float* out[lanes];
          for (std::size_t lane = 0; lane < in_block; ++lane) {
            const std::size_t t = token_of(b * lanes + lane), h = (group.lane + b * lanes + lane) % heads;
            out[lane] =
                own_parts == 1 ? &y(t, h, std::size_t{0}) : &partial((t - first) * heads + h, p, std::size_t{0});
          }
          attention[b].start(shape, packed.row(item / parts * blocks + b),
                             memory + decoded_floats + key_floats + b * block_floats, out, in_block);
        }
        attention_keys rows_of_tile;
        typename Products::keys keys(shape, memory + decoded_floats);
        const std::size_t last = std::min(rows.length, (p + 1) * part);
        for (std::size_t c = p * part; c < last; c += attention_keys::size) {
          const std::size_t in_tile = std::min(attention_keys::size, last - c);
          take_keys(rows, decode, c, in_tile, rank, width, memory, rows_of_tile);
          for (std::size_t b = 0; b < own_blocks; ++b) {
            std::ptrdiff_t visible[lanes];
            for (std::size_t lane = 0; lane < lanes; ++lane) {
              const std::size_t q = std::min(b * lanes + lane, group.count - 1);
              visible[lane] = static_cast<std::ptrdiff_t>(context[token_of(q)].length) - static_cast<std::ptrdiff_t>(c);
            }
            attention[b].see(in_tile, visible);
          }
          attend(attention.data(), own_blocks, rows_of_tile, in_tile, keys);
        }
        for (std::size_t b = 0; b < own_blocks; ++b) {
          attention[b].finish();
          if (own_parts == 1) {
            attention[b].normalise();
            continue;
          }
          for (std::size_t lane = 0; lane < std::min(lanes, group.count - b * lanes); ++lane) {
            const std::size_t q = b * lanes + lane;
            states((token_of(q) - first) * heads + (group.lane + q) % heads, p) = attention[b].state_of(lane);
          }
        }
      }
    });

    if (parts == 1) continue;
    be.parallel_for(count * heads, merge_grain, [&](std::size_t begin, std::size_t end) {
      for (std::size_t item = begin; item < end; ++item) {
        const std::size_t t = item / heads, h = item % heads;
        const std::size_t own_parts = mla_decode_parts(context[first + t].length);
        if (own_parts == 1) continue;
        float largest = -INFINITY, sum = 0.0f, factor[32];
        for (std::size_t p = 0; p < own_parts; ++p) largest = std::fmax(largest, states(item, p).maximum);
        for (std::size_t p = 0; p < own_parts; ++p) {
          factor[p] = std::exp(states(item, p).maximum - largest);
          sum = std::fma(factor[p], states(item, p).total, sum);  // said, for compilers fuse here and there
        }
        float* out = &y(first + t, h, std::size_t{0});
        const vector inverse(1.0f / sum);
        for_each_vector<Arch>(rank, [&](std::size_t i, auto load, auto store) {
          vector o(0.0f);
          for (std::size_t p = 0; p < own_parts; ++p) {
            o = fused_multiply_add(vector(factor[p]), load(&partial(item, p, i)), o);
          }
          store(out + i, o * inverse);
        });
      }
    });
  }
}

// Rows of any form. One instantiation holds every kernel: see kernels/extern.hpp.
template <class Arch, class Executor>
void mla_decode_rows(simd<Arch, Executor>& be, view<const float, 3> q_latent, view<const float, 3> q_rope,
                     std::span<const row_bytes> context, row_decoder decode, float scale, view<float, 3> y) {
  std::size_t together = 0;
  for_each_group(context, 0, context.size(), q_latent.extent(1), std::size_t{1} << 16,
                 [&](const mla_decode_group& group) { together = std::max(together, group.count); });
  with_attention_products<Arch>(together, [&]<class Products>() {
    mla_decode_blocks<Products>(be, q_latent, q_rope, context, together, decode, scale, y);
  });
}

}  // namespace detail

template <class Arch, class Executor, class T>
void mla_decode_impl(simd<Arch, Executor>& be, view<const float, 3> q_latent, view<const float, 3> q_rope,
                     std::span<const paged_rows<const T>> context, float scale, view<float, 3> y) {
  const std::size_t heads = q_latent.extent(1), tokens = context.size();
  if (tokens == 0 || heads == 0) return;
  auto scope = be.scope();
  const auto rows = scope.template tensor<detail::row_bytes>(tokens);
  be.parallel_for(1, 1, [&](std::size_t, std::size_t) {
    for (std::size_t t = 0; t < tokens; ++t) rows(t) = detail::as_bytes(context[t]);
  });
  detail::mla_decode_rows(be, q_latent, q_rope, std::span<const detail::row_bytes>(rows.data(), tokens),
                          detail::decoder_of<Arch, T>(), scale, y);
}

MOTE_END_NAMESPACE

// ---- mote/ops/mla_decode/mla_decode.hpp
MOTE_BEGIN_NAMESPACE

template <backend Backend, std::ranges::range Contexts = std::span<const paged_rows<const float>>>
void mla_decode(Backend& be, view<const float, 3> q_latent, view<const float, 3> q_rope, const Contexts& contexts,
                float scale, view<float, 3> y) {
  const std::span<const std::ranges::range_value_t<Contexts>> context(contexts);
  const std::size_t tokens = q_latent.extent(0), heads = q_latent.extent(1), rank = q_latent.extent(2);
  check_view("mla_decode", "q_latent", q_latent, {tokens, heads, rank});
  check_view("mla_decode", "q_rope", q_rope, {tokens, heads, q_rope.extent(2)});
  check_view("mla_decode", "y", y, {tokens, heads, rank});
  check(context.size() == tokens, "mla_decode", "context: expected one entry for each token");
  for (const auto& rows : context) {
    check(columns(rows) == rank + q_rope.extent(2), "mla_decode", "context: width must be kv_lora_rank + rope dim");
    check(rows.length > 0, "mla_decode", "context: must not be empty");
    check_pages("mla_decode", "context", rows);
  }
  mla_decode_impl(be, q_latent, q_rope, context, scale, y);
}

// The same for the last tokens of one sequence: each sees its rows up to the token's own.
template <backend Backend, class T>
void mla_decode_sequence(Backend& be, view<const float, 3> q_latent, view<const float, 3> q_rope,
                         const paged_rows<T>& sequence, float scale, view<float, 3> y) {
  const std::size_t tokens = q_latent.extent(0);
  check(tokens <= sequence.length, "mla_decode_sequence", "sequence: must hold at least the tokens");
  auto scope = be.scope();
  const auto contexts = scope.template tensor<paged_rows<const T>>(tokens);
  causal_contexts(be, sequence, contexts);
  mla_decode(be, q_latent, q_rope, std::span<const paged_rows<const T>>(contexts.data(), tokens), scale, y);
}
template <backend Backend>
void mla_decode_sequence(Backend& be, view<const float, 3> q_latent, view<const float, 3> q_rope,
                         const cache_rows& sequence, float scale, view<float, 3> y) {
  std::visit([&](const auto& rows) { mla_decode_sequence(be, q_latent, q_rope, rows, scale, y); }, sequence);
}

MOTE_END_NAMESPACE

// ---- mote/ops/mla_prefill/mla_prefill.hpp
// Multi-head latent attention in its expanded form: keys and values are given per head.
//
//   s[t, h, c] = scale · (q_nope[t, h] · k_nope[c, h] + q_rope[t, h] · k_rope[c]),   c <= context - tokens + t
//   y[t, h] = Σ_c softmax_c(s[t, h, :]) v[c, h]
//
// The tokens are the last ones of the context (causal). q_nope: [tokens, heads, qk_nope_head_dim], q_rope: [tokens, heads,
// qk_rope_head_dim], k_nope: [context, heads, qk_nope_head_dim], k_rope: [context, qk_rope_head_dim] (one key for all
// heads), v: [context, heads, v_head_dim], y: [tokens, heads, v_head_dim]; last dimensions contiguous.
// Throws shape_error when shapes differ or the context is shorter than the tokens.
// Source: DeepSeek-V2 (2024), section 2.1.

// ---- mote/ops/mla_prefill/reference.hpp
MOTE_BEGIN_NAMESPACE

inline void mla_prefill_impl(reference& be, view<const float, 3> q_nope, view<const float, 3> q_rope,
                             view<const float, 3> k_nope, view<const float, 2> k_rope, view<const float, 3> v,
                             float scale, view<float, 3> y) {
  const std::size_t tokens = q_nope.extent(0), context = k_nope.extent(0);
  auto scope = be.scope();
  const auto p = scope.tensor<float>(context);
  for (std::size_t t = 0; t < tokens; ++t) {
    const std::size_t visible = context - tokens + t + 1;
    for (std::size_t h = 0; h < q_nope.extent(1); ++h) {
      float maximum = -INFINITY, total = 0.0f;
      for (std::size_t c = 0; c < visible; ++c) {
        float s = 0.0f;
        for (std::size_t i = 0; i < q_nope.extent(2); ++i) s += q_nope(t, h, i) * k_nope(c, h, i);
        for (std::size_t i = 0; i < q_rope.extent(2); ++i) s += q_rope(t, h, i) * k_rope(c, i);
        p(c) = s * scale;
        maximum = std::fmax(maximum, p(c));
      }
      for (std::size_t c = 0; c < visible; ++c) total += p(c) = std::exp(p(c) - maximum);
      for (std::size_t i = 0; i < v.extent(2); ++i) {
        float sum = 0.0f;
        for (std::size_t c = 0; c < visible; ++c) sum += p(c) * v(c, h, i);
        y(t, h, i) = sum / total;
      }
    }
  }
}

MOTE_END_NAMESPACE

// ---- mote/ops/mla_prefill/simd.hpp
MOTE_BEGIN_NAMESPACE

namespace detail {

// One head, one block of queries at a time; keys are taken in tiles from the start of the context.
template <class Products, class Arch, class Executor>
void mla_prefill_blocks(simd<Arch, Executor>& be, view<const float, 3> q_nope, view<const float, 3> q_rope,
                        view<const float, 3> k_nope, view<const float, 2> k_rope, view<const float, 3> v, float scale,
                        view<float, 3> y) {
  using block = attention_block<Arch, Products>;
  constexpr std::size_t lanes = block::lanes;
  const std::size_t tokens = q_nope.extent(0), heads = q_nope.extent(1), context = k_nope.extent(0);
  const std::size_t nope = q_nope.extent(2), rope = q_rope.extent(2), dim_v = v.extent(2);
  const std::size_t blocks = (tokens + lanes - 1) / lanes;
  const attention_shape shape{nope, rope, dim_v};
  const std::size_t items = heads * blocks;
  const std::size_t grain = 1 + std::max(items / (16 * be.concurrency()),
                                         (std::size_t{1} << 19) / (lanes * context * (nope + rope + dim_v) + 1));
  auto scope = be.scope();
  const std::size_t query_floats = whole_lines(Products::query_floats(shape));
  const std::size_t key_floats = whole_lines(Products::key_floats(shape));
  // A chunk of items shares memory.
  const auto scratch = scope.template tensor<float>((items + grain - 1) / grain,
                                                    query_floats + key_floats + Products::block_floats(shape));

  be.parallel_for(items, grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t item = begin; item < end; ++item) {
      // The last blocks see most keys: they go first, so that threads finish together.
      const std::size_t h = item / blocks, t = (blocks - 1 - item % blocks) * lanes;
      const std::size_t count = std::min(lanes, tokens - t);
      float* const queries = scratch.row(begin / grain);
      const float *nopes[lanes], *ropes[lanes];
      float* out[lanes];
      for (std::size_t lane = 0; lane < count; ++lane) {
        nopes[lane] = &q_nope(t + lane, h, std::size_t{0});
        ropes[lane] = &q_rope(t + lane, h, std::size_t{0});
        out[lane] = &y(t + lane, h, std::size_t{0});
      }
      Products::pack(shape, nopes, ropes, count, scale, queries);

      block attention;
      attention.start(shape, queries, queries + query_floats + key_floats, out, count);
      typename Products::keys keys(shape, queries + query_floats);
      attention_keys rows;
      const std::size_t seen_by_first = context - tokens + t + 1, seen_by_last = seen_by_first + count - 1;
      for (std::size_t c = 0; c < seen_by_last; c += attention_keys::size) {
        const std::size_t in_tile = std::min(attention_keys::size, seen_by_last - c);
        for (std::size_t i = 0; i < in_tile; ++i) {
          rows.first[i] = &k_nope(c + i, h, std::size_t{0});
          rows.second[i] = &k_rope(c + i, std::size_t{0});
          rows.value[i] = &v(c + i, h, std::size_t{0});
        }
        std::ptrdiff_t visible[lanes];
        for (std::size_t lane = 0; lane < lanes; ++lane) {
          visible[lane] = static_cast<std::ptrdiff_t>(seen_by_first + lane) - static_cast<std::ptrdiff_t>(c);
        }
        attention.see(in_tile, visible);
        attend(&attention, 1, rows, in_tile, keys);
      }
      attention.finish();
      attention.normalise();
    }
  });
}

}  // namespace detail

template <class Arch, class Executor>
void mla_prefill_impl(simd<Arch, Executor>& be, view<const float, 3> q_nope, view<const float, 3> q_rope,
                      view<const float, 3> k_nope, view<const float, 2> k_rope, view<const float, 3> v, float scale,
                      view<float, 3> y) {
  detail::with_attention_products<Arch>(q_nope.extent(0), [&]<class Products>() {
    detail::mla_prefill_blocks<Products>(be, q_nope, q_rope, k_nope, k_rope, v, scale, y);
  });
}

MOTE_END_NAMESPACE

// ---- mote/ops/mla_prefill/mla_prefill.hpp
MOTE_BEGIN_NAMESPACE

template <backend Backend>
void mla_prefill(Backend& be, view<const float, 3> q_nope, view<const float, 3> q_rope, view<const float, 3> k_nope,
                 view<const float, 2> k_rope, view<const float, 3> v, float scale, view<float, 3> y) {
  const std::size_t tokens = q_nope.extent(0), heads = q_nope.extent(1), context = k_nope.extent(0);
  check_view("mla_prefill", "q_nope", q_nope, {tokens, heads, q_nope.extent(2)});
  check_view("mla_prefill", "q_rope", q_rope, {tokens, heads, q_rope.extent(2)});
  check_view("mla_prefill", "k_nope", k_nope, {context, heads, q_nope.extent(2)});
  check_view("mla_prefill", "k_rope", k_rope, {context, q_rope.extent(2)});
  check_view("mla_prefill", "v", v, {context, heads, v.extent(2)});
  check_view("mla_prefill", "y", y, {tokens, heads, v.extent(2)});
  check(context >= tokens, "mla_prefill", "k_nope: the context must hold at least the tokens");
  mla_prefill_impl(be, q_nope, q_rope, k_nope, k_rope, v, scale, y);
}

MOTE_END_NAMESPACE

// ---- mote/ops/paged_load/paged_load.hpp
// Reads rows of a paged cache into one matrix: y[i, :] = cache row i, columns [column, column + n), i < length.
//
// y: [length, n], rows may be strided; both column and n are whole blocks of the form of the cache's rows (quant/rows.hpp).
// Throws shape_error when they are not, when the cache's length or width does not fit or its block table does not cover
// its length.

// ---- mote/ops/paged_load/reference.hpp
MOTE_BEGIN_NAMESPACE

template <class T>
void paged_load_impl(reference&, const paged_rows<const T>& cache, std::size_t element, view<float, 2> y) noexcept {
  for (std::size_t i = 0; i < y.extent(0); ++i) decode_row(cache.row(i) + element, y.extent(1), y.row(i));
}

MOTE_END_NAMESPACE

// ---- mote/ops/paged_load/simd.hpp
MOTE_BEGIN_NAMESPACE

template <class Arch, class Executor, class T>
void paged_load_impl(simd<Arch, Executor>& be, const paged_rows<const T>& cache, std::size_t element,
                     view<float, 2> y) noexcept {
  const std::size_t n = y.extent(1), grain = 1 + std::size_t{32768} / (n + 1);
  be.parallel_for(y.extent(0), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) detail::decode_row<Arch>(cache.row(i) + element, n, y.row(i));
  });
}

MOTE_END_NAMESPACE

// ---- mote/ops/paged_load/paged_load.hpp
MOTE_BEGIN_NAMESPACE

template <backend Backend, class T>
  requires row_element<std::remove_const_t<T>>
void paged_load(Backend& be, const paged_rows<T>& cache, std::size_t column, view<float, 2> y) {
  constexpr row_format format = row_format::of<std::remove_const_t<T>>();
  check_view("paged_load", "y", y, {cache.length, y.extent(1)});
  check_pages("paged_load", "cache", cache);
  check(column <= columns(cache) && y.extent(1) <= columns(cache) - column, "paged_load",
        "cache: too few columns for y at `column`");
  check_whole_blocks("paged_load", "column", column, format);
  check_whole_blocks("paged_load", "y", y.extent(1), format);
  const paged_rows<const T> rows = cache;
  paged_load_impl(be, rows, column / format.block_size, y);
}

template <backend Backend>
void paged_load(Backend& be, const cache_rows& cache, std::size_t column, view<float, 2> y) {
  std::visit([&](const auto& rows) { paged_load(be, rows, column, y); }, cache);
}

MOTE_END_NAMESPACE

// ---- mote/ops/paged_store/paged_store.hpp
// Writes rows into a paged cache: cache row (position + t), columns [column, column + n) = x[t, :].
//
// x: [tokens, n], rows may be strided. The cache must hold position + tokens rows of at least column + n columns; where
// its rows are of another form than float32 (quant/rows.hpp), x is rounded to that, and both columns are whole blocks.
// Throws shape_error otherwise, and where the block table does not cover the cache's length.

// ---- mote/ops/paged_store/reference.hpp
MOTE_BEGIN_NAMESPACE

template <class T>
void paged_store_impl(reference&, view<const float, 2> x, const paged_rows<T>& cache, std::size_t position,
                      std::size_t element) noexcept {
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    encode_row(x.row(t), x.extent(1), cache.row(position + t) + element);
  }
}

MOTE_END_NAMESPACE

// ---- mote/ops/paged_store/simd.hpp
MOTE_BEGIN_NAMESPACE

template <class Arch, class Executor, class T>
void paged_store_impl(simd<Arch, Executor>& be, view<const float, 2> x, const paged_rows<T>& cache,
                      std::size_t position, std::size_t element) noexcept {
  const std::size_t n = x.extent(1), grain = 1 + std::size_t{32768} / (n + 1);
  be.parallel_for(x.extent(0), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) encode_row(x.row(t), n, cache.row(position + t) + element);
  });
}

MOTE_END_NAMESPACE

// ---- mote/ops/paged_store/paged_store.hpp
MOTE_BEGIN_NAMESPACE

template <backend Backend, row_element T>
void paged_store(Backend& be, view<const float, 2> x, const paged_rows<T>& cache, std::size_t position,
                 std::size_t column) {
  constexpr row_format format = row_format::of<T>();
  check_view("paged_store", "x", x, {x.extent(0), x.extent(1)});
  check_pages("paged_store", "cache", cache);
  check(position <= cache.length && x.extent(0) <= cache.length - position, "paged_store",
        "cache: too few rows for position + tokens");
  check(column <= columns(cache) && x.extent(1) <= columns(cache) - column, "paged_store",
        "cache: too few columns for x at `column`");
  check_whole_blocks("paged_store", "column", column, format);
  check_whole_blocks("paged_store", "x", x.extent(1), format);
  paged_store_impl(be, x, cache, position, column / format.block_size);
}

template <backend Backend>
void paged_store(Backend& be, view<const float, 2> x, const cache_rows& cache, std::size_t position,
                 std::size_t column) {
  std::visit([&](const auto& rows) { paged_store(be, x, rows, position, column); }, cache);
}

MOTE_END_NAMESPACE

// ---- mote/ops/rope/rope.hpp
// Rotary position embedding.
//
// rope_table: cos[t, i] = attention_factor · cos(positions[t] · inv_freq[i]), sin likewise; [tokens, dim/2].
//
// rope: every pair (a, b) of a head's channels becomes (a cos - b sin, b cos + a sin).
//   interleaved                    pair i is channels (2i, 2i+1), written back in place
//   half_split                     pair i is channels (i, i + dim/2), written back in place
//   interleaved_to_half_split      pairs are read interleaved and written half-split (the order of DeepSeek-V3's cache)
// x, y: [tokens, heads, dim], last dimension contiguous; y may be x. Throws shape_error when shapes differ.
// Source: see frequencies.hpp.

// ---- mote/ops/rope/frequencies.hpp
// Frequencies of rotary position embeddings, with YaRN's extension to longer contexts.
//
//   θ_i = base^(-2i/d),  i = 0 … d/2-1;   angle of position p and pair i: p · θ_i
//
// YaRN with s = factor, L = original_max_position_embeddings:
//   corr(r) = d · ln(L / (2π r)) / (2 ln base);  lo = corr(beta_fast), hi = corr(beta_slow), floored and raised to whole
//   numbers if `truncate`; lo = max(lo, 0), hi = min(hi, d-1), and hi += 0.001 when both are equal
//   ramp_i = clamp((i - lo) / (hi - lo), 0, 1);   θ'_i = θ_i/s · ramp_i + θ_i · (1 - ramp_i)
//   m(k) = 1 if s <= 1 else 0.1 k ln s + 1
//   attention_factor = m(mscale) / m(mscale_all_dim) if both are non-zero, else m(1), unless given;
//   the softmax scale of MLA is multiplied by m(mscale_all_dim)² if mscale_all_dim is non-zero.
//
// Source: Su et al., "RoFormer" (2021); Peng et al., "YaRN" (2023); DeepSeek-V2 and V3 model code.

#include <numbers>

MOTE_BEGIN_NAMESPACE

// The `rope_scaling` object of a config.json whose type is "yarn".
struct yarn_scaling {
  double factor = 1.0;
  double original_max_position_embeddings = 4096.0;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double mscale = 0.0;
  double mscale_all_dim = 0.0;
  std::optional<double> attention_factor;
  bool truncate = true;

  // m(k): the growth of attention logits with the context's extension.
  double magnitude(double k) const { return factor <= 1.0 ? 1.0 : 0.1 * k * std::log(factor) + 1.0; }
};

struct rope_frequencies {
  std::vector<float> inv_freq;      // [dim / 2], θ_i
  float attention_factor = 1.0f;    // multiplies cos and sin
  float softmax_multiplier = 1.0f;  // multiplies the softmax scale of MLA
};

// Frequencies for `dim` rotated channels. Throws shape_error when dim is odd or zero or base is not above 1.
inline rope_frequencies make_rope_frequencies(std::size_t dim, double base,
                                              const std::optional<yarn_scaling>& yarn = std::nullopt) {
  check(dim > 0 && dim % 2 == 0, "rope", "dim: must be even and positive");
  check(base > 1.0, "rope", "base: must be above 1");
  const double d = static_cast<double>(dim);
  rope_frequencies f;
  f.inv_freq.resize(dim / 2);
  for (std::size_t i = 0; i < dim / 2; ++i) {
    f.inv_freq[i] = static_cast<float>(std::pow(base, -2.0 * static_cast<double>(i) / d));
  }
  if (!yarn) return f;

  const auto correction = [&](double rotations) {
    return d * std::log(yarn->original_max_position_embeddings / (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(base));
  };
  double lo = correction(yarn->beta_fast), hi = correction(yarn->beta_slow);
  if (yarn->truncate) {
    lo = std::floor(lo);
    hi = std::ceil(hi);
  }
  lo = std::max(lo, 0.0);
  hi = std::min(hi, d - 1.0);
  if (lo == hi) hi += 0.001;
  for (std::size_t i = 0; i < dim / 2; ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - lo) / (hi - lo), 0.0, 1.0);
    const double theta = std::pow(base, -2.0 * static_cast<double>(i) / d);
    f.inv_freq[i] = static_cast<float>(theta / yarn->factor * ramp + theta * (1.0 - ramp));
  }
  if (yarn->attention_factor) {
    f.attention_factor = static_cast<float>(*yarn->attention_factor);
  } else if (yarn->mscale != 0.0 && yarn->mscale_all_dim != 0.0) {
    f.attention_factor = static_cast<float>(yarn->magnitude(yarn->mscale) / yarn->magnitude(yarn->mscale_all_dim));
  } else {
    f.attention_factor = static_cast<float>(yarn->magnitude(1.0));
  }
  if (yarn->mscale_all_dim != 0.0) {
    const double m = yarn->magnitude(yarn->mscale_all_dim);
    f.softmax_multiplier = static_cast<float>(m * m);
  }
  return f;
}

MOTE_END_NAMESPACE

// ---- mote/ops/rope/pairing.hpp
// Which channels a rotary embedding rotates together.

MOTE_BEGIN_NAMESPACE

enum class rope_pairing { interleaved, half_split, interleaved_to_half_split };

MOTE_END_NAMESPACE

// ---- mote/ops/rope/reference.hpp
MOTE_BEGIN_NAMESPACE

// One row of the table: both back ends use it, since angles of some thousand radians need an exact range reduction.
inline void rope_table_row(float position, std::span<const float> inv_freq, float attention_factor, float* cos,
                           float* sin) noexcept {
  for (std::size_t i = 0; i < inv_freq.size(); ++i) {
    const float angle = position * inv_freq[i];
    cos[i] = attention_factor * std::cos(angle);
    sin[i] = attention_factor * std::sin(angle);
  }
}

inline void rope_table_impl(reference&, std::span<const std::int32_t> positions, std::span<const float> inv_freq,
                            float attention_factor, view<float, 2> cos, view<float, 2> sin) noexcept {
  for (std::size_t t = 0; t < positions.size(); ++t) {
    rope_table_row(static_cast<float>(positions[t]), inv_freq, attention_factor, cos.row(t), sin.row(t));
  }
}

// Each head is copied before it is rotated, so that y may be x in every pairing.
inline void rope_impl(reference& be, view<const float, 3> x, view<const float, 2> cos, view<const float, 2> sin,
                      rope_pairing pairing, view<float, 3> y) {
  const std::size_t dim = x.extent(2), half = dim / 2;
  auto scope = be.scope();
  const auto head = scope.tensor<float>(dim);
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    for (std::size_t h = 0; h < x.extent(1); ++h) {
      for (std::size_t i = 0; i < dim; ++i) head(i) = x(t, h, i);
      for (std::size_t i = 0; i < half; ++i) {
        const bool split_in = pairing == rope_pairing::half_split, split_out = pairing != rope_pairing::interleaved;
        const float a = head(split_in ? i : 2 * i), b = head(split_in ? i + half : 2 * i + 1);
        y(t, h, split_out ? i : 2 * i) = a * cos(t, i) - b * sin(t, i);
        y(t, h, split_out ? i + half : 2 * i + 1) = b * cos(t, i) + a * sin(t, i);
      }
    }
  }
}

MOTE_END_NAMESPACE

// ---- mote/ops/rope/simd.hpp
MOTE_BEGIN_NAMESPACE

template <class Arch, class Executor>
void rope_table_impl(simd<Arch, Executor>& be, std::span<const std::int32_t> positions, std::span<const float> inv_freq,
                     float attention_factor, view<float, 2> cos, view<float, 2> sin) noexcept {
  const std::size_t grain = 1 + std::size_t{512} / (inv_freq.size() + 1);
  be.parallel_for(positions.size(), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) {
      rope_table_row(static_cast<float>(positions[t]), inv_freq, attention_factor, cos.row(t), sin.row(t));
    }
  });
}

namespace detail {

// The two elements of every pair (2i, 2i + 1) of lanes exchanged.
template <class Arch>
batch<float, Arch> swap_pairs(const batch<float, Arch>& x) {
  const auto pairs = bits_as<std::uint64_t>(x);
  return bits_as<float>((pairs << 32) | (pairs >> 32));
}

// One run of channels of all heads of a token: y = x · [c0 c0 c1 c1 …] + swapped x · [-s0 s0 -s1 s1 …].
template <class Arch>
void rope_interleaved(view<const float, 2> x, const float* cos, const float* sin, view<float, 2> y) {
  using vector = batch<float, Arch>;
  constexpr std::size_t run = 64;
  const std::size_t heads = x.extent(0), dim = x.extent(1);
  for (std::size_t first = 0; first < dim; first += run) {
    const std::size_t n = dim - first < run ? dim - first : run;
    float c[run] = {}, s[run] = {};
    for (std::size_t i = 0; i < n / 2; ++i) {
      c[2 * i] = c[2 * i + 1] = cos[first / 2 + i];
      s[2 * i + 1] = sin[first / 2 + i];
      s[2 * i] = -s[2 * i + 1];
    }
    for (std::size_t h = 0; h < heads; ++h) {
      const float* in = x.row(h) + first;
      float* out = y.row(h) + first;
      for_each_vector<Arch>(n, [&](std::size_t i, auto load, auto store) {
        const vector v = load(in + i);
        store(out + i, fused_multiply_add(v, load(c + i), swap_pairs<Arch>(v) * load(s + i)));
      });
    }
  }
}

template <class Arch>
void rope_half_split(view<const float, 2> x, const float* cos, const float* sin, view<float, 2> y) {
  using vector = batch<float, Arch>;
  const std::size_t half = x.extent(1) / 2;
  for (std::size_t h = 0; h < x.extent(0); ++h) {
    const float* in = x.row(h);
    float* out = y.row(h);
    for_each_vector<Arch>(half, [&](std::size_t i, auto load, auto store) {
      const vector a = load(in + i), b = load(in + half + i), c = load(cos + i), s = load(sin + i);
      store(out + i, fused_multiply_add(a, c, -(b * s)));
      store(out + half + i, fused_multiply_add(b, c, a * s));
    });
  }
}

}  // namespace detail

template <class Arch, class Executor>
void rope_impl(simd<Arch, Executor>& be, view<const float, 3> x, view<const float, 2> cos, view<const float, 2> sin,
               rope_pairing pairing, view<float, 3> y) {
  const std::size_t tokens = x.extent(0), heads = x.extent(1), dim = x.extent(2), half = dim / 2;
  const std::size_t grain = 1 + std::size_t{16384} / (heads * dim + 1);
  // A pair read interleaved and written half-split lands where other pairs have yet to be read.
  const bool reorder = pairing == rope_pairing::interleaved_to_half_split;
  auto scope = be.scope();
  const auto rotated = scope.template tensor<float>(reorder ? tokens : 0, dim);
  be.parallel_for(tokens, grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) {
      if (pairing == rope_pairing::half_split) {
        detail::rope_half_split<Arch>(x[t], cos.row(t), sin.row(t), y[t]);
      } else if (!reorder) {
        detail::rope_interleaved<Arch>(x[t], cos.row(t), sin.row(t), y[t]);
      } else {
        float* head = rotated.row(t);
        for (std::size_t h = 0; h < heads; ++h) {
          detail::rope_interleaved<Arch>(x[t].slice(0, h, 1), cos.row(t), sin.row(t), view<float, 2>(head, 1, dim));
          float* out = y[t].row(h);
          for (std::size_t i = 0; i < half; ++i) {
            out[i] = head[2 * i];
            out[i + half] = head[2 * i + 1];
          }
        }
      }
    }
  });
}

MOTE_END_NAMESPACE

// ---- mote/ops/rope/rope.hpp
MOTE_BEGIN_NAMESPACE

template <backend Backend>
void rope_table(Backend& be, std::span<const std::int32_t> positions, std::span<const float> inv_freq,
                float attention_factor, view<float, 2> cos, view<float, 2> sin) {
  check_view("rope_table", "cos", cos, {positions.size(), inv_freq.size()});
  check_view("rope_table", "sin", sin, {positions.size(), inv_freq.size()});
  rope_table_impl(be, positions, inv_freq, attention_factor, cos, sin);
}

template <backend Backend>
void rope(Backend& be, view<const float, 3> x, view<const float, 2> cos, view<const float, 2> sin, rope_pairing pairing,
          view<float, 3> y) {
  check(x.extent(2) % 2 == 0, "rope", "x: the last dimension must be even");
  check_view("rope", "x", x, {x.extent(0), x.extent(1), x.extent(2)});
  check_view("rope", "cos", cos, {x.extent(0), x.extent(2) / 2});
  check_view("rope", "sin", sin, {x.extent(0), x.extent(2) / 2});
  check_view("rope", "y", y, {x.extent(0), x.extent(1), x.extent(2)});
  rope_impl(be, x, cos, sin, pairing, y);
}

MOTE_END_NAMESPACE

// ---- mote/blocks/mla.hpp
MOTE_BEGIN_NAMESPACE

// `cheapest` takes the form with fewer multiply-adds, by the number of new tokens: a token's bits then depend on how the
// sequence is cut into calls.
enum class mla_form { absorbed, expanded, cheapest };

// Field names as in config.json.
struct mla_config {
  std::size_t num_attention_heads = 0;
  std::size_t kv_lora_rank = 0;
  std::size_t qk_nope_head_dim = 0;
  std::size_t qk_rope_head_dim = 0;
  std::size_t v_head_dim = 0;
  float softmax_scale = 0.0f;  // (nope + rope)^-1/2, times YaRN's multiplier
  rope_pairing pairing = rope_pairing::interleaved;
  mla_form form = mla_form::absorbed;

  std::size_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  std::size_t cache_width() const { return kv_lora_rank + qk_rope_head_dim; }

  // The form for `tokens` new tokens. Expanding costs (nope + v) · rank for each cached token once, and saves
  // (2 rank + rope) - (nope + rope + v) for each pair of a new and a cached token.
  mla_form choose(std::size_t tokens) const {
    if (form != mla_form::cheapest) return form;
    const std::size_t per_head = qk_nope_head_dim + v_head_dim;
    const bool expand = 2 * kv_lora_rank > per_head && tokens * (2 * kv_lora_rank - per_head) > per_head * kv_lora_rank;
    return expand ? mla_form::expanded : mla_form::absorbed;
  }
};

struct mla_query_lora {
  weight q_a_proj;                     // [q_lora_rank, hidden]
  view<const float, 1> q_a_bias;       // [q_lora_rank], or empty
  view<const float, 1> q_a_layernorm;  // [q_lora_rank]
};

struct mla_weights {
  std::optional<mla_query_lora> q_lora;  // none where q_lora_rank is null
  weight q_proj;                         // [heads · (nope + rope), q_lora_rank or hidden]
  weight kv_a_proj;                      // [kv_lora_rank + rope, hidden]
  view<const float, 1> kv_a_bias;        // [kv_lora_rank + rope], or empty
  view<const float, 1> kv_a_layernorm;   // [kv_lora_rank]
  weight k_up;                           // [heads · nope, kv_lora_rank], W_uk
  weight k_up_transposed;                // [heads · kv_lora_rank, nope], W_ukᵀ of each head
  weight v_up;                           // [heads · v_head_dim, kv_lora_rank], W_uv
  weight o_proj;                         // [hidden, heads · v_head_dim]
  view<const float, 1> o_bias;           // [hidden], or empty
};

// The latent norms of the published models use this epsilon, whatever rms_norm_eps says.
inline constexpr float mla_norm_eps = 1e-6f;

// x: [tokens, hidden], the sequence's tokens at positions `position` …; cos, sin: [tokens, rope / 2] of those positions;
// cache: the sequence's rows, cache_rows or a paged_rows<T> of any form, length = position + tokens, written here for the new tokens; y: [tokens,
// hidden], set or added to. The new tokens too attend to what the cache holds of them. Throws shape_error when the shapes
// differ.
template <backend Backend, class Cache>
void mla(Backend& be, const mla_config& c, const mla_weights& w, view<const float, 2> x, view<const float, 2> cos,
         view<const float, 2> sin, const Cache& cache, std::size_t position, view<float, 2> y,
         output mode = output::overwrite) {
  const std::size_t tokens = x.extent(0), heads = c.num_attention_heads, rank = c.kv_lora_rank;
  const std::size_t nope = c.qk_nope_head_dim, rope_dim = c.qk_rope_head_dim, v_dim = c.v_head_dim;
  check(length(cache) == position + tokens, "mla", "cache: its length must be position + tokens");
  auto scratch = be.scope();

  const auto q = scratch.template tensor<float>(tokens, heads * c.qk_head_dim());
  if (w.q_lora) {
    const auto q_a = scratch.template tensor<float>(tokens, out_features(w.q_lora->q_a_proj));
    matmul(be, x, w.q_lora->q_a_proj, q_a);
    if (!w.q_lora->q_a_bias.empty()) add_bias(be, w.q_lora->q_a_bias, q_a);
    rms_norm(be, q_a, w.q_lora->q_a_layernorm, mla_norm_eps, q_a);
    matmul(be, q_a, w.q_proj, q);
  } else {
    matmul(be, x, w.q_proj, q);
  }
  const auto q_heads = q.reshaped(tokens, heads, c.qk_head_dim());
  const auto q_nope = q_heads.slice(2, 0, nope), q_rope = q_heads.slice(2, nope, rope_dim);
  rope(be, q_rope, cos, sin, c.pairing, q_rope);

  const auto kv = scratch.template tensor<float>(tokens, c.cache_width());
  const auto latent = kv.slice(1, 0, rank);
  const auto k_rope = kv.reshaped(tokens, 1, c.cache_width()).slice(2, rank, rope_dim);
  matmul(be, x, w.kv_a_proj, kv);
  if (!w.kv_a_bias.empty()) add_bias(be, w.kv_a_bias, kv);
  rms_norm(be, latent, w.kv_a_layernorm, mla_norm_eps, latent);
  rope(be, k_rope, cos, sin, c.pairing, k_rope);
  paged_store(be, kv, cache, position, 0);

  const auto heads_out = scratch.template tensor<float>(tokens, heads, v_dim);
  if (c.choose(tokens) == mla_form::expanded) {
    const std::size_t context = length(cache);
    const auto rows = scratch.template tensor<float>(context, c.cache_width());
    const auto all_latent = rows.slice(1, 0, rank), all_rope = rows.slice(1, rank, rope_dim);
    const auto k_nope = scratch.template tensor<float>(context, heads * nope);
    const auto v = scratch.template tensor<float>(context, heads * v_dim);
    paged_load(be, cache, 0, rows);
    matmul(be, all_latent, w.k_up, k_nope);
    matmul(be, all_latent, w.v_up, v);
    mla_prefill(be, q_nope, q_rope, k_nope.reshaped(context, heads, nope), all_rope, v.reshaped(context, heads, v_dim),
                c.softmax_scale, heads_out);
  } else {
    const auto q_latent = scratch.template tensor<float>(tokens, heads, rank);
    const auto o_latent = scratch.template tensor<float>(tokens, heads, rank);
    batched_matmul(be, q_nope.transposed({1, 0, 2}), w.k_up_transposed, q_latent.transposed({1, 0, 2}));
    mla_decode_sequence(be, q_latent, q_rope, cache, c.softmax_scale, o_latent);
    batched_matmul(be, o_latent.transposed({1, 0, 2}), w.v_up, heads_out.transposed({1, 0, 2}));
  }
  matmul(be, heads_out.reshaped(tokens, heads * v_dim), w.o_proj, y, mode);
  if (!w.o_bias.empty()) add_bias(be, w.o_bias, y);
}

MOTE_END_NAMESPACE

// ---- mote/blocks/moe.hpp
// Mixture of experts: a router sends each token to a few of many small feed-forward networks, a shared one sees them all.
//
//   z = x W_gateᵀ;   (indices, weights) = route(z, bias);   y = Σ_k weights_k · FFN_{indices_k}(x) + FFN_shared(x)
//
// x: [tokens, hidden]; y: [tokens, hidden], set or added to, which must not overlap x. The router's logits are float32
// whatever the experts' format. `observe` is called with the logits and routes, for statistics and for showing where tokens
// go: once, by each member of a team.
// Throws shape_error when shapes differ or the router's configuration does not fit.
// Source: Dai et al., "DeepSeekMoE" (2024); DeepSeek-V3 technical report (2024).

// ---- mote/ops/grouped_ffn/grouped_ffn.hpp
// The routed part of a mixture of experts: gather, gate and up, SwiGLU, down, weighted scatter, in one op.
//
//   y[t, :] += Σ_k weights[t, k] · FFN_{indices[t, k]}(x[t, :]),   FFN_e(h) = down_e(silu(gate_e h) ⊙ up_e h)
//
// x, y: [tokens, hidden] (y must not overlap x); indices, weights: [tokens, top_k]; experts: one entry each, gate and up
// [intermediate, hidden], down [hidden, intermediate], all of one shape, formats may differ between experts.
// With output::overwrite y is set instead. The slots of a token are added in the order k = 0 … top_k - 1, after which the
// sum is added to y, so that the result depends neither on threads nor on the other tokens. Numbers as in matmul.
// With `residency` the experts need not all be in memory: they are read in groups, each asked for before; the bits are the
// same. Throws shape_error when shapes differ or an index is out of range.
// Source: Dai et al., "DeepSeekMoE" (2024).

// ---- mote/ops/group_by_expert/group_by_expert.hpp
// Sorts (token, slot) pairs by expert, stably: the order in which grouped ops walk them.
//
// indices: [tokens, top_k], each in [0, experts);  offsets: [experts + 1], slots: [tokens · top_k].
// slots[offsets[e] … offsets[e + 1]) are the flat positions token · top_k + slot that chose expert e, ascending.
// Throws shape_error when shapes differ or an index is out of range.

// ---- mote/ops/group_by_expert/reference.hpp
MOTE_BEGIN_NAMESPACE

// A counting sort: count, sum up, place, shift back. Its cost is one pass over [tokens, top_k], so every back end on the
// host uses it.
inline void group_by_expert_serial(view<const std::int32_t, 2> indices, view<std::int32_t, 1> offsets,
                                   view<std::int32_t, 1> slots) noexcept {
  const std::size_t experts = offsets.extent(0) - 1, top_k = indices.extent(1);
  const auto expert_of = [&](std::size_t flat) {
    return static_cast<std::size_t>(indices(flat / top_k, flat % top_k));
  };
  for (std::size_t e = 0; e <= experts; ++e) offsets(e) = 0;
  for (std::size_t i = 0; i < slots.size(); ++i) ++offsets(expert_of(i) + 1);
  for (std::size_t e = 0; e < experts; ++e) offsets(e + 1) += offsets(e);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    slots(static_cast<std::size_t>(offsets(expert_of(i))++)) = static_cast<std::int32_t>(i);
  }
  for (std::size_t e = experts; e > 0; --e) offsets(e) = offsets(e - 1);
  offsets(0) = 0;
}

inline void group_by_expert_impl(reference&, view<const std::int32_t, 2> indices, view<std::int32_t, 1> offsets,
                                 view<std::int32_t, 1> slots) noexcept {
  group_by_expert_serial(indices, offsets, slots);
}

MOTE_END_NAMESPACE

// ---- mote/ops/group_by_expert/simd.hpp
MOTE_BEGIN_NAMESPACE

template <class Arch, class Executor>
void group_by_expert_impl(simd<Arch, Executor>& be, view<const std::int32_t, 2> indices, view<std::int32_t, 1> offsets,
                          view<std::int32_t, 1> slots) {
  be.parallel_for(1, 1, [&](std::size_t, std::size_t) { group_by_expert_serial(indices, offsets, slots); });
}

MOTE_END_NAMESPACE

// ---- mote/ops/group_by_expert/group_by_expert.hpp
MOTE_BEGIN_NAMESPACE

template <backend Backend>
void group_by_expert(Backend& be, view<const std::int32_t, 2> indices, view<std::int32_t, 1> offsets,
                     view<std::int32_t, 1> slots) {
  check(offsets.extent(0) > 0, "group_by_expert", "offsets: expected shape [experts + 1]");
  check_view("group_by_expert", "slots", slots, {indices.size()});
  const std::size_t experts = offsets.extent(0) - 1;
  for (std::size_t t = 0; t < indices.extent(0); ++t) {
    for (std::size_t k = 0; k < indices.extent(1); ++k) {
      const std::int32_t e = indices(t, k);
      if (e < 0 || static_cast<std::size_t>(e) >= experts) {
        raise<shape_error>("group_by_expert: indices: expert " + std::to_string(e) + " is outside [0, " +
                           std::to_string(experts) + ")");
      }
    }
  }
  group_by_expert_impl(be, indices, offsets, slots);
}

MOTE_END_NAMESPACE

// ---- mote/ops/grouped_ffn/residency.hpp
// Experts that are not all in memory at once.

MOTE_BEGIN_NAMESPACE

// Asked before experts are read. `offsets` are those of group_by_expert: expert e has tokens where offsets(e) < offsets(e + 1).
class expert_residency {
 public:
  virtual ~expert_residency() = default;

  // Makes those experts with tokens from `first` on readable for which there is room, and says where they end: at most at
  // offsets.size() - 1, beyond `first`. The next call begins there; what was readable before may then be so no longer.
  virtual std::size_t require(view<const std::int32_t, 1> offsets, std::size_t first) = 0;
};

namespace detail {

// f(first, last) for the groups of experts that are in memory together, all in one where `residency` is null. Members of a
// team ask for each once, together.
template <class Backend, class Function>
void for_each_expert_group(Backend& be, expert_residency* residency, view<const std::int32_t, 1> offsets,
                           Function&& f) {
  const std::size_t experts = offsets.size() - 1;
  for (std::size_t first = 0; first < experts;) {
    const std::size_t last =
        residency != nullptr ? be.single([&] { return residency->require(offsets, first); }) : experts;
    f(first, last);
    first = last;
  }
}

}  // namespace detail

MOTE_END_NAMESPACE

// ---- mote/ops/grouped_ffn/reference.hpp
MOTE_BEGIN_NAMESPACE

// Token by token through its experts, in small steps. `offsets` and `slots` are those of group_by_expert.
inline void grouped_ffn_impl(reference& be, view<const float, 2> x, view<const float, 2> weights,
                             std::span<const ffn_weights> experts, view<const std::int32_t, 1> offsets,
                             view<const std::int32_t, 1> slots, view<float, 2> y, output mode,
                             expert_residency* residency) {
  const std::size_t top_k = weights.extent(1), hidden = x.extent(1), intermediate = out_features(experts[0].gate);
  auto scope = be.scope();
  const auto gate = scope.tensor<float>(1, intermediate);
  const auto up = scope.tensor<float>(1, intermediate);
  const auto down = scope.tensor<float>(slots.size(), hidden);
  const auto apply = [&](view<const float, 2> in, const weight& w, view<float, 2> out) {
    matmul_impl(be, in, w, out, output::overwrite);
  };
  detail::for_each_expert_group(be, residency, offsets, [&](std::size_t first, std::size_t last) {
    for (std::size_t e = first; e < last; ++e) {
      for (std::int32_t i = offsets(e); i < offsets(e + 1); ++i) {
        const std::size_t slot = static_cast<std::size_t>(slots(static_cast<std::size_t>(i)));
        const auto token = x.slice(0, slot / top_k, 1);
        apply(token, experts[e].gate, gate);
        apply(token, experts[e].up, up);
        swiglu_impl(be, gate, up, gate);
        apply(gate, experts[e].down, down.slice(0, slot, 1));
      }
    }
  });
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    for (std::size_t i = 0; i < hidden; ++i) {
      float sum = 0.0f;
      for (std::size_t k = 0; k < top_k; ++k) sum += weights(t, k) * down(t * top_k + k, i);
      y(t, i) = mode == output::accumulate ? y(t, i) + sum : sum;
    }
  }
}

MOTE_END_NAMESPACE

// ---- mote/ops/grouped_ffn/simd.hpp
// Work is shared out as (expert, unit of rows): an expert with few tokens is a short item, an expert with many is many,
// so threads stay busy however uneven the routing is. Each chosen expert's weights are read once for all its tokens.

MOTE_BEGIN_NAMESPACE

namespace detail {

// Tokens of an expert at a time: the results of two matrices are on the stack.
inline constexpr std::size_t expert_tokens = std::min<std::size_t>(unit_tokens, 64);

// silu(gate) · up over a unit's results, into one row of activations for each token.
template <class Arch, class Target>
void swiglu_unit(const float* gate, const float* up, std::size_t rows, std::size_t tokens, Target&& target) noexcept {
  using vector = batch<float, Arch>;
  for (std::size_t t = 0; t < tokens; ++t) {
    const float *g = gate + t * unit_stride, *u = up + t * unit_stride;
    float* y = target(t);
    for_each_vector<Arch>(rows, [&](std::size_t i, auto load, auto store) {
      const vector a = load(g + i);
      store(y + i, a / (vector(1.0f) + exp_vector<Arch>(-a)) * load(u + i));
    });
  }
}

}  // namespace detail

template <class Arch, class Executor>
void grouped_ffn_impl(simd<Arch, Executor>& be, view<const float, 2> x, view<const float, 2> weights,
                      std::span<const ffn_weights> experts, view<const std::int32_t, 1> offsets,
                      view<const std::int32_t, 1> slots, view<float, 2> y, output mode, expert_residency* residency) {
  using detail::activation, detail::unit_stride, detail::expert_tokens;
  const std::size_t tokens = x.extent(0), hidden = x.extent(1), top_k = weights.extent(1);
  const std::size_t intermediate = out_features(experts[0].gate);
  auto scope = be.scope();
  const auto inner = scope.template tensor<float>(slots.size(), intermediate);  // silu(gate) · up, a row a place
  const auto outer = scope.template tensor<float>(slots.size(), hidden);        // down, a row a slot

  detail::activation_forms input_forms, inner_forms;
  std::size_t unit = 0;
  for (const ffn_weights& expert : experts) {
    input_forms = input_forms | detail::forms(expert.gate) | detail::forms(expert.up);
    inner_forms = inner_forms | detail::forms(expert.down);
    for (const weight* w : {&expert.gate, &expert.up, &expert.down}) {
      detail::check_packing<Arch>("grouped_ffn", *w);
      const std::size_t rows = detail::unit_rows_of<Arch>(*w, slots.size() / experts.size());
      unit = unit == 0 ? rows : std::min(unit, rows);
    }
  }
  const auto slot = [&](std::size_t place) { return static_cast<std::size_t>(slots(place)); };
  const auto offset = [&](std::size_t e) { return static_cast<std::size_t>(offsets(e)); };

  // Tokens are quantized once, before the experts.
  const auto token_inputs =
      detail::prepare_rows<Arch>(be, scope, input_forms, tokens, hidden, [&](std::size_t t) { return x.row(t); });
  const auto inputs = scope.template tensor<activation>(slots.size());  // a row a place
  be.parallel_for(slots.size(), 4096, [&](std::size_t begin, std::size_t end) {
    for (std::size_t place = begin; place < end; ++place) inputs(place) = token_inputs(slot(place) / top_k);
  });
  detail::lay_out_tiles<Arch>(be, scope, input_forms, hidden, inputs, experts.size(), offset);

  const auto chosen = scope.template tensor<std::int32_t>(experts.size());
  const auto chosen_count = scope.template tensor<std::size_t>(1);
  // Those of the experts [begin, end) that have tokens, those with most first.
  const auto choose = [&](std::size_t begin, std::size_t end) {
    const auto tokens_of = [&](std::int32_t e) {
      return offsets(static_cast<std::size_t>(e) + 1) - offsets(static_cast<std::size_t>(e));
    };
    be.parallel_for(1, 1, [&](std::size_t, std::size_t) {
      std::int32_t* last = chosen.data();
      for (std::size_t e = begin; e < end; ++e) {
        if (offsets(e) != offsets(e + 1)) *last++ = static_cast<std::int32_t>(e);
      }
      chosen_count(0) = static_cast<std::size_t>(last - chosen.data());
      std::sort(chosen.data(), last, [&](std::int32_t a, std::int32_t b) { return tokens_of(a) > tokens_of(b); });
    });
  };

  // Calls f(expert, first row, rows, first place in `slots`, places) for runs of units of the chosen experts. A run's results
  // take no more room than a unit's for expert_tokens, so that few tokens read long pieces of gate and of up in turn: each
  // begins with a wait for memory (Q8_0, Zen 4: 1.04 times as fast as unit by unit).
  const auto for_each_run = [&](std::size_t out, auto&& f) {
    const std::size_t units = (out + unit - 1) / unit;
    const std::size_t items = chosen_count(0) * units;
    const std::size_t grain =
        detail::units_at_once(experts[0].gate, unit, items, slots.size() / experts.size(), be.concurrency());
    be.parallel_for(items, grain, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin, next = begin; i < end; i = next) {
        const auto e = static_cast<std::size_t>(chosen(i / units));
        const std::size_t count = offset(e + 1) - offset(e);
        next = std::min({end, (i / units + 1) * units, i + std::max(expert_tokens / count, std::size_t{1})});
        const std::size_t n = i % units * unit, rows = std::min((next - i) * unit, out - n);
        for (std::size_t t = 0; t < count; t += expert_tokens) {
          f(experts[e], n, rows, offset(e) + t, std::min(expert_tokens, count - t));
        }
      }
    });
  };
  // Calls f(first row, rows, where the results for so many tokens begin) for each unit of a run.
  const auto for_each_unit = [&](std::size_t first, std::size_t rows, std::size_t count, auto&& f) {
    for (std::size_t r = 0; r < rows; r += unit) f(first + r, std::min(unit, rows - r), r / unit * unit_stride * count);
  };

  detail::for_each_expert_group(be, residency, offsets, [&](std::size_t begin, std::size_t end) {
    const std::size_t first = offset(begin), last = offset(end);
    choose(begin, end);
    for_each_run(intermediate, [&](const ffn_weights& expert, std::size_t row, std::size_t rows, std::size_t place,
                                   std::size_t count) {
      alignas(64) float gate[unit_stride * expert_tokens], up[unit_stride * expert_tokens];
      const auto multiply = [&](const weight& w, float* results) {
        for_each_unit(row, rows, count, [&](std::size_t n, std::size_t some, std::size_t at) {
          detail::unit_product<Arch>(w, n, some, &inputs(place), count, results + at);
        });
      };
      multiply(expert.gate, gate);
      multiply(expert.up, up);
      for_each_unit(row, rows, count, [&](std::size_t n, std::size_t some, std::size_t at) {
        detail::swiglu_unit<Arch>(gate + at, up + at, some, count,
                                  [&](std::size_t i) { return inner.row(place + i) + n; });
      });
    });

    auto group_scope = be.scope();
    const auto between = detail::prepare_rows<Arch>(be, group_scope, inner_forms, last - first, intermediate,
                                                    [&](std::size_t i) { return inner.row(first + i); });
    detail::lay_out_tiles<Arch>(be, group_scope, inner_forms, intermediate, between, end - begin,
                                [&](std::size_t r) { return offset(begin + r) - first; });

    for_each_run(hidden, [&](const ffn_weights& expert, std::size_t row, std::size_t rows, std::size_t place,
                             std::size_t count) {
      for_each_unit(row, rows, count, [&](std::size_t n, std::size_t some, std::size_t) {
        alignas(64) float down[unit_stride * expert_tokens];
        detail::unit_product<Arch>(expert.down, n, some, &between(place - first), count, down);
        for (std::size_t i = 0; i < count; ++i) {
          std::copy_n(down + i * unit_stride, some, outer.row(slot(place + i)) + n);
        }
      });
    });
  });

  be.parallel_for(tokens, 1 + 4096 / (hidden * top_k + 1), [&](std::size_t begin, std::size_t end) {
    using vector = batch<float, Arch>;
    for (std::size_t t = begin; t < end; ++t) {
      float* row = y.row(t);
      detail::for_each_vector<Arch>(hidden, [&](std::size_t i, auto load, auto store) {
        vector total(0.0f);
        for (std::size_t k = 0; k < top_k; ++k) {
          total = fused_multiply_add(vector(weights(t, k)), load(outer.row(t * top_k + k) + i), total);
        }
        store(row + i, mode == output::accumulate ? load(row + i) + total : total);
      });
    }
  });
}

MOTE_END_NAMESPACE

// ---- mote/ops/grouped_ffn/grouped_ffn.hpp
MOTE_BEGIN_NAMESPACE

template <backend Backend>
void grouped_ffn(Backend& be, view<const float, 2> x, view<const std::int32_t, 2> indices, view<const float, 2> weights,
                 std::span<const ffn_weights> experts, view<float, 2> y, output mode = output::overwrite,
                 expert_residency* residency = nullptr) {
  check(!experts.empty(), "grouped_ffn", "experts: must not be empty");
  const std::size_t tokens = x.extent(0), hidden = x.extent(1), intermediate = out_features(experts[0].gate);
  check_view("grouped_ffn", "x", x, {tokens, hidden});
  check_view("grouped_ffn", "indices", indices, {tokens, indices.extent(1)});
  check_view("grouped_ffn", "weights", weights, {tokens, indices.extent(1)});
  check_view("grouped_ffn", "y", y, {tokens, hidden});
  const auto check_matrix = [](const char* name, const weight& w, std::size_t out, std::size_t in) {
    const std::size_t shape[] = {out_features(w), in_features(w)};
    check_shape("grouped_ffn", name, shape, {out, in});
    check_rows("grouped_ffn", name, w);
  };
  for (const ffn_weights& expert : experts) {
    check_matrix("gate", expert.gate, intermediate, hidden);
    check_matrix("up", expert.up, intermediate, hidden);
    check_matrix("down", expert.down, hidden, intermediate);
  }
  auto scope = be.scope();
  const auto offsets = scope.template tensor<std::int32_t>(experts.size() + 1);
  const auto slots = scope.template tensor<std::int32_t>(indices.size());
  group_by_expert(be, indices, offsets, slots);
  grouped_ffn_impl(be, x, weights, experts, offsets, slots, y, mode, residency);
}

MOTE_END_NAMESPACE

// ---- mote/ops/route/route.hpp
// Routers: which experts a token goes to, and with what weights.
//
//   greedy                 s = softmax(z) or σ(z); the num_experts_per_tok (K) largest s
//   group_limited_greedy   a group's score is its largest s; only the best topk_group groups take part, K largest s
//   noaux_tc               s = σ(z), c = s + bias; a group's score is the sum of its two largest c; experts outside the
//                          best topk_group groups are left out; the K largest c. Weights come from s, never from c.
//
// Weights: w = s of the chosen. With norm_topk_prob and K > 1 the softmax router gives w / (Σ w + 1e-20) *instead of*
// w · routed_scaling_factor (DeepSeek-V2); noaux_tc normalises and then scales (DeepSeek-V3).
//
// logits: [tokens, experts]; bias: [experts], or empty for none; indices, weights: [tokens, K], sorted by ascending expert.
// Ties go to the lower index. A NaN ranks with -infinity, so that indices are always K different experts of the best groups;
// where it was a score, weights are NaN. Throws shape_error when shapes differ or the configuration does not fit the experts.
// Source: DeepSeek-V2 (2024), DeepSeek-V3 technical report (2024) and their model code; Wang et al., "Auxiliary-Loss-Free
// Load Balancing Strategy for Mixture-of-Experts" (2024).

// ---- mote/ops/route/config.hpp
// How a router turns logits into experts and weights.

MOTE_BEGIN_NAMESPACE

// Names as `scoring_func` and `topk_method` of config.json.
enum class scoring_func { softmax, sigmoid };
enum class topk_method { greedy, group_limited_greedy, noaux_tc };

struct router_config {
  scoring_func scoring = scoring_func::softmax;
  topk_method method = topk_method::greedy;
  std::size_t num_experts_per_tok = 1;
  std::size_t n_group = 1;
  std::size_t topk_group = 1;
  bool norm_topk_prob = false;
  float routed_scaling_factor = 1.0f;
};

// Throws shape_error naming the field unless the configuration fits `experts`.
inline void check_router(const router_config& c, std::size_t experts) {
  const auto fail = [&](const std::string& message) { raise<shape_error>("route: " + message); };
  if (c.num_experts_per_tok == 0 || c.num_experts_per_tok > experts) {
    fail("num_experts_per_tok: expected 1 to " + std::to_string(experts) + " (the experts), got " +
         std::to_string(c.num_experts_per_tok));
  }
  if (c.method == topk_method::greedy) return;
  if (c.n_group == 0 || experts % c.n_group != 0) {
    fail("n_group: expected a divisor of " + std::to_string(experts) + " experts, got " + std::to_string(c.n_group));
  }
  if (c.topk_group == 0 || c.topk_group > c.n_group) {
    fail("topk_group: expected 1 to " + std::to_string(c.n_group) + " (n_group), got " + std::to_string(c.topk_group));
  }
  if (c.num_experts_per_tok > experts / c.n_group * c.topk_group) {
    fail("num_experts_per_tok: " + std::to_string(c.num_experts_per_tok) + " exceeds the " +
         std::to_string(experts / c.n_group * c.topk_group) + " experts of topk_group groups");
  }
}

MOTE_END_NAMESPACE

// ---- mote/ops/route/reference.hpp
MOTE_BEGIN_NAMESPACE

namespace detail {

// NaN ranks with the lowest.
inline float rankable(float x) { return std::isnan(x) ? -INFINITY : x; }

// The number of values that come before values[i]: larger ones, and equal ones of a lower index.
inline std::size_t rank_of(std::size_t i, view<const float, 1> values) {
  std::size_t before = 0;
  for (std::size_t j = 0; j < values.extent(0); ++j) {
    before += values(j) > values(i) || (values(j) == values(i) && j < i);
  }
  return before;
}

// The factor of a token's weights, given the sum of its chosen scores.
inline float route_scale(const router_config& config, float total) {
  const bool noaux = config.method == topk_method::noaux_tc;
  const bool normalise = config.norm_topk_prob && (config.num_experts_per_tok > 1 || noaux);
  const float inverse = normalise ? 1.0f / (total + 1e-20f) : 1.0f;
  return normalise && !noaux ? inverse : inverse * config.routed_scaling_factor;
}

}  // namespace detail

inline void route_impl(reference& be, const router_config& config, view<const float, 2> logits,
                       view<const float, 1> bias, view<std::int32_t, 2> indices, view<float, 2> weights) {
  const std::size_t experts = logits.extent(1), top_k = config.num_experts_per_tok;
  const bool grouped = config.method != topk_method::greedy;
  const std::size_t groups = grouped ? config.n_group : 1, group_size = experts / groups;
  const std::size_t kept_groups = grouped ? config.topk_group : 1;
  auto scope = be.scope();
  const auto score = scope.tensor<float>(experts), choice = scope.tensor<float>(experts);
  const auto group_score = scope.tensor<float>(groups);
  const auto candidate = scope.tensor<bool>(experts);

  for (std::size_t t = 0; t < logits.extent(0); ++t) {
    if (config.scoring == scoring_func::softmax) {
      float maximum = -INFINITY;
      double total = 0.0;
      for (std::size_t e = 0; e < experts; ++e) maximum = std::fmax(maximum, logits(t, e));
      for (std::size_t e = 0; e < experts; ++e) {
        score(e) = std::exp(logits(t, e) - maximum);
        total += static_cast<double>(score(e));
      }
      for (std::size_t e = 0; e < experts; ++e) score(e) = static_cast<float>(static_cast<double>(score(e)) / total);
    } else {
      for (std::size_t e = 0; e < experts; ++e) score(e) = 1.0f / (1.0f + std::exp(-logits(t, e)));
    }
    for (std::size_t e = 0; e < experts; ++e) choice(e) = detail::rankable(score(e) + (bias.empty() ? 0.0f : bias(e)));

    for (std::size_t g = 0; g < groups; ++g) {
      float first = -INFINITY, second = -INFINITY;
      for (std::size_t e = g * group_size; e < (g + 1) * group_size; ++e) {
        second = std::max(second, std::min(first, choice(e)));
        first = std::max(first, choice(e));
      }
      const bool pair = config.method == topk_method::noaux_tc && group_size > 1;
      group_score(g) = detail::rankable(pair ? first + second : first);
    }
    for (std::size_t e = 0; e < experts; ++e) {
      candidate(e) = detail::rank_of(e / group_size, group_score) < kept_groups;
    }

    for (std::size_t k = 0; k < top_k; ++k) {
      std::size_t best = experts;
      for (std::size_t e = 0; e < experts; ++e) {
        if (candidate(e) && (best == experts || choice(e) > choice(best))) best = e;
      }
      indices(t, k) = static_cast<std::int32_t>(best);
      candidate(best) = false;
    }
    std::sort(indices.row(t), indices.row(t) + top_k);

    float total = 0.0f;
    for (std::size_t k = 0; k < top_k; ++k) total += score(static_cast<std::size_t>(indices(t, k)));
    const float scale = detail::route_scale(config, total);
    for (std::size_t k = 0; k < top_k; ++k) {
      weights(t, k) = score(static_cast<std::size_t>(indices(t, k))) * scale;
    }
  }
}

MOTE_END_NAMESPACE

// ---- mote/ops/route/simd.hpp
MOTE_BEGIN_NAMESPACE

namespace detail {

// Routes a token at a time, nearly without branches that depend on the data: groups and experts are chosen by counting
// how many come before each.
//
//   1. scores, and the values the choice is made by, of all experts
//   2. the two best of every group, from which the groups are ranked
//   3. a lower bound of the K-th best: the experts of the kept groups go round-robin into at least 2K buckets, and the
//      K-th best of the buckets' maxima is such a bound; the few experts that reach it are ranked against each other
template <class Arch>
class token_router {
  using vector = batch<float, Arch>;
  static constexpr std::size_t size = vector::size;

 public:
  token_router(const router_config& config, std::size_t experts)
      : config_(config),
        experts_(experts),
        groups_(config.method == topk_method::greedy ? 1 : config.n_group),
        kept_groups_(config.method == topk_method::greedy ? 1 : config.topk_group),
        group_size_(experts / groups_) {}

  // Scratch memory of one call.
  std::size_t floats() const { return 4 * padded(experts_) + size + 2 * (padded(groups_) + buckets()); }
  std::size_t integers() const { return experts_ + groups_ + 1; }

  void operator()(const float* logits, const float* bias, float* floats, std::int32_t* integers, std::int32_t* indices,
                  float* weights) const noexcept {
    const std::size_t top_k = config_.num_experts_per_tok;
    float* const score = floats;
    float* const choice = score + padded(experts_);  // a group's last vector may run past the end
    float* const group_score = choice + padded(experts_) + size;
    float* const group_rank = group_score + padded(groups_);
    float* const bucket = group_rank + padded(groups_);
    float* const bucket_rank = bucket + buckets();
    float* const value = bucket_rank + buckets();
    float* const rank = value + padded(experts_);
    std::int32_t* const kept = integers;  // the first experts of the kept groups
    std::int32_t* const chosen = kept + groups_ + 1;

    make_scores(logits, bias, score, choice);
    if (kept_groups_ < groups_) {
      for (std::size_t g = 0; g < groups_; ++g) group_score[g] = score_group(choice + g * group_size_);
      rank_all(group_score, groups_, group_rank);
    } else {
      std::fill_n(group_rank, groups_, 0.0f);
    }
    for (std::size_t g = 0, k = 0; g < groups_; ++g) {
      kept[k] = static_cast<std::int32_t>(g * group_size_);
      k += group_rank[g] < static_cast<float>(kept_groups_);
    }
    const vector bound(lower_bound(choice, kept, bucket, bucket_rank));

    std::size_t count = 0;
    for (std::size_t k = 0; k < kept_groups_; ++k) {
      const float* const group = choice + kept[k];
      for (std::size_t j = 0; j < group_size_; j += size) {
        const std::uint64_t last =
            group_size_ - j < size ? (std::uint64_t{1} << (group_size_ - j)) - 1 : ~std::uint64_t{0};
        std::uint64_t reached = lane_mask<Arch>(vector::load_unaligned(group + j) >= bound) & last;
        for (; reached != 0; reached &= reached - 1) {
          chosen[count++] = kept[k] + static_cast<std::int32_t>(j) + std::countr_zero(reached);
        }
      }
    }
    if (count <= std::max<std::size_t>(4 * top_k, 64)) {
      for (std::size_t i = 0; i < count; ++i) value[i] = choice[static_cast<std::size_t>(chosen[i])];
      rank_all(value, count, rank);
      for (std::size_t i = 0, k = 0; i < count; ++i) {
        chosen[k] = chosen[i];
        k += rank[i] < static_cast<float>(top_k);
      }
    } else {  // many equal values
      const auto before = [choice](std::int32_t a, std::int32_t b) {
        const float x = choice[a], y = choice[b];
        return x > y || (x == y && a < b);
      };
      std::nth_element(chosen, chosen + (top_k - 1), chosen + count, before);
      std::sort(chosen, chosen + top_k, [](std::int32_t a, std::int32_t b) { return a < b; });
    }

    float total = 0.0f;
    for (std::size_t k = 0; k < top_k; ++k) {
      indices[k] = chosen[k];
      weights[k] = score[chosen[k]];
      total += weights[k];
    }
    const float scale = route_scale(config_, total);
    for (std::size_t k = 0; k < top_k; ++k) weights[k] *= scale;
  }

 private:
  static std::size_t padded(std::size_t n) { return (n + size - 1) / size * size; }
  std::size_t buckets() const { return padded(2 * config_.num_experts_per_tok); }

  static vector larger(const vector& a, const vector& b) { return xsimd::max(a, b); }
  static vector smaller(const vector& a, const vector& b) { return xsimd::min(a, b); }

  void make_scores(const float* logits, const float* bias, float* score, float* choice) const {
    const auto store = [&](std::size_t e, const vector& s, auto load) {
      const vector c = bias == nullptr ? s : s + load(bias + e);
      s.store_unaligned(score + e);
      xsimd::select(c == c, c, vector(-INFINITY)).store_unaligned(choice + e);
    };
    if (config_.scoring == scoring_func::sigmoid) {
      for_each_vector<Arch>(experts_, [&](std::size_t e, auto load, auto) {
        store(e, vector(1.0f) / (vector(1.0f) + exp_vector<Arch>(-load(logits + e))), load);
      });
      return;
    }
    vector best(-INFINITY), total(0.0f);
    for_each_vector<Arch>(
        experts_, [&](std::size_t e, auto load, auto) { best = larger(load(logits + e), best); }, -INFINITY);
    const vector shift(detail::largest<Arch>(best));
    for_each_vector<Arch>(
        experts_,
        [&](std::size_t e, auto load, auto) {
          const vector s = exp_nonpositive<Arch>(load(logits + e) - shift);
          s.store_unaligned(score + e);
          total += s;
        },
        -INFINITY);
    const vector scale(1.0f / sum(total));
    for_each_vector<Arch>(
        experts_, [&](std::size_t e, auto load, auto) { store(e, vector::load_unaligned(score + e) * scale, load); });
  }

  // The vector at element j of a group, -infinity past the group's end.
  vector group_vector(const float* group, std::size_t j) const {
    const vector v = vector::load_unaligned(group + j);
    if (j + size <= group_size_) return v;
    return xsimd::select(lane_numbers<Arch>() < vector(static_cast<float>(group_size_ - j)), v, vector(-INFINITY));
  }

  float score_group(const float* group) const {
    vector first(-INFINITY), second(-INFINITY);
    for (std::size_t j = 0; j < group_size_; j += size) {
      const vector v = group_vector(group, j);
      second = larger(second, smaller(first, v));
      first = larger(first, v);
    }
    alignas(64) float a[size], b[size];
    first.store_aligned(a);
    second.store_aligned(b);
    fold_best_two<size / 2>(a, b);
    const bool pair = config_.method == topk_method::noaux_tc && group_size_ > 1;
    return rankable(pair ? a[0] + b[0] : a[0]);
  }

  // a[0] and b[0] become the two largest of all, given the two largest of every lane.
  template <std::size_t Half>
  static void fold_best_two(float* a, float* b) {
    for (std::size_t i = 0; i < Half; ++i) {
      const float x = a[i], y = a[i + Half], z = b[i] > b[i + Half] ? b[i] : b[i + Half];
      const float low = x > y ? y : x;
      a[i] = x > y ? x : y;
      b[i] = low > z ? low : z;
    }
    if constexpr (Half > 1) fold_best_two<Half / 2>(a, b);
  }

  // rank[i] = how many of the n values come before value i: larger ones, and equal ones of a lower index. Both arrays
  // hold whole vectors. Two sums, since an addition takes several cycles.
  static void rank_all(const float* values, std::size_t n, float* rank) {
    for (std::size_t i = 0; i < n; i += size) {
      const vector own = vector::load_unaligned(values + i);
      const vector index = lane_numbers<Arch>() + vector(static_cast<float>(i));
      vector before[2] = {vector(0.0f), vector(0.0f)};
      for (std::size_t j = 0; j < n; ++j) {
        const vector other(values[j]), j_index(static_cast<float>(j));
        const auto first = (other > own) || ((other == own) && (j_index < index));
        before[j % 2] += xsimd::select(first, vector(1.0f), vector(0.0f));
      }
      (before[0] + before[1]).store_unaligned(rank + i);
    }
  }

  // At least K experts of the kept groups are no smaller than this.
  float lower_bound(const float* choice, const std::int32_t* kept, float* bucket, float* bucket_rank) const {
    const std::size_t n = buckets();
    for (std::size_t b = 0; b < n; b += size) {
      vector best(-INFINITY);
      for (std::size_t k = 0, j = b; k < kept_groups_; j += n) {
        for (; k < kept_groups_ && j >= padded(group_size_); j -= padded(group_size_)) ++k;
        if (k < kept_groups_) best = larger(group_vector(choice + kept[k], j), best);
      }
      best.store_unaligned(bucket + b);
    }
    rank_all(bucket, n, bucket_rank);
    const vector last(static_cast<float>(config_.num_experts_per_tok - 1));
    vector bound(-INFINITY);
    for (std::size_t i = 0; i < n; i += size) {
      bound = larger(bound, xsimd::select(vector::load_unaligned(bucket_rank + i) == last,
                                          vector::load_unaligned(bucket + i), vector(-INFINITY)));
    }
    return detail::largest<Arch>(bound);
  }

  const router_config& config_;
  std::size_t experts_, groups_, kept_groups_, group_size_;
};

}  // namespace detail

template <class Arch, class Executor>
void route_impl(simd<Arch, Executor>& be, const router_config& config, view<const float, 2> logits,
                view<const float, 1> bias, view<std::int32_t, 2> indices, view<float, 2> weights) {
  const std::size_t tokens = logits.extent(0), experts = logits.extent(1);
  const std::size_t grain = 1 + std::size_t{16384} / (experts + 1);
  const detail::token_router<Arch> router(config, experts);
  auto scope = be.scope();
  // Scratch for every range of `grain` tokens: a thread works on one range at a time.
  const std::size_t ranges = (tokens + grain - 1) / grain;
  const auto floats = scope.template tensor<float>(ranges, router.floats());
  const auto integers = scope.template tensor<std::int32_t>(ranges, router.integers());
  be.parallel_for(tokens, grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) {
      router(logits.row(t), bias.empty() ? nullptr : bias.data(), floats.row(begin / grain),
             integers.row(begin / grain), indices.row(t), weights.row(t));
    }
  });
}

MOTE_END_NAMESPACE

// ---- mote/ops/route/route.hpp
MOTE_BEGIN_NAMESPACE

template <backend Backend>
void route(Backend& be, const router_config& config, view<const float, 2> logits, view<const float, 1> bias,
           view<std::int32_t, 2> indices, view<float, 2> weights) {
  check_router(config, logits.extent(1));
  if (!bias.empty()) check_view("route", "bias", bias, {logits.extent(1)});
  check_view("route", "logits", logits, {logits.extent(0), logits.extent(1)});
  check_view("route", "indices", indices, {logits.extent(0), config.num_experts_per_tok});
  check_view("route", "weights", weights, {logits.extent(0), config.num_experts_per_tok});
  route_impl(be, config, logits, bias, indices, weights);
}

MOTE_END_NAMESPACE

// ---- mote/blocks/moe.hpp
MOTE_BEGIN_NAMESPACE

struct moe_weights {
  view<const float, 2> gate;              // [experts, hidden]
  view<const float, 1> bias;              // [experts], selection bias, or empty
  std::span<const ffn_weights> experts;   // routed experts
  std::optional<ffn_weights> shared;      // the shared experts as one network
  expert_residency* residency = nullptr;  // of experts that are not all in memory
};

// What a router decided for each token.
struct routing {
  view<const float, 2> logits;          // [tokens, experts]
  view<const std::int32_t, 2> indices;  // [tokens, num_experts_per_tok]
  view<const float, 2> weights;         // [tokens, num_experts_per_tok]
};

struct ignore_routing {
  void operator()(const routing&) const {}
};

template <backend Backend, class Observe = ignore_routing>
void moe(Backend& be, const router_config& router, const moe_weights& w, view<const float, 2> x, view<float, 2> y,
         output mode = output::overwrite, Observe&& observe = {}) {
  const std::size_t tokens = x.extent(0), top_k = router.num_experts_per_tok;
  auto scratch = be.scope();
  const auto logits = scratch.template tensor<float>(tokens, w.gate.extent(0));
  const auto indices = scratch.template tensor<std::int32_t>(tokens, top_k);
  const auto weights = scratch.template tensor<float>(tokens, top_k);
  matmul(be, x, w.gate, logits);
  route(be, router, logits, w.bias, indices, weights);
  observe(routing{logits, indices, weights});
  grouped_ffn(be, x, indices, weights, w.experts, y, mode, w.residency);
  if (w.shared) ffn(be, x, *w.shared, y, output::accumulate);
}

MOTE_END_NAMESPACE

// ---- mote/blocks/decoder_layer.hpp
MOTE_BEGIN_NAMESPACE

struct decoder_config {
  mla_config attention;
  router_config router;
  float rms_norm_eps = 1e-6f;
};

struct decoder_layer_weights {
  view<const float, 1> input_layernorm;  // [hidden]
  mla_weights attention;
  view<const float, 1> post_attention_layernorm;  // [hidden]
  std::variant<ffn_weights, moe_weights> mlp;
};

// The tokens of one sequence that a forward step processes, and what depends on their positions only.
struct step_context {
  std::size_t position = 0;  // of the first token
  view<const float, 2> cos;  // [tokens, qk_rope_head_dim / 2]
  view<const float, 2> sin;
};

// x: [tokens, hidden], replaced by the layer's output; cache: as in mla.
template <backend Backend, class Cache, class Observe = ignore_routing>
void decoder_layer(Backend& be, const decoder_config& c, const decoder_layer_weights& w, const step_context& step,
                   const Cache& cache, view<float, 2> x, Observe&& observe = {}) {
  auto scratch = be.scope();
  const auto normed = scratch.template tensor<float>(x.extent(0), x.extent(1));
  rms_norm(be, x, w.input_layernorm, c.rms_norm_eps, normed);
  mla(be, c.attention, w.attention, normed, step.cos, step.sin, cache, step.position, x, output::accumulate);
  rms_norm(be, x, w.post_attention_layernorm, c.rms_norm_eps, normed);
  if (const auto* dense = std::get_if<ffn_weights>(&w.mlp)) {
    ffn(be, normed, *dense, x, output::accumulate);
  } else {
    moe(be, c.router, std::get<moe_weights>(w.mlp), normed, x, output::accumulate, observe);
  }
}

MOTE_END_NAMESPACE

// ---- mote/blocks/mtp.hpp
// Multi-token prediction: from the main model's state at token t and the embedding of token t+1, one more layer predicts
// token t+2.
//
//   x_t = W_eh [ RMSNorm_e(Emb(token_{t+1})) | RMSNorm_h(h_t) ];   g = Layer(x);   state_t = RMSNorm_shared(g_t)
//   logits_t = Head(state_t)
//
// h_t is the main model's state after its final norm.
// Source: DeepSeek-V3 technical report (2024), section 2.2, and model code.

// ---- mote/ops/embedding/embedding.hpp
// Rows of a table: y[t, :] = float32(table[ids[t], :]).
//
// ids: [tokens], each in [0, vocab); table: [vocab, hidden] in any weight format; y: [tokens, hidden].
// Throws shape_error when shapes differ or an id is out of range.

// ---- mote/ops/embedding/reference.hpp
MOTE_BEGIN_NAMESPACE

inline void embedding_impl(reference&, std::span<const std::int32_t> ids, const weight& table,
                           view<float, 2> y) noexcept {
  for (std::size_t t = 0; t < ids.size(); ++t) dequantize_row(table, static_cast<std::size_t>(ids[t]), y.row(t));
}

MOTE_END_NAMESPACE

// ---- mote/ops/embedding/simd.hpp
MOTE_BEGIN_NAMESPACE

// A few rows are copied or converted: the compiler's own vectors are enough.
template <class Arch, class Executor>
void embedding_impl(simd<Arch, Executor>& be, std::span<const std::int32_t> ids, const weight& table,
                    view<float, 2> y) noexcept {
  const std::size_t n = y.extent(1), grain = 1 + std::size_t{32768} / (n + 1);
  be.parallel_for(ids.size(), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) {
      dequantize_row(table, static_cast<std::size_t>(ids[t]), y.row(t));
    }
  });
}

MOTE_END_NAMESPACE

// ---- mote/ops/embedding/embedding.hpp
MOTE_BEGIN_NAMESPACE

template <backend Backend>
void embedding(Backend& be, std::span<const std::int32_t> ids, const weight& table, view<float, 2> y) {
  check_view("embedding", "y", y, {ids.size(), in_features(table)});
  check_rows("embedding", "table", table);
  for (const std::int32_t id : ids) {
    if (id < 0 || static_cast<std::size_t>(id) >= out_features(table)) {
      raise<shape_error>("embedding: ids: token id " + std::to_string(id) + " is outside [0, " +
                         std::to_string(out_features(table)) + ")");
    }
  }
  embedding_impl(be, ids, table, y);
}

MOTE_END_NAMESPACE

// ---- mote/blocks/mtp.hpp
MOTE_BEGIN_NAMESPACE

struct mtp_weights {
  weight embed_tokens;         // [vocab, hidden]
  view<const float, 1> enorm;  // [hidden]
  view<const float, 1> hnorm;  // [hidden]
  weight eh_proj;              // [hidden, 2 hidden]
  decoder_layer_weights layer;
  view<const float, 1> shared_head_norm;  // [hidden]
  weight shared_head;                     // [vocab, hidden]
};

// next: [tokens], token t+1 of each row; hidden: [tokens, hidden], h_t; cache: the module's own, as in mla;
// state: [tokens, hidden], after shared_head.norm (the head is the caller's to apply, to the rows it needs).
template <backend Backend, class Cache, class Observe = ignore_routing>
void mtp(Backend& be, const decoder_config& c, const mtp_weights& w, std::span<const std::int32_t> next,
         view<const float, 2> hidden, const step_context& step, const Cache& cache, view<float, 2> state,
         Observe&& observe = {}) {
  const std::size_t tokens = hidden.extent(0), width = hidden.extent(1);
  auto scratch = be.scope();
  const auto embedded = scratch.template tensor<float>(tokens, width);
  const auto both = scratch.template tensor<float>(tokens, 2 * width);
  embedding(be, next, w.embed_tokens, embedded);
  rms_norm(be, embedded, w.enorm, c.rms_norm_eps, both.slice(1, 0, width));
  rms_norm(be, hidden, w.hnorm, c.rms_norm_eps, both.slice(1, width, width));
  matmul(be, both, w.eh_proj, state);
  decoder_layer(be, c, w.layer, step, cache, state, observe);
  rms_norm(be, state, w.shared_head_norm, c.rms_norm_eps, state);
}

MOTE_END_NAMESPACE

// ---- mote/core/cpu.hpp
// Which instruction sets this machine runs: what a program that carries kernels for several sets asks before it picks.
// The names are those of `mote_add_variant` in CMake.

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

MOTE_BEGIN_NAMESPACE

namespace detail {

#if defined(__x86_64__)

// One bit of a cpuid leaf; the register is a, b, c or d.
inline bool cpuid_bit(unsigned leaf, unsigned subleaf, char reg, unsigned bit) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(leaf, subleaf, &a, &b, &c, &d) == 0) return false;
  return (((reg == 'a' ? a : reg == 'b' ? b : reg == 'c' ? c : d) >> bit) & 1u) != 0;
}

// Whether the operating system saves the registers named by `mask` (bits of XCR0).
inline bool os_saves(std::uint32_t mask) {
  if (!cpuid_bit(1, 0, 'c', 27)) return false;
  std::uint32_t low = 0;
  asm volatile("xgetbv" : "=a"(low) : "c"(0) : "edx");
  return (low & mask) == mask;
}

inline bool has_x86_64_v2() {
  return cpuid_bit(1, 0, 'c', 0) && cpuid_bit(1, 0, 'c', 9) && cpuid_bit(1, 0, 'c', 13) &&  // SSE3, SSSE3, CX16
         cpuid_bit(1, 0, 'c', 19) && cpuid_bit(1, 0, 'c', 20) && cpuid_bit(1, 0, 'c', 23);  // SSE4.1, SSE4.2, POPCNT
}

inline bool has_x86_64_v3() {
  return has_x86_64_v2() && os_saves(0x6) && cpuid_bit(1, 0, 'c', 12) && cpuid_bit(1, 0, 'c', 22) &&  // FMA, MOVBE
         cpuid_bit(1, 0, 'c', 28) && cpuid_bit(1, 0, 'c', 29) && cpuid_bit(7, 0, 'b', 3) &&           // AVX, F16C, BMI
         cpuid_bit(7, 0, 'b', 5) && cpuid_bit(7, 0, 'b', 8) && cpuid_bit(0x80000001, 0, 'c', 5);  // AVX2, BMI2, LZCNT
}

inline bool has_x86_64_v4() {
  return has_x86_64_v3() && os_saves(0xE6) && cpuid_bit(7, 0, 'b', 16) && cpuid_bit(7, 0, 'b', 17) &&  // F, DQ
         cpuid_bit(7, 0, 'b', 28) && cpuid_bit(7, 0, 'b', 30) && cpuid_bit(7, 0, 'b', 31);             // CD, BW, VL
}

#endif

}  // namespace detail

// Whether this machine runs code built for `set`; false for a name that is not known.
//   x86-64, x86-64-v2, x86-64-v3, x86-64-v4   the levels of the x86-64 psABI
//   avx512-vnni, avx512-bf16                  v4 with VNNI; v4 with VNNI and BF16
//   armv8-a, armv8-dotprod, armv8-i8mm        AArch64; with int8 dot products; with int8 matrix products and bf16 too
inline bool cpu_runs([[maybe_unused]] std::string_view set) {
#if defined(__x86_64__)
  if (set == "x86-64") return true;
  if (set == "x86-64-v2") return detail::has_x86_64_v2();
  if (set == "x86-64-v3") return detail::has_x86_64_v3();
  if (set == "x86-64-v4") return detail::has_x86_64_v4();
  const bool vnni = detail::has_x86_64_v4() && detail::cpuid_bit(7, 0, 'c', 11);
  if (set == "avx512-vnni") return vnni;
  if (set == "avx512-bf16") return vnni && detail::cpuid_bit(7, 1, 'a', 5);
#elif defined(__aarch64__)
  if (set == "armv8-a") return true;
#if defined(__linux__)
  const bool dotprod = ((getauxval(AT_HWCAP) >> 20) & 1u) != 0;
  if (set == "armv8-dotprod") return dotprod;
  const auto second = getauxval(AT_HWCAP2);
  if (set == "armv8-i8mm") return dotprod && ((second >> 13) & 1u) != 0 && ((second >> 14) & 1u) != 0;
#endif
#endif
  return false;
}

MOTE_END_NAMESPACE

// ---- mote/core/executors/openmp.hpp
// OpenMP threads. Compile with -fopenmp.

#ifdef _OPENMP

#include <cstddef>

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

// ---- mote/core/executors/team.hpp
// "I am thread i of n": for engines that call kernels from inside their own threads.
//
// The engine makes one `team` for n threads. Each thread builds a back end over `team_member{team, i}` and all make the
// same calls in the same order; the members share one workspace and meet at a barrier after every parallel_for.
//
//   mote::team team(n);                                       // once
//   mote::simd<mote::default_arch, mote::team_member> be{mote::team_member{team, i}};   // on each thread
//   mote::rms_norm(be, x, weight, eps, y);

#include <barrier>

MOTE_BEGIN_NAMESPACE

class team {
 public:
  explicit team(std::size_t members) : members_(members), barrier_(static_cast<std::ptrdiff_t>(members)) {}

  std::size_t size() const { return members_; }
  void wait() { barrier_.arrive_and_wait(); }
  workspace& shared_workspace() { return workspace_; }
  std::byte* slot() { return slot_; }
  // What the last single() threw, or null.
  std::exception_ptr& failure() { return failure_; }

  static constexpr std::size_t slot_size = 64;

 private:
  std::size_t members_;
  std::barrier<> barrier_;
  workspace workspace_;
  alignas(64) std::byte slot_[slot_size] = {};
  std::exception_ptr failure_;
};

class team_member {
 public:
  team_member(team& t, std::size_t index) : team_(&t), index_(index) {
    check(index < t.size(), "team_member", "index: must be below the team's size");
  }

  std::size_t concurrency() const { return team_->size(); }
  workspace& shared_workspace() { return team_->shared_workspace(); }

  template <class F>
  void parallel_for(std::size_t count, std::size_t grain, F&& f) {
    if (grain == 0) grain = 1;
    const std::size_t pieces = count / grain + (count % grain != 0), n = team_->size();
    const std::size_t first = pieces * index_ / n * grain, last = pieces * (index_ + 1) / n * grain;
    if (first < last) f(first, last < count ? last : count);
    team_->wait();
  }

  // What f throws reaches every member.
  template <class F>
  auto single(F&& f) {
    using result = decltype(f());
    static_assert(std::is_trivially_copyable_v<result> && sizeof(result) <= team::slot_size);
    result r{};
    if (index_ == 0) {
#if MOTE_EXCEPTIONS
      team_->failure() = nullptr;
      try {
        r = f();
      } catch (...) {
        team_->failure() = std::current_exception();
      }
#else
      r = f();
#endif
      std::memcpy(team_->slot(), &r, sizeof r);
    }
    team_->wait();
    std::memcpy(static_cast<void*>(&r), team_->slot(), sizeof r);
    const std::exception_ptr failure = team_->failure();
    team_->wait();
    if (failure) std::rethrow_exception(failure);
    return r;
  }

 private:
  team* team_;
  std::size_t index_;
};

static_assert(executor<team_member>);

MOTE_END_NAMESPACE

// ---- mote/decode/expert_cache.hpp
// Which experts stay in memory where not all of them fit: those that are used most, as far as is known.
//
//   p[l, e] = c[l, e] / n[l]      the share of layer l's choices (a token has top_k of them) that fell on expert e
//   c[l, e] ← γ^m c[l, e] + m_e,   n[l] ← γ^m n[l] + m      after a step with m choices, m_e of them expert e's
//   γ = 2^(-1 / half_life)
//
// The expert with the least p gives way. Shares are compared, not times of use: a step walks through the layers in turn, so
// that the expert used longest ago is the one needed soonest, and a long prompt, which needs nearly all experts of every
// layer, would sweep out all that was kept. The average forgets, so that a change of subject is followed.
// Source: least frequently used with ageing, as in Arlitt et al., "Evaluating content management techniques for web proxy
// caches" (2000).

MOTE_BEGIN_NAMESPACE

struct expert_cache_statistics {
  std::size_t hits = 0, misses = 0;  // experts that a layer needed in a step, found or not
  std::size_t bytes_brought = 0;     // of the misses, and of what fill() brought in
};

// Keeps the books only; the memory is its owner's. Allocates nothing after it was made.
class expert_cache {
 public:
  // bytes[l][e]: the size of layer l's expert e.
  explicit expert_cache(const std::vector<std::vector<std::size_t>>& bytes, double half_life = 16384)
      : half_life_(half_life) {
    for (const auto& sizes : bytes) {
      layer& l = layers_.emplace_back();
      for (const std::size_t size : sizes) l.experts.push_back({size});
    }
  }

  std::size_t layers() const { return layers_.size(); }
  std::size_t experts(std::size_t l) const { return layers_[l].experts.size(); }
  bool resident(std::size_t l, std::size_t e) const { return layers_[l].experts[e].resident; }
  std::size_t resident_bytes() const { return resident_bytes_; }
  const expert_cache_statistics& statistics() const { return statistics_; }

  // p[l, e], 0 where nothing is known.
  double share(std::size_t l, std::size_t e) const {
    return layers_[l].choices > 0.0 ? layers_[l].experts[e].choices / layers_[l].choices : 0.0;
  }

  // Choices of layer l's expert e so far, those of the profile included.
  std::uint64_t uses(std::size_t l, std::size_t e) const { return layers_[l].experts[e].uses; }

  // Begins with what an earlier run has counted: uses[l][e]. Throws shape_error unless they fit.
  void begin_with(const std::vector<std::vector<std::uint64_t>>& uses) {
    check(uses.size() == layers_.size(), "expert_cache",
          "uses: expected " + std::to_string(layers_.size()) + " layers, got " + std::to_string(uses.size()));
    for (std::size_t l = 0; l < uses.size(); ++l) {
      check(uses[l].size() == experts(l), "expert_cache",
            "uses: layer " + std::to_string(l) + ": expected " + std::to_string(experts(l)) + " experts, got " +
                std::to_string(uses[l].size()));
      double total = 0.0;
      for (const std::uint64_t n : uses[l]) total += static_cast<double>(n);
      const double trust = total > 0.0 ? std::min(1.0, half_life_ / total) : 0.0;  // no more than recent choices have
      layers_[l].choices = total * trust;
      for (std::size_t e = 0; e < uses[l].size(); ++e) {
        layers_[l].experts[e].uses = uses[l][e];
        layers_[l].experts[e].choices = static_cast<double>(uses[l][e]) * trust;
      }
    }
  }

  // The most bytes that experts may have from now on. At least one expert is let in all the same.
  void set_capacity(std::size_t bytes) { capacity_ = bytes; }

  // Brings in the experts with the largest shares, as many as fit: bring(l, e).
  template <class Bring>
  void fill(Bring&& bring) {
    std::vector<std::pair<std::size_t, std::size_t>> order;
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      for (std::size_t e = 0; e < experts(l); ++e) {
        if (!resident(l, e) && share(l, e) > 0.0) order.push_back({l, e});
      }
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](auto a, auto b) { return share(a.first, a.second) > share(b.first, b.second); });
    for (const auto& [l, e] : order) {
      if (resident_bytes_ + layers_[l].experts[e].bytes > capacity_) return;
      enter(l, e, bring);
    }
  }

  // A step of layer l as expert_residency::require has it: bring(l, e) for every expert that must come, release(l, e) for
  // every one that must go before.
  template <class Bring, class Release>
  std::size_t require(std::size_t l, view<const std::int32_t, 1> offsets, std::size_t first, Bring&& bring,
                      Release&& release) {
    if (first == 0) record(l, offsets);
    const step s{l, offsets, first};
    while (resident_bytes_ > capacity_ && give_way(s, first, 2.0, true, release)) {
    }
    std::size_t brought = 0;
    for (std::size_t e = first; e < experts(l); ++e) {
      if (!s.uses(e)) continue;
      if (resident(l, e)) {
        ++statistics_.hits;
        continue;
      }
      // A step of few tokens passes at once; a prompt's stream of experts does not displace what is used more.
      const std::size_t size = layers_[l].experts[e].bytes;
      const double limit = brought < smallest_group ? 2.0 : share(l, e);
      while (resident_bytes_ + size > capacity_ && give_way(s, e, limit, e == s.next(first), release)) {
      }
      if (resident_bytes_ + size > capacity_ && e != s.next(first)) return e;
      enter(l, e, bring);
      ++brought;
      ++statistics_.misses;
    }
    return experts(l);
  }

 private:
  static constexpr std::size_t smallest_group = 8;  // experts worth working on at once

  struct expert {
    std::size_t bytes = 0;
    bool resident = false;
    double choices = 0.0;
    std::uint64_t uses = 0;
  };
  struct layer {
    std::vector<expert> experts;
    double choices = 0.0;
  };

  struct step {
    std::size_t layer;
    view<const std::int32_t, 1> offsets;
    std::size_t first;

    bool uses(std::size_t e) const { return offsets(e) < offsets(e + 1); }
    std::size_t next(std::size_t e) const {
      while (!uses(e)) ++e;
      return e;
    }
  };

  void record(std::size_t l, view<const std::int32_t, 1> offsets) {
    const auto total = static_cast<double>(offsets(offsets.size() - 1));
    const double keep = std::exp2(-total / half_life_);
    layers_[l].choices = layers_[l].choices * keep + total;
    for (std::size_t e = 0; e < experts(l); ++e) {
      const auto n = static_cast<std::uint64_t>(offsets(e + 1) - offsets(e));
      expert& x = layers_[l].experts[e];
      x.choices = x.choices * keep + static_cast<double>(n);
      x.uses += n;
    }
  }

  template <class Bring>
  void enter(std::size_t l, std::size_t e, Bring&& bring) {
    layers_[l].experts[e].resident = true;
    resident_bytes_ += layers_[l].experts[e].bytes;
    statistics_.bytes_brought += layers_[l].experts[e].bytes;
    bring(l, e);
  }

  // Releases the expert with the least share, if that is below `limit`; whether there was one. Experts that the step reads
  // now, [s.first, end), stay; those it will read later do too, unless there is no other way.
  template <class Release>
  bool give_way(const step& s, std::size_t end, double limit, bool any, Release&& release) {
    const auto coldest = [&](bool later) {
      std::pair<std::size_t, std::size_t> found{layers_.size(), 0};
      double least = limit;
      for (std::size_t l = 0; l < layers_.size(); ++l) {
        for (std::size_t e = 0; e < experts(l); ++e) {
          if (!resident(l, e) || share(l, e) >= least) continue;
          if (l == s.layer && e >= s.first && s.uses(e) && (e < end || !later)) continue;
          least = share(l, e);
          found = {l, e};
        }
      }
      return found;
    };
    auto found = coldest(false);
    if (found.first == layers_.size() && any) found = coldest(true);
    const auto [l, e] = found;
    if (l == layers_.size()) return false;
    layers_[l].experts[e].resident = false;
    resident_bytes_ -= layers_[l].experts[e].bytes;
    release(l, e);
    return true;
  }

  std::vector<layer> layers_;
  double half_life_;
  std::size_t capacity_ = 0, resident_bytes_ = 0;
  expert_cache_statistics statistics_;
};

MOTE_END_NAMESPACE

// ---- mote/decode/kv_cache.hpp
// A paged cache for all layers of a model, and the sequences that live in it.
//
// A page holds `page_size` rows of every layer. A row is `width` numbers, whatever attention keeps of a token: MLA's latent
// and rotary key, or keys and values of all heads side by side. Rows are float32 or any other row_format (quant/rows.hpp).
// Pages come from one pool and go back to it, so sequences of different lengths share the memory; a sequence's block table
// lists its pages in order and is the same for all layers. All memory is taken at construction: decoding allocates nothing.
// Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention" (2023).

MOTE_BEGIN_NAMESPACE

class kv_cache {
 public:
  // One sequence: its pages in order and the number of rows in use.
  struct sequence {
    std::vector<std::int32_t> block_table;
    std::size_t length = 0;
  };

  // Throws shape_error when a size is zero, memory would overflow or the width is no whole blocks of the format.
  kv_cache(std::size_t layers, std::size_t pages, std::size_t page_size, std::size_t width, row_format format = {})
      : layers_(layers), pages_(pages), page_size_(page_size), format_(format), row_bytes_(format.row_bytes(width)) {
    check(layers > 0 && pages > 0 && page_size > 0 && width > 0, "kv_cache", "sizes: must be positive");
    const std::size_t limit = static_cast<std::size_t>(1) << 46;
    check(pages <= std::size_t{0x7FFFFFFF}, "kv_cache", "pages: too many to number");
    check(layers < limit && pages < limit / layers && page_size < limit / layers / pages &&
              width < limit / layers / pages / page_size,
          "kv_cache", "sizes: their product overflows memory");
    check_whole_blocks("kv_cache", "width", width, format);
    storage_ = buffer<std::byte>(layers * pages * page_size * row_bytes_);
    for (std::size_t page = pages; page-- > 0;) free_.push_back(static_cast<std::int32_t>(page));
  }

  std::size_t page_size() const { return page_size_; }
  std::size_t free_pages() const { return free_.size(); }
  std::size_t bytes() const { return storage_.size(); }
  const row_format& format() const { return format_; }

  // An empty sequence that can grow to the whole pool without allocating.
  sequence make_sequence() const {
    sequence s;
    s.block_table.reserve(pages_);
    return s;
  }

  // Makes the sequence `length` rows long: takes pages as it grows, gives them back as it shrinks.
  // Throws shape_error, changing nothing, when the pool has too few pages.
  void resize(sequence& s, std::size_t length) {
    const std::size_t needed = length / page_size_ + (length % page_size_ != 0);
    if (needed > s.block_table.size() && needed - s.block_table.size() > free_.size()) {
      raise<shape_error>("kv_cache: length: " + std::to_string(length) + " rows need " +
                         std::to_string(needed - s.block_table.size()) + " more pages, " +
                         std::to_string(free_.size()) + " are free");
    }
    while (s.block_table.size() < needed) {
      s.block_table.push_back(free_.back());
      free_.pop_back();
    }
    while (s.block_table.size() > needed) {
      free_.push_back(s.block_table.back());
      s.block_table.pop_back();
    }
    s.length = length;
  }

  // The rows of one layer that belong to the sequence. Throws shape_error unless T is the cache's format and the cache has
  // that layer.
  template <row_element T>
  paged_rows<T> rows(const sequence& s, std::size_t layer) {
    check(row_format::of<T>() == format_, "kv_cache", "rows: not of this format");
    check(layer < layers_, "kv_cache", "layer: outside the cache");
    T* first = reinterpret_cast<T*>(storage_.data() + layer * pages_ * page_size_ * row_bytes_);
    return {view<T, 3>(first, pages_, page_size_, row_bytes_ / sizeof(T)), s.block_table, s.length};
  }

  // The same in whatever form of row_elements they are. Throws shape_error also if in none.
  cache_rows rows(const sequence& s, std::size_t layer) {
    cache_rows result;
    bool known = false;
    for_each_format(
        [&]<class T>() {
          if (row_format::of<T>() != format_) return;
          result = rows<T>(s, layer);
          known = true;
        },
        row_elements{});
    check(known, "kv_cache", "rows: their format must be named");
    return result;
  }

 private:
  std::size_t layers_, pages_, page_size_;
  row_format format_;
  std::size_t row_bytes_;
  buffer<std::byte> storage_;
  std::vector<std::int32_t> free_;
};

MOTE_END_NAMESPACE

// ---- mote/decode/sampler.hpp
// Choosing the next token from logits.
//
// In this order: repetition penalty, temperature, top-k, top-p, min-p, then a draw. temperature = 0 is greedy: the largest
// logit after the penalty, ties to the lower id.
//   repetition penalty r: a logit l of a token seen before becomes l / r if l > 0, else l · r
//   top-k: the k most probable tokens; top-p: the fewest most probable tokens whose sum reaches p;
//   min-p: tokens of at least min_p times the largest probability. At least one token always stays.
// The draw takes the first token, from the most probable down, whose cumulative probability reaches the uniform number.
// Source: Keskar et al., "CTRL" (2019); Fan et al. (2018); Holtzman et al., "The Curious Case of Neural Text Degeneration"
// (2020); Nguyen et al., "Turning Up the Heat: Min-p Sampling" (2024).

MOTE_BEGIN_NAMESPACE

struct sampling_config {
  float temperature = 1.0f;
  std::size_t top_k = 0;  // 0: no limit
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  std::uint64_t seed = 0;
};

// Throws shape_error naming the field unless every value is in its range.
inline void check_sampling(const sampling_config& c) {
  check(std::isfinite(c.temperature) && c.temperature >= 0.0f, "sampling", "temperature: must be at least 0");
  check(c.top_p > 0.0f && c.top_p <= 1.0f, "sampling", "top_p: must be above 0 and at most 1");
  check(c.min_p >= 0.0f && c.min_p <= 1.0f, "sampling", "min_p: must be between 0 and 1");
  check(std::isfinite(c.repetition_penalty) && c.repetition_penalty > 0.0f, "sampling",
        "repetition_penalty: must be above 0");
}

// Uniform numbers in [0, 1): the same for a seed on every machine. Source: Steele et al., SplitMix64 (2014).
class uniform_source {
 public:
  explicit uniform_source(std::uint64_t seed) : state_(seed) {}

  double operator()() {
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
  }

 private:
  std::uint64_t state_;
};

class sampler {
 public:
  sampler(const sampling_config& config, std::size_t vocab_size)
      : config_(config), uniform_(config.seed), scores_(vocab_size), seen_(vocab_size) {
    check_sampling(config);
    check(vocab_size > 0, "sampling", "vocab_size: must be positive");
    candidates_.reserve(vocab_size);
  }

  // Counts a token as seen, for the repetition penalty.
  void observe(std::int32_t token) {
    check(token >= 0 && static_cast<std::size_t>(token) < seen_.size(), "sampling", "token: outside the vocabulary");
    seen_[static_cast<std::size_t>(token)] = true;
  }

  // The next token for logits [vocab]. Throws shape_error for another size or when no logit is a number.
  std::int32_t sample(std::span<const float> logits) {
    check(logits.size() == scores_.size(), "sampling", "logits: expected one for each token of the vocabulary");
    std::size_t best = scores_.size();
    for (std::size_t i = 0; i < scores_.size(); ++i) {
      float l = logits[i];
      if (seen_[i]) l = l > 0.0f ? l / config_.repetition_penalty : l * config_.repetition_penalty;
      scores_[i] = l;
      if (!std::isnan(l) && (best == scores_.size() || l > scores_[best])) best = i;
    }
    check(best != scores_.size() && std::isfinite(scores_[best]), "sampling", "logits: no finite largest value");
    if (config_.temperature == 0.0f) return static_cast<std::int32_t>(best);
    return draw(scores_[best]);
  }

 private:
  struct candidate {
    double p;
    std::int32_t id;
  };

  // Whether a is less probable than b: the order of a heap whose top is the most probable token, ties to the lower id.
  static bool less(const candidate& a, const candidate& b) { return a.p < b.p || (a.p == b.p && a.id > b.id); }

  std::int32_t draw(float maximum) {
    candidates_.clear();
    for (std::size_t i = 0; i < scores_.size(); ++i) {
      const double p = std::exp(static_cast<double>(scores_[i] - maximum) / static_cast<double>(config_.temperature));
      if (p > 0.0) candidates_.push_back({p, static_cast<std::int32_t>(i)});
    }
    // candidates_ is [heap of the rest | ranked, the most probable last].
    const auto order = [](const candidate& a, const candidate& b) { return less(a, b); };
    std::make_heap(candidates_.begin(), candidates_.end(), order);
    std::size_t ranked = 0;
    const auto at = [&](std::size_t rank) -> const candidate& { return candidates_[candidates_.size() - 1 - rank]; };
    const auto rank_next = [&] {
      std::pop_heap(candidates_.begin(), candidates_.end() - static_cast<std::ptrdiff_t>(ranked), order);
      return at(ranked++).p;
    };

    std::size_t kept = candidates_.size();
    double total = 0.0;
    if (config_.top_k != 0 && config_.top_k < kept) {
      kept = config_.top_k;
      for (std::size_t rank = 0; rank < kept; ++rank) total += rank_next();
    } else {
      for (const candidate& c : candidates_) total += c.p;
    }
    if (config_.top_p < 1.0f) {
      const double target = total * static_cast<double>(config_.top_p);
      double reached = 0.0;
      std::size_t count = 0;
      while (count < kept && (count == 0 || reached < target)) {
        if (count == ranked) rank_next();
        reached += at(count++).p;
      }
      kept = count;
      total = reached;
    }
    if (config_.min_p > 0.0f) {
      double reached = 0.0;
      std::size_t count = 0;
      while (count < kept) {
        if (count == ranked) rank_next();
        if (count > 0 && at(count).p < static_cast<double>(config_.min_p)) break;
        reached += at(count++).p;
      }
      kept = count;
      total = reached;
    }

    const double target = uniform_() * total;
    double cumulative = 0.0;
    for (std::size_t rank = 0; rank + 1 < kept; ++rank) {
      if (rank == ranked) rank_next();
      cumulative += at(rank).p;
      if (cumulative >= target) return at(rank).id;
    }
    while (ranked < kept) rank_next();
    return at(kept - 1).id;
  }

  sampling_config config_;
  uniform_source uniform_;
  std::vector<float> scores_;
  std::vector<bool> seen_;
  std::vector<candidate> candidates_;
};

MOTE_END_NAMESPACE

// ---- mote/decode/speculative.hpp
// Verifying drafted tokens: speculative decoding keeps the target model's distribution exactly.
//
// With draft distributions q_i and target distributions p_i, draft token x_i is accepted if u_i · q_i(x_i) < p_i(x_i). At
// the first rejection the next token is drawn from max(p - q, 0) / Σ; if all are accepted, one more from the last p.
// Greedily, drafts are accepted while they equal argmax p, and the next token is the argmax where that stops.
// Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (2023).

MOTE_BEGIN_NAMESPACE

struct verification {
  std::size_t accepted = 0;     // drafts kept
  std::int32_t next_token = 0;  // the token after them
};

// draft: [n] tokens; draft_probs: [n, vocab], q; target_probs: [n + 1, vocab], p; uniforms: [n]; residual_uniforms: [n + 1],
// the number that draws the next token after i accepted drafts. Draws take the first index whose cumulative sum is at
// least u. Throws shape_error when shapes differ or a draft token is out of range.
inline verification verify_draft(std::span<const std::int32_t> draft, view<const float, 2> draft_probs,
                                 view<const float, 2> target_probs, std::span<const float> uniforms,
                                 std::span<const float> residual_uniforms) {
  const std::size_t n = draft.size(), vocab = target_probs.extent(1);
  check(vocab > 0, "verify_draft", "target_probs: expected a vocabulary");
  check_shape("verify_draft", "draft_probs", draft_probs.extents(), {n, vocab});
  check_shape("verify_draft", "target_probs", target_probs.extents(), {n + 1, vocab});
  check(uniforms.size() == n && residual_uniforms.size() == n + 1, "verify_draft", "uniforms: expected n and n + 1");
  verification result;
  for (const std::int32_t token : draft) {
    check(token >= 0 && static_cast<std::size_t>(token) < vocab, "verify_draft", "draft: token outside the vocabulary");
  }
  while (result.accepted < n) {
    const std::size_t i = result.accepted, token = static_cast<std::size_t>(draft[i]);
    const double p = static_cast<double>(target_probs(i, token)), q = static_cast<double>(draft_probs(i, token));
    if (!(static_cast<double>(uniforms[i]) * q < p)) break;
    ++result.accepted;
  }
  const std::size_t row = result.accepted;
  bool subtract = row < n;
  const auto residual = [&](std::size_t v) {
    const double p = static_cast<double>(target_probs(row, v));
    return subtract ? std::max(p - static_cast<double>(draft_probs(row, v)), 0.0) : p;
  };
  const auto sum = [&] {
    double total = 0.0;
    for (std::size_t v = 0; v < vocab; ++v) total += residual(v);
    return total;
  };
  double total = sum();
  if (!(total > 0.0)) {  // p and q differ by rounding alone
    subtract = false;
    total = sum();
  }
  const double u = static_cast<double>(residual_uniforms[row]);
  double cumulative = 0.0;
  std::size_t chosen = 0;
  for (std::size_t v = 0; v < vocab; ++v) {
    const double r = residual(v);
    if (r > 0.0) chosen = v;  // rounding may keep the sum below u: then the last possible token
    cumulative += r / total;
    if (cumulative >= u && r > 0.0) break;
  }
  result.next_token = static_cast<std::int32_t>(chosen);
  return result;
}

// The greedy rule on target logits or probabilities [n + 1, vocab]; ties to the lower token.
inline verification verify_draft_greedy(std::span<const std::int32_t> draft, view<const float, 2> target) {
  check_view("verify_draft_greedy", "target", target, {draft.size() + 1, target.extent(1)});
  check(target.extent(1) > 0, "verify_draft_greedy", "target: expected a vocabulary");
  verification result;
  for (;; ++result.accepted) {
    const float* row = target.row(result.accepted);
    result.next_token = static_cast<std::int32_t>(std::max_element(row, row + target.extent(1)) - row);
    if (result.accepted == draft.size() || draft[result.accepted] != result.next_token) return result;
  }
}

MOTE_END_NAMESPACE

// ---- mote/ops/softmax/softmax.hpp
// Softmax over the last axis, with the row maximum subtracted first.
//
//   y[r, i] = exp(x[r, i] - max_j x[r, j]) / Σ_k exp(x[r, k] - max_j x[r, j])
//
// x, y: [rows, n], rows may be strided; y may be x. Throws shape_error when the shapes differ.

// ---- mote/ops/softmax/reference.hpp
MOTE_BEGIN_NAMESPACE

inline void softmax_impl(reference&, view<const float, 2> x, view<float, 2> y) noexcept {
  for (std::size_t r = 0; r < x.extent(0); ++r) {
    float maximum = -INFINITY, total = 0.0f;
    for (std::size_t i = 0; i < x.extent(1); ++i) maximum = std::fmax(maximum, x(r, i));
    for (std::size_t i = 0; i < x.extent(1); ++i) {
      y(r, i) = std::exp(x(r, i) - maximum);
      total += y(r, i);
    }
    for (std::size_t i = 0; i < x.extent(1); ++i) y(r, i) /= total;
  }
}

MOTE_END_NAMESPACE

// ---- mote/ops/softmax/simd.hpp
MOTE_BEGIN_NAMESPACE

namespace detail {

template <class Arch>
float maximum(const float* x, std::size_t n) {
  using vector = batch<float, Arch>;
  vector best[4] = {vector(-INFINITY), vector(-INFINITY), vector(-INFINITY), vector(-INFINITY)};
  std::size_t i = 0;
  for (; i + 4 * vector::size <= n; i += 4 * vector::size) {
    for (std::size_t j = 0; j < 4; ++j) best[j] = xsimd::max(best[j], vector::load_unaligned(x + i + j * vector::size));
  }
  for_each_vector<Arch>(
      n - i, [&](std::size_t k, auto load, auto) { best[0] = xsimd::max(best[0], load(x + i + k)); }, -INFINITY);
  return largest<Arch>(xsimd::max(xsimd::max(best[0], best[1]), xsimd::max(best[2], best[3])));
}

}  // namespace detail

template <class Arch, class Executor>
void softmax_impl(simd<Arch, Executor>& be, view<const float, 2> x, view<float, 2> y) noexcept {
  using vector = batch<float, Arch>;
  const std::size_t n = x.extent(1), grain = 1 + std::size_t{8192} / (n + 1);
  const std::size_t ahead = detail::rows_ahead(n);
  be.parallel_for(x.extent(0), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      const float* in = x.row(r);
      float* out = y.row(r);
      const vector shift(detail::maximum<Arch>(in, n));
      vector total(0.0f);
      // All passes read from the cache: a later row comes in meanwhile.
      const float* later = r + ahead < end ? x.row(r + ahead) : in;
      const auto exponentiate = [&](std::size_t i, auto load, auto store) {
        detail::prefetch(later, i);
        const vector e = detail::exp_nonpositive<Arch>(load(in + i) - shift);
        store(out + i, e);
        total += e;
      };
      // Lanes past the row are exp(-infinity) = 0 in the sum.
      detail::for_each_vector<Arch>(n, exponentiate, -INFINITY);
      const vector scale(1.0f / sum(total));
      detail::for_each_vector<Arch>(
          n, [&](std::size_t i, auto load, auto store) { store(out + i, load(out + i) * scale); });
    }
  });
}

MOTE_END_NAMESPACE

// ---- mote/ops/softmax/softmax.hpp
MOTE_BEGIN_NAMESPACE

template <backend Backend>
void softmax(Backend& be, view<const float, 2> x, view<float, 2> y) {
  check_view("softmax", "x", x, {x.extent(0), x.extent(1)});
  check_view("softmax", "y", y, {x.extent(0), x.extent(1)});
  softmax_impl(be, x, y);
}

MOTE_END_NAMESPACE

// ---- mote/quant/fp8.hpp
// fp8 as DeepSeek-V3 stores it: e4m3 with a float32 scale for each 128×128 block of a weight, and for each run of 128
// channels of an activation. Blocks at the edges are partial.
//
//   weight      s = amax / 448,             q = e4m3(w / s)      W[n, k] = q[n, k] · scale[n / 128, k / 128]
//   activation  s = max(amax, 1e-4) / 448,  q = e4m3(x / s)      x[t, k] = q[t, k] · scale[t, k / 128]
//
// A zero block of a weight uses s = 1. Checkpoints call the scale `weight_scale_inv`; it is multiplied nevertheless.
// Source: DeepSeek-V3 technical report (2024), section 3.3, and its inference code.

MOTE_BEGIN_NAMESPACE

inline constexpr std::size_t fp8_block = 128;

inline std::size_t fp8_blocks(std::size_t n) { return (n + fp8_block - 1) / fp8_block; }

// w [out, in] to codes [out, in] and scale [⌈out / 128⌉, ⌈in / 128⌉]. Values must be finite. Throws shape_error.
inline void quantize_fp8(const view<const float, 2>& w, const view<f8_e4m3, 2>& codes, const view<float, 2>& scale) {
  check_view("quantize_fp8", "codes", codes, {w.extent(0), w.extent(1)});
  check_view("quantize_fp8", "scale", scale, {fp8_blocks(w.extent(0)), fp8_blocks(w.extent(1))});
  for (std::size_t block_row = 0; block_row < scale.extent(0); ++block_row) {
    const std::size_t n_end = std::min((block_row + 1) * fp8_block, w.extent(0));
    for (std::size_t block = 0; block < scale.extent(1); ++block) {
      const std::size_t k_end = std::min((block + 1) * fp8_block, w.extent(1));
      float amax = 0.0f;
      for (std::size_t n = block_row * fp8_block; n < n_end; ++n) {
        for (std::size_t k = block * fp8_block; k < k_end; ++k) amax = std::fmax(amax, std::fabs(w(n, k)));
      }
      const float s = amax / 448.0f > 0.0f ? amax / 448.0f : 1.0f;
      scale(block_row, block) = s;
      for (std::size_t n = block_row * fp8_block; n < n_end; ++n) {
        for (std::size_t k = block * fp8_block; k < k_end; ++k) codes(n, k) = f8_e4m3(w(n, k) / s);
      }
    }
  }
}

// codes [out, in] and scale [⌈out / 128⌉, ⌈in / 128⌉] to w [out, in]. Throws shape_error.
inline void dequantize_fp8(const view<const f8_e4m3, 2>& codes, const view<const float, 2>& scale,
                           const view<float, 2>& w) {
  check_view("dequantize_fp8", "codes", codes, {w.extent(0), w.extent(1)});
  check_view("dequantize_fp8", "scale", scale, {fp8_blocks(w.extent(0)), fp8_blocks(w.extent(1))});
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    for (std::size_t k = 0; k < w.extent(1); ++k) {
      w(n, k) = static_cast<float>(codes(n, k)) * scale(n / fp8_block, k / fp8_block);
    }
  }
}

// One row of n activations to codes [n] and scale [⌈n / 128⌉].
inline void quantize_fp8_row(const float* x, std::size_t n, f8_e4m3* codes, float* scale) {
  for (std::size_t begin = 0; begin < n; begin += fp8_block) {
    const std::size_t end = std::min(begin + fp8_block, n);
    float amax = 1e-4f;
    for (std::size_t i = begin; i < end; ++i) amax = std::fmax(amax, std::fabs(x[i]));
    const float s = amax / 448.0f;
    scale[begin / fp8_block] = s;
    for (std::size_t i = begin; i < end; ++i) codes[i] = f8_e4m3(x[i] / s);
  }
}

// x [tokens, channels] to codes [tokens, channels] and scale [tokens, ⌈channels / 128⌉]. Throws shape_error.
inline void quantize_fp8_activations(const view<const float, 2>& x, const view<f8_e4m3, 2>& codes,
                                     const view<float, 2>& scale) {
  check_view("quantize_fp8_activations", "x", x, {x.extent(0), x.extent(1)});
  check_view("quantize_fp8_activations", "codes", codes, {x.extent(0), x.extent(1)});
  check_view("quantize_fp8_activations", "scale", scale, {x.extent(0), fp8_blocks(x.extent(1))});
  for (std::size_t t = 0; t < x.extent(0); ++t) {
    quantize_fp8_row(x.row(t), x.extent(1), codes.row(t), scale.row(t));
  }
}

MOTE_END_NAMESPACE

// ---- mote/quant/int4.hpp
// int4 quantization of groups of a row's elements, as codes of a scaled_matrix.
//
//   symmetric   s = amax / 7,  q = clamp(round(x / s), -8, 7)                                x ≈ s q
//   asymmetric  s = (max - min) / 15 over a range that holds 0,  z = round(-min / s) - 8,
//               q = clamp(round(x / s) + z, -8, 7)                                           x ≈ s (q - z)
//
// Ties go to even; a zero group uses s = 1.

MOTE_BEGIN_NAMESPACE

// The symmetric scale of a group of n values.
inline float int4_scale(const float* x, std::size_t n) {
  float amax = 0.0f;
  for (std::size_t i = 0; i < n; ++i) amax = std::fmax(amax, std::fabs(x[i]));
  return amax / 7.0f > 0.0f ? amax / 7.0f : 1.0f;
}

namespace detail {

inline void check_int4(std::string_view op, const view<const float, 2>& w, std::size_t group,
                       const view<int4_pair, 2>& codes, const view<float, 2>& scale) {
  if (group == 0 || group % 2 != 0 || w.extent(1) % group != 0) {
    raise<shape_error>(concatenate({op, ": group: expected an even number that divides the ",
                                    std::to_string(w.extent(1)), " columns, got ", std::to_string(group)}));
  }
  check_view(op, "w", w, {w.extent(0), w.extent(1)});
  check_view(op, "codes", codes, {w.extent(0), w.extent(1) / 2});
  check_view(op, "scale", scale, {w.extent(0), w.extent(1) / group});
}

// codes(n, k) = code(x) of every element, where fit(x, n, g) makes `code` for group g of row n.
template <class Fit>
void for_each_int4_group(const view<const float, 2>& w, std::size_t group, const view<int4_pair, 2>& codes, Fit&& fit) {
  for (std::size_t n = 0; n < w.extent(0); ++n) {
    for (std::size_t begin = 0; begin < w.extent(1); begin += group) {
      const float* x = w.row(n) + begin;
      const auto code = fit(x, n, begin / group);
      for (std::size_t i = 0; i < group; i += 2) {
        codes(n, (begin + i) / 2) = int4_pair::of(code(x[i]), code(x[i + 1]));
      }
    }
  }
}

}  // namespace detail

// w [out, in] to codes [out, in / 2] and scale [out, in / group]. Throws shape_error unless `group` is even and divides the
// columns.
inline void quantize_int4(const view<const float, 2>& w, std::size_t group, const view<int4_pair, 2>& codes,
                          const view<float, 2>& scale) {
  detail::check_int4("quantize_int4", w, group, codes, scale);
  detail::for_each_int4_group(w, group, codes, [&](const float* x, std::size_t n, std::size_t g) {
    const float s = scale(n, g) = int4_scale(x, group);
    return [s](float v) { return static_cast<int>(std::fmin(std::fmax(std::nearbyint(v / s), -8.0f), 7.0f)); };
  });
}

// Asymmetric, with zero [out, in / group].
inline void quantize_int4(const view<const float, 2>& w, std::size_t group, const view<int4_pair, 2>& codes,
                          const view<float, 2>& scale, const view<std::int8_t, 2>& zero) {
  detail::check_int4("quantize_int4", w, group, codes, scale);
  check_view("quantize_int4", "zero", zero, {w.extent(0), w.extent(1) / group});
  detail::for_each_int4_group(w, group, codes, [&](const float* x, std::size_t n, std::size_t g) {
    const asymmetric_range range(x, group, 4);
    scale(n, g) = range.scale;
    zero(n, g) = range.zero;
    return [range](float v) { return range.code(v); };
  });
}

MOTE_END_NAMESPACE

// ---- mote/quant/microscaling.hpp
// The safetensors layouts of MXFP4 and NVFP4, to and from the blocks that GGUF stores and matmul reads.
//
// In safetensors e2m1 codes stand two a byte, the even element low, with the scales in a tensor of their own:
//
//   MXFP4 (gpt-oss)  bytes [rows, columns / 2], e8m0 scales [rows, columns / 32]         x = e2m1 · 2^(scale - 127)
//   NVFP4            bytes [rows, columns / 2], e4m3 scales [rows, columns / 16], a
//                    float32 scale g of the whole tensor                                 x = e2m1 · e4m3 · g
//
// An nvfp4 block knows nothing of g: who multiplies by the blocks multiplies the result by g.
// Source: OCP Microscaling Formats (MX) v1.0; gpt-oss and NVIDIA ModelOpt checkpoints.

MOTE_BEGIN_NAMESPACE

// The published MX rounding of 32 finite values: as mxfp4::encode, which follows GGUF, but ties go to the even code and
// zeros keep their sign.
inline mxfp4 encode_mx(const float* x) {
  mxfp4 block = mxfp4::encode(x);
  const float unit = static_cast<float>(block.e);
  std::uint8_t codes[mxfp4::block_size];
  for (std::size_t i = 0; i < mxfp4::block_size; ++i) codes[i] = f4_e2m1(x[i] / unit).bits;
  detail::pack_nibbles(codes, block.q);
  return block;
}

// 64 finite values for the tensor's scale g: block scale e4m3(amax / 6 / g), codes e2m1(x / (scale g)), ties to even.
inline nvfp4 encode_nvfp4(const float* x, float g) {
  nvfp4 block{};
  for (std::size_t group = 0; group < 4; ++group) {
    const float* v = x + group * nvfp4::group_size;
    const f8_e4m3 scale(detail::largest_magnitude(v, nvfp4::group_size) / 6.0f / g);
    block.scales[group] = scale.bits;
    const float unit = static_cast<float>(scale) * g;
    if (!(unit > 0.0f)) continue;
    for (std::size_t i = 0; i < nvfp4::group_size; ++i) {
      block.q[group * 8 + i % 8] |= static_cast<std::uint8_t>(f4_e2m1(v[i] / unit).bits << (i / 8 * 4));
    }
  }
  return block;
}

// The tensor's scale that lets the largest element take the largest code: amax / (448 · 6); 1 for a zero tensor.
inline float nvfp4_tensor_scale(const view<const float, 2>& w) {
  float amax = 0.0f;
  for (std::size_t n = 0; n < w.extent(0); ++n) amax = std::max(amax, detail::largest_magnitude(w.row(n), w.extent(1)));
  const float g = amax / (448.0f * 6.0f);
  return g > 0.0f ? g : 1.0f;
}

namespace detail {

template <class F, class Bytes, class Scales, class Blocks>
void check_microscaling(std::string_view op, const Bytes& bytes, const Scales& scales, const Blocks& blocks) {
  const std::size_t rows = blocks.extent(0), columns = blocks.extent(1) * F::block_size;
  check_view(op, "bytes", bytes, {rows, columns / 2});
  check_view(op, "scales", scales, {rows, columns / F::group_size});
  check_view(op, "blocks", blocks, {rows, blocks.extent(1)});
}

// N codes, the even element low, to nibbles of which the first half of the elements is low; and back.
template <std::size_t N>
void halves_of_pairs(const std::uint8_t* pairs, std::uint8_t* halves) {
  const auto code = [&](std::size_t i) { return static_cast<unsigned>(pairs[i / 2] >> (i % 2 * 4)) & 15u; };
  for (std::size_t i = 0; i < N / 2; ++i) halves[i] = static_cast<std::uint8_t>(code(i) | code(i + N / 2) << 4);
}
template <std::size_t N>
void pairs_of_halves(const std::uint8_t* halves, std::uint8_t* pairs) {
  const auto code = [&](std::size_t i) {
    return static_cast<unsigned>(halves[i % (N / 2)] >> (i / (N / 2) * 4)) & 15u;
  };
  for (std::size_t i = 0; i < N / 2; ++i) pairs[i] = static_cast<std::uint8_t>(code(2 * i) | code(2 * i + 1) << 4);
}

}  // namespace detail

// bytes [rows, columns / 2] and scales [rows, columns / 32] to blocks [rows, columns / 32], and back. Throws shape_error.
inline void load_mxfp4(const view<const std::uint8_t, 2>& bytes, const view<const f8_e8m0, 2>& scales,
                       const view<mxfp4, 2>& blocks) {
  detail::check_microscaling<mxfp4>("load_mxfp4", bytes, scales, blocks);
  for (std::size_t r = 0; r < blocks.extent(0); ++r) {
    for (std::size_t b = 0; b < blocks.extent(1); ++b) {
      blocks(r, b).e = scales(r, b);
      detail::halves_of_pairs<32>(bytes.row(r) + 16 * b, blocks(r, b).q);
    }
  }
}
inline void store_mxfp4(const view<const mxfp4, 2>& blocks, const view<std::uint8_t, 2>& bytes,
                        const view<f8_e8m0, 2>& scales) {
  detail::check_microscaling<mxfp4>("store_mxfp4", bytes, scales, blocks);
  for (std::size_t r = 0; r < blocks.extent(0); ++r) {
    for (std::size_t b = 0; b < blocks.extent(1); ++b) {
      scales(r, b) = blocks(r, b).e;
      detail::pairs_of_halves<32>(blocks(r, b).q, bytes.row(r) + 16 * b);
    }
  }
}

// bytes [rows, columns / 2] and scales [rows, columns / 16] to blocks [rows, columns / 64], and back; the tensor's scale
// stays outside. Throws shape_error.
inline void load_nvfp4(const view<const std::uint8_t, 2>& bytes, const view<const f8_e4m3, 2>& scales,
                       const view<nvfp4, 2>& blocks) {
  detail::check_microscaling<nvfp4>("load_nvfp4", bytes, scales, blocks);
  for (std::size_t r = 0; r < blocks.extent(0); ++r) {
    for (std::size_t g = 0; g < scales.extent(1); ++g) {
      blocks(r, g / 4).scales[g % 4] = scales(r, g).bits;
      detail::halves_of_pairs<16>(bytes.row(r) + 8 * g, blocks(r, g / 4).q + 8 * (g % 4));
    }
  }
}
inline void store_nvfp4(const view<const nvfp4, 2>& blocks, const view<std::uint8_t, 2>& bytes,
                        const view<f8_e4m3, 2>& scales) {
  detail::check_microscaling<nvfp4>("store_nvfp4", bytes, scales, blocks);
  for (std::size_t r = 0; r < blocks.extent(0); ++r) {
    for (std::size_t g = 0; g < scales.extent(1); ++g) {
      scales(r, g) = f8_e4m3::from_bits(blocks(r, g / 4).scales[g % 4]);
      detail::pairs_of_halves<16>(blocks(r, g / 4).q + 8 * (g % 4), bytes.row(r) + 8 * g);
    }
  }
}

MOTE_END_NAMESPACE

// ---- mote/quant/quantize.hpp
// Matrices to blocks and back, row by row.

MOTE_BEGIN_NAMESPACE

namespace detail {

template <block_format F, class T, class Blocks>
void check_blocks(std::string_view op, const view<T, 2>& values, const Blocks& blocks) {
  if (values.extent(1) % F::block_size != 0) {
    raise<shape_error>(concatenate({op, ": ", F::name, ": expected columns in multiples of ",
                                    std::to_string(F::block_size), ", got ", std::to_string(values.extent(1))}));
  }
  check_view(op, "values", values, {values.extent(0), values.extent(1)});
  check_view(op, "blocks", blocks, {values.extent(0), values.extent(1) / F::block_size});
}

}  // namespace detail

// values [rows, columns] to blocks [rows, columns / F::block_size]; the rows are shared out among the threads of `be`.
// Values must be finite. Throws shape_error.
template <block_format F, host Backend>
void quantize(Backend& be, const view<const float, 2>& values, const view<F, 2>& blocks) {
  detail::check_blocks<F>("quantize", values, blocks);
  be.parallel_for(values.extent(0), 1 + 4096 / (values.extent(1) + 1), [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      for (std::size_t b = 0; b < blocks.extent(1); ++b) {
        blocks.row(r)[b] = F::encode(values.row(r) + b * F::block_size);
      }
    }
  });
}

// The same by the calling thread.
template <block_format F>
void quantize(const view<const float, 2>& values, const view<F, 2>& blocks) {
  reference be;
  quantize<F>(be, values, blocks);
}

// blocks [rows, columns / F::block_size] to values [rows, columns]. Throws shape_error.
template <block_format F, host Backend>
void dequantize(Backend& be, const view<const F, 2>& blocks, const view<float, 2>& values) {
  detail::check_blocks<F>("dequantize", values, blocks);
  be.parallel_for(values.extent(0), 1 + 4096 / (values.extent(1) + 1), [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      for (std::size_t b = 0; b < blocks.extent(1); ++b) {
        blocks.row(r)[b].decode(values.row(r) + b * F::block_size);
      }
    }
  });
}

template <block_format F>
void dequantize(const view<const F, 2>& blocks, const view<float, 2>& values) {
  reference be;
  dequantize<F>(be, blocks, values);
}

MOTE_END_NAMESPACE
