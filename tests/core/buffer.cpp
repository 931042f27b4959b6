#include <mote/core/buffer.hpp>
#include <mote/core/types.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "support/catch.hpp"

using mote::buffer;

static_assert(!std::is_copy_constructible_v<buffer<float>> && !std::is_copy_assignable_v<buffer<float>>);
static_assert(std::is_nothrow_move_constructible_v<buffer<float>> && std::is_nothrow_move_assignable_v<buffer<float>>);

TEMPLATE_TEST_CASE("buffer: zeroed and aligned to 64 bytes", "", float, std::int8_t, mote::bf16, double) {
  for (const std::size_t size : {1u, 3u, 64u, 1000u}) {
    buffer<TestType> b(size);
    CHECK(b.size() == size);
    CHECK(reinterpret_cast<std::uintptr_t>(b.data()) % mote::buffer_alignment == 0);
    for (const auto& x : b) REQUIRE(static_cast<float>(x) == 0.0f);
  }
}

TEST_CASE("buffer: empty") {
  const buffer<float> none, zero(0);
  CHECK(none.empty());
  CHECK(zero.empty());
  CHECK(zero.data() == nullptr);
  CHECK(zero.begin() == zero.end());
  CHECK(zero.as(0, 4).empty());
}

TEST_CASE("buffer: moves hand the memory over") {
  buffer<int> a(4);
  a[3] = 7;
  const int* data = a.data();
  buffer<int> b(std::move(a));
  CHECK(b.data() == data);
  CHECK(b[3] == 7);
  buffer<int> c(9);
  c = std::move(b);
  CHECK(c.data() == data);
  CHECK(c.size() == 4);
}

TEST_CASE("buffer: large ones begin on a huge page, and are freed as they were allocated") {
  for (const std::size_t size :
       {mote::detail::large_buffer - 1, mote::detail::large_buffer, (std::size_t{5} << 22) + 3}) {
    buffer<std::uint8_t> large(size), small(5);
    const bool huge = size >= mote::detail::large_buffer;
    if (huge) CHECK(reinterpret_cast<std::uintptr_t>(large.data()) % mote::detail::huge_page == 0);
    CHECK(std::all_of(large.begin(), large.end(), [](std::uint8_t x) { return x == 0; }));
    large[size - 1] = 3;
    small = std::move(large);
    CHECK(small.size() == size);
    CHECK(small[size - 1] == 3);
  }
}

TEST_CASE("buffer: seen as a tensor") {
  buffer<float> b(24);
  b[23] = 1.0f;
  CHECK(b.as(2, 3, 4)(1, 2, 3) == 1.0f);
  const buffer<float>& constant = b;
  static_assert(std::is_same_v<decltype(constant.as(4, 6)), mote::view<const float, 2>>);
  CHECK(constant.as(4, 6)(3, 5) == 1.0f);
  CHECK_THROWS_AS(b.as(5, 5), mote::shape_error);
  CHECK_THROWS_AS(constant.as(23), mote::shape_error);
}

TEST_CASE("buffer: a size that overflows memory is an error, not a short allocation") {
  volatile std::size_t huge = std::numeric_limits<std::size_t>::max();  // hidden from the compiler, which would warn
  CHECK_THROWS_AS(buffer<double>(huge / 4), mote::shape_error);
  CHECK_THROWS_AS(buffer<float>(huge), mote::shape_error);
}
