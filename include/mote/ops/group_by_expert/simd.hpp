#pragma once

#include "../../core/simd.hpp"
#include "reference.hpp"

MOTE_BEGIN_NAMESPACE

template <class Arch, class Executor>
void group_by_expert_impl(simd<Arch, Executor>& be, view<const std::int32_t, 2> indices, view<std::int32_t, 1> offsets,
                          view<std::int32_t, 1> slots) {
  be.parallel_for(1, 1, [&](std::size_t, std::size_t) { group_by_expert_serial(indices, offsets, slots); });
}

MOTE_END_NAMESPACE
