// GPTQ: rounding that makes up for itself. Columns of W [out, in] are rounded one after another; what a column loses is
// taken over by those that follow, as far as the inputs' second moment G lets them:
//
//   H = G + λ I,  λ = damping · mean diag G;    U upper triangular with Uᵀ U = H⁻¹
//   for i = 0 … in - 1, every row alike:   q_i = round(w_i),   w_j -= (w_i - q_i) U_ij / U_ii  for j > i
//
// U is found without inverting H: in reverse order of channels H = R Rᵀ, R upper triangular, and U = R⁻¹. Where G is kept
// in diagonal blocks, so is U. Channels without input, and few tokens, leave H singular but for λ.
//
// act_order rounds the channels of largest G_cc first, while many others can still take over; scales are then those of the
// weights as they were. Without it a group's scales are fitted when its turn comes, to the weights as corrected by then.
//
// Without a token, or with nothing but zeros, H = I: plain rounding to nearest.
// Source: Frantar et al., GPTQ (2022), arXiv:2210.17323.
#pragma once

// g++ 12 takes intrinsics of AVX-512 that Eigen uses for uninitialised (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <Eigen/Cholesky>
#include <Eigen/Core>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "../core/backend.hpp"
#include "../core/error.hpp"
#include "../core/view.hpp"
#include "../ops/matmul/matmul.hpp"
#include "grid.hpp"
#include "statistics.hpp"

MOTE_BEGIN_NAMESPACE

struct gptq_options {
  float damping = 0.01f;
  bool act_order = false;
};

// The ratios U_ij / U_ii of one layer's inputs: all weights that read the same inputs share them. They take 4 · in · block
// bytes, and 16 · block² more while they are made.
class inverse_hessian {
 public:
  // Throws shape_error unless 0 < damping < ∞ and the second moment is finite.
  explicit inverse_hessian(const activation_statistics& statistics, const gptq_options& options = {})
      : in_(statistics.in_features()), block_(statistics.block()), act_order_(options.act_order), order_(in_) {
    check(options.damping > 0.0f && std::isfinite(options.damping), "gptq", "damping: expected a positive number");
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    double trace = 0.0;
    for (std::size_t c = 0; c < in_; ++c) trace += diagonal(statistics, c);
    check(std::isfinite(trace), "gptq", "statistics: the second moment is not finite");
    identity_ = !(trace > 0.0);
    if (identity_) return;
    const double lambda = static_cast<double>(options.damping) * trace / static_cast<double>(in_);
    for (std::size_t b = 0; b < statistics.blocks(); ++b) {
      const std::size_t begin = b * block_, size = statistics.block_size(b);
      if (act_order_) {
        std::stable_sort(order_.begin() + static_cast<std::ptrdiff_t>(begin),
                         order_.begin() + static_cast<std::ptrdiff_t>(begin + size), [&](std::size_t i, std::size_t j) {
                           return diagonal(statistics, i) > diagonal(statistics, j);
                         });
      }
      ratios_.push_back(factorize(statistics.moment(b), order_.data() + begin, begin, lambda));
    }
  }

  std::size_t in_features() const { return in_; }
  // Whether H is the identity: no token came, or only zeros.
  bool identity() const { return identity_; }
  bool act_order() const { return act_order_; }
  // The channel at each place in the order of rounding.
  view<const std::size_t, 1> order() const { return order_; }

  std::size_t block() const { return block_; }
  // U_ij / U_ii at (j, i) of block b: lower triangular; rows and columns in the order of rounding.
  view<const float, 2> ratios(std::size_t b) const {
    const std::size_t n = std::min(block_, in_ - b * block_);
    return {ratios_[b].data(), n, n};
  }

 private:
  static double diagonal(const activation_statistics& statistics, std::size_t c) {
    const std::size_t i = c % statistics.block();
    return static_cast<double>(statistics.moment(c / statistics.block())(i, i));
  }

  static std::vector<float> factorize(const view<const float, 2>& moment, const std::size_t* order, std::size_t begin,
                                      double lambda) {
    const std::size_t n = moment.extent(0);
    const auto size = static_cast<Eigen::Index>(n);
    const auto channel = [&](Eigen::Index reversed) {
      return order[n - 1 - static_cast<std::size_t>(reversed)] - begin;
    };
    Eigen::MatrixXd h(size, size);
    // Rounding may leave a matrix that is positive definite only in exact arithmetic: then λ grows.
    for (;; lambda *= 10.0) {
      for (Eigen::Index j = 0; j < size; ++j) {
        for (Eigen::Index i = j; i < size; ++i) h(i, j) = static_cast<double>(moment(channel(i), channel(j)));
        h(j, j) += lambda;
      }
      if (Eigen::LLT<Eigen::Ref<Eigen::MatrixXd>>(h).info() == Eigen::Success) break;
    }
    Eigen::MatrixXd inverse = Eigen::MatrixXd::Identity(size, size);
    h.triangularView<Eigen::Lower>().solveInPlace(inverse);
    // With J the reversal, J H J = L Lᵀ, R = J L J and U = J L⁻¹ J.
    std::vector<float> ratios(n * n);
    for (Eigen::Index i = 0; i < size; ++i) {
      const Eigen::Index row = size - 1 - i;
      for (Eigen::Index j = i; j < size; ++j) {
        ratios[static_cast<std::size_t>(j * size + i)] =
            static_cast<float>(inverse(row, size - 1 - j) / inverse(row, row));
      }
    }
    return ratios;
  }

  std::size_t in_, block_;
  bool act_order_, identity_ = false;
  std::vector<std::size_t> order_;
  std::vector<std::vector<float>> ratios_;
};

namespace detail {

// What losses of huge weights add up to may be no float.
inline void saturate(float* x, std::size_t n) {
  constexpr float largest = std::numeric_limits<float>::max();
  for (std::size_t i = 0; i < n; ++i) x[i] = std::min(std::max(-largest, x[i]), largest);
}

}  // namespace detail

// w [out, in] to codes in `grid`, and what they stand for to quantized [out, in], which must not overlap w. Rows are shared
// out among the threads of `be`; results do not depend on their number. Throws shape_error when shapes differ, when a
// value is not finite, when a grid's groups straddle the blocks of the second moment, and when act_order is asked of a format
// whose codes cannot be set one by one.
template <host Backend, rounding_grid Grid>
void gptq(Backend& be, const view<const float, 2>& w, const inverse_hessian& inverse, Grid& grid,
          const view<float, 2>& quantized) {
  constexpr std::size_t step_target = 128;  // columns between two updates of all that follow
  constexpr bool by_element = detail::element_grid<Grid>;
  const std::size_t out = w.extent(0), in = w.extent(1), group = grid.group();
  detail::check_grid(be, "gptq", w, grid, quantized);
  check(inverse.in_features() == in, "gptq",
        "inverse_hessian: expected " + std::to_string(in) + " channels, got " + std::to_string(inverse.in_features()));
  if (inverse.identity()) return round_to_nearest(be, w, grid, quantized);
  check(by_element || !inverse.act_order(), "gptq", "act_order: the format's codes cannot be set one by one");
  const bool fit_first = by_element && (inverse.act_order() || group >= in || group > 2 * step_target);
  check(fit_first || inverse.block() >= in || inverse.block() % group == 0, "gptq",
        "the second moment's blocks of " + std::to_string(inverse.block()) + " cut groups of " + std::to_string(group));
  const std::size_t step = fit_first ? step_target : group * std::max(step_target / group, std::size_t{1});

  const auto order = inverse.order();
  be.parallel_for(out, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t n = first; n < last; ++n) {
      for (std::size_t i = 0; i < in; ++i) quantized(n, i) = w(n, order(i));
      if constexpr (by_element) {
        for (std::size_t c = 0; fit_first && c < in; c += group) grid.fit(n, c, w.row(n) + c);
      }
    }
  });

  auto scratch = be.scope();
  const auto losses = scratch.template tensor<float>(out, step);   // q_i - w_i
  const auto rounded = scratch.template tensor<float>(out, step);  // q_i
  const auto corner = scratch.template tensor<float>(step, step);  // U_ij / U_ii within the step
  for (std::size_t b = 0, base = 0; base < in; ++b, base += inverse.block()) {
    const auto ratios = inverse.ratios(b);
    const std::size_t size = ratios.extent(0);
    for (std::size_t begin = 0; begin < size; begin += step) {
      const std::size_t count = std::min(step, size - begin), rest = size - begin - count;
      for (std::size_t i = 0; i < count; ++i) {
        for (std::size_t j = i; j < count; ++j) corner(i, j) = ratios(begin + j, begin + i);
      }
      be.parallel_for(out, 1, [&](std::size_t first, std::size_t last) {
        for (std::size_t n = first; n < last; ++n) {
          float* v = quantized.row(n) + base + begin;
          float* q = rounded.row(n);
          for (std::size_t i = 0; i < count; ++i) {
            const std::size_t channel = order(base + begin + i);
            if (!fit_first && channel % group == 0) detail::saturate(v + i, group);
            if constexpr (by_element) {
              if (!fit_first && channel % group == 0) grid.fit(n, channel, v + i);
              q[i] = grid.round(n, channel, v[i]);
            } else {
              if (channel % group == 0) grid.encode(n, channel, v + i, q + i);
            }
            const float loss = losses(n, i) = q[i] - v[i];
            for (std::size_t j = i + 1; j < count; ++j) v[j] += loss * corner(i, j);
          }
          std::copy(q, q + count, v);
        }
      });
      if (rest == 0) continue;
      matmul(be, losses.slice(1, 0, count), ratios.slice(0, begin + count, rest).slice(1, begin, count),
             quantized.slice(1, base + begin + count, rest), output::accumulate);
    }
  }

  if (!inverse.act_order()) return;
  be.parallel_for(out, 1, [&](std::size_t first, std::size_t last) {
    std::vector<float> row(in);
    for (std::size_t n = first; n < last; ++n) {
      for (std::size_t i = 0; i < in; ++i) row[order(i)] = quantized(n, i);
      std::copy(row.begin(), row.end(), quantized.row(n));
    }
  });
}

MOTE_END_NAMESPACE
