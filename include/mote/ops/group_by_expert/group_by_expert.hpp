// Sorts (token, slot) pairs by expert, stably: the order in which grouped ops walk them.
//
// indices: [tokens, top_k], each in [0, experts);  offsets: [experts + 1], slots: [tokens · top_k].
// slots[offsets[e] … offsets[e + 1]) are the flat positions token · top_k + slot that chose expert e, ascending.
// Throws shape_error when shapes differ or an index is out of range.
#pragma once

#include <cstdint>
#include <string>

#include "../../core/error.hpp"
#include "../../core/view.hpp"
#include "reference.hpp"
#include "simd.hpp"

MOTE_BEGIN_NAMESPACE

template <backend Backend>
void group_by_expert(Backend& be, view<const std::int32_t, 2> indices, view<std::int32_t, 1> offsets,
                     view<std::int32_t, 1> slots) {
  check(offsets.extent(0) > 0, "group_by_expert", "offsets: expected shape [experts + 1]");
  check_view("group_by_expert", "slots", slots, {indices.size()});
  const std::size_t experts = offsets.extent(0) - 1;
  for (std::size_t t = 0; t < indices.extent(0); ++t) {
    for (std::size_t k = 0; k < indices.extent(1); ++k) {
      const std::int32_t e = indices(t, k);
      if (e < 0 || static_cast<std::size_t>(e) >= experts) {
        raise<shape_error>("group_by_expert: indices: expert " + std::to_string(e) + " is outside [0, " +
                           std::to_string(experts) + ")");
      }
    }
  }
  group_by_expert_impl(be, indices, offsets, slots);
}

MOTE_END_NAMESPACE
