#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

#include "../../core/paged.hpp"
#include "../../core/simd.hpp"
#include "../attention/tile.hpp"

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

template <std::size_t Vectors, class Arch, class Executor>
void mla_decode_blocks(simd<Arch, Executor>& be, view<const float, 3> q_latent, view<const float, 3> q_rope,
                       std::span<const paged_rows<const float>> context, float scale, view<float, 3> y) {
  using vector = batch<float, Arch>;
  using block = attention_block<Arch, Vectors>;
  constexpr std::size_t lanes = block::lanes;
  const std::size_t tokens = q_latent.extent(0), heads = q_latent.extent(1);
  const std::size_t rank = q_latent.extent(2), rope = q_rope.extent(2);
  const std::size_t blocks = (heads + lanes - 1) / lanes;
  std::size_t parts = 1, longest = 1;
  for (const auto& rows : context) {
    parts = std::max(parts, mla_decode_parts(rows.length));
    longest = std::max(longest, std::min(rows.length, mla_decode_part(rows.length)));
  }

  // Tokens are taken in rounds whose unmerged parts stay within 16 MiB, if one token's do.
  const std::size_t part_floats = parts == 1 ? 0 : heads * parts * (rank + 2);
  const std::size_t round = std::max<std::size_t>(1, std::min(tokens, (std::size_t{1} << 22) / (part_floats + 1)));
  auto scope = be.scope();
  const auto packed = scope.template tensor<float>(round * blocks, (rank + rope) * lanes);
  const auto partial = scope.template tensor<float>(parts == 1 ? 0 : round * heads, parts, rank);
  const auto maximum = scope.template tensor<float>(round * blocks * parts, lanes);
  const auto total = scope.template tensor<float>(round * blocks * parts, lanes);
  const std::size_t pack_grain = 1 + (std::size_t{1} << 16) / (lanes * (rank + rope) + 1);
  const std::size_t grain = 1 + (std::size_t{1} << 19) / (lanes * longest * (2 * rank + rope) + 1);
  const std::size_t merge_grain = 1 + (std::size_t{1} << 16) / (parts * rank + 1);

  for (std::size_t first = 0; first < tokens; first += round) {
    const std::size_t count = std::min(round, tokens - first);

    be.parallel_for(count * blocks, pack_grain, [&](std::size_t begin, std::size_t end) {
      for (std::size_t item = begin; item < end; ++item) {
        const std::size_t t = first + item / blocks, h = item % blocks * lanes, n = std::min(lanes, heads - h);
        float* queries = packed.row(item);
        pack_queries(&q_latent(t, h, std::size_t{0}), q_latent.stride(1), rank, n, lanes, scale, queries);
        pack_queries(&q_rope(t, h, std::size_t{0}), q_rope.stride(1), rope, n, lanes, scale, queries + rank * lanes);
      }
    });

    be.parallel_for(count * blocks * parts, grain, [&](std::size_t begin, std::size_t end) {
      for (std::size_t item = begin; item < end; ++item) {
        const std::size_t pair = item / parts, p = item % parts;
        const std::size_t t = pair / blocks, h = pair % blocks * lanes, n = std::min(lanes, heads - h);
        const paged_rows<const float>& rows = context[first + t];
        const std::size_t part = mla_decode_part(rows.length), own_parts = mla_decode_parts(rows.length);
        if (p >= own_parts) continue;
        float* out[lanes];
        for (std::size_t lane = 0; lane < n; ++lane) {
          out[lane] = own_parts == 1 ? &y(first + t, h + lane, std::size_t{0})
                                     : &partial(t * heads + h + lane, p, std::size_t{0});
          std::fill_n(out[lane], rank, 0.0f);
        }
        block attention(packed.row(pair), rank, rope, out, n, rank);
        attention_keys keys;
        const std::size_t last = std::min(rows.length, (p + 1) * part);
        for (std::size_t c = p * part; c < last; c += attention_keys::size) {
          keys.count = std::min(attention_keys::size, last - c);
          for (std::size_t i = 0; i < keys.count; ++i) {
            const float* row = rows.row(c + i);
            keys.first[i] = row;
            keys.second[i] = row + rank;
            keys.value[i] = row;
          }
          attention.add(keys);
        }
        if (own_parts == 1) {
          attention.normalise();
        } else {
          attention.store_state(maximum.row(item), total.row(item));
        }
      }
    });

    if (parts == 1) continue;
    be.parallel_for(count * heads, merge_grain, [&](std::size_t begin, std::size_t end) {
      for (std::size_t item = begin; item < end; ++item) {
        const std::size_t t = item / heads, h = item % heads, lane = h % lanes;
        const std::size_t own_parts = mla_decode_parts(context[first + t].length);
        if (own_parts == 1) continue;
        const std::size_t state = (t * blocks + h / lanes) * parts;
        float largest = -INFINITY, sum = 0.0f, factor[32];
        for (std::size_t p = 0; p < own_parts; ++p) largest = std::fmax(largest, maximum(state + p, lane));
        for (std::size_t p = 0; p < own_parts; ++p) {
          factor[p] = std::exp(maximum(state + p, lane) - largest);
          sum += factor[p] * total(state + p, lane);
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

}  // namespace detail

template <class Arch, class Executor>
void mla_decode_impl(simd<Arch, Executor>& be, view<const float, 3> q_latent, view<const float, 3> q_rope,
                     std::span<const paged_rows<const float>> context, float scale, view<float, 3> y) {
  if (q_latent.extent(1) > batch<float, Arch>::size) {
    detail::mla_decode_blocks<2>(be, q_latent, q_rope, context, scale, y);
  } else {
    detail::mla_decode_blocks<1>(be, q_latent, q_rope, context, scale, y);
  }
}

MOTE_END_NAMESPACE
