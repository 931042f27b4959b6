#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "../../core/backend.hpp"
#include "../../quant/weight.hpp"

MOTE_BEGIN_NAMESPACE

template <class Matrix>
void embedding_impl(reference&, std::span<const std::int32_t> ids, const Matrix& table, view<float, 2> y) noexcept {
  for (std::size_t t = 0; t < ids.size(); ++t) {
    for (std::size_t i = 0; i < y.extent(1); ++i) y(t, i) = dequantize(table, static_cast<std::size_t>(ids[t]), i);
  }
}

MOTE_END_NAMESPACE
