#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../../core/simd.hpp"
#include "../../core/vector_math.hpp"
#include "../../core/view.hpp"
#include "config.hpp"
#include "reference.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// Routes a token at a time, nearly without branches that depend on the data: groups and experts are chosen by counting
// how many come before each.
//
//   1. scores, and the values the choice is made by, of all experts
//   2. the two best of every group, from which the groups are ranked
//   3. a lower bound of the K-th best: the experts of the kept groups go round-robin into at least 2K buckets, and the
//      K-th best of the buckets' maxima is such a bound; the few experts that reach it are ranked against each other
template <class Arch>
class token_router {
  using vector = batch<float, Arch>;
  static constexpr std::size_t size = vector::size;

 public:
  token_router(const router_config& config, std::size_t experts)
      : config_(config),
        experts_(experts),
        groups_(config.method == topk_method::greedy ? 1 : config.n_group),
        kept_groups_(config.method == topk_method::greedy ? 1 : config.topk_group),
        group_size_(experts / groups_) {}

  // Scratch memory of one call.
  std::size_t floats() const { return 4 * padded(experts_) + size + 2 * (padded(groups_) + buckets()); }
  std::size_t integers() const { return experts_ + groups_ + 1; }

  void operator()(const float* logits, const float* bias, float* floats, std::int32_t* integers, std::int32_t* indices,
                  float* weights) const noexcept {
    const std::size_t top_k = config_.num_experts_per_tok;
    float* const score = floats;
    float* const choice = score + padded(experts_);  // a group's last vector may run past the end
    float* const group_score = choice + padded(experts_) + size;
    float* const group_rank = group_score + padded(groups_);
    float* const bucket = group_rank + padded(groups_);
    float* const bucket_rank = bucket + buckets();
    float* const value = bucket_rank + buckets();
    float* const rank = value + padded(experts_);
    std::int32_t* const kept = integers;  // the first experts of the kept groups
    std::int32_t* const chosen = kept + groups_ + 1;

    make_scores(logits, bias, score, choice);
    if (kept_groups_ < groups_) {
      for (std::size_t g = 0; g < groups_; ++g) group_score[g] = score_group(choice + g * group_size_);
      rank_all(group_score, groups_, group_rank);
    } else {
      std::fill_n(group_rank, groups_, 0.0f);
    }
    for (std::size_t g = 0, k = 0; g < groups_; ++g) {
      kept[k] = static_cast<std::int32_t>(g * group_size_);
      k += group_rank[g] < static_cast<float>(kept_groups_);
    }
    const vector bound(lower_bound(choice, kept, bucket, bucket_rank));

    std::size_t count = 0;
    for (std::size_t k = 0; k < kept_groups_; ++k) {
      const float* const group = choice + kept[k];
      for (std::size_t j = 0; j < group_size_; j += size) {
        const std::uint64_t last =
            group_size_ - j < size ? (std::uint64_t{1} << (group_size_ - j)) - 1 : ~std::uint64_t{0};
        std::uint64_t reached = lane_mask<Arch>(vector::load_unaligned(group + j) >= bound) & last;
        for (; reached != 0; reached &= reached - 1) {
          chosen[count++] = kept[k] + static_cast<std::int32_t>(j) + std::countr_zero(reached);
        }
      }
    }
    if (count <= std::max<std::size_t>(4 * top_k, 64)) {
      for (std::size_t i = 0; i < count; ++i) value[i] = choice[static_cast<std::size_t>(chosen[i])];
      rank_all(value, count, rank);
      for (std::size_t i = 0, k = 0; i < count; ++i) {
        chosen[k] = chosen[i];
        k += rank[i] < static_cast<float>(top_k);
      }
    } else {  // many equal values
      const auto before = [choice](std::int32_t a, std::int32_t b) {
        const float x = choice[a], y = choice[b];
        return x > y || (x == y && a < b);
      };
      std::nth_element(chosen, chosen + (top_k - 1), chosen + count, before);
      std::sort(chosen, chosen + top_k, [](std::int32_t a, std::int32_t b) { return a < b; });
    }

    float total = 0.0f;
    for (std::size_t k = 0; k < top_k; ++k) {
      indices[k] = chosen[k];
      weights[k] = score[chosen[k]];
      total += weights[k];
    }
    const float scale = route_scale(config_, total);
    for (std::size_t k = 0; k < top_k; ++k) weights[k] *= scale;
  }

 private:
  static std::size_t padded(std::size_t n) { return (n + size - 1) / size * size; }
  std::size_t buckets() const { return padded(2 * config_.num_experts_per_tok); }

  static vector larger(const vector& a, const vector& b) { return xsimd::max(a, b); }
  static vector smaller(const vector& a, const vector& b) { return xsimd::min(a, b); }

  void make_scores(const float* logits, const float* bias, float* score, float* choice) const {
    const auto store = [&](std::size_t e, const vector& s, auto load) {
      const vector c = bias == nullptr ? s : s + load(bias + e);
      s.store_unaligned(score + e);
      xsimd::select(c == c, c, vector(-INFINITY)).store_unaligned(choice + e);
    };
    if (config_.scoring == scoring_func::sigmoid) {
      for_each_vector<Arch>(experts_, [&](std::size_t e, auto load, auto) {
        store(e, vector(1.0f) / (vector(1.0f) + exp_vector<Arch>(-load(logits + e))), load);
      });
      return;
    }
    vector best(-INFINITY), total(0.0f);
    for_each_vector<Arch>(
        experts_, [&](std::size_t e, auto load, auto) { best = larger(load(logits + e), best); }, -INFINITY);
    const vector shift(detail::largest<Arch>(best));
    for_each_vector<Arch>(
        experts_,
        [&](std::size_t e, auto load, auto) {
          const vector s = exp_nonpositive<Arch>(load(logits + e) - shift);
          s.store_unaligned(score + e);
          total += s;
        },
        -INFINITY);
    const vector scale(1.0f / sum(total));
    for_each_vector<Arch>(
        experts_, [&](std::size_t e, auto load, auto) { store(e, vector::load_unaligned(score + e) * scale, load); });
  }

  // The vector at element j of a group, -infinity past the group's end.
  vector group_vector(const float* group, std::size_t j) const {
    const vector v = vector::load_unaligned(group + j);
    if (j + size <= group_size_) return v;
    return xsimd::select(lane_numbers<Arch>() < vector(static_cast<float>(group_size_ - j)), v, vector(-INFINITY));
  }

  float score_group(const float* group) const {
    vector first(-INFINITY), second(-INFINITY);
    for (std::size_t j = 0; j < group_size_; j += size) {
      const vector v = group_vector(group, j);
      second = larger(second, smaller(first, v));
      first = larger(first, v);
    }
    alignas(64) float a[size], b[size];
    first.store_aligned(a);
    second.store_aligned(b);
    fold_best_two<size / 2>(a, b);
    const bool pair = config_.method == topk_method::noaux_tc && group_size_ > 1;
    return rankable(pair ? a[0] + b[0] : a[0]);
  }

  // a[0] and b[0] become the two largest of all, given the two largest of every lane.
  template <std::size_t Half>
  static void fold_best_two(float* a, float* b) {
    for (std::size_t i = 0; i < Half; ++i) {
      const float x = a[i], y = a[i + Half], z = b[i] > b[i + Half] ? b[i] : b[i + Half];
      const float low = x > y ? y : x;
      a[i] = x > y ? x : y;
      b[i] = low > z ? low : z;
    }
    if constexpr (Half > 1) fold_best_two<Half / 2>(a, b);
  }

  // rank[i] = how many of the n values come before value i: larger ones, and equal ones of a lower index. Both arrays
  // hold whole vectors. Two sums, since an addition takes several cycles.
  static void rank_all(const float* values, std::size_t n, float* rank) {
    for (std::size_t i = 0; i < n; i += size) {
      const vector own = vector::load_unaligned(values + i);
      const vector index = lane_numbers<Arch>() + vector(static_cast<float>(i));
      vector before[2] = {vector(0.0f), vector(0.0f)};
      for (std::size_t j = 0; j < n; ++j) {
        const vector other(values[j]), j_index(static_cast<float>(j));
        const auto first = (other > own) || ((other == own) && (j_index < index));
        before[j % 2] += xsimd::select(first, vector(1.0f), vector(0.0f));
      }
      (before[0] + before[1]).store_unaligned(rank + i);
    }
  }

  // At least K experts of the kept groups are no smaller than this.
  float lower_bound(const float* choice, const std::int32_t* kept, float* bucket, float* bucket_rank) const {
    const std::size_t n = buckets();
    for (std::size_t b = 0; b < n; b += size) {
      vector best(-INFINITY);
      for (std::size_t k = 0, j = b; k < kept_groups_; j += n) {
        for (; k < kept_groups_ && j >= padded(group_size_); j -= padded(group_size_)) ++k;
        if (k < kept_groups_) best = larger(group_vector(choice + kept[k], j), best);
      }
      best.store_unaligned(bucket + b);
    }
    rank_all(bucket, n, bucket_rank);
    const vector last(static_cast<float>(config_.num_experts_per_tok - 1));
    vector bound(-INFINITY);
    for (std::size_t i = 0; i < n; i += size) {
      bound = larger(bound, xsimd::select(vector::load_unaligned(bucket_rank + i) == last,
                                          vector::load_unaligned(bucket + i), vector(-INFINITY)));
    }
    return detail::largest<Arch>(bound);
  }

  const router_config& config_;
  std::size_t experts_, groups_, kept_groups_, group_size_;
};

}  // namespace detail

template <class Arch, class Executor>
void route_impl(simd<Arch, Executor>& be, const router_config& config, view<const float, 2> logits,
                view<const float, 1> bias, view<std::int32_t, 2> indices, view<float, 2> weights) {
  const std::size_t tokens = logits.extent(0), experts = logits.extent(1);
  const std::size_t grain = 1 + std::size_t{16384} / (experts + 1);
  const detail::token_router<Arch> router(config, experts);
  auto scope = be.scope();
  // Scratch for every range of `grain` tokens: a thread works on one range at a time.
  const std::size_t ranges = (tokens + grain - 1) / grain;
  const auto floats = scope.template tensor<float>(ranges, router.floats());
  const auto integers = scope.template tensor<std::int32_t>(ranges, router.integers());
  be.parallel_for(tokens, grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) {
      router(logits.row(t), bias.empty() ? nullptr : bias.data(), floats.row(begin / grain),
             integers.row(begin / grain), indices.row(t), weights.row(t));
    }
  });
}

MOTE_END_NAMESPACE
