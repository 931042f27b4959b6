#include <mote/kernels/extern.hpp>
#include <mote/ops/matmul/matmul.hpp>

#include <memory>

#include "support/products.hpp"

namespace {

// The matrices of one format and shape, as many as no last-level cache holds together, to be used in turn; the same in
// every peer's memory. The last ones are kept for the benchmarks that follow.
struct loaded {
  bench::weight_form form;
  std::size_t out, in;
  bench::matrices all;
  std::vector<std::pair<std::string, std::unique_ptr<bench::peer_weights>>> peers;

  loaded(const bench::weight_form& f, std::size_t o, std::size_t i) : form(f), out(o), in(i), all(f, o, i) {
    for (const auto& peer : bench::peers()) {
      if (auto weights = peer->load(all.source())) peers.emplace_back(peer->name(), std::move(weights));
    }
  }
  static loaded& get(const bench::weight_form& f, std::size_t o, std::size_t i) {
    static std::unique_ptr<loaded> last;
    if (!last || last->form.name != f.name || last->out != o || last->in != i) {
      last.reset();
      last = std::make_unique<loaded>(f, o, i);
    }
    return *last;
  }
};

// The vector kernels where matmul takes matrix tiles, without int8's scales.
template <class Matrix>
void vector_matmul(mote::simd<>& be, mote::view<const float, 2> x, const Matrix& w, mote::view<float, 2> y) {
  using mote::detail::packed_rows, mote::detail::unit_stride, mote::detail::unit_tokens;
  auto scope = be.scope();
  const auto rows = mote::detail::prepare_rows<mote::default_arch>(
      be, scope, mote::detail::forms(w), x.extent(0), x.extent(1), [&](std::size_t t) { return x.row(t); });
  constexpr std::size_t unit = mote::detail::unit_rows<mote::default_arch, Matrix>;
  const std::size_t units = w.out_features() / unit;
  be.parallel_for(units, mote::detail::units_at_once(w, unit, units, x.extent(0), be.concurrency()),
                  [&](std::size_t begin, std::size_t end) {
                    alignas(64) float out[unit_stride * unit_tokens];
                    for (std::size_t u = begin; u < end; ++u) {
                      for (std::size_t t = 0; t < x.extent(0); t += unit_tokens) {
                        const std::size_t count = std::min(unit_tokens, x.extent(0) - t);
                        mote::detail::vector_product<mote::default_arch>(w, u * unit / packed_rows, unit / packed_rows,
                                                                         rows.data() + t, count, out);
                        for (std::size_t c = 0; c < count; ++c) {
                          std::copy_n(out + c * unit_stride, unit, y.row(t + c) + u * unit);
                        }
                      }
                    }
                  });
}

// Where matrix tiles multiply so many tokens: the operations that they do in a second; else 0.
double tile_rate(const mote::weight& w, std::size_t tokens, std::size_t threads) {
  return std::visit(
      [&]<class Matrix>(const Matrix&) {
        if constexpr (mote::detail::multiplied_by_tiles<mote::default_arch, Matrix>) {
          constexpr bool bf16 = std::is_same_v<Matrix, mote::packed_matrix<mote::bf16>>;
          if (tokens >= mote::detail::tile_tokens_min<mote::default_arch, Matrix>) {
            return bench::rate(bf16 ? bench::arithmetic::bf16_tiles : bench::arithmetic::int8_tiles, threads);
          }
        }
        return 0.0;
      },
      w);
}

void matmul(benchmark::State& state, const std::string& name, const bench::weight_form& form, std::size_t out,
            std::size_t in, std::size_t tokens, std::size_t threads) {
  loaded& weights = loaded::get(form, out, in);
  const auto x = bench::random_floats(tokens * in);
  mote::buffer<float> y(tokens * out), want(8);
  const auto rows = x.as(tokens, in);
  const auto result = y.as(tokens, out);
  mote::simd<> be{mote::threads{threads}};
  mote::reference reference;
  mote::matmul(be, rows, weights.all[0], result);
  for (const std::size_t t : {std::size_t{0}, tokens - 1}) {
    for (const std::size_t n : {std::size_t{0}, out - 32}) {
      mote::matmul(reference, rows.slice(0, t, 1), mote::slice_rows(weights.all[0], n, 8), want.as(1, 8));
      if (!bench::same(result.slice(0, t, 1).slice(1, n, 8), want.as(1, 8))) {
        return state.SkipWithError("the result differs from the reference");
      }
    }
  }
  std::vector<bench::contender> others;
  for (const auto& [peer, peer_weights] : weights.peers) {
    auto product = peer_weights->matmul(rows, threads);
    product.run(0);
    if (!bench::alike(product.y, result)) return state.SkipWithError((peer + "'s result differs").c_str());
    others.push_back({peer, std::move(product.run)});
  }
  // AMX is reported beside its own limit, and beside the vector kernels.
  const double tiles = tile_rate(weights.all[0], tokens, threads);
  mote::buffer<float> by_vectors(tiles > 0.0 ? y.size() : 0);
  if (tiles > 0.0) {
    others.push_back({"vector", [&](std::size_t turn) {
                        std::visit(
                            [&]<class Matrix>(const Matrix& w) {
                              if constexpr (mote::detail::multiplied_by_tiles<mote::default_arch, Matrix>) {
                                vector_matmul(be, rows, w, by_vectors.as(tokens, out));
                              }
                            },
                            weights.all[turn % weights.all.size()]);
                      }});
  }

  const double operations = 2.0 * static_cast<double>(tokens * out * in);
  const bench::work least{static_cast<double>(mote::bytes(weights.all[0])),
                          operations / bench::rate(form.unit, threads), threads};
  const double shortest = bench::race(
      state, name, least,
      [&](std::size_t turn) { mote::matmul(be, rows, weights.all[turn % weights.all.size()], result); }, others);
  if (tiles > 0.0) state.counters["of_tile_limit"] = operations / tiles / shortest;
}

const bool registered = [] {
  const std::pair<std::size_t, std::size_t> shapes[] = {{1408, 2048}, {2048, 1408}, {10944, 2048}, {4096, 7168}};
  for (const auto& form : bench::weight_forms()) {
    for (const auto& [out, in] : shapes) {
      if (in % form.block != 0) continue;
      for (const std::size_t tokens : {1u, 4u, 16u, 64u, 512u}) {
        for (const std::size_t threads : {1u, 2u}) {
          const std::string name = "matmul/" + form.name + "/" + std::to_string(out) + "x" + std::to_string(in) +
                                   bench::tokens_and_threads(tokens, threads);
          benchmark::RegisterBenchmark(name.c_str(), [=, out = out, in = in](benchmark::State& state) {
            matmul(state, name, form, out, in, tokens, threads);
          });
        }
      }
    }
  }
  return true;
}();

}  // namespace
