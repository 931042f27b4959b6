// The loop that attention ops share: a block of queries against tiles of keys, with the online softmax.
//
// Lanes are queries, so that maxima, exponentials and sums need no work across lanes. After tile i the outputs hold
// Σ exp(s - m) v over the keys so far, m being their largest score; the next tile rescales them if m grew. Products of
// queries and keys, and of probabilities and values, are `Products`': vector_products.hpp or tile_products.hpp.
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
