// Which experts stay in memory.
#include <mote/decode/expert_cache.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <list>
#include <set>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

namespace {

using place = std::pair<std::size_t, std::size_t>;  // layer and expert

// The slots of a step as group_by_expert counts them.
struct step {
  std::vector<std::int32_t> offsets;

  step(std::size_t experts, const std::vector<std::size_t>& chosen) : offsets(experts + 1) {
    for (const std::size_t e : chosen) ++offsets[e + 1];
    for (std::size_t e = 0; e < experts; ++e) offsets[e + 1] += offsets[e];
  }
  mote::view<const std::int32_t, 1> view() const { return {offsets.data(), offsets.size()}; }
};

std::vector<std::vector<std::size_t>> sizes(std::size_t layers, std::size_t experts, std::size_t bytes) {
  return std::vector<std::vector<std::size_t>>(layers, std::vector<std::size_t>(experts, bytes));
}

// Follows what the cache says it keeps, and that it keeps to its capacity and to what a step needs.
class follower {
 public:
  follower(mote::expert_cache& cache, std::size_t most) : cache_(cache), most_(most) { cache.set_capacity(most); }

  // Runs a step to its end; gives the groups in which the experts were read.
  std::vector<place> run(std::size_t layer, const step& s) {
    std::vector<place> groups;
    const std::size_t experts = cache_.experts(layer);
    for (std::size_t first = 0; first < experts;) {
      const std::size_t last = cache_.require(
          layer, s.view(), first,
          [&](std::size_t l, std::size_t e) {
            CHECK(resident.insert({l, e}).second);
          },
          [&](std::size_t l, std::size_t e) {
            CHECK(resident.erase({l, e}) == 1);
          });
      REQUIRE(last > first);
      REQUIRE(last <= experts);
      for (std::size_t e = first; e < last; ++e) {
        if (s.offsets[e] < s.offsets[e + 1]) CHECK(resident.count({layer, e}) == 1);
      }
      CHECK(resident.size() <= most_);
      CHECK(resident.size() == cache_.resident_bytes());
      groups.push_back({first, last});
      first = last;
    }
    return groups;
  }

  std::set<place> resident;

 private:
  mote::expert_cache& cache_;
  std::size_t most_;
};

// Draws distinct experts with probability proportional to 1 / (1 + rank), the ranks turned by `shift`.
std::vector<std::size_t> draw(test::random_source& random, std::size_t experts, std::size_t count, std::size_t shift) {
  std::vector<std::size_t> chosen;
  while (chosen.size() < count) {
    const double u = static_cast<double>(random.below(1u << 20)) / (1u << 20);
    const auto rank = static_cast<std::size_t>(std::pow(static_cast<double>(experts), u)) - 1;
    const std::size_t e = (std::min(rank, experts - 1) * 7 + shift) % experts;
    if (std::find(chosen.begin(), chosen.end(), e) == chosen.end()) chosen.push_back(e);
  }
  return chosen;
}

// Hits of a cache of `capacity` experts that lets go what was used longest ago.
std::size_t hits_of_lru(const std::vector<std::vector<std::vector<std::size_t>>>& trace, std::size_t capacity) {
  std::list<place> order;
  std::size_t hits = 0;
  for (const auto& token : trace) {
    for (std::size_t l = 0; l < token.size(); ++l) {
      for (const std::size_t e : token[l]) {
        const auto found = std::find(order.begin(), order.end(), place{l, e});
        if (found != order.end()) {
          ++hits;
          order.erase(found);
        } else if (order.size() == capacity) {
          order.pop_back();
        }
        order.push_front({l, e});
      }
    }
  }
  return hits;
}

}  // namespace

TEST_CASE("expert_cache: finds more than a cache that lets go what was used longest ago") {
  constexpr std::size_t layers = 6, experts = 32, top_k = 4, tokens = 1200;
  test::random_source random(1);
  std::vector<std::vector<std::vector<std::size_t>>> trace(tokens);
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t l = 0; l < layers; ++l) {
      trace[t].push_back(draw(random, experts, top_k, l * 5 + (t < tokens / 2 ? 0 : 11)));  // the subject changes
    }
  }
  for (const std::size_t capacity : {std::size_t{16}, std::size_t{48}, std::size_t{96}}) {
    mote::expert_cache cache(sizes(layers, experts, 1), 800.0);
    follower f(cache, capacity);
    for (const auto& token : trace) {
      for (std::size_t l = 0; l < layers; ++l) f.run(l, step(experts, token[l]));
    }
    const std::size_t uses = tokens * layers * top_k, hits = cache.statistics().hits;
    CHECK(hits + cache.statistics().misses == uses);
    CHECK(cache.statistics().bytes_brought == cache.statistics().misses);
    const std::size_t of_lru = hits_of_lru(trace, capacity);
    INFO("capacity " << capacity << ": " << hits << " hits, " << of_lru << " of the least recently used");
    CHECK(static_cast<double>(hits) > 1.1 * static_cast<double>(of_lru));
  }
}

TEST_CASE(
    "expert_cache: a step that needs more than fits is served in groups and does not sweep out what is used most") {
  constexpr std::size_t experts = 64;
  mote::expert_cache cache(sizes(2, experts, 1));
  follower f(cache, 24);
  for (int i = 0; i < 40; ++i) f.run(0, step(experts, {1, 20, 40, 63}));
  std::vector<std::size_t> all(2 * experts);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = i % experts;
  const auto groups = f.run(1, step(experts, all));
  CHECK(groups.size() > 1);
  CHECK(groups.back().second == experts);
  for (const std::size_t e : {1u, 20u, 40u, 63u}) CHECK(cache.resident(0, e));
}

TEST_CASE("expert_cache: one expert is let in however little fits, and experts that fit no longer go") {
  mote::expert_cache cache({{5, 7, 5}, {5}});
  cache.set_capacity(3);
  std::size_t released = 0;
  const auto bring = [](std::size_t, std::size_t) {};
  const auto release = [&](std::size_t, std::size_t) { ++released; };
  const step s(3, {0, 1, 2});
  CHECK(cache.require(0, s.view(), 0, bring, release) == 1);
  CHECK(cache.require(0, s.view(), 1, bring, release) == 2);
  CHECK(cache.require(0, s.view(), 2, bring, release) == 3);
  CHECK(released == 2);
  CHECK(cache.resident_bytes() == 5);
  cache.set_capacity(100);
  CHECK(cache.require(0, s.view(), 0, bring, release) == 3);
  CHECK(cache.resident_bytes() == 17);
  cache.set_capacity(10);
  CHECK(cache.require(1, step(1, {0}).view(), 0, bring, release) == 1);
  CHECK(cache.resident_bytes() == 10);
  CHECK(cache.resident(1, 0));
  const step nothing(3, {});
  CHECK(cache.require(0, nothing.view(), 0, bring, release) == 3);
}

TEST_CASE("expert_cache: begins with the uses of an earlier run") {
  mote::expert_cache cache(sizes(2, 3, 10), 100.0);
  cache.begin_with({{0, 1000000, 1}, {6, 3, 1}});
  CHECK(cache.share(0, 1) > 0.99);
  CHECK(cache.share(1, 0) == Approx(0.6));
  CHECK(cache.uses(1, 1) == 3);
  cache.set_capacity(35);
  std::vector<place> brought;
  cache.fill([&](std::size_t l, std::size_t e) { brought.push_back({l, e}); });
  CHECK(brought == std::vector<place>{{0, 1}, {1, 0}, {1, 1}});
  CHECK(cache.statistics().misses == 0);
  // What was counted long ago weighs no more than half_life choices.
  for (int i = 0; i < 300; ++i)
    cache.require(
        0, step(3, {2}).view(), 0, [](auto, auto) {}, [](auto, auto) {});
  CHECK(cache.share(0, 2) > 0.8);
  CHECK(cache.uses(0, 2) == 301);

  CHECK_THROWS_WITH(cache.begin_with({{1, 2, 3}}), contains("2 layers, got 1"));
  CHECK_THROWS_WITH(cache.begin_with({{1, 2, 3}, {1}}), contains("layer 1: expected 3 experts, got 1"));
}
