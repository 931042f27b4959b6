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
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "../../core/amx.hpp"
#include "../../core/simd.hpp"
#include "../../core/vector_math.hpp"
#include "block.hpp"

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
