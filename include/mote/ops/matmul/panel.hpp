// A panel: up to panel_rows weight rows against up to panel_tokens tokens, the unit in which matrix products are shared
// out. Its weights stay in the second-level cache while tokens pass by, a tile's tokens in the first.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "../../quant/weight.hpp"
#include "int8_kernel.hpp"
#include "micro_kernel.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

inline constexpr std::size_t panel_rows = 32, panel_tokens = 24;
inline constexpr std::size_t panel_depth = 1024;  // elements of k a block: a tile's rows and tokens fit 48 KiB

// A row of activations in the form that a weight format multiplies: float32, or int8 codes with their scale.
struct activation {
  const float* values = nullptr;
  const std::uint8_t* codes = nullptr;
  float scale = 1.0f;
};

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

template <class Arch, class T>
struct float_kernel {
  static constexpr std::size_t rows = tile_rows<Arch>, tokens = tile_tokens<Arch>;
  template <std::size_t R, std::size_t C>
  static void tile(const T* const* w, const float* const* x, std::size_t k, bool resume, float* state,
                   float* out) noexcept {
    dot_tile<Arch, R, C, (C < tokens)>(w, x, k, resume, state, out, panel_rows);
  }
  // The same for a full number of tokens that is the first to see its weights.
  template <std::size_t R>
  static void first_tile(const T* const* w, const float* const* x, std::size_t k, bool resume, float* state,
                         float* out) noexcept {
    dot_tile<Arch, R, tokens, true>(w, x, k, resume, state, out, panel_rows);
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
  static void tile(const std::int8_t* const* w, const std::uint8_t* const* x, std::size_t k,
                   std::int32_t* out) noexcept {
    dot_tile_int8<R, C>(w, x, k, out, rows);
  }
};

// out[n + t · panel_rows] = Σ_k W[first + n, k] · x[t][k] for n < rows <= panel_rows, t < tokens <= panel_tokens.
template <class Arch, class T>
void panel_product(const view<const T, 2>& w, std::size_t first, std::size_t rows, const activation* x,
                   std::size_t tokens, float* out) noexcept {
  using kernel = float_kernel<Arch, T>;
  constexpr std::size_t lanes = batch<float, Arch>::size;
  const std::size_t k = w.extent(1);
  alignas(64) float state[panel_rows * panel_tokens * lanes];
  // One or two tokens use a weight at once: whole rows, which memory is faster at.
  const std::size_t block = tokens <= 2 ? std::max(k, std::size_t{1}) : panel_depth;
  for (std::size_t begin = 0; begin == 0 || begin < k; begin += block) {
    const std::size_t depth = std::min(block, k - begin);
    const bool last = begin + depth == k;
    float* accumulators = state;
    for_each_tile<kernel>(rows, tokens,
                          [&](std::size_t n, std::size_t row_count, std::size_t t, std::size_t token_count) {
                            const T* row[kernel::rows] = {};
                            const float* token[kernel::tokens] = {};
                            for (std::size_t r = 0; r < row_count; ++r) row[r] = w.row(first + n + r) + begin;
                            for (std::size_t c = 0; c < token_count; ++c) token[c] = x[t + c].values + begin;
                            kernel::function(row_count, token_count, t == 0)(
                                row, token, depth, begin != 0, accumulators, last ? out + n + t * panel_rows : nullptr);
                            accumulators += row_count * token_count * lanes;
                          });
  }
}

template <class Arch>
void panel_product(const int8_matrix& w, std::size_t first, std::size_t rows, const activation* x, std::size_t tokens,
                   float* out) noexcept {
  for_each_tile<int8_kernel>(
      rows, tokens, [&](std::size_t n, std::size_t row_count, std::size_t t, std::size_t token_count) {
        const std::int8_t* row[int8_kernel::rows] = {};
        const std::uint8_t* token[int8_kernel::tokens] = {};
        std::int32_t sums[int8_kernel::rows * int8_kernel::tokens];
        for (std::size_t r = 0; r < row_count; ++r) row[r] = w.codes.row(first + n + r);
        for (std::size_t c = 0; c < token_count; ++c) token[c] = x[t + c].codes;
        tile_function<int8_kernel>(row_count, token_count)(row, token, w.codes.extent(1), sums);
        for (std::size_t c = 0; c < token_count; ++c) {
          for (std::size_t r = 0; r < row_count; ++r) {
            const auto surplus = static_cast<std::uint32_t>(int8_lanes::offset * w.sum(first + n + r));
            const auto exact =
                static_cast<std::int32_t>(static_cast<std::uint32_t>(sums[r + c * int8_kernel::rows]) - surplus);
            out[n + r + (t + c) * panel_rows] = x[t + c].scale * w.scale(first + n + r) * static_cast<float>(exact);
          }
        }
      });
}

// Rows of activations for one matrix format, made once for all the panels that read them.
template <class Matrix>
inline constexpr bool reads_codes = std::is_same_v<Matrix, int8_matrix>;

// Fills rows[i] for i < count from row(i), n values each; `codes` [count, n] is used for formats that read codes.
template <class Arch, class Backend, class Row>
void quantize_rows(Backend& be, std::size_t count, std::size_t n, view<std::uint8_t, 2> codes, view<activation, 1> rows,
                   Row&& row) {
  be.parallel_for(count, 1 + 4096 / (n + 1), [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      const float* values = row(i);
      const float scale = quantize_activations<Arch>(values, n, codes.row(i));
      rows(i) = {values, codes.row(i), scale};
    }
  });
}

template <class Backend, class Row>
void collect_rows(Backend& be, std::size_t count, view<activation, 1> rows, Row&& row) {
  be.parallel_for(count, 4096, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) rows(i) = {row(i), nullptr, 1.0f};
  });
}

// rows[i] for i < count, as the format of Matrix wants them; codes live in `scope`.
template <class Arch, class Matrix, class Backend, class Scope, class Row>
view<activation, 1> prepare_rows(Backend& be, Scope& scope, std::size_t count, std::size_t n, Row&& row) {
  const auto rows = scope.template tensor<activation>(count);
  if constexpr (reads_codes<Matrix>) {
    quantize_rows<Arch>(be, count, n, scope.template tensor<std::uint8_t>(count, n), rows, row);
  } else {
    collect_rows(be, count, rows, row);
  }
  return rows;
}

}  // namespace detail

MOTE_END_NAMESPACE
