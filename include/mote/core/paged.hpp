// Paged caches: rows of one sequence, stored in pages that a block table lists in order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "config.hpp"
#include "error.hpp"
#include "view.hpp"

MOTE_BEGIN_NAMESPACE

// Rows [0, length) of one sequence. Row i is pages[block_table[i / page_size]][i % page_size].
template <class T>
struct paged_rows {
  view<T, 3> pages;                           // [pages, page_size, width]
  std::span<const std::int32_t> block_table;  // [ceil(length / page_size)]
  std::size_t length = 0;

  std::size_t page_size() const { return pages.extent(1); }
  std::size_t width() const { return pages.extent(2); }
  T* row(std::size_t i) const {
    return &pages(static_cast<std::size_t>(block_table[i / page_size()]), i % page_size(), std::size_t{0});
  }

  template <class U = T>
    requires(!std::is_const_v<U>)
  operator paged_rows<const U>() const { return {pages, block_table, length}; }
};

// Throws shape_error "op: argument: …" unless the block table covers the length. That its entries are pages of the pool is for
// the caller to see to.
template <class T>
void check_pages(std::string_view op, std::string_view argument, const paged_rows<T>& rows) {
  if (rows.length != 0 && (rows.page_size() == 0 || (rows.length - 1) / rows.page_size() >= rows.block_table.size())) {
    raise<shape_error>(detail::concatenate(
        {op, ": ", argument, ": its block table must cover its length, ", std::to_string(rows.length), " rows"}));
  }
}

// What each of the sequence's last contexts.size() tokens sees: every row up to its own. Runs on a host back end.
template <class Backend, class T>
void causal_contexts(Backend& be, const paged_rows<T>& rows, view<paged_rows<const T>, 1> contexts) {
  const std::size_t tokens = contexts.extent(0);
  be.parallel_for(1, 1, [&](std::size_t, std::size_t) {
    for (std::size_t t = 0; t < tokens; ++t) {
      contexts(t) = rows;
      contexts(t).length = rows.length - tokens + t + 1;
    }
  });
}

MOTE_END_NAMESPACE
