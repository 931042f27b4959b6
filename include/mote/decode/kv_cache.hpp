// A paged cache for all layers of a model, and the sequences that live in it.
//
// A page holds `page_size` rows of every layer. A row is `width` numbers, whatever attention keeps of a token: MLA's latent
// and rotary key, or keys and values of all heads side by side. Rows are float32 or any other row_format (quant/rows.hpp).
// Pages come from one pool and go back to it, so sequences of different lengths share the memory; a sequence's block table
// lists its pages in order and is the same for all layers. All memory is taken at construction: decoding allocates nothing.
// Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention" (2023).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../core/buffer.hpp"
#include "../core/error.hpp"
#include "../core/paged.hpp"
#include "../quant/rows.hpp"

MOTE_BEGIN_NAMESPACE

class kv_cache {
 public:
  // One sequence: its pages in order and the number of rows in use.
  struct sequence {
    std::vector<std::int32_t> block_table;
    std::size_t length = 0;
  };

  // Throws shape_error when a size is zero, memory would overflow or the width is no whole blocks of the format.
  kv_cache(std::size_t layers, std::size_t pages, std::size_t page_size, std::size_t width, row_format format = {})
      : layers_(layers), pages_(pages), page_size_(page_size), format_(format), row_bytes_(format.row_bytes(width)) {
    check(layers > 0 && pages > 0 && page_size > 0 && width > 0, "kv_cache", "sizes: must be positive");
    const std::size_t limit = static_cast<std::size_t>(1) << 46;
    check(pages <= std::size_t{0x7FFFFFFF}, "kv_cache", "pages: too many to number");
    check(layers < limit && pages < limit / layers && page_size < limit / layers / pages &&
              width < limit / layers / pages / page_size,
          "kv_cache", "sizes: their product overflows memory");
    check_whole_blocks("kv_cache", "width", width, format);
    storage_ = buffer<std::byte>(layers * pages * page_size * row_bytes_);
    for (std::size_t page = pages; page-- > 0;) free_.push_back(static_cast<std::int32_t>(page));
  }

  std::size_t page_size() const { return page_size_; }
  std::size_t free_pages() const { return free_.size(); }
  std::size_t bytes() const { return storage_.size(); }
  const row_format& format() const { return format_; }

  // An empty sequence that can grow to the whole pool without allocating.
  sequence make_sequence() const {
    sequence s;
    s.block_table.reserve(pages_);
    return s;
  }

  // Makes the sequence `length` rows long: takes pages as it grows, gives them back as it shrinks.
  // Throws shape_error, changing nothing, when the pool has too few pages.
  void resize(sequence& s, std::size_t length) {
    const std::size_t needed = length / page_size_ + (length % page_size_ != 0);
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

  // The rows of one layer that belong to the sequence. Throws shape_error unless T is the cache's format and the cache has
  // that layer.
  template <row_element T>
  paged_rows<T> rows(const sequence& s, std::size_t layer) {
    check(row_format::of<T>() == format_, "kv_cache", "rows: not of this format");
    check(layer < layers_, "kv_cache", "layer: outside the cache");
    T* first = reinterpret_cast<T*>(storage_.data() + layer * pages_ * page_size_ * row_bytes_);
    return {view<T, 3>(first, pages_, page_size_, row_bytes_ / sizeof(T)), s.block_table, s.length};
  }

  // The same in whatever form of row_elements they are. Throws shape_error also if in none.
  cache_rows rows(const sequence& s, std::size_t layer) {
    cache_rows result;
    bool known = false;
    for_each_format(
        [&]<class T>() {
          if (row_format::of<T>() != format_) return;
          result = rows<T>(s, layer);
          known = true;
        },
        row_elements{});
    check(known, "kv_cache", "rows: their format must be named");
    return result;
  }

 private:
  std::size_t layers_, pages_, page_size_;
  row_format format_;
  std::size_t row_bytes_;
  buffer<std::byte> storage_;
  std::vector<std::int32_t> free_;
};

MOTE_END_NAMESPACE
