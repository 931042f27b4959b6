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
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>

#include "../core/amx.hpp"
#include "../core/error.hpp"
#include "../core/int8_dot.hpp"
#include "../core/view.hpp"
#include "format.hpp"

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
