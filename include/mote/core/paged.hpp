// Paged caches: rows of one sequence, stored in pages that a block table lists in order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "config.hpp"
#include "view.hpp"

MOTE_BEGIN_NAMESPACE

// Rows [0, length) of one sequence. Row i is pages[block_table[i / page_size]][i % page_size].
template <class T>
struct paged_rows {
  view<T, 3> pages;                            // [pages, page_size, width]
  std::span<const std::int32_t> block_table;   // [ceil(length / page_size)]
  std::size_t length = 0;

  std::size_t page_size() const { return pages.extent(1); }
  std::size_t width() const { return pages.extent(2); }
  T* row(std::size_t i) const {
    return &pages(static_cast<std::size_t>(block_table[i / page_size()]), i % page_size(), std::size_t{0});
  }
  operator paged_rows<const T>() const
    requires(!std::is_const_v<T>)
  {
    return {pages, block_table, length};
  }
};

MOTE_END_NAMESPACE
