#include <mote/core/backend.hpp>
#include <mote/core/simd.hpp>
#include <mote/core/workspace.hpp>

#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "support/catch.hpp"

namespace {

std::uintptr_t address(const void* p) { return reinterpret_cast<std::uintptr_t>(p); }

}  // namespace

TEST_CASE("workspace: allocations are aligned, distinct and stay where they are while it grows") {
  mote::workspace arena;
  std::vector<std::pair<unsigned char*, std::size_t>> taken;
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{64}, std::size_t{65}, std::size_t{0}, std::size_t{70000},
                                  std::size_t{300000}, std::size_t{5}}) {
    auto* p = static_cast<unsigned char*>(arena.allocate(bytes));
    CHECK(address(p) % mote::buffer_alignment == 0);
    if (bytes != 0) std::memset(p, static_cast<int>(taken.size()), bytes);
    taken.emplace_back(p, bytes);
  }
  for (std::size_t i = 0; i < taken.size(); ++i) {
    for (std::size_t b = 0; b < taken[i].second; ++b) REQUIRE(taken[i].first[b] == i);
  }
}

TEST_CASE("workspace: the second round of the same work finds one block") {
  mote::workspace arena;
  const auto work = [&] {
    const auto mark = arena.top();
    for (std::size_t i = 0; i < 20; ++i) arena.allocate(i * 10000);
    arena.release(mark);
  };
  work();
  const auto capacity = arena.capacity();
  const auto start = arena.top();
  const void* first = arena.allocate(1);
  arena.release(start);
  for (int round = 0; round < 3; ++round) {
    work();
    CHECK(arena.capacity() == capacity);
    const auto mark = arena.top();
    CHECK(arena.allocate(1) == first);
    arena.release(mark);
  }
}

TEST_CASE("workspace: with a largest step it grows by what it holds, up to that step") {
  constexpr std::size_t first = std::size_t{1} << 17, step = std::size_t{1} << 18;
  mote::workspace arena(step);
  for (const std::size_t capacity : {first, 2 * first, 4 * first, 4 * first + step, 4 * first + 2 * step}) {
    while (arena.capacity() < capacity) arena.allocate(first);
    CHECK(arena.capacity() == capacity);
  }
  arena.allocate(3 * step);
  CHECK(arena.capacity() == 4 * first + 5 * step);
}

TEST_CASE("workspace: scopes nest like a stack") {
  mote::reference be;
  const float* reused = nullptr;
  {
    auto outer = be.scope();
    auto a = outer.tensor<float>(3, 5);
    CHECK(a.extents() == std::array<std::size_t, 2>{3, 5});
    a(2, 4) = 1.0f;
    {
      auto inner = be.scope();
      auto b = inner.tensor<float>(1000);
      for (std::size_t i = 0; i < b.size(); ++i) b(i) = -1.0f;
      reused = b.data();
    }
    CHECK(a(2, 4) == 1.0f);
    CHECK(outer.tensor<float>(7).data() == reused);
  }
  CHECK(be.scope().tensor<float>(0, 4).empty());
}

TEST_CASE("workspace: an inner scope that opens first does not disturb the outer one's memory") {
  mote::reference be;
  auto outer = be.scope();
  {
    auto inner = be.scope();
    inner.tensor<char>(100000);
    inner.tensor<char>(200000);
  }
  auto a = outer.tensor<float>(1 << 17);
  for (std::size_t i = 0; i < a.size(); ++i) a(i) = 2.0f;
  CHECK(a(a.size() - 1) == 2.0f);
}

TEST_CASE("workspace: sizes that overflow memory are errors") {
  mote::workspace arena;
  CHECK_THROWS_AS(arena.allocate(std::numeric_limits<std::size_t>::max()), mote::shape_error);
  mote::reference be;
  auto scope = be.scope();
  const std::size_t huge = std::size_t{1} << 40;
  CHECK_THROWS_AS(scope.tensor<float>(huge, huge), mote::shape_error);
  CHECK_THROWS_AS(scope.tensor<float>(huge, huge, huge, 0), mote::shape_error);
}
