#include <mote/kernels/extern.hpp>
#include <mote/ops/mla_decode/mla_decode.hpp>

#include <numeric>

#include <benchmark/benchmark.h>

#include "support/bench.hpp"

namespace {

// The last `tokens` tokens of a sequence whose rows are of T: kv_lora_rank 512, 64 rope channels, pages of 16 rows.
template <class T>
void mla_decode(benchmark::State& state, std::size_t tokens, std::size_t heads, std::size_t length) {
  const std::size_t rank = 512, rope = 64, page = 16, elements = (rank + rope) / mote::row_format::of<T>().block_size;
  const auto q = bench::random_floats(tokens * heads * rank), r = bench::random_floats(tokens * heads * rope);
  const auto values = bench::random_floats(length * (rank + rope));
  mote::buffer<T> cache(length * elements);
  mote::encode_row(values.data(), values.size(), cache.data());
  std::vector<std::int32_t> table(length / page);
  std::iota(table.begin(), table.end(), 0);
  std::vector<mote::paged_rows<const T>> context(tokens,
                                                 {std::as_const(cache).as(length / page, page, elements), table});
  for (std::size_t t = 0; t < tokens; ++t) context[t].length = length - tokens + t + 1;
  mote::buffer<float> want(heads * rank), y(tokens * heads * rank);
  mote::simd<> be;
  mote::reference reference;
  const auto decode = [&](auto& backend, std::size_t first, std::size_t count, mote::buffer<float>& out) {
    mote::mla_decode(backend, q.as(tokens, heads, rank).slice(0, first, count),
                     r.as(tokens, heads, rope).slice(0, first, count), std::span(context).subspan(first, count), 0.05f,
                     out.as(count, heads, rank));
  };
  decode(reference, tokens - 1, 1, want);
  decode(be, 0, tokens, y);
  if (!bench::same(y.as(tokens, heads * rank).slice(0, tokens - 1, 1), want.as(std::size_t{1}, heads * rank)))
    return state.SkipWithError("the result differs from the reference");
  for (auto _ : state) decode(be, 0, tokens, y);
  const double pairs = static_cast<double>(tokens * (length - tokens) + tokens * (tokens + 1) / 2);
  bench::of_fma_limit(state, 2.0 * pairs * static_cast<double>(heads * (2 * rank + rope)));
  if (tokens == 1 && std::is_same_v<T, float>) {
    bench::vs_peer(state, "mla_decode/" + std::to_string(heads) + "/" + std::to_string(length));
  }
}

void one_token(benchmark::State& state) {
  mla_decode<float>(state, 1, static_cast<std::size_t>(state.range(0)), static_cast<std::size_t>(state.range(1)));
}
BENCHMARK(one_token)->Name("mla_decode")->Args({16, 1024})->Args({16, 8192})->Args({128, 8192});

// One token with other caches, and a prefill of 512.
[[maybe_unused]] const bool registered = [] {
  mote::for_each_format(
      []<class T>() {
        const std::string name = "mla_decode/" + std::string(mote::row_format::of<T>().name) + "/";
        if constexpr (!std::is_same_v<T, float>) {
          benchmark::RegisterBenchmark((name + "16/8192").c_str(),
                                       [](benchmark::State& state) { mla_decode<T>(state, 1, 16, 8192); });
        }
        benchmark::RegisterBenchmark((name + "16/512/tokens:512").c_str(),
                                     [](benchmark::State& state) { mla_decode<T>(state, 512, 16, 512); });
      },
      mote::type_list<float, mote::bf16, mote::mxfp8, mote::q8_0>{});
  return true;
}();

}  // namespace
