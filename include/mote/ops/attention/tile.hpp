// The inner loop that attention ops share: a block of queries against tiles of keys, with the online softmax.
//
// Lanes are queries: queries are stored transposed, [dim][lanes], and every key element is broadcast, so that scores,
// maxima, exponentials and sums need no work across lanes. After tile i the outputs hold Σ exp(s - m) v over the keys so
// far, m being their largest score; the next tile rescales them if m grew.
//
// One lane's result does not depend on what the other lanes hold: sums of products are fused where they are said to be, for
// a compiler may fuse others in one copy of this code and not in the next.
// Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Dao et al., "FlashAttention" (2022).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "../../core/simd.hpp"
#include "../../core/vector_math.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// Keys and their values. A key is [first | second], two runs of floats.
struct attention_keys {
  static constexpr std::size_t size = 64;

  const float* first[size];
  const float* second[size];
  const float* value[size];
};

// A query of `dim` floats times `scale` into its lane: x[i] · scale to packed[i · lanes].
inline void pack_query(const float* x, std::size_t dim, std::size_t lanes, float scale, float* packed) {
  for (std::size_t i = 0; i < dim; ++i) packed[i * lanes] = x[i] * scale;
}

// A block of up to Vectors · batch::size queries.
template <class Arch, std::size_t Vectors>
class attention_block {
  using vector = batch<float, Arch>;

 public:
  static constexpr std::size_t lanes = Vectors * vector::size;

  // Packed queries (zeros in unused lanes), their parts' dimensions, `count` rows of dim_v floats that take the outputs.
  void start(const float* queries, std::size_t dim_first, std::size_t dim_second, float* const* out, std::size_t count,
             std::size_t dim_v) {
    queries_ = queries;
    dim_first_ = dim_first;
    dim_second_ = dim_second;
    count_ = count;
    dim_v_ = dim_v;
    for (std::size_t lane = 0; lane < count; ++lane) {
      out_[lane] = out[lane];
      std::fill_n(out[lane], dim_v, 0.0f);
    }
    for (std::size_t v = 0; v < Vectors; ++v) {
      maximum_[v] = vector(-INFINITY);
      total_[v] = vector(0.0f);
    }
  }

  // Adds the first `count` > 0 keys of a tile, which all queries see.
  [[gnu::noinline]] void add(const attention_keys& keys, std::size_t count) {
    score(keys, count);
    std::fill_n(seen_, lanes, static_cast<float>(count));
    accumulate(keys, count);
  }

  // The same where query `lane` sees the first visible[lane] keys only (none where that is negative).
  [[gnu::noinline]] void add_causal(const attention_keys& keys, std::size_t count,
                                    const std::ptrdiff_t (&visible)[lanes]) {
    score(keys, count);
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      seen_[lane] =
          static_cast<float>(std::clamp<std::ptrdiff_t>(visible[lane], 0, static_cast<std::ptrdiff_t>(count)));
    }
    for (std::size_t v = 0; v < Vectors; ++v) {
      const vector limit = vector::load_aligned(seen_ + v * vector::size);
      for (std::size_t c = 0; c < count; ++c) {
        float* s = scores_ + c * lanes + v * vector::size;
        const vector seen =
            xsimd::select(vector(static_cast<float>(c)) < limit, vector::load_aligned(s), vector(-INFINITY));
        seen.store_aligned(s);
      }
    }
    accumulate(keys, count);
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

  // Divides the outputs by the sums.
  void normalise() {
    for (std::size_t lane = 0; lane < count_; ++lane) {
      float* o = out_[lane];
      const vector scale(1.0f / state_of(lane).total);
      for_each_vector<Arch>(dim_v_, [&](std::size_t i, auto load, auto store) { store(o + i, load(o + i) * scale); });
    }
  }

 private:
  // Register tiles: 16 accumulators where there are 32 registers, 12 where there are 16. `depth` elements of a block's
  // queries stay in the first-level cache while the tile's keys pass by.
  static constexpr bool wide = vector::size == 16;
  static constexpr std::size_t keys_at_once = wide ? 16 / Vectors : Vectors == 2 ? 6 : 8;
  static constexpr std::size_t rows_at_once = 4, columns_at_once = wide ? 4 : 3;  // four rows divide every block
  static constexpr std::size_t depth = 128;
  static constexpr std::size_t padded_keys = (attention_keys::size + keys_at_once - 1) / keys_at_once * keys_at_once;

  void score(const attention_keys& keys, std::size_t count) {
    multiply_add(queries_, dim_first_, keys.first, count, false);
    if (dim_second_ != 0) multiply_add(queries_ + dim_first_ * lanes, dim_second_, keys.second, count, true);
  }

  // Products of the queries' elements from `queries` on and the keys' to scores_, added to what is there if `resume`.
  void multiply_add(const float* queries, std::size_t dim, const float* const* keys, std::size_t count, bool resume) {
    for (std::size_t begin = 0; begin == 0 || begin < dim; begin += depth) {
      const std::size_t part = std::min(depth, dim - begin);
      for (std::size_t c = 0; c < count; c += keys_at_once) {
        const float* key[keys_at_once];
        for (std::size_t r = 0; r < keys_at_once; ++r) key[r] = keys[std::min(c + r, count - 1)] + begin;
        multiply_add(queries + begin * lanes, part, key, resume || begin != 0, scores_ + c * lanes);
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

  // scores_ become exp(s - new maximum), `total_` and the outputs follow.
  void accumulate(const attention_keys& keys, std::size_t count) {
    for (std::size_t v = 0; v < Vectors; ++v) {
      float* const s = scores_ + v * vector::size;
      vector maximum = maximum_[v];
      for (std::size_t c = 0; c < count; ++c) maximum = xsimd::max(maximum, vector::load_aligned(s + c * lanes));
      const vector growth = exp_nonpositive<Arch>(maximum_[v] - maximum);
      vector total(0.0f);
      for (std::size_t c = 0; c < count; ++c) {
        const vector p = exp_nonpositive<Arch>(vector::load_aligned(s + c * lanes) - maximum);
        p.store_aligned(s + c * lanes);
        total += p;
      }
      growth.store_aligned(growth_ + v * vector::size);
      maximum_[v] = maximum;
      total_[v] = fused_multiply_add(total_[v], growth, total);
    }

    std::size_t column = 0;
    for (; column + columns_at_once * vector::size <= dim_v_; column += columns_at_once * vector::size) {
      add_values<columns_at_once>(keys, column);
    }
    for (; column + vector::size <= dim_v_; column += vector::size) add_values<1>(keys, column);
    for (; column < dim_v_; ++column) add_value_column(keys, count, column);
  }

  // Keys that a lane does not see are not touched: a query's bits, and a NaN in a later row, are its own affair.
  template <std::size_t Columns>
  void add_values(const attention_keys& keys, std::size_t column) {
    std::size_t lane = 0;
    for (; lane + rows_at_once <= count_; lane += rows_at_once) {
      const float* seen = seen_ + lane;
      const auto all = static_cast<std::size_t>(*std::min_element(seen, seen + rows_at_once));
      add_values<rows_at_once, Columns>(keys, lane, column, 0, all, true);
      for (std::size_t r = 0; r < rows_at_once; ++r) {
        const auto own = static_cast<std::size_t>(seen[r]);
        if (own > all) add_values<1, Columns>(keys, lane + r, column, all, own, false);
      }
    }
    for (; lane < count_; ++lane) {
      add_values<1, Columns>(keys, lane, column, 0, static_cast<std::size_t>(seen_[lane]), true);
    }
  }

  // Keys [begin, end), `rescale`d before where they are a tile's first.
  template <std::size_t Rows, std::size_t Columns>
  void add_values(const attention_keys& keys, std::size_t lane, std::size_t column, std::size_t begin, std::size_t end,
                  bool rescale) {
    vector sums[Rows][Columns];
    for (std::size_t r = 0; r < Rows; ++r) {
      const vector growth(rescale ? growth_[lane + r] : 1.0f);
      for (std::size_t j = 0; j < Columns; ++j) {
        sums[r][j] = vector::load_unaligned(out_[lane + r] + column + j * vector::size) * growth;
      }
    }
    const float* p = scores_ + begin * lanes + lane;
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
      for (std::size_t j = 0; j < Columns; ++j) sums[r][j].store_unaligned(out_[lane + r] + column + j * vector::size);
    }
  }

  // A column past the last whole vector: lanes are queries here as well.
  void add_value_column(const attention_keys& keys, std::size_t count, std::size_t column) {
    for (std::size_t v = 0; v < Vectors && v * vector::size < count_; ++v) {
      const vector seen = vector::load_aligned(seen_ + v * vector::size);
      vector s(0.0f);
      for (std::size_t c = 0; c < count; ++c) {
        const vector p = vector::load_aligned(scores_ + c * lanes + v * vector::size);
        s = xsimd::select(vector(static_cast<float>(c)) < seen, fused_multiply_add(p, vector(keys.value[c][column]), s),
                          s);
      }
      float sums[vector::size];
      s.store_unaligned(sums);
      for (std::size_t i = 0; i < vector::size && v * vector::size + i < count_; ++i) {
        const std::size_t lane = v * vector::size + i;
        out_[lane][column] = std::fma(out_[lane][column], growth_[lane], sums[i]);
      }
    }
  }

  const float* queries_ = nullptr;
  std::size_t dim_first_ = 0, dim_second_ = 0, count_ = 0, dim_v_ = 0;
  float* out_[lanes];
  vector maximum_[Vectors], total_[Vectors];
  alignas(64) float scores_[padded_keys * lanes];
  alignas(64) float growth_[lanes];
  alignas(64) float seen_[lanes];  // keys of the tile that a lane sees
};

}  // namespace detail

MOTE_END_NAMESPACE
