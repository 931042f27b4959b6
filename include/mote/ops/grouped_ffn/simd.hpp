// Work is shared out as (expert, unit of rows): an expert with few tokens is a short item, an expert with many is many,
// so threads stay busy however uneven the routing is. Each chosen expert's weights are read once for all its tokens.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "../../core/output.hpp"
#include "../matmul/unit.hpp"
#include "residency.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// Tokens of an expert at a time: the results of two matrices are on the stack.
inline constexpr std::size_t expert_tokens = std::min<std::size_t>(unit_tokens, 64);

// silu(gate) · up over a unit's results, into one row of activations for each token.
template <class Arch, class Target>
void swiglu_unit(const float* gate, const float* up, std::size_t rows, std::size_t tokens, Target&& target) noexcept {
  using vector = batch<float, Arch>;
  for (std::size_t t = 0; t < tokens; ++t) {
    const float *g = gate + t * unit_stride, *u = up + t * unit_stride;
    float* y = target(t);
    for_each_vector<Arch>(rows, [&](std::size_t i, auto load, auto store) {
      const vector a = load(g + i);
      store(y + i, a / (vector(1.0f) + exp_vector<Arch>(-a)) * load(u + i));
    });
  }
}

}  // namespace detail

template <class Arch, class Executor>
void grouped_ffn_impl(simd<Arch, Executor>& be, view<const float, 2> x, view<const float, 2> weights,
                      std::span<const ffn_weights> experts, view<const std::int32_t, 1> offsets,
                      view<const std::int32_t, 1> slots, view<float, 2> y, output mode, expert_residency* residency) {
  using detail::activation, detail::unit_stride, detail::expert_tokens;
  const std::size_t tokens = x.extent(0), hidden = x.extent(1), top_k = weights.extent(1);
  const std::size_t intermediate = out_features(experts[0].gate);
  auto scope = be.scope();
  const auto inner = scope.template tensor<float>(slots.size(), intermediate);  // silu(gate) · up, a row a place
  const auto outer = scope.template tensor<float>(slots.size(), hidden);        // down, a row a slot

  detail::activation_forms input_forms, inner_forms;
  std::size_t unit = 0;
  for (const ffn_weights& expert : experts) {
    input_forms = input_forms | detail::forms(expert.gate) | detail::forms(expert.up);
    inner_forms = inner_forms | detail::forms(expert.down);
    for (const weight* w : {&expert.gate, &expert.up, &expert.down}) {
      detail::check_packing<Arch>("grouped_ffn", *w);
      const std::size_t rows = detail::unit_rows_of<Arch>(*w, slots.size() / experts.size());
      unit = unit == 0 ? rows : std::min(unit, rows);
    }
  }
  const auto slot = [&](std::size_t place) { return static_cast<std::size_t>(slots(place)); };
  const auto offset = [&](std::size_t e) { return static_cast<std::size_t>(offsets(e)); };

  // Tokens are quantized once, before the experts.
  const auto token_inputs =
      detail::prepare_rows<Arch>(be, scope, input_forms, tokens, hidden, [&](std::size_t t) { return x.row(t); });
  const auto inputs = scope.template tensor<activation>(slots.size());  // a row a place
  be.parallel_for(slots.size(), 4096, [&](std::size_t begin, std::size_t end) {
    for (std::size_t place = begin; place < end; ++place) inputs(place) = token_inputs(slot(place) / top_k);
  });
  detail::lay_out_tiles<Arch>(be, scope, input_forms, hidden, inputs, experts.size(), offset);

  const auto chosen = scope.template tensor<std::int32_t>(experts.size());
  const auto chosen_count = scope.template tensor<std::size_t>(1);
  // Those of the experts [begin, end) that have tokens, those with most first.
  const auto choose = [&](std::size_t begin, std::size_t end) {
    const auto tokens_of = [&](std::int32_t e) {
      return offsets(static_cast<std::size_t>(e) + 1) - offsets(static_cast<std::size_t>(e));
    };
    be.parallel_for(1, 1, [&](std::size_t, std::size_t) {
      std::int32_t* last = chosen.data();
      for (std::size_t e = begin; e < end; ++e) {
        if (offsets(e) != offsets(e + 1)) *last++ = static_cast<std::int32_t>(e);
      }
      chosen_count(0) = static_cast<std::size_t>(last - chosen.data());
      std::sort(chosen.data(), last, [&](std::int32_t a, std::int32_t b) { return tokens_of(a) > tokens_of(b); });
    });
  };

  // Calls f(expert, first row, rows, first place in `slots`, places) for runs of units of the chosen experts. A run's results
  // take no more room than a unit's for expert_tokens, so that few tokens read long pieces of gate and of up in turn: each
  // begins with a wait for memory (Q8_0, Zen 4: 1.04 times as fast as unit by unit).
  const auto for_each_run = [&](std::size_t out, auto&& f) {
    const std::size_t units = (out + unit - 1) / unit;
    const std::size_t items = chosen_count(0) * units;
    const std::size_t grain =
        detail::units_at_once(experts[0].gate, unit, items, slots.size() / experts.size(), be.concurrency());
    be.parallel_for(items, grain, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin, next = begin; i < end; i = next) {
        const auto e = static_cast<std::size_t>(chosen(i / units));
        const std::size_t count = offset(e + 1) - offset(e);
        next = std::min({end, (i / units + 1) * units, i + std::max(expert_tokens / count, std::size_t{1})});
        const std::size_t n = i % units * unit, rows = std::min((next - i) * unit, out - n);
        for (std::size_t t = 0; t < count; t += expert_tokens) {
          f(experts[e], n, rows, offset(e) + t, std::min(expert_tokens, count - t));
        }
      }
    });
  };
  // Calls f(first row, rows, where the results for so many tokens begin) for each unit of a run.
  const auto for_each_unit = [&](std::size_t first, std::size_t rows, std::size_t count, auto&& f) {
    for (std::size_t r = 0; r < rows; r += unit) f(first + r, std::min(unit, rows - r), r / unit * unit_stride * count);
  };

  detail::for_each_expert_group(be, residency, offsets, [&](std::size_t begin, std::size_t end) {
    const std::size_t first = offset(begin), last = offset(end);
    choose(begin, end);
    for_each_run(intermediate, [&](const ffn_weights& expert, std::size_t row, std::size_t rows, std::size_t place,
                                   std::size_t count) {
      alignas(64) float gate[unit_stride * expert_tokens], up[unit_stride * expert_tokens];
      const auto multiply = [&](const weight& w, float* results) {
        for_each_unit(row, rows, count, [&](std::size_t n, std::size_t some, std::size_t at) {
          detail::unit_product<Arch>(w, n, some, &inputs(place), count, results + at);
        });
      };
      multiply(expert.gate, gate);
      multiply(expert.up, up);
      for_each_unit(row, rows, count, [&](std::size_t n, std::size_t some, std::size_t at) {
        detail::swiglu_unit<Arch>(gate + at, up + at, some, count,
                                  [&](std::size_t i) { return inner.row(place + i) + n; });
      });
    });

    auto group_scope = be.scope();
    const auto between = detail::prepare_rows<Arch>(be, group_scope, inner_forms, last - first, intermediate,
                                                    [&](std::size_t i) { return inner.row(first + i); });
    detail::lay_out_tiles<Arch>(be, group_scope, inner_forms, intermediate, between, end - begin,
                                [&](std::size_t r) { return offset(begin + r) - first; });

    for_each_run(hidden, [&](const ffn_weights& expert, std::size_t row, std::size_t rows, std::size_t place,
                             std::size_t count) {
      for_each_unit(row, rows, count, [&](std::size_t n, std::size_t some, std::size_t) {
        alignas(64) float down[unit_stride * expert_tokens];
        detail::unit_product<Arch>(expert.down, n, some, &between(place - first), count, down);
        for (std::size_t i = 0; i < count; ++i) {
          std::copy_n(down + i * unit_stride, some, outer.row(slot(place + i)) + n);
        }
      });
    });
  });

  be.parallel_for(tokens, 1 + 4096 / (hidden * top_k + 1), [&](std::size_t begin, std::size_t end) {
    using vector = batch<float, Arch>;
    for (std::size_t t = begin; t < end; ++t) {
      float* row = y.row(t);
      detail::for_each_vector<Arch>(hidden, [&](std::size_t i, auto load, auto store) {
        vector total(0.0f);
        for (std::size_t k = 0; k < top_k; ++k) {
          total = fused_multiply_add(vector(weights(t, k)), load(outer.row(t * top_k + k) + i), total);
        }
        store(row + i, mode == output::accumulate ? load(row + i) + total : total);
      });
    }
  });
}

MOTE_END_NAMESPACE
