// Rows of a table: y[t, :] = float32(table[ids[t], :]).
//
// ids: [tokens], each in [0, vocab); table: [vocab, hidden] in any weight format; y: [tokens, hidden].
// Throws shape_error when shapes differ or an id is out of range.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "../../core/error.hpp"
#include "../../quant/weight.hpp"
#include "reference.hpp"
#include "simd.hpp"

MOTE_BEGIN_NAMESPACE

template <backend Backend>
void embedding(Backend& be, std::span<const std::int32_t> ids, const weight& table, view<float, 2> y) {
  check_view("embedding", "y", y, {ids.size(), in_features(table)});
  check_rows("embedding", "table", table);
  for (const std::int32_t id : ids) {
    if (id < 0 || static_cast<std::size_t>(id) >= out_features(table)) {
      raise<shape_error>("embedding: ids: token id " + std::to_string(id) + " is outside [0, " +
                         std::to_string(out_features(table)) + ")");
    }
  }
  embedding_impl(be, ids, table, y);
}

MOTE_END_NAMESPACE
