#include <mote/core/buffer.hpp>
#include <mote/core/view.hpp>

#include <Eigen/Core>

#include <array>
#include <numeric>
#include <span>
#include <type_traits>
#include <vector>
#if __has_include(<mdspan>)
#include <mdspan>
#endif

#include "support/catch.hpp"

using mote::view;

namespace {

std::vector<float> counting(std::size_t n) {
  std::vector<float> v(n);
  std::iota(v.begin(), v.end(), 0.0f);
  return v;
}

// What mote::view asks of std::mdspan, for compilers that lack it.
struct mdspan_like {
  float* data;
  std::array<std::size_t, 2> extents, strides;
  static constexpr std::size_t rank() { return 2; }
  float* data_handle() const { return data; }
  std::size_t extent(std::size_t i) const { return extents[i]; }
  std::size_t stride(std::size_t i) const { return strides[i]; }
  std::size_t size() const { return extents[0] * extents[1]; }
};

using row_major = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// What must not compile, and conversions that must.
static_assert(!std::is_constructible_v<view<float, 1>, const std::vector<float>&>, "const data as writable");
static_assert(!std::is_constructible_v<view<float, 1>, view<const float, 1>>, "const data as writable");
static_assert(!std::is_constructible_v<view<float, 1>, std::vector<double>&>, "another element type");
static_assert(!std::is_constructible_v<view<float, 2>, view<float, 1>>, "another rank");
static_assert(!std::is_constructible_v<view<float, 2>, float*, int>, "an extent missing");
static_assert(!std::is_constructible_v<view<float, 2>, std::vector<float>&>, "a range as a matrix");
static_assert(!std::is_constructible_v<view<float, 2>, const row_major&>, "const data as writable");
static_assert(!std::is_constructible_v<view<float, 1>, mdspan_like>, "another rank");
static_assert(std::is_convertible_v<view<float, 3>, view<const float, 3>>);
static_assert(std::is_convertible_v<std::vector<float>&, view<const float, 1>>);
static_assert(std::is_convertible_v<const std::vector<float>&, view<const float, 1>>);
static_assert(std::is_convertible_v<std::span<const float>, view<const float, 1>>);
static_assert(std::is_convertible_v<std::array<int, 3>&, view<int, 1>>);
static_assert(std::is_convertible_v<mote::buffer<float>&, view<float, 1>>);
static_assert(std::is_trivially_copyable_v<view<float, 4>>);
static_assert(std::is_same_v<view<const float, 2>::value_type, float>);

}  // namespace

TEST_CASE("view: raw pointers give contiguous rows") {
  auto data = counting(24);
  const view<float, 3> v(data.data(), 2, 3, 4);
  CHECK(v.extents() == std::array<std::size_t, 3>{2, 3, 4});
  CHECK(v.strides() == std::array<std::size_t, 3>{12, 4, 1});
  CHECK(v.size() == 24);
  CHECK(v.contiguous());
  CHECK_FALSE(v.empty());
  CHECK(v(1, 2, 3) == 23.0f);
  CHECK(v[1][2][3] == 23.0f);
  CHECK(v[1].extents() == std::array<std::size_t, 2>{3, 4});
  CHECK(v.row(1) == data.data() + 12);
  v(0, 1, 2) = -1.0f;
  CHECK(data[6] == -1.0f);
  v[0][1][2] = -2.0f;
  CHECK(data[6] == -2.0f);
}

TEST_CASE("view: is usable in constant expressions") {
  static constexpr float data[6] = {0, 1, 2, 3, 4, 5};
  constexpr view<const float, 2> v(data, 2, 3);
  static_assert(v(1, 2) == 5.0f);
  static_assert(v[1][0] == 3.0f);
  static_assert(v.slice(1, 1, 2)(1, 1) == 5.0f);
  CHECK(v.data() == data);
}

TEST_CASE("view: default and empty") {
  const view<float, 2> none;
  CHECK(none.data() == nullptr);
  CHECK(none.size() == 0);
  CHECK(none.empty());
  CHECK(view<float, 2>(nullptr, 0, 7).empty());
  CHECK(view<float, 2>(nullptr, 7, 0).empty());
  CHECK(view<float, 2>(nullptr, 0, 7).contiguous());
  std::vector<float> nothing;
  CHECK(view<float, 1>(nothing).empty());
}

TEST_CASE("view: strides address padded rows") {
  auto data = counting(20);
  const view<float, 2> v(data.data(), {3, 4}, {6, 1});
  CHECK(v(2, 3) == 15.0f);
  CHECK(v.row(1)[1] == 7.0f);
  CHECK_FALSE(v.contiguous());
  CHECK(v.slice(0, 1, 1).contiguous());  // one row has no gaps
}

TEST_CASE("view: slices and transposed views share the elements") {
  auto data = counting(24);
  const view<float, 3> v(data.data(), 2, 3, 4);
  const auto middle = v.slice(1, 1, 2);
  CHECK(middle.extents() == std::array<std::size_t, 3>{2, 2, 4});
  CHECK(&middle(1, 0, 0) == &v(1, 1, 0));
  CHECK_FALSE(middle.contiguous());
  CHECK(v.slice(0, 1, 1).contiguous());
  CHECK(v.slice(2, 4, 0).empty());

  const auto swapped = v.transposed({1, 0, 2});
  CHECK(swapped.extents() == std::array<std::size_t, 3>{3, 2, 4});
  CHECK(&swapped(2, 1, 3) == &v(1, 2, 3));
  CHECK_FALSE(swapped.contiguous());
  CHECK(swapped.transposed({1, 0, 2}).contiguous());

  const auto flat = v.reshaped(4, 6);
  CHECK(flat.extents() == std::array<std::size_t, 2>{4, 6});
  CHECK(&flat(3, 5) == &v(1, 2, 3));
}

TEST_CASE("view: a dimension of one element may have any stride and still be contiguous") {
  auto data = counting(8);
  CHECK(view<float, 2>(data.data(), {1, 8}, {99, 1}).contiguous());
  CHECK(view<float, 2>(data.data(), {8, 1}, {1, 99}).contiguous());
  CHECK_FALSE(view<float, 2>(data.data(), {4, 1}, {2, 1}).contiguous());
}

TEST_CASE("view: ranges") {
  auto data = counting(5);
  const auto last = [](view<const float, 1> v) { return v(v.size() - 1); };
  CHECK(last(data) == 4.0f);
  CHECK(last(std::span<float>(data).first(3)) == 2.0f);
  CHECK(last(std::span<const float>(data)) == 4.0f);
  CHECK(last(std::array<float, 2>{7.0f, 8.0f}) == 8.0f);
  mote::buffer<float> buffer(3);
  buffer[2] = 9.0f;
  CHECK(last(buffer) == 9.0f);
  const view<float, 1> writable(data);
  writable(0) = 3.0f;
  CHECK(data[0] == 3.0f);
}

TEST_CASE("view: Eigen matrices, maps, references and blocks") {
  row_major m(3, 4);
  for (int i = 0; i < 12; ++i) m(i / 4, i % 4) = static_cast<float>(i);
  const view<float, 2> v(m);
  CHECK(v.extents() == std::array<std::size_t, 2>{3, 4});
  CHECK(v.data() == m.data());
  CHECK(v(2, 1) == 9.0f);

  const row_major& constant = m;
  const view<const float, 2> w = constant;
  CHECK(w(1, 3) == 7.0f);

  auto data = counting(12);
  const view<float, 2> map = Eigen::Map<row_major>(data.data(), 4, 3);
  CHECK(map(3, 2) == 11.0f);
  const view<const float, 2> const_map = Eigen::Map<const row_major>(data.data(), 2, 6);
  CHECK(const_map(1, 0) == 6.0f);
  using padded_map = Eigen::Map<row_major, Eigen::Unaligned, Eigen::OuterStride<>>;
  const view<float, 2> padded = padded_map(data.data(), 2, 3, Eigen::OuterStride<>(5));
  CHECK(padded(1, 2) == 7.0f);
  CHECK_FALSE(padded.contiguous());

  Eigen::Ref<row_major> reference = m;
  const view<float, 2> r = reference;
  CHECK(r(2, 3) == 11.0f);
  const view<float, 2> block = m.block(1, 1, 2, 2);
  CHECK(block(1, 1) == 10.0f);
  CHECK(block.stride(0) == 4);

  Eigen::VectorXf x = Eigen::VectorXf::LinSpaced(6, 0.0f, 5.0f);
  const view<float, 1> vector(x);
  CHECK(vector.size() == 6);
  CHECK(vector(5) == 5.0f);
  const view<float, 1> column = m.col(2);
  CHECK(column.size() == 3);
  CHECK(column.stride(0) == 4);
  CHECK(column(1) == 6.0f);
  const view<float, 1> row = m.row(1);
  CHECK(row.stride(0) == 1);
  CHECK(row(2) == 6.0f);
  static_assert(!std::is_constructible_v<view<float, 1>, row_major&>, "a matrix is not a vector");
}

TEST_CASE("view: slices of an empty view without data") {
  // Constant expressions may not move a null pointer.
  static_assert(view<float, 2>(nullptr, 0, 4).slice(1, 2, 1).data() == nullptr);
  static_assert(view<float, 2>(nullptr, 0, 4).slice(1, 2, 1).extent(1) == 1);
}

TEST_CASE("view: mdspan") {
  auto data = counting(12);
  const view<float, 2> v = mdspan_like{data.data(), {3, 2}, {4, 1}};
  CHECK(v.extents() == std::array<std::size_t, 2>{3, 2});
  CHECK(v(2, 1) == 9.0f);
#ifdef __cpp_lib_mdspan
  const view<float, 2> m = std::mdspan(data.data(), 3, 4);
  CHECK(m(2, 3) == 11.0f);
  const view<const float, 2> n = std::mdspan<const float, std::dextents<std::size_t, 2>>(data.data(), 4, 3);
  CHECK(n(3, 2) == 11.0f);
#endif
}
