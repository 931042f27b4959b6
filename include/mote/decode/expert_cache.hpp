// Which experts stay in memory where not all of them fit: those that are used most, as far as is known.
//
//   p[l, e] = c[l, e] / n[l]      the share of layer l's choices (a token has top_k of them) that fell on expert e
//   c[l, e] ← γ^m c[l, e] + m_e,   n[l] ← γ^m n[l] + m      after a step with m choices, m_e of them expert e's
//   γ = 2^(-1 / half_life)
//
// The expert with the least p gives way. Shares are compared, not times of use: a step walks through the layers in turn, so
// that the expert used longest ago is the one needed soonest, and a long prompt, which needs nearly all experts of every
// layer, would sweep out all that was kept. The average forgets, so that a change of subject is followed.
// Source: least frequently used with ageing, as in Arlitt et al., "Evaluating content management techniques for web proxy
// caches" (2000).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../core/view.hpp"

MOTE_BEGIN_NAMESPACE

struct expert_cache_statistics {
  std::size_t hits = 0, misses = 0;  // experts that a layer needed in a step, found or not
  std::size_t bytes_brought = 0;     // of the misses, and of what fill() brought in
};

// Keeps the books only; the memory is its owner's. Allocates nothing after it was made.
class expert_cache {
 public:
  // bytes[l][e]: the size of layer l's expert e.
  explicit expert_cache(const std::vector<std::vector<std::size_t>>& bytes, double half_life = 16384)
      : half_life_(half_life) {
    for (const auto& sizes : bytes) {
      layer& l = layers_.emplace_back();
      for (const std::size_t size : sizes) l.experts.push_back({size});
    }
  }

  std::size_t layers() const { return layers_.size(); }
  std::size_t experts(std::size_t l) const { return layers_[l].experts.size(); }
  bool resident(std::size_t l, std::size_t e) const { return layers_[l].experts[e].resident; }
  std::size_t resident_bytes() const { return resident_bytes_; }
  const expert_cache_statistics& statistics() const { return statistics_; }

  // p[l, e], 0 where nothing is known.
  double share(std::size_t l, std::size_t e) const {
    return layers_[l].choices > 0.0 ? layers_[l].experts[e].choices / layers_[l].choices : 0.0;
  }

  // Choices of layer l's expert e so far, those of the profile included.
  std::uint64_t uses(std::size_t l, std::size_t e) const { return layers_[l].experts[e].uses; }

  // Begins with what an earlier run has counted: uses[l][e]. Throws shape_error unless they fit.
  void begin_with(const std::vector<std::vector<std::uint64_t>>& uses) {
    check(uses.size() == layers_.size(), "expert_cache",
          "uses: expected " + std::to_string(layers_.size()) + " layers, got " + std::to_string(uses.size()));
    for (std::size_t l = 0; l < uses.size(); ++l) {
      check(uses[l].size() == experts(l), "expert_cache",
            "uses: layer " + std::to_string(l) + ": expected " + std::to_string(experts(l)) + " experts, got " +
                std::to_string(uses[l].size()));
      double total = 0.0;
      for (const std::uint64_t n : uses[l]) total += static_cast<double>(n);
      const double trust = total > 0.0 ? std::min(1.0, half_life_ / total) : 0.0;  // no more than recent choices have
      layers_[l].choices = total * trust;
      for (std::size_t e = 0; e < uses[l].size(); ++e) {
        layers_[l].experts[e].uses = uses[l][e];
        layers_[l].experts[e].choices = static_cast<double>(uses[l][e]) * trust;
      }
    }
  }

  // The most bytes that experts may have from now on. At least one expert is let in all the same.
  void set_capacity(std::size_t bytes) { capacity_ = bytes; }

  // Brings in the experts with the largest shares, as many as fit: bring(l, e).
  template <class Bring>
  void fill(Bring&& bring) {
    std::vector<std::pair<std::size_t, std::size_t>> order;
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      for (std::size_t e = 0; e < experts(l); ++e) {
        if (!resident(l, e) && share(l, e) > 0.0) order.push_back({l, e});
      }
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](auto a, auto b) { return share(a.first, a.second) > share(b.first, b.second); });
    for (const auto& [l, e] : order) {
      if (resident_bytes_ + layers_[l].experts[e].bytes > capacity_) return;
      enter(l, e, bring);
    }
  }

  // A step of layer l as expert_residency::require has it: bring(l, e) for every expert that must come, release(l, e) for
  // every one that must go before.
  template <class Bring, class Release>
  std::size_t require(std::size_t l, view<const std::int32_t, 1> offsets, std::size_t first, Bring&& bring,
                      Release&& release) {
    if (first == 0) record(l, offsets);
    const step s{l, offsets, first};
    while (resident_bytes_ > capacity_ && give_way(s, first, 2.0, true, release)) {
    }
    std::size_t brought = 0;
    for (std::size_t e = first; e < experts(l); ++e) {
      if (!s.uses(e)) continue;
      if (resident(l, e)) {
        ++statistics_.hits;
        continue;
      }
      // A step of few tokens passes at once; a prompt's stream of experts does not displace what is used more.
      const std::size_t size = layers_[l].experts[e].bytes;
      const double limit = brought < smallest_group ? 2.0 : share(l, e);
      while (resident_bytes_ + size > capacity_ && give_way(s, e, limit, e == s.next(first), release)) {
      }
      if (resident_bytes_ + size > capacity_ && e != s.next(first)) return e;
      enter(l, e, bring);
      ++brought;
      ++statistics_.misses;
    }
    return experts(l);
  }

 private:
  static constexpr std::size_t smallest_group = 8;  // experts worth working on at once

  struct expert {
    std::size_t bytes = 0;
    bool resident = false;
    double choices = 0.0;
    std::uint64_t uses = 0;
  };
  struct layer {
    std::vector<expert> experts;
    double choices = 0.0;
  };

  struct step {
    std::size_t layer;
    view<const std::int32_t, 1> offsets;
    std::size_t first;

    bool uses(std::size_t e) const { return offsets(e) < offsets(e + 1); }
    std::size_t next(std::size_t e) const {
      while (!uses(e)) ++e;
      return e;
    }
  };

  void record(std::size_t l, view<const std::int32_t, 1> offsets) {
    const auto total = static_cast<double>(offsets(offsets.size() - 1));
    const double keep = std::exp2(-total / half_life_);
    layers_[l].choices = layers_[l].choices * keep + total;
    for (std::size_t e = 0; e < experts(l); ++e) {
      const auto n = static_cast<std::uint64_t>(offsets(e + 1) - offsets(e));
      expert& x = layers_[l].experts[e];
      x.choices = x.choices * keep + static_cast<double>(n);
      x.uses += n;
    }
  }

  template <class Bring>
  void enter(std::size_t l, std::size_t e, Bring&& bring) {
    layers_[l].experts[e].resident = true;
    resident_bytes_ += layers_[l].experts[e].bytes;
    statistics_.bytes_brought += layers_[l].experts[e].bytes;
    bring(l, e);
  }

  // Releases the expert with the least share, if that is below `limit`; whether there was one. Experts that the step reads
  // now, [s.first, end), stay; those it will read later do too, unless there is no other way.
  template <class Release>
  bool give_way(const step& s, std::size_t end, double limit, bool any, Release&& release) {
    const auto coldest = [&](bool later) {
      std::pair<std::size_t, std::size_t> found{layers_.size(), 0};
      double least = limit;
      for (std::size_t l = 0; l < layers_.size(); ++l) {
        for (std::size_t e = 0; e < experts(l); ++e) {
          if (!resident(l, e) || share(l, e) >= least) continue;
          if (l == s.layer && e >= s.first && s.uses(e) && (e < end || !later)) continue;
          least = share(l, e);
          found = {l, e};
        }
      }
      return found;
    };
    auto found = coldest(false);
    if (found.first == layers_.size() && any) found = coldest(true);
    const auto [l, e] = found;
    if (l == layers_.size()) return false;
    layers_[l].experts[e].resident = false;
    resident_bytes_ -= layers_[l].experts[e].bytes;
    release(l, e);
    return true;
  }

  std::vector<layer> layers_;
  double half_life_;
  std::size_t capacity_ = 0, resident_bytes_ = 0;
  expert_cache_statistics statistics_;
};

MOTE_END_NAMESPACE
