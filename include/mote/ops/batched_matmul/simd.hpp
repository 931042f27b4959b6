#pragma once

#include <algorithm>
#include <cstddef>

#include "../matmul/simd.hpp"

MOTE_BEGIN_NAMESPACE

template <class Arch, class Executor>
void batched_matmul_impl(simd<Arch, Executor>& be, view<const float, 3> x, const weight& w, view<float, 3> y) {
  const std::size_t entries = x.extent(0), tokens = x.extent(1), out = y.extent(2);
  detail::check_packing<Arch>("batched_matmul", w);
  if (tokens == 0 || out == 0) return;
  const std::size_t unit = detail::unit_rows_of<Arch>(w, tokens);
  const std::size_t units = (out + unit - 1) / unit;
  auto scope = be.scope();
  const detail::activation_forms forms = detail::forms(w);
  const auto rows = detail::prepare_rows<Arch>(be, scope, forms, entries * tokens, x.extent(2), [&](std::size_t i) {
    return &x(i / tokens, i % tokens, std::size_t{0});
  });
  detail::lay_out_tiles<Arch>(be, scope, forms, x.extent(2), rows, entries, [&](std::size_t b) { return b * tokens; });
  be.parallel_for(entries * units, 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      const std::size_t b = i / units, n = i % units * unit;
      detail::matmul_unit<Arch>(slice_rows(w, b * out, out), n, std::min(unit, out - n), rows.data() + b * tokens,
                                tokens, output::overwrite, [&](std::size_t t) { return &y(b, t, std::size_t{0}); });
    }
  });
}

MOTE_END_NAMESPACE
