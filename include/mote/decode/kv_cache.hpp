// A paged cache for all layers of a model, and the sequences that live in it.
//
// A page holds `page_size` rows of every layer. Pages come from one pool and go back to it, so sequences of different
// lengths share the memory; a sequence's block table lists its pages in order and is the same for all layers. All memory
// is taken at construction: decoding allocates nothing.
// Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention" (2023).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../core/buffer.hpp"
#include "../core/error.hpp"
#include "../core/paged.hpp"

MOTE_BEGIN_NAMESPACE

class kv_cache {
 public:
  // One sequence: its pages in order and the number of rows in use.
  struct sequence {
    std::vector<std::int32_t> block_table;
    std::size_t length = 0;
  };

  // `width` floats a row. Throws shape_error when a size is zero or memory would overflow.
  kv_cache(std::size_t layers, std::size_t pages, std::size_t page_size, std::size_t width)
      : pages_(pages), page_size_(page_size), width_(width) {
    check(layers > 0 && pages > 0 && page_size > 0 && width > 0, "kv_cache", "sizes: must be positive");
    const std::size_t limit = static_cast<std::size_t>(1) << 46;
    check(pages <= std::size_t{0x7FFFFFFF}, "kv_cache", "pages: too many to number");
    check(layers < limit && pages < limit / layers && page_size < limit / layers / pages &&
              width < limit / layers / pages / page_size,
          "kv_cache", "sizes: their product overflows memory");
    storage_ = buffer<float>(layers * pages * page_size * width);
    for (std::size_t page = pages; page-- > 0;) free_.push_back(static_cast<std::int32_t>(page));
  }

  std::size_t page_size() const { return page_size_; }
  std::size_t free_pages() const { return free_.size(); }
  std::size_t bytes() const { return storage_.size() * sizeof(float); }

  // An empty sequence that can grow to the whole pool without allocating.
  sequence make_sequence() const {
    sequence s;
    s.block_table.reserve(pages_);
    return s;
  }

  // Makes the sequence `length` rows long: takes pages as it grows, gives them back as it shrinks.
  // Throws shape_error, changing nothing, when the pool has too few pages.
  void resize(sequence& s, std::size_t length) {
    const std::size_t needed = (length + page_size_ - 1) / page_size_;
    if (needed > s.block_table.size() && needed - s.block_table.size() > free_.size()) {
      raise<shape_error>("kv_cache: length: " + std::to_string(length) + " rows need " +
                         std::to_string(needed - s.block_table.size()) + " more pages, " +
                         std::to_string(free_.size()) + " are free");
    }
    while (s.block_table.size() < needed) {
      s.block_table.push_back(free_.back());
      free_.pop_back();
    }
    while (s.block_table.size() > needed) {
      free_.push_back(s.block_table.back());
      s.block_table.pop_back();
    }
    s.length = length;
  }

  // The rows of one layer that belong to the sequence.
  paged_rows<float> rows(const sequence& s, std::size_t layer) {
    float* first = storage_.data() + layer * pages_ * page_size_ * width_;
    return {view<float, 3>(first, pages_, page_size_, width_), s.block_table, s.length};
  }

 private:
  std::size_t pages_, page_size_, width_;
  buffer<float> storage_;
  std::vector<std::int32_t> free_;
};

MOTE_END_NAMESPACE
