// The inner loop that attention ops share: a block of queries against tiles of keys, with the online softmax.
//
// Lanes are queries: queries are stored transposed, [dim][lanes], and every key element is broadcast, so that scores,
// maxima, exponentials and sums need no work across lanes. After tile i the outputs hold Σ exp(s - m) v over the keys so
// far, m being their largest score; the next tile rescales them if m grew.
//
// One lane's result does not depend on what the other lanes hold.
// Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Dao et al., "FlashAttention" (2022).
#pragma once

#include <cmath>
#include <cstddef>

#include "../../core/simd.hpp"
#include "../../core/vector_math.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// Up to `size` keys and their values. A key is [first | second], two runs of floats.
struct attention_keys {
  static constexpr std::size_t size = 64;

  const float* first[size];
  const float* second[size];
  const float* value[size];
  std::size_t count = 0;
};

// x[lane * stride + i] · scale, i < dim, to packed[i * lanes + lane]; lanes from `count` on become zero.
inline void pack_queries(const float* x, std::size_t stride, std::size_t dim, std::size_t count, std::size_t lanes,
                         float scale, float* packed) {
  for (std::size_t i = 0; i < dim; ++i) {
    for (std::size_t lane = 0; lane < count; ++lane) packed[i * lanes + lane] = x[lane * stride + i] * scale;
    for (std::size_t lane = count; lane < lanes; ++lane) packed[i * lanes + lane] = 0.0f;
  }
}

// A block of up to Vectors · batch::size queries.
template <class Arch, std::size_t Vectors>
class attention_block {
  using vector = batch<float, Arch>;

 public:
  static constexpr std::size_t lanes = Vectors * vector::size;

  // The queries' outputs, `count` rows of dim_v floats, must start as zeros.
  attention_block(const float* queries, std::size_t dim_first, std::size_t dim_second, float* const* out,
                  std::size_t count, std::size_t dim_v)
      : queries_(queries), dim_first_(dim_first), dim_second_(dim_second), out_(out), count_(count), dim_v_(dim_v) {
    for (std::size_t v = 0; v < Vectors; ++v) {
      maximum_[v] = vector(-INFINITY);
      total_[v] = vector(0.0f);
    }
  }

  // Adds a tile that all queries see. Changes nothing in `keys` but the unused pointers.
  void add(attention_keys& keys) {
    score(keys);
    accumulate(keys);
  }

  // Adds a tile of which query `lane` sees the first visible + lane keys (none where that is negative).
  void add_causal(attention_keys& keys, std::ptrdiff_t visible) {
    score(keys);
    for (std::size_t v = 0; v < Vectors; ++v) {
      const vector limit =
          lane_numbers<Arch>() + vector(static_cast<float>(visible + static_cast<std::ptrdiff_t>(v * vector::size)));
      for (std::size_t c = 0; c < keys.count; ++c) {
        float* s = scores_ + c * lanes + v * vector::size;
        const vector seen =
            xsimd::select(vector(static_cast<float>(c)) < limit, vector::load_aligned(s), vector(-INFINITY));
        seen.store_aligned(s);
      }
    }
    accumulate(keys);
  }

  // The largest score and the sum of exp(s - largest) of every lane.
  void store_state(float* maximum, float* total) const {
    for (std::size_t v = 0; v < Vectors; ++v) {
      maximum_[v].store_unaligned(maximum + v * vector::size);
      total_[v].store_unaligned(total + v * vector::size);
    }
  }

  // Divides the outputs by the sums.
  void normalise() {
    float maximum[lanes], total[lanes];
    store_state(maximum, total);
    for (std::size_t lane = 0; lane < count_; ++lane) {
      float* o = out_[lane];
      const vector scale(1.0f / total[lane]);
      for_each_vector<Arch>(dim_v_, [&](std::size_t i, auto load, auto store) { store(o + i, load(o + i) * scale); });
    }
  }

 private:
  // Register tiles: about 16 accumulators where there are 32 registers, 8 where there are 16.
  static constexpr std::size_t keys_at_once =
      (vector::size == 16 ? 16 : 8) / Vectors / (vector::size == 16 && Vectors == 1 ? 2 : 1);
  static constexpr std::size_t rows_at_once = 4;
  static constexpr std::size_t columns_at_once = vector::size == 16 ? 4 : 2;
  static_assert(attention_keys::size % keys_at_once == 0);

  void score(attention_keys& keys) {
    for (std::size_t c = keys.count; c % keys_at_once != 0; ++c) {
      keys.first[c] = keys.first[keys.count - 1];
      keys.second[c] = keys.second[keys.count - 1];
    }
    for (std::size_t c = 0; c < keys.count; c += keys_at_once) {
      vector sums[keys_at_once][Vectors];
      for (auto& row : sums) {
        for (auto& s : row) s = vector(0.0f);
      }
      multiply_add(queries_, dim_first_, keys.first + c, sums);
      multiply_add(queries_ + dim_first_ * lanes, dim_second_, keys.second + c, sums);
      for (std::size_t r = 0; r < keys_at_once; ++r) {
        for (std::size_t v = 0; v < Vectors; ++v)
          sums[r][v].store_aligned(scores_ + (c + r) * lanes + v * vector::size);
      }
    }
  }

  static void multiply_add(const float* queries, std::size_t dim, const float* const* keys,
                           vector (&sums)[keys_at_once][Vectors]) {
    const float* key[keys_at_once];
    for (std::size_t r = 0; r < keys_at_once; ++r) key[r] = keys[r];
    for (std::size_t k = 0; k < dim; ++k) {
      vector q[Vectors];
      for (std::size_t v = 0; v < Vectors; ++v) q[v] = vector::load_unaligned(queries + k * lanes + v * vector::size);
      for (std::size_t r = 0; r < keys_at_once; ++r) {
        const vector x(key[r][k]);
        for (std::size_t v = 0; v < Vectors; ++v) sums[r][v] = fused_multiply_add(x, q[v], sums[r][v]);
      }
    }
  }

  // scores_ become exp(s - new maximum), `total_` and the outputs follow.
  void accumulate(const attention_keys& keys) {
    for (std::size_t v = 0; v < Vectors; ++v) {
      float* const s = scores_ + v * vector::size;
      vector maximum = maximum_[v];
      for (std::size_t c = 0; c < keys.count; ++c) maximum = xsimd::max(maximum, vector::load_aligned(s + c * lanes));
      const vector growth = exp_nonpositive<Arch>(maximum_[v] - maximum);
      vector total = total_[v] * growth;
      for (std::size_t c = 0; c < keys.count; ++c) {
        const vector p = exp_nonpositive<Arch>(vector::load_aligned(s + c * lanes) - maximum);
        p.store_aligned(s + c * lanes);
        total += p;
      }
      growth.store_aligned(growth_ + v * vector::size);
      maximum_[v] = maximum;
      total_[v] = total;
    }

    std::size_t column = 0;
    for (; column + columns_at_once * vector::size <= dim_v_; column += columns_at_once * vector::size) {
      add_values<columns_at_once>(keys, column);
    }
    for (; column + vector::size <= dim_v_; column += vector::size) add_values<1>(keys, column);
    for (; column < dim_v_; ++column) add_value_column(keys, column);
  }

  template <std::size_t Columns>
  void add_values(const attention_keys& keys, std::size_t column) {
    std::size_t lane = 0;
    for (; lane + rows_at_once <= count_; lane += rows_at_once) add_values<rows_at_once, Columns>(keys, lane, column);
    for (; lane < count_; ++lane) add_values<1, Columns>(keys, lane, column);
  }

  template <std::size_t Rows, std::size_t Columns>
  void add_values(const attention_keys& keys, std::size_t lane, std::size_t column) {
    vector sums[Rows][Columns];
    for (std::size_t r = 0; r < Rows; ++r) {
      const vector growth(growth_[lane + r]);
      for (std::size_t j = 0; j < Columns; ++j) {
        sums[r][j] = vector::load_unaligned(out_[lane + r] + column + j * vector::size) * growth;
      }
    }
    const float* p = scores_ + lane;
    for (std::size_t c = 0; c < keys.count; ++c, p += lanes) {
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
  void add_value_column(const attention_keys& keys, std::size_t column) {
    for (std::size_t v = 0; v < Vectors && v * vector::size < count_; ++v) {
      vector s(0.0f);
      for (std::size_t c = 0; c < keys.count; ++c) {
        s = fused_multiply_add(vector::load_aligned(scores_ + c * lanes + v * vector::size),
                               vector(keys.value[c][column]), s);
      }
      float sums[vector::size];
      s.store_unaligned(sums);
      for (std::size_t i = 0; i < vector::size && v * vector::size + i < count_; ++i) {
        const std::size_t lane = v * vector::size + i;
        out_[lane][column] = out_[lane][column] * growth_[lane] + sums[i];
      }
    }
  }

  const float* queries_;
  std::size_t dim_first_, dim_second_;
  float* const* out_;
  std::size_t count_, dim_v_;
  vector maximum_[Vectors], total_[Vectors];
  alignas(64) float scores_[attention_keys::size * lanes];
  alignas(64) float growth_[lanes];
};

}  // namespace detail

MOTE_END_NAMESPACE
