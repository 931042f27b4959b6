// Choosing the next token from logits.
//
// In this order: repetition penalty, temperature, top-k, top-p, min-p, then a draw. temperature = 0 is greedy: the largest
// logit after the penalty, ties to the lower id.
//   repetition penalty r: a logit l of a token seen before becomes l / r if l > 0, else l · r
//   top-k: the k most probable tokens; top-p: the fewest most probable tokens whose sum reaches p;
//   min-p: tokens of at least min_p times the largest probability. At least one token always stays.
// The draw takes the first token, from the most probable down, whose cumulative probability reaches the uniform number.
// Source: Keskar et al., "CTRL" (2019); Fan et al. (2018); Holtzman et al., "The Curious Case of Neural Text Degeneration"
// (2020); Nguyen et al., "Turning Up the Heat: Min-p Sampling" (2024).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "../core/error.hpp"

MOTE_BEGIN_NAMESPACE

struct sampling_config {
  float temperature = 1.0f;
  std::size_t top_k = 0;  // 0: no limit
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  std::uint64_t seed = 0;
};

// Throws shape_error naming the field unless every value is in its range.
inline void check_sampling(const sampling_config& c) {
  check(std::isfinite(c.temperature) && c.temperature >= 0.0f, "sampling", "temperature: must be at least 0");
  check(c.top_p > 0.0f && c.top_p <= 1.0f, "sampling", "top_p: must be above 0 and at most 1");
  check(c.min_p >= 0.0f && c.min_p <= 1.0f, "sampling", "min_p: must be between 0 and 1");
  check(std::isfinite(c.repetition_penalty) && c.repetition_penalty > 0.0f, "sampling",
        "repetition_penalty: must be above 0");
}

// Uniform numbers in [0, 1): the same for a seed on every machine. Source: Steele et al., SplitMix64 (2014).
class uniform_source {
 public:
  explicit uniform_source(std::uint64_t seed) : state_(seed) {}

  double operator()() {
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
  }

 private:
  std::uint64_t state_;
};

class sampler {
 public:
  sampler(const sampling_config& config, std::size_t vocab_size)
      : config_(config), uniform_(config.seed), scores_(vocab_size), seen_(vocab_size) {
    check_sampling(config);
    check(vocab_size > 0, "sampling", "vocab_size: must be positive");
    candidates_.reserve(vocab_size);
  }

  // Counts a token as seen, for the repetition penalty.
  void observe(std::int32_t token) {
    check(token >= 0 && static_cast<std::size_t>(token) < seen_.size(), "sampling", "token: outside the vocabulary");
    seen_[static_cast<std::size_t>(token)] = true;
  }

  // The next token for logits [vocab]. Throws shape_error for another size or when no logit is a number.
  std::int32_t sample(std::span<const float> logits) {
    check(logits.size() == scores_.size(), "sampling", "logits: expected one for each token of the vocabulary");
    std::size_t best = scores_.size();
    for (std::size_t i = 0; i < scores_.size(); ++i) {
      float l = logits[i];
      if (seen_[i]) l = l > 0.0f ? l / config_.repetition_penalty : l * config_.repetition_penalty;
      scores_[i] = l;
      if (!std::isnan(l) && (best == scores_.size() || l > scores_[best])) best = i;
    }
    check(best != scores_.size() && std::isfinite(scores_[best]), "sampling", "logits: no finite largest value");
    if (config_.temperature == 0.0f) return static_cast<std::int32_t>(best);
    return draw(scores_[best]);
  }

 private:
  struct candidate {
    double p;
    std::int32_t id;
  };

  // Whether a is less probable than b: the order of a heap whose top is the most probable token, ties to the lower id.
  static bool less(const candidate& a, const candidate& b) { return a.p < b.p || (a.p == b.p && a.id > b.id); }

  std::int32_t draw(float maximum) {
    candidates_.clear();
    for (std::size_t i = 0; i < scores_.size(); ++i) {
      const double p = std::exp(static_cast<double>(scores_[i] - maximum) / static_cast<double>(config_.temperature));
      if (p > 0.0) candidates_.push_back({p, static_cast<std::int32_t>(i)});
    }
    // candidates_ is [heap of the rest | ranked, the most probable last].
    const auto order = [](const candidate& a, const candidate& b) { return less(a, b); };
    std::make_heap(candidates_.begin(), candidates_.end(), order);
    std::size_t ranked = 0;
    const auto at = [&](std::size_t rank) -> const candidate& { return candidates_[candidates_.size() - 1 - rank]; };
    const auto rank_next = [&] {
      std::pop_heap(candidates_.begin(), candidates_.end() - static_cast<std::ptrdiff_t>(ranked), order);
      return at(ranked++).p;
    };

    std::size_t kept = candidates_.size();
    double total = 0.0;
    if (config_.top_k != 0 && config_.top_k < kept) {
      kept = config_.top_k;
      for (std::size_t rank = 0; rank < kept; ++rank) total += rank_next();
    } else {
      for (const candidate& c : candidates_) total += c.p;
    }
    if (config_.top_p < 1.0f) {
      const double target = total * static_cast<double>(config_.top_p);
      double reached = 0.0;
      std::size_t count = 0;
      while (count < kept && (count == 0 || reached < target)) {
        if (count == ranked) rank_next();
        reached += at(count++).p;
      }
      kept = count;
      total = reached;
    }
    if (config_.min_p > 0.0f) {
      double reached = 0.0;
      std::size_t count = 0;
      while (count < kept) {
        if (count == ranked) rank_next();
        if (count > 0 && at(count).p < static_cast<double>(config_.min_p)) break;
        reached += at(count++).p;
      }
      kept = count;
      total = reached;
    }

    const double target = uniform_() * total;
    double cumulative = 0.0;
    for (std::size_t rank = 0; rank + 1 < kept; ++rank) {
      if (rank == ranked) rank_next();
      cumulative += at(rank).p;
      if (cumulative >= target) return at(rank).id;
    }
    while (ranked < kept) rank_next();
    return at(kept - 1).id;
  }

  sampling_config config_;
  uniform_source uniform_;
  std::vector<float> scores_;
  std::vector<bool> seen_;
  std::vector<candidate> candidates_;
};

MOTE_END_NAMESPACE
