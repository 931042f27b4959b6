#pragma once

#include <algorithm>
#include <cstddef>

#include "../../core/simd.hpp"
#include "../../core/view.hpp"
#include "../attention/tile.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// One head, one block of queries at a time; keys are taken in tiles from the start of the context.
template <std::size_t Vectors, class Arch, class Executor>
void mla_prefill_blocks(simd<Arch, Executor>& be, view<const float, 3> q_nope, view<const float, 3> q_rope,
                        view<const float, 3> k_nope, view<const float, 2> k_rope, view<const float, 3> v, float scale,
                        view<float, 3> y) {
  using block = attention_block<Arch, Vectors>;
  constexpr std::size_t lanes = block::lanes;
  const std::size_t tokens = q_nope.extent(0), heads = q_nope.extent(1), context = k_nope.extent(0);
  const std::size_t nope = q_nope.extent(2), rope = q_rope.extent(2), dim_v = v.extent(2);
  const std::size_t blocks = (tokens + lanes - 1) / lanes;
  const std::size_t grain = 1 + (std::size_t{1} << 19) / (lanes * context * (nope + rope + dim_v) + 1);
  auto scope = be.scope();
  const auto packed = scope.template tensor<float>(heads * blocks, (nope + rope) * lanes);

  be.parallel_for(heads * blocks, grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t item = begin; item < end; ++item) {
      // The last blocks see most keys: they go first, so that threads finish together.
      const std::size_t h = item / blocks, t = (blocks - 1 - item % blocks) * lanes;
      const std::size_t count = std::min(lanes, tokens - t);
      float* queries = packed.row(item);
      std::fill_n(queries, (nope + rope) * lanes, 0.0f);
      float* out[lanes];
      for (std::size_t lane = 0; lane < count; ++lane) {
        pack_query(&q_nope(t + lane, h, std::size_t{0}), nope, lanes, scale, queries + lane);
        pack_query(&q_rope(t + lane, h, std::size_t{0}), rope, lanes, scale, queries + nope * lanes + lane);
        out[lane] = &y(t + lane, h, std::size_t{0});
      }

      block attention;
      attention.start(queries, nope, rope, out, count, dim_v);
      attention_keys keys;
      const std::size_t seen_by_first = context - tokens + t + 1, seen_by_last = seen_by_first + count - 1;
      for (std::size_t c = 0; c < seen_by_last; c += attention_keys::size) {
        const std::size_t in_tile = std::min(attention_keys::size, seen_by_last - c);
        for (std::size_t i = 0; i < in_tile; ++i) {
          keys.first[i] = &k_nope(c + i, h, std::size_t{0});
          keys.second[i] = &k_rope(c + i, std::size_t{0});
          keys.value[i] = &v(c + i, h, std::size_t{0});
        }
        if (c + in_tile <= seen_by_first) {
          attention.add(keys, in_tile);
        } else {
          std::ptrdiff_t visible[lanes];
          for (std::size_t lane = 0; lane < lanes; ++lane) {
            visible[lane] = static_cast<std::ptrdiff_t>(seen_by_first + lane) - static_cast<std::ptrdiff_t>(c);
          }
          attention.add_causal(keys, in_tile, visible);
        }
      }
      attention.normalise();
    }
  });
}

}  // namespace detail

template <class Arch, class Executor>
void mla_prefill_impl(simd<Arch, Executor>& be, view<const float, 3> q_nope, view<const float, 3> q_rope,
                      view<const float, 3> k_nope, view<const float, 2> k_rope, view<const float, 3> v, float scale,
                      view<float, 3> y) {
  if (q_nope.extent(0) > batch<float, Arch>::size) {
    detail::mla_prefill_blocks<2>(be, q_nope, q_rope, k_nope, k_rope, v, scale, y);
  } else {
    detail::mla_prefill_blocks<1>(be, q_nope, q_rope, k_nope, k_rope, v, scale, y);
  }
}

MOTE_END_NAMESPACE
