#pragma once

#include <algorithm>
#include <cstddef>

#include "../../core/simd.hpp"
#include "../../core/view.hpp"
#include "../attention/products.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// One head, one block of queries at a time; keys are taken in tiles from the start of the context.
template <class Products, class Arch, class Executor>
void mla_prefill_blocks(simd<Arch, Executor>& be, view<const float, 3> q_nope, view<const float, 3> q_rope,
                        view<const float, 3> k_nope, view<const float, 2> k_rope, view<const float, 3> v, float scale,
                        view<float, 3> y) {
  using block = attention_block<Arch, Products>;
  constexpr std::size_t lanes = block::lanes;
  const std::size_t tokens = q_nope.extent(0), heads = q_nope.extent(1), context = k_nope.extent(0);
  const std::size_t nope = q_nope.extent(2), rope = q_rope.extent(2), dim_v = v.extent(2);
  const std::size_t blocks = (tokens + lanes - 1) / lanes;
  const attention_shape shape{nope, rope, dim_v};
  const std::size_t items = heads * blocks;
  const std::size_t grain = 1 + std::max(items / (16 * be.concurrency()),
                                         (std::size_t{1} << 19) / (lanes * context * (nope + rope + dim_v) + 1));
  auto scope = be.scope();
  const std::size_t query_floats = whole_lines(Products::query_floats(shape));
  const std::size_t key_floats = whole_lines(Products::key_floats(shape));
  // A chunk of items shares memory.
  const auto scratch = scope.template tensor<float>((items + grain - 1) / grain,
                                                    query_floats + key_floats + Products::block_floats(shape));

  be.parallel_for(items, grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t item = begin; item < end; ++item) {
      // The last blocks see most keys: they go first, so that threads finish together.
      const std::size_t h = item / blocks, t = (blocks - 1 - item % blocks) * lanes;
      const std::size_t count = std::min(lanes, tokens - t);
      float* const queries = scratch.row(begin / grain);
      const float *nopes[lanes], *ropes[lanes];
      float* out[lanes];
      for (std::size_t lane = 0; lane < count; ++lane) {
        nopes[lane] = &q_nope(t + lane, h, std::size_t{0});
        ropes[lane] = &q_rope(t + lane, h, std::size_t{0});
        out[lane] = &y(t + lane, h, std::size_t{0});
      }
      Products::pack(shape, nopes, ropes, count, scale, queries);

      block attention;
      attention.start(shape, queries, queries + query_floats + key_floats, out, count);
      typename Products::keys keys(shape, queries + query_floats);
      attention_keys rows;
      const std::size_t seen_by_first = context - tokens + t + 1, seen_by_last = seen_by_first + count - 1;
      for (std::size_t c = 0; c < seen_by_last; c += attention_keys::size) {
        const std::size_t in_tile = std::min(attention_keys::size, seen_by_last - c);
        for (std::size_t i = 0; i < in_tile; ++i) {
          rows.first[i] = &k_nope(c + i, h, std::size_t{0});
          rows.second[i] = &k_rope(c + i, std::size_t{0});
          rows.value[i] = &v(c + i, h, std::size_t{0});
        }
        std::ptrdiff_t visible[lanes];
        for (std::size_t lane = 0; lane < lanes; ++lane) {
          visible[lane] = static_cast<std::ptrdiff_t>(seen_by_first + lane) - static_cast<std::ptrdiff_t>(c);
        }
        attention.see(in_tile, visible);
        attend(&attention, 1, rows, in_tile, keys);
      }
      attention.finish();
      attention.normalise();
    }
  });
}

}  // namespace detail

template <class Arch, class Executor>
void mla_prefill_impl(simd<Arch, Executor>& be, view<const float, 3> q_nope, view<const float, 3> q_rope,
                      view<const float, 3> k_nope, view<const float, 2> k_rope, view<const float, 3> v, float scale,
                      view<float, 3> y) {
  detail::with_attention_products<Arch>(q_nope.extent(0), [&]<class Products>() {
    detail::mla_prefill_blocks<Products>(be, q_nope, q_rope, k_nope, k_rope, v, scale, y);
  });
}

MOTE_END_NAMESPACE
