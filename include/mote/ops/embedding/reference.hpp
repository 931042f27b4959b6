#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "../../core/backend.hpp"
#include "../../quant/weight.hpp"

MOTE_BEGIN_NAMESPACE

inline void embedding_impl(reference&, std::span<const std::int32_t> ids, const weight& table,
                           view<float, 2> y) noexcept {
  for (std::size_t t = 0; t < ids.size(); ++t) dequantize_row(table, static_cast<std::size_t>(ids[t]), y.row(t));
}

MOTE_END_NAMESPACE
