#include <mote/ops/group_by_expert/group_by_expert.hpp>

#include <random>

#include "support/products.hpp"

namespace {

// 512 tokens, 8 of 256 experts. The limit: the bytes of the indices and of the slots, though all of it is in a cache.
void group_by_expert(benchmark::State& state) {
  const std::size_t tokens = 512, top_k = 8, experts = 256;
  std::minstd_rand random(1);
  std::vector<std::int32_t> indices(tokens * top_k), offsets(experts + 1), slots(indices.size());
  for (auto& e : indices) e = static_cast<std::int32_t>(random() % experts);
  const mote::view<const std::int32_t, 2> chosen(indices.data(), tokens, top_k);
  mote::simd<> be;
  for (auto _ : state) mote::group_by_expert(be, chosen, offsets, slots);
  const auto bytes = static_cast<double>((indices.size() + slots.size()) * sizeof(std::int32_t));
  bench::set_ratio(state, "of_limit", bytes / bench::read_bandwidth(1));
}
BENCHMARK(group_by_expert)->Name("group_by_expert/512x8/256")->UseRealTime();

}  // namespace
