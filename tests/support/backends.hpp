// What tests of ops share: the back ends to run, matrices that notice reads and writes outside, and comparisons.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <mote/core/backend.hpp>
#include <mote/core/executors/team.hpp>
#include <mote/core/simd.hpp>

#include "support/catch.hpp"

namespace test {

// f(be) for the vector back end on this file's instruction set, and on older ones that it includes.
template <class F>
void for_each_simd(F&& f) {
  const auto run = [&](const char* name, auto&& be) {
    INFO("back end: " << name);
    f(be);
  };
  run("simd, one thread", mote::simd<>{});
  run("simd, three threads", mote::simd<>{mote::threads{3}});
  run("simd, serial", mote::simd<mote::default_arch, mote::serial>{});
#if defined(__AVX2__) && defined(__FMA__)
  run("avx2 and fma", mote::simd<xsimd::fma3<xsimd::avx2>, mote::serial>{});
#endif
#if defined(__SSE2__)
  run("sse2", mote::simd<xsimd::sse2, mote::serial>{});
#endif
}

// The same, after the reference.
template <class F>
void for_each_backend(F&& f) {
  {
    INFO("back end: reference");
    mote::reference be;
    f(be);
  }
  for_each_simd(f);
}

// f(be) on every thread of a team of three.
template <class F>
void run_team(F&& f) {
  mote::team team(3);
  std::vector<std::thread> members;
  for (std::size_t i = 0; i < 3; ++i) {
    members.emplace_back([&, i] {
      mote::simd<mote::default_arch, mote::team_member> be{mote::team_member{team, i}};
      f(be);
    });
  }
  for (auto& member : members) member.join();
}

// A matrix whose rows have NaN between them, and end where the memory ends.
class framed {
 public:
  framed(std::size_t rows, std::size_t columns, std::size_t gap = 3)
      : rows_(rows),
        columns_(columns),
        gap_(gap),
        values_(gap + rows * (gap + columns) - (rows > 0 ? gap : 0), std::numeric_limits<float>::quiet_NaN()) {}

  framed(std::size_t rows, std::size_t columns, const std::vector<float>& values, std::size_t gap = 3)
      : framed(rows, columns, gap) {
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t c = 0; c < columns; ++c) view()(r, c) = values[r * columns + c];
    }
  }

  mote::view<float, 2> view() { return {values_.data() + gap_, {rows_, columns_}, {columns_ + gap_, 1}}; }
  // The rows as [rows, columns / inner, inner].
  mote::view<float, 3> view(std::size_t inner) {
    return {values_.data() + gap_, {rows_, columns_ / inner, inner}, {columns_ + gap_, inner, 1}};
  }

  std::vector<float> values() const {
    std::vector<float> v;
    for (std::size_t r = 0; r < rows_; ++r) {
      const float* row = values_.data() + gap_ + r * (columns_ + gap_);
      v.insert(v.end(), row, row + columns_);
    }
    return v;
  }

  // Whether nothing was written between the rows.
  bool intact() const {
    for (std::size_t i = 0; i < values_.size(); ++i) {
      const bool outside = i < gap_ || (i - gap_) % (columns_ + gap_) >= columns_;
      if (outside && !std::isnan(values_[i])) return false;
    }
    return true;
  }

 private:
  std::size_t rows_, columns_, gap_;
  std::vector<float> values_;
};

// |got - want| <= absolute + relative · |want| everywhere.
inline void check_close(std::span<const float> got, std::span<const float> want, float absolute,
                        float relative = 0.0f) {
  REQUIRE(got.size() == want.size());
  std::size_t wrong = 0, first = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::abs(got[i] - want[i]) <= absolute + relative * std::abs(want[i]) || got[i] == want[i]) continue;
    if (wrong++ == 0) first = i;
  }
  if (wrong != 0) {
    INFO(wrong << " values differ, first at " << first << ": got " << got[first] << ", want " << want[first]);
    CHECK(wrong == 0);
  }
}

inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<std::uint32_t>(a[i]) != std::bit_cast<std::uint32_t>(b[i])) return false;
  }
  return true;
}

using sizes = std::vector<std::size_t>;

// Around those of vectors.
inline const sizes awkward_sizes = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 67, 130};

}  // namespace test
