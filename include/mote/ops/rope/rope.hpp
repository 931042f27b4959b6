// Rotary position embedding.
//
// rope_table: cos[t, i] = attention_factor · cos(positions[t] · inv_freq[i]), sin likewise; [tokens, dim/2].
//
// rope: every pair (a, b) of a head's channels becomes (a cos - b sin, b cos + a sin).
//   interleaved                    pair i is channels (2i, 2i+1), written back in place
//   half_split                     pair i is channels (i, i + dim/2), written back in place
//   interleaved_to_half_split      pairs are read interleaved and written half-split (the order of DeepSeek-V3's cache)
// x, y: [tokens, heads, dim], last dimension contiguous; y may be x. Throws shape_error when shapes differ.
// Source: see frequencies.hpp.
#pragma once

#include <cstdint>
#include <span>

#include "../../core/error.hpp"
#include "../../core/view.hpp"
#include "frequencies.hpp"
#include "pairing.hpp"
#include "reference.hpp"
#include "simd.hpp"

MOTE_BEGIN_NAMESPACE

template <backend Backend>
void rope_table(Backend& be, std::span<const std::int32_t> positions, std::span<const float> inv_freq,
                float attention_factor, view<float, 2> cos, view<float, 2> sin) {
  check_view("rope_table", "cos", cos, {positions.size(), inv_freq.size()});
  check_view("rope_table", "sin", sin, {positions.size(), inv_freq.size()});
  rope_table_impl(be, positions, inv_freq, attention_factor, cos, sin);
}

template <backend Backend>
void rope(Backend& be, view<const float, 3> x, view<const float, 2> cos, view<const float, 2> sin, rope_pairing pairing,
          view<float, 3> y) {
  check(x.extent(2) % 2 == 0, "rope", "x: the last dimension must be even");
  check_view("rope", "x", x, {x.extent(0), x.extent(1), x.extent(2)});
  check_view("rope", "cos", cos, {x.extent(0), x.extent(2) / 2});
  check_view("rope", "sin", sin, {x.extent(0), x.extent(2) / 2});
  check_view("rope", "y", y, {x.extent(0), x.extent(1), x.extent(2)});
  rope_impl(be, x, cos, sin, pairing, y);
}

MOTE_END_NAMESPACE
