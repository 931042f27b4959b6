#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <span>
#include <type_traits>

#include "../../core/paged.hpp"
#include "../../core/simd.hpp"
#include "../../quant/rows.hpp"
#include "../attention/products.hpp"

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

// Queries that go over the same keys together: those of consecutive tokens of one sequence whose contexts are cut alike.
// Query i of the group is head (lane + i) % heads of token (lane + i) / heads, counted from `token`.
struct mla_decode_group {
  std::size_t token, lane, count;
};

// Rows of any form: their bytes, and how they become float32. Everything below is compiled once for all forms.
using row_bytes = paged_rows<const std::byte>;
using row_decoder = void (*)(const std::byte* row, std::size_t n, float* y) noexcept;

template <class T>
row_bytes as_bytes(const paged_rows<const T>& rows) {
  const view<const T, 3>& pages = rows.pages;
  return {{reinterpret_cast<const std::byte*>(pages.data()),
           {pages.extent(0), pages.extent(1), pages.extent(2) * sizeof(T)},
           {pages.stride(0) * sizeof(T), pages.stride(1) * sizeof(T), 1}},
          rows.block_table,
          rows.length};
}

// None for float32, whose rows are read where they lie.
template <class Arch, class T>
constexpr row_decoder decoder_of() {
  if constexpr (std::is_same_v<T, float>) {
    return nullptr;
  } else {
    return [](const std::byte* row, std::size_t n, float* y) noexcept {
      decode_row<Arch>(reinterpret_cast<const T*>(row), n, y);
    };
  }
}

// f(group) for groups of at most `most` queries of the tokens [first, last), in order.
template <class F>
void for_each_group(std::span<const row_bytes> context, std::size_t first, std::size_t last, std::size_t heads,
                    std::size_t most, F&& f) {
  for (std::size_t t = first; t < last;) {
    const row_bytes& rows = context[t];
    const auto alike = [&](std::size_t other) {
      const row_bytes& o = context[other];
      return o.pages.data() == rows.pages.data() && o.block_table.data() == rows.block_table.data() &&
             o.length == rows.length + (other - t) && mla_decode_part(o.length) == mla_decode_part(rows.length) &&
             mla_decode_parts(o.length) == mla_decode_parts(rows.length);
    };
    std::size_t end = t + 1;
    while (end < last && alike(end)) ++end;
    const std::size_t queries = (end - t) * heads;
    for (std::size_t q = 0; q < queries; q += most) f(mla_decode_group{t, q, std::min(most, queries - q)});
    t = end;
  }
}

// Keys [first, first + count) of a context, `width` numbers each: where they lie, or decoded into `tile`.
inline void take_keys(const row_bytes& rows, row_decoder decode, std::size_t first, std::size_t count, std::size_t rank,
                      std::size_t width, float* tile, attention_keys& keys) noexcept {
  for (std::size_t i = 0; i < count; ++i) {
    const float* row = reinterpret_cast<const float*>(rows.row(first + i));
    if (decode != nullptr) {
      decode(rows.row(first + i), width, tile + i * width);
      row = tile + i * width;
    }
    keys.first[i] = row;
    keys.second[i] = row + rank;
    keys.value[i] = row;
  }
}

// At most `together` queries go over the same keys together.
template <class Products, class Arch, class Executor>
void mla_decode_blocks(simd<Arch, Executor>& be, view<const float, 3> q_latent, view<const float, 3> q_rope,
                       std::span<const row_bytes> context, std::size_t together, row_decoder decode, float scale,
                       view<float, 3> y) {
  using vector = batch<float, Arch>;
  using block = attention_block<Arch, Products>;
  constexpr std::size_t lanes = block::lanes, most_blocks = Products::blocks_together;
  const std::size_t tokens = q_latent.extent(0), heads = q_latent.extent(1);
  const std::size_t rank = q_latent.extent(2), rope = q_rope.extent(2), width = rank + rope;
  const attention_shape shape{rank, rope, rank};
  std::size_t parts = 1, longest = 1;
  for (const auto& rows : context) {
    parts = std::max(parts, mla_decode_parts(rows.length));
    longest = std::max(longest, std::min(rows.length, mla_decode_part(rows.length)));
  }

  // Tokens are taken in rounds whose queries and unmerged parts stay within 16 MiB each, if one token's do.
  const std::size_t query_floats = Products::query_floats(shape);  // of a block
  const std::size_t token_floats = heads * std::max(query_floats / lanes, parts == 1 ? 0 : parts * (rank + 2));
  const std::size_t round = std::clamp<std::size_t>((std::size_t{1} << 22) / (token_floats + 1), 1, tokens);
  // Blocks of queries that share a tile of keys, as long as there are items enough for threads.
  const std::size_t all_blocks = (round * heads + lanes - 1) / lanes;
  const std::size_t blocks =
      std::clamp<std::size_t>(all_blocks * parts / 16, 1, std::min(most_blocks, (together + lanes - 1) / lanes));

  // The most groups that any round has.
  std::size_t most_groups = 0;
  for (std::size_t first = 0; first < tokens; first += round) {
    std::size_t groups = 0;
    for_each_group(context, first, std::min(first + round, tokens), heads, blocks * lanes,
                   [&](const mla_decode_group&) { ++groups; });
    most_groups = std::max(most_groups, groups);
  }
  // A chunk of items shares memory: sixteen chunks a thread, fewer where that is much memory.
  const std::size_t decoded_floats = decode == nullptr ? 0 : whole_lines(attention_keys::size * width);
  const std::size_t key_floats = whole_lines(Products::key_floats(shape));
  const std::size_t block_floats = whole_lines(Products::block_floats(shape));
  const std::size_t chunk_floats = decoded_floats + key_floats + blocks * block_floats;
  const std::size_t items = most_groups * parts, threads = be.concurrency();
  const std::size_t chunks = std::clamp((std::size_t{1} << 24) / (chunk_floats + 1), 4 * threads, 16 * threads);
  const std::size_t chunk =
      1 + std::max(items / chunks, (std::size_t{1} << 19) / (blocks * lanes * longest * (rank + width) + 1));
  auto scope = be.scope();
  const auto groups = scope.template tensor<mla_decode_group>(most_groups);
  const auto packed = scope.template tensor<float>(most_groups * blocks, query_floats);
  const auto partial = scope.template tensor<float>(parts == 1 ? 0 : round * heads, parts, rank);
  const auto states = scope.template tensor<typename block::state>(parts == 1 ? 0 : round * heads, parts);
  const auto scratch = scope.template tensor<float>((items + chunk - 1) / chunk, chunk_floats);
  const std::size_t pack_grain = 1 + (std::size_t{1} << 16) / (blocks * lanes * width + 1);
  const std::size_t merge_grain = 1 + (std::size_t{1} << 16) / (parts * rank + 1);

  for (std::size_t first = 0; first < tokens; first += round) {
    const std::size_t count = std::min(round, tokens - first);
    std::size_t group_count = 0;
    for_each_group(context, first, first + count, heads, blocks * lanes,
                   [&](const mla_decode_group&) { ++group_count; });
    be.parallel_for(1, 1, [&](std::size_t, std::size_t) {
      std::size_t g = 0;
      for_each_group(context, first, first + count, heads, blocks * lanes,
                     [&](const mla_decode_group& group) { groups(g++) = group; });
    });

    be.parallel_for(group_count, pack_grain, [&](std::size_t begin, std::size_t end) {
      for (std::size_t g = begin; g < end; ++g) {
        const mla_decode_group& group = groups(g);
        for (std::size_t q = 0; q < group.count; q += lanes) {
          const float *latent[lanes], *roped[lanes];
          const std::size_t count_here = std::min(lanes, group.count - q);
          for (std::size_t lane = 0; lane < count_here; ++lane) {
            const std::size_t t = group.token + (group.lane + q + lane) / heads, h = (group.lane + q + lane) % heads;
            latent[lane] = &q_latent(t, h, std::size_t{0});
            roped[lane] = &q_rope(t, h, std::size_t{0});
          }
          Products::pack(shape, latent, roped, count_here, scale, packed.row(g * blocks + q / lanes));
        }
      }
    });

    be.parallel_for(group_count * parts, chunk, [&](std::size_t begin, std::size_t end) {
      for (std::size_t item = begin; item < end; ++item) {
        const std::size_t p = item % parts;
        const mla_decode_group& group = groups(item / parts);
        const auto token_of = [&](std::size_t q) { return group.token + (group.lane + q) / heads; };
        // The last query's token sees most: its rows hold what the others see.
        const row_bytes& rows = context[token_of(group.count - 1)];
        const std::size_t part = mla_decode_part(rows.length), own_parts = mla_decode_parts(rows.length);
        if (p >= own_parts) continue;
        const std::size_t own_blocks = (group.count + lanes - 1) / lanes;
        float* const memory = scratch.row(begin / chunk);
        std::array<block, most_blocks> attention;
        for (std::size_t b = 0; b < own_blocks; ++b) {
          const std::size_t in_block = std::min(lanes, group.count - b * lanes);
          float* out[lanes];
          for (std::size_t lane = 0; lane < in_block; ++lane) {
            const std::size_t t = token_of(b * lanes + lane), h = (group.lane + b * lanes + lane) % heads;
            out[lane] =
                own_parts == 1 ? &y(t, h, std::size_t{0}) : &partial((t - first) * heads + h, p, std::size_t{0});
          }
          attention[b].start(shape, packed.row(item / parts * blocks + b),
                             memory + decoded_floats + key_floats + b * block_floats, out, in_block);
        }
        attention_keys rows_of_tile;
        typename Products::keys keys(shape, memory + decoded_floats);
        const std::size_t last = std::min(rows.length, (p + 1) * part);
        for (std::size_t c = p * part; c < last; c += attention_keys::size) {
          const std::size_t in_tile = std::min(attention_keys::size, last - c);
          take_keys(rows, decode, c, in_tile, rank, width, memory, rows_of_tile);
          for (std::size_t b = 0; b < own_blocks; ++b) {
            std::ptrdiff_t visible[lanes];
            for (std::size_t lane = 0; lane < lanes; ++lane) {
              const std::size_t q = std::min(b * lanes + lane, group.count - 1);
              visible[lane] = static_cast<std::ptrdiff_t>(context[token_of(q)].length) - static_cast<std::ptrdiff_t>(c);
            }
            attention[b].see(in_tile, visible);
          }
          attend(attention.data(), own_blocks, rows_of_tile, in_tile, keys);
        }
        for (std::size_t b = 0; b < own_blocks; ++b) {
          attention[b].finish();
          if (own_parts == 1) {
            attention[b].normalise();
            continue;
          }
          for (std::size_t lane = 0; lane < std::min(lanes, group.count - b * lanes); ++lane) {
            const std::size_t q = b * lanes + lane;
            states((token_of(q) - first) * heads + (group.lane + q) % heads, p) = attention[b].state_of(lane);
          }
        }
      }
    });

    if (parts == 1) continue;
    be.parallel_for(count * heads, merge_grain, [&](std::size_t begin, std::size_t end) {
      for (std::size_t item = begin; item < end; ++item) {
        const std::size_t t = item / heads, h = item % heads;
        const std::size_t own_parts = mla_decode_parts(context[first + t].length);
        if (own_parts == 1) continue;
        float largest = -INFINITY, sum = 0.0f, factor[32];
        for (std::size_t p = 0; p < own_parts; ++p) largest = std::fmax(largest, states(item, p).maximum);
        for (std::size_t p = 0; p < own_parts; ++p) {
          factor[p] = std::exp(states(item, p).maximum - largest);
          sum = std::fma(factor[p], states(item, p).total, sum);  // said, for compilers fuse here and there
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

// Rows of any form. One instantiation holds every kernel: see kernels/extern.hpp.
template <class Arch, class Executor>
void mla_decode_rows(simd<Arch, Executor>& be, view<const float, 3> q_latent, view<const float, 3> q_rope,
                     std::span<const row_bytes> context, row_decoder decode, float scale, view<float, 3> y) {
  std::size_t together = 0;
  for_each_group(context, 0, context.size(), q_latent.extent(1), std::size_t{1} << 16,
                 [&](const mla_decode_group& group) { together = std::max(together, group.count); });
  with_attention_products<Arch>(together, [&]<class Products>() {
    mla_decode_blocks<Products>(be, q_latent, q_rope, context, together, decode, scale, y);
  });
}

}  // namespace detail

template <class Arch, class Executor, class T>
void mla_decode_impl(simd<Arch, Executor>& be, view<const float, 3> q_latent, view<const float, 3> q_rope,
                     std::span<const paged_rows<const T>> context, float scale, view<float, 3> y) {
  const std::size_t heads = q_latent.extent(1), tokens = context.size();
  if (tokens == 0 || heads == 0) return;
  auto scope = be.scope();
  const auto rows = scope.template tensor<detail::row_bytes>(tokens);
  be.parallel_for(1, 1, [&](std::size_t, std::size_t) {
    for (std::size_t t = 0; t < tokens; ++t) rows(t) = detail::as_bytes(context[t]);
  });
  detail::mla_decode_rows(be, q_latent, q_rope, std::span<const detail::row_bytes>(rows.data(), tokens),
                          detail::decoder_of<Arch, T>(), scale, y);
}

MOTE_END_NAMESPACE
