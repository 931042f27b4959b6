#pragma once

#include <cstddef>
#include <cstdint>

#include "../../core/backend.hpp"
#include "../../core/view.hpp"

MOTE_BEGIN_NAMESPACE

// A counting sort: count, sum up, place, shift back. Its cost is one pass over [tokens, top_k], so every back end on the
// host uses it.
inline void group_by_expert_serial(view<const std::int32_t, 2> indices, view<std::int32_t, 1> offsets,
                                   view<std::int32_t, 1> slots) noexcept {
  const std::size_t experts = offsets.extent(0) - 1, top_k = indices.extent(1);
  const auto expert_of = [&](std::size_t flat) {
    return static_cast<std::size_t>(indices(flat / top_k, flat % top_k));
  };
  for (std::size_t e = 0; e <= experts; ++e) offsets(e) = 0;
  for (std::size_t i = 0; i < slots.size(); ++i) ++offsets(expert_of(i) + 1);
  for (std::size_t e = 0; e < experts; ++e) offsets(e + 1) += offsets(e);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    slots(static_cast<std::size_t>(offsets(expert_of(i))++)) = static_cast<std::int32_t>(i);
  }
  for (std::size_t e = experts; e > 0; --e) offsets(e) = offsets(e - 1);
  offsets(0) = 0;
}

inline void group_by_expert_impl(reference&, view<const std::int32_t, 2> indices, view<std::int32_t, 1> offsets,
                                 view<std::int32_t, 1> slots) noexcept {
  group_by_expert_serial(indices, offsets, slots);
}

MOTE_END_NAMESPACE
