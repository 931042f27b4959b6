// A unit: up to unit_rows weight rows against up to unit_tokens tokens, in which matrix products are shared out. Its weights
// stay in the second-level cache while tokens pass by, a tile's tokens in the first.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <type_traits>
#include <utility>
#include <variant>

#include "../../quant/weight.hpp"
#include "activations.hpp"
#include "block_kernel.hpp"
#include "block_tile_kernel.hpp"
#include "element_kernel.hpp"
#include "int8_kernel.hpp"
#include "micro_kernel.hpp"
#include "pair_kernel.hpp"
#include "scaled_kernel.hpp"
#include "tile_kernel.hpp"
#include "tile_sum_kernel.hpp"

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
