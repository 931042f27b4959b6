#include <mote/ops/group_by_expert/group_by_expert.hpp>

#include <algorithm>
#include <array>
#include <numeric>

#include "support/backends.hpp"
#include "support/random.hpp"

TEST_CASE("group_by_expert: a stable sort of the slots by expert") {
  test::random_source random(1);
  for (const auto& s : std::vector<std::array<std::size_t, 3>>{
           {0, 2, 3}, {3, 0, 4}, {1, 1, 1}, {7, 2, 5}, {40, 6, 64}, {65, 8, 256}, {9, 4, 2}}) {
    const std::size_t tokens = s[0], top_k = s[1], experts = s[2];
    CAPTURE(tokens, top_k, experts);
    // Rows lie apart, and what is between them is no expert.
    const std::size_t stride = top_k + 2;
    std::vector<std::int32_t> chosen(tokens * stride, -1), expert_of;
    const mote::view<const std::int32_t, 2> indices(chosen.data(), {tokens, top_k}, {stride, 1});
    for (std::size_t t = 0; t < tokens; ++t) {
      for (std::size_t k = 0; k < top_k; ++k) {
        expert_of.push_back(chosen[t * stride + k] = static_cast<std::int32_t>(random.below(experts)));
      }
    }
    std::vector<std::int32_t> want(tokens * top_k);
    std::iota(want.begin(), want.end(), 0);
    std::stable_sort(want.begin(), want.end(), [&](std::int32_t a, std::int32_t b) {
      return expert_of[static_cast<std::size_t>(a)] < expert_of[static_cast<std::size_t>(b)];
    });
    const auto check = [&](auto& be, auto&& require) {
      std::vector<std::int32_t> offsets(experts + 1, -7), slots(want.size(), -7);
      mote::group_by_expert(be, indices, offsets, slots);
      require(slots == want);
      for (std::size_t e = 0; e <= experts; ++e) {
        const auto below = std::count_if(expert_of.begin(), expert_of.end(),
                                         [&](std::int32_t c) { return static_cast<std::size_t>(c) < e; });
        require(offsets[e] == below);
      }
    };
    test::for_each_backend([&](auto& be) { check(be, [](bool holds) { CHECK(holds); }); });
  }
}

TEST_CASE("group_by_expert: wrong shapes and experts name the argument") {
  std::vector<std::int32_t> chosen = {0, 2, 1, 3}, offsets(5), slots(4), few(3), none;
  const mote::view<const std::int32_t, 2> indices(chosen.data(), 2, 2);
  test::for_each_backend([&](auto& be) {
    CHECK_THROWS_WITH(mote::group_by_expert(be, indices, offsets, few),
                      "group_by_expert: slots: expected shape [4], got [3]");
    CHECK_THROWS_WITH(mote::group_by_expert(be, indices, none, slots),
                      "group_by_expert: offsets: expected shape [experts + 1]");
    CHECK_THROWS_WITH(mote::group_by_expert(be, indices, few, slots),
                      "group_by_expert: indices: expert 2 is outside [0, 2)");
    chosen[1] = -1;
    CHECK_THROWS_WITH(mote::group_by_expert(be, indices, offsets, slots),
                      "group_by_expert: indices: expert -1 is outside [0, 4)");
    chosen[1] = 2;
  });
}
