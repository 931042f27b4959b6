// Which layer gets which format. Layer l has options o with bytes b_lo and error e_lo; errors of layers add up (they are
// small, so a first-order sum of loss, of relative squared output errors, …):
//
//   assign_within_bytes   least Σ e  with  Σ b <= budget
//   assign_within_error   least Σ b  with  Σ e <= budget
//
// Both relax to the Lagrangian Σ e + λ Σ b, whose solutions for all λ are the steps along each layer's lower convex hull
// in the order of error saved per byte. Steps are taken in that order while they fit; then whatever single change still
// helps, so options off the hull are used too. The result is optimal at the hull's corners and elsewhere at most one
// step's error (or bytes) from it. Ties go to the lower layer, then the lower option: no run differs from another.
// A sensitive layer keeps bf16 because that option's error is far below the others'; one that must keep it has no other.
// Source: Shoham and Gersho, Efficient bit allocation for an arbitrary set of quantizers (1988).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "../core/error.hpp"

MOTE_BEGIN_NAMESPACE

struct layer_option {
  std::size_t bytes = 0;
  double error = 0.0;
};

struct assignment {
  std::vector<std::size_t> choice;  // of each layer, an index into its options
  std::size_t bytes = 0;
  double error = 0.0;
};

namespace detail {

// One step along a layer's hull, from a smaller option to a better one.
struct hull_step {
  std::size_t layer, from, to;
  double saved_per_byte;
};

// The options of the lower convex hull from the smallest to the best.
inline std::vector<std::size_t> convex_hull(const std::vector<layer_option>& options) {
  std::vector<std::size_t> order(options.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return options[a].bytes != options[b].bytes ? options[a].bytes < options[b].bytes
                                                : options[a].error < options[b].error;
  });
  const auto slope = [&](std::size_t a, std::size_t b) {
    return (options[a].error - options[b].error) / static_cast<double>(options[b].bytes - options[a].bytes);
  };
  std::vector<std::size_t> hull;
  for (const std::size_t i : order) {
    if (!hull.empty() && options[i].error >= options[hull.back()].error) continue;
    while (hull.size() >= 2 && slope(hull[hull.size() - 2], hull.back()) <= slope(hull.back(), i)) hull.pop_back();
    hull.push_back(i);
  }
  return hull;
}

inline void sum_up(std::span<const std::vector<layer_option>> layers, assignment& a) {
  a.bytes = 0;
  a.error = 0.0;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    a.bytes += layers[l][a.choice[l]].bytes;
    a.error += layers[l][a.choice[l]].error;
  }
}

// Every layer at the smallest (or the best) end of its hull, and the steps between, most error saved per byte first.
inline assignment hull_end(std::span<const std::vector<layer_option>> layers, bool best,
                           std::vector<hull_step>& steps) {
  assignment a;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    check(!layers[l].empty(), "assign", "layer " + std::to_string(l) + " has no option");
    for (const auto& option : layers[l]) {
      check(std::isfinite(option.error) && option.error >= 0.0, "assign",
            "layer " + std::to_string(l) + ": expected finite errors of 0 or more");
    }
    const auto hull = convex_hull(layers[l]);
    a.choice.push_back(best ? hull.back() : hull.front());
    for (std::size_t i = 0; i + 1 < hull.size(); ++i) {
      const layer_option &from = layers[l][hull[i]], &to = layers[l][hull[i + 1]];
      steps.push_back({l, hull[i], hull[i + 1], (from.error - to.error) / static_cast<double>(to.bytes - from.bytes)});
    }
  }
  std::stable_sort(steps.begin(), steps.end(),
                   [](const hull_step& x, const hull_step& y) { return x.saved_per_byte > y.saved_per_byte; });
  sum_up(layers, a);
  return a;
}

// Changes one layer at a time for as long as `gain(from, to)` of some fitting change is positive, the largest first.
template <class Gain>
void improve(std::span<const std::vector<layer_option>> layers, assignment& a, const Gain& gain) {
  for (;;) {
    double most = 0.0;
    std::size_t layer = 0, choice = 0;
    for (std::size_t l = 0; l < layers.size(); ++l) {
      for (std::size_t o = 0; o < layers[l].size(); ++o) {
        const double g = gain(layers[l][a.choice[l]], layers[l][o]);
        if (g > most) {
          most = g;
          layer = l;
          choice = o;
        }
      }
    }
    if (!(most > 0.0)) return;
    a.choice[layer] = choice;
    sum_up(layers, a);
  }
}

}  // namespace detail

// Throws shape_error when a layer has no options or an error that is not a number of 0 or more, or when even the smallest
// options exceed the budget.
inline assignment assign_within_bytes(std::span<const std::vector<layer_option>> layers, std::size_t budget) {
  std::vector<detail::hull_step> steps;
  assignment a = detail::hull_end(layers, false, steps);
  check(a.bytes <= budget, "assign_within_bytes",
        "budget: expected at least " + std::to_string(a.bytes) + " bytes, got " + std::to_string(budget));
  for (const auto& step : steps) {
    if (a.choice[step.layer] != step.from) continue;  // an earlier step of this layer did not fit
    const std::size_t more = layers[step.layer][step.to].bytes - layers[step.layer][step.from].bytes;
    if (more > budget - a.bytes) continue;
    a.choice[step.layer] = step.to;
    a.bytes += more;
  }
  detail::sum_up(layers, a);
  detail::improve(layers, a, [&](const layer_option& from, const layer_option& to) {
    const bool fits = to.bytes <= from.bytes || to.bytes - from.bytes <= budget - a.bytes;
    return fits ? from.error - to.error : 0.0;
  });
  return a;
}

// Throws shape_error when a layer has no options or an error that is not a number of 0 or more, or when even the best
// options exceed the budget.
inline assignment assign_within_error(std::span<const std::vector<layer_option>> layers, double budget) {
  std::vector<detail::hull_step> steps;
  assignment a = detail::hull_end(layers, true, steps);
  check(a.error <= budget, "assign_within_error",
        "budget: expected at least " + std::to_string(a.error) + ", got " + std::to_string(budget));
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    if (a.choice[step->layer] != step->to) continue;  // a later step of this layer was kept
    a.choice[step->layer] = step->from;
    detail::sum_up(layers, a);
    if (a.error > budget) a.choice[step->layer] = step->to;
  }
  detail::sum_up(layers, a);
  detail::improve(layers, a, [&](const layer_option& from, const layer_option& to) {
    const bool fits = (a.error - from.error + to.error) * (1.0 + 1e-12) <= budget;  // however the sum is rounded
    return fits && to.bytes < from.bytes ? static_cast<double>(from.bytes - to.bytes) : 0.0;
  });
  return a;
}

MOTE_END_NAMESPACE
