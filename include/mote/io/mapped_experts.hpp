// Experts in a mapped file of which only some are in memory, so that a model larger than memory runs.
//
// Bounds what the process has in memory, everything counted: experts get what the rest leaves of it. Experts that are needed
// are read from the file, those used least go (decode/expert_cache.hpp), out of the system's file cache too: kept there
// they would drive out of a machine that is full what is in use.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "../core/backend.hpp"
#include "../core/view.hpp"
#include "../decode/expert_cache.hpp"
#include "../ops/grouped_ffn/residency.hpp"
#include "resident.hpp"

MOTE_BEGIN_NAMESPACE

class mapped_experts {
 public:
  using region = std::span<const std::byte>;  // of the mapped file, its pages the expert's own (weight_file::region)

  // experts[l][e]: layer l's expert e. memory_limit: bytes of the whole process, which must leave room for one expert;
  // `reserve`: what the rest of the process may come to need within a step beyond what it has.
  mapped_experts(std::vector<std::vector<region>> experts, std::size_t memory_limit, std::size_t reserve)
      : experts_(std::move(experts)), cache_(sizes(experts_)), limit_(memory_limit) {
    for (std::size_t l = 0; l < experts_.size(); ++l) layers_.push_back(layer_residency(*this, l));
    set_reserve(reserve);
    update_capacity();
  }
  mapped_experts(const mapped_experts&) = delete;
  mapped_experts& operator=(const mapped_experts&) = delete;

  // Another `reserve`, before a step, beyond what the rest of the process has now.
  void set_reserve(std::size_t bytes) { reserved_ = rest() + bytes; }

  expert_residency& layer(std::size_t l) { return layers_[l]; }
  std::size_t limit() const { return limit_; }
  const expert_cache& cache() const { return cache_; }

  // Begins with the experts that an earlier run used most, in memory before the first step. Throws as
  // expert_cache::begin_with.
  template <host Backend>
  void begin_with(Backend& be, const std::vector<std::vector<std::uint64_t>>& uses) {
    cache_.begin_with(uses);
    std::vector<region> chosen;
    cache_.fill([&](std::size_t l, std::size_t e) { chosen.push_back(experts_[l][e]); });
    be.parallel_for(chosen.size(), 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        prefetch_pages(chosen[i]);
        touch_pages(chosen[i]);
      }
    });
  }

 private:
  class layer_residency final : public expert_residency {
   public:
    layer_residency(mapped_experts& all, std::size_t layer) : all_(&all), layer_(layer) {}
    std::size_t require(view<const std::int32_t, 1> offsets, std::size_t first) override {
      return all_->require(layer_, offsets, first);
    }

   private:
    mapped_experts* all_;
    std::size_t layer_;
  };

  static std::vector<std::vector<std::size_t>> sizes(const std::vector<std::vector<region>>& experts) {
    std::vector<std::vector<std::size_t>> result;
    for (const auto& layer : experts) {
      auto& row = result.emplace_back();
      for (const region& r : layer) row.push_back(r.size());
    }
    return result;
  }

  // What the process has beside experts. Those brought in are resident once they were used, which they are before the next call.
  std::size_t rest() const {
    const std::size_t now = resident_memory(), experts = cache_.resident_bytes();
    return now > experts ? now - experts : 0;
  }
  void update_capacity() {
    const std::size_t needed = std::max(rest(), reserved_);
    cache_.set_capacity(limit_ > needed ? limit_ - needed : 0);
  }

  std::size_t require(std::size_t l, view<const std::int32_t, 1> offsets, std::size_t first) {
    update_capacity();
    return cache_.require(
        l, offsets, first, [&](std::size_t layer, std::size_t e) { prefetch_pages(experts_[layer][e]); },
        [&](std::size_t layer, std::size_t e) { evict_pages(experts_[layer][e]); });
  }

  std::vector<std::vector<region>> experts_;
  expert_cache cache_;
  std::vector<layer_residency> layers_;
  std::size_t limit_, reserved_ = 0;  // reserved_: what the rest may come to have
};

MOTE_END_NAMESPACE
