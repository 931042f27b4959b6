// Attention's products in float32 vectors: queries are stored transposed, [dim][lanes], and every key element is broadcast;
// for values, every probability.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "../../core/simd.hpp"
#include "../../core/vector_math.hpp"
#include "block.hpp"

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
