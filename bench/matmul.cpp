#include <mote/ops/matmul/matmul.hpp>

#ifdef MOTE_BENCH_OPENBLAS
#include <cblas.h>
#endif

#include "support/products.hpp"

namespace {

struct product {
  bench::format format;
  std::size_t out, in, tokens, threads;
};

#ifdef MOTE_BENCH_OPENBLAS
double openblas_seconds(const product& p, const mote::buffer<float>& x, const std::vector<bench::random_weight>& all) {
  mote::buffer<float> y(p.tokens * p.out);
  openblas_set_num_threads(static_cast<int>(p.threads));
  const auto tokens = static_cast<int>(p.tokens), out = static_cast<int>(p.out), in = static_cast<int>(p.in);
  std::size_t turn = 0;
  return bench::shortest_real(10, [&] {
    const auto weight = all[turn++ % all.size()].get();
    const float* w = std::get<mote::view<const float, 2>>(weight).data();
    if (p.tokens == 1) {
      cblas_sgemv(CblasRowMajor, CblasNoTrans, out, in, 1.0f, w, in, x.data(), 1, 0.0f, y.data(), 1);
    } else {
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, tokens, out, in, 1.0f, x.data(), in, w, in, 0.0f, y.data(),
                  out);
    }
  });
}
#endif

void matmul(benchmark::State& state, const product& p, const std::string& peer) {
  const auto& all = bench::rotated_weights(p.format, p.out, p.in);
  const auto x = bench::random_floats(p.tokens * p.in);
  const auto rows = x.as(p.tokens, p.in);
  mote::buffer<float> y(p.tokens * p.out), want(8);
  const auto result = y.as(p.tokens, p.out);
  mote::simd<> be{mote::threads{p.threads}};

  mote::reference reference;
  mote::matmul(be, rows, all[0].get(), result);
  for (const std::size_t t : {std::size_t{0}, p.tokens - 1}) {
    for (const std::size_t n : {std::size_t{0}, p.out - 8}) {
      mote::matmul(reference, rows.slice(0, t, 1), mote::slice_rows(all[0].get(), n, 8), want.as(1, 8));
      if (!bench::same(result.slice(0, t, 1).slice(1, n, 8), want.as(1, 8))) {
        return state.SkipWithError("the result differs from the reference");
      }
    }
  }

  std::size_t turn = 0;
  for (auto _ : state) {
    mote::matmul(be, rows, all[turn].get(), result);
    turn = (turn + 1) % all.size();
  }
  bench::of_product_limit(state, p.format, p.threads, mote::bytes(all[0].get()),
                          2.0 * static_cast<double>(p.tokens * p.out * p.in));
#ifdef MOTE_BENCH_OPENBLAS
  if (p.format == bench::format::f32) {
    bench::set_ratio(state, "vs_peer", openblas_seconds(p, x, all));
    return;
  }
#endif
  if (p.threads == 1) bench::vs_peer(state, peer);
}

const bool registered = [] {
  using bench::format;
  const auto add = [](const product& p) {
    const std::string name = std::string("matmul/") + bench::name(p.format) + "/" + std::to_string(p.out) + "x" +
                             std::to_string(p.in) + "/tokens:" + std::to_string(p.tokens);
    benchmark::RegisterBenchmark((name + "/threads:" + std::to_string(p.threads)).c_str(),
                                 [p, name](benchmark::State& state) { matmul(state, p, name); })
        ->UseRealTime();
  };
  for (const auto f : {format::f32, format::bf16, format::int8}) {
    for (const std::size_t threads : {1u, 2u}) add({f, 10944, 2048, 1, threads});
    for (const std::size_t tokens : {4u, 16u, 64u, 512u}) add({f, 2048, 2048, tokens, 1});
    add({f, 2048, 2048, 512, 2});
  }
  return true;
}();

}  // namespace
