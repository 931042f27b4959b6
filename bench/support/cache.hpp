// A paged cache of rows of T beyond the last-level cache, its pages in random order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include <mote/quant/rows.hpp>

#include "support/bench.hpp"

namespace bench {

template <class T>
class scattered_cache {
 public:
  scattered_cache(std::size_t page_size, std::size_t width)
      : page_size_(page_size),
        width_(width / mote::row_format::of<T>().block_size),
        memory_(beyond_cache() / sizeof(T) / page_size / width_ * page_size * width_),
        table_(memory_.size() / page_size / width_) {
    std::iota(table_.begin(), table_.end(), 0);
    std::shuffle(table_.begin(), table_.end(), std::minstd_rand(1));
  }

  mote::paged_rows<T> rows() {
    return {memory_.as(table_.size(), page_size_, width_), table_, table_.size() * page_size_};
  }

 private:
  std::size_t page_size_, width_;
  mote::buffer<T> memory_;
  std::vector<std::int32_t> table_;
};

}  // namespace bench
