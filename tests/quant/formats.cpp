#include <mote/io/gguf/types.hpp>
#include <mote/quant/formats.hpp>
#include <mote/quant/quantize.hpp>

#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <string>

#include "support/backends.hpp"
#include "support/formats.hpp"
#include "support/golden.hpp"
#include "support/random.hpp"

namespace {

template <class F>
std::vector<F> blocks_of(const std::vector<std::uint8_t>& bytes) {
  REQUIRE(bytes.size() % sizeof(F) == 0);
  std::vector<F> blocks(bytes.size() / sizeof(F));
  std::memcpy(blocks.data(), bytes.data(), bytes.size());
  return blocks;
}

template <class F>
std::vector<std::uint8_t> bytes_of(const std::vector<F>& blocks) {
  std::vector<std::uint8_t> bytes(blocks.size() * sizeof(F));
  std::memcpy(bytes.data(), blocks.data(), bytes.size());
  return bytes;
}

template <class F>
std::vector<F> encode(const std::vector<float>& x) {
  std::vector<F> blocks(x.size() / F::block_size);
  mote::quantize<F>({x.data(), 1, x.size()}, {blocks.data(), 1, blocks.size()});
  return blocks;
}

template <class F>
std::vector<float> decode(const std::vector<F>& blocks) {
  std::vector<float> x(blocks.size() * F::block_size);
  mote::dequantize<F>({blocks.data(), 1, blocks.size()}, {x.data(), 1, x.size()});
  return x;
}

double squared_distance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - b[i], 2);
  return sum;
}

double squared_norm(const std::vector<float>& a) { return squared_distance(a, std::vector<float>(a.size())); }

// Normal numbers, some of which are much larger.
std::vector<float> heavy_tailed(test::random_source& random, std::size_t size) {
  auto x = random.normal(size);
  for (float& v : x) v *= std::exp(random.normal(1)[0]);
  return x;
}

// "Q4_K" of "q4_k", as the golden files name formats.
template <class F>
std::string upper_name() {
  std::string name(F::name);
  for (char& c : name) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return name;
}

static_assert(mote::block_format<test::two_halves> && !mote::integer_format<test::two_halves>);
static_assert(!mote::block_format<float> && !mote::block_format<mote::bf16>);
static_assert(mote::format_with_min<mote::q4_1> && mote::format_with_min<mote::q4_k> &&
              !mote::format_with_min<mote::q6_k>);
static_assert(mote::two_level_format<mote::q4_k> && mote::two_level_format<mote::q6_k>);
static_assert(!mote::two_level_format<mote::q8_0>);

}  // namespace

TEST_CASE("formats: published bytes decode to the published values, to the bit") {
  const test::golden golden("gguf");
  mote::for_each_format([&]<class F>() {
    if constexpr (mote::has_ggml_type<F>) {
      INFO(F::name);
      const auto blocks = blocks_of<F>(golden.unsigned_bytes(upper_name<F>() + ".bytes"));
      CHECK(test::same_bits(decode(blocks), golden.floats(upper_name<F>() + ".y")));
    }
  });
}

TEST_CASE("formats: where the rule is published, encoding gives the published bytes") {
  const test::golden golden("gguf");
  const auto check = [&]<class F>() {
    INFO(F::name);
    const auto blocks = encode<F>(golden.floats(upper_name<F>() + ".x"));
    CHECK(bytes_of(blocks) == golden.unsigned_bytes(upper_name<F>() + ".bytes"));
  };
  mote::for_each_format(check,
                        mote::type_list<mote::q8_0, mote::q4_0, mote::q4_1, mote::q5_0, mote::q5_1, mote::mxfp4>{});
}

TEST_CASE("formats: any bytes decode by code, scale and minimum") {
  test::random_source random(1);
  test::for_each_integer_format([&]<class F>() {
    INFO(F::name);
    std::vector<std::uint8_t> bytes(200 * sizeof(F));
    for (auto& b : bytes) b = static_cast<std::uint8_t>(random.below(256));
    const auto blocks = blocks_of<F>(bytes);
    const auto y = decode(blocks);
    std::size_t wrong = 0;
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      for (std::size_t i = 0; i < F::block_size; ++i) {
        const std::size_t group = i / F::group_size;
        const double scale = static_cast<double>(mote::group_scale(blocks[b], group));
        double want = scale * mote::integer_value(blocks[b], i);
        if constexpr (mote::format_with_min<F>) want -= static_cast<double>(blocks[b].min(group));
        const float got = y[b * F::block_size + i];
        wrong += !(got == static_cast<float>(want) || (std::isnan(got) && std::isnan(want)));
        if constexpr (mote::two_level_format<F>) {
          const float product =
              static_cast<float>(blocks[b].super_scale()) * static_cast<float>(blocks[b].sub_scale(group));
          wrong += !(product == static_cast<float>(scale) || std::isnan(product));
        }
      }
    }
    CHECK(wrong == 0);
  });
}

TEST_CASE("formats: the error of a round trip") {
  // Relative root mean square error on normal numbers, and on heavy tails; a little above what was measured.
  using limits = std::array<double, 2>;
  const auto measured = [](std::string_view name) -> std::optional<limits> {
    if (name == "q8_0") return limits{0.0060, 0.010};
    if (name == "q6_k") return limits{0.018, 0.030};
    if (name == "q5_0") return limits{0.044, 0.076};
    if (name == "q5_1") return limits{0.040, 0.055};
    if (name == "q5_k") return limits{0.036, 0.051};
    if (name == "q4_k") return limits{0.074, 0.10};
    if (name == "q4_1") return limits{0.082, 0.115};
    if (name == "q3_k") return limits{0.15, 0.18};
    if (name == "q2_k") return limits{0.28, 0.29};
    if (name == "iq4_xs") return limits{0.077, 0.109};
    if (name == "iq4_nl") return limits{0.076, 0.107};
    if (name == "q4_0") return limits{0.092, 0.14};
    if (name == "nvfp4") return limits{0.086, 0.090};
    if (name == "mxfp4") return limits{0.12, 0.16};
    if (name == "int3") return limits{0.20, 0.29};
    return {};
  };
  test::random_source random(2);
  const std::vector<float> samples[] = {random.normal(1 << 14), heavy_tailed(random, 1 << 14)};
  test::for_each_integer_format([&]<class F>() {
    const auto known = measured(F::name);
    for (std::size_t i = 0; i < 2; ++i) {
      const double error =
          std::sqrt(squared_distance(samples[i], decode(encode<F>(samples[i]))) / squared_norm(samples[i]));
      CAPTURE(F::name, i, error);
      if (known) {
        CHECK(error < (*known)[i]);
        CHECK(error > 0.4 * (*known)[i]);
      } else {
        CHECK(error < 4.0 / (1 << F::code_bits));  // the formats above lose 1.3 to 2.6 times 2^-code_bits
      }
    }
  });
}

TEST_CASE("formats: no more is lost than with ggml's encoders") {
  // Relative root mean square errors of ggml_quantize_chunk (llama-cpp-python 0.3.36) on the same numbers.
  using errors = std::array<double, 4>;
  const auto of_ggml = [](std::string_view name) -> std::optional<errors> {
    if (name == "q8_0") return errors{0.005351, 0.009616, 0.003571, 0.012108};
    if (name == "q6_k") return errors{0.017624, 0.028682, 0.011982, 0.031847};
    if (name == "q5_0") return errors{0.042785, 0.072257, 0.028680, 0.065839};
    if (name == "q5_1") return errors{0.038092, 0.052280, 0.011859, 0.056299};
    if (name == "q5_k") return errors{0.036305, 0.050981, 0.013829, 0.048911};
    if (name == "q4_1") return errors{0.078793, 0.108494, 0.024658, 0.118902};
    if (name == "q3_k") return errors{0.150555, 0.178709, 0.102246, 0.078820};
    if (name == "q2_k") return errors{0.297264, 0.373852, 0.124352, 0.214369};
    if (name == "iq4_xs") return errors{0.076314, 0.107223, 0.061687, 0.088555};
    if (name == "q4_k") return errors{0.071995, 0.098971, 0.027771, 0.072750};
    if (name == "iq4_nl") return errors{0.075761, 0.105863, 0.061156, 0.085353};
    if (name == "q4_0") return errors{0.086234, 0.131742, 0.056932, 0.084895};
    if (name == "nvfp4") return errors{0.094977, 0.089429, 0.101823, 0.061695};
    if (name == "mxfp4") return errors{0.113794, 0.151006, 0.101929, 0.149821};
    return {};
  };
  test::random_source random(2);
  std::vector<std::vector<float>> samples = {random.normal(1 << 14), heavy_tailed(random, 1 << 14),
                                             random.normal(1 << 14)};
  for (float& v : samples[2]) v += 3.0f;
  for (float& v : samples.emplace_back(random.normal(1 << 14, 0.02f))) v *= random.below(64) == 0 ? 50.0f : 1.0f;
  mote::for_each_format([&]<class F>() {
    if (!mote::ggml_type_named(F::name)) return;  // a format of mote's own
    INFO(F::name);
    const auto known = of_ggml(F::name);
    REQUIRE(known);
    for (std::size_t i = 0; i < samples.size(); ++i) {
      const double error =
          std::sqrt(squared_distance(samples[i], decode(encode<F>(samples[i]))) / squared_norm(samples[i]));
      CAPTURE(F::name, i, error);
      CHECK(error < 1.0005 * (*known)[i]);
    }
  });
}

TEST_CASE("formats: what a format holds is encoded as it is") {
  test::random_source random(3);
  const auto x = random.normal(1 << 13);
  const auto exact = [&]<class F>() {
    INFO(F::name);
    const auto y = decode(encode<F>(x));
    CHECK(decode(encode<F>(y)) == y);
  };
  mote::for_each_format(exact, mote::type_list<mote::q8_0, mote::q4_0, mote::q5_0, mote::mxfp4, test::int3>{});
  // Formats with a search find a block as good, though not always the same.
  const auto close = [&]<class F>() {
    const auto y = decode(encode<F>(x));
    const double again = squared_distance(y, decode(encode<F>(y))) / squared_distance(x, y);
    CAPTURE(F::name, again);
    CHECK(again < 0.1);
  };
  mote::for_each_format(close, mote::type_list<mote::q2_k, mote::q3_k, mote::q4_k, mote::q5_k, mote::q6_k, mote::iq4_nl,
                                               mote::iq4_xs, mote::nvfp4>{});
}

TEST_CASE("formats: four codes at a time are those of each element") {
  test::for_each_integer_format([&]<class F>() {
    INFO(F::name);
    std::minstd_rand random(1);
    for (int repeat = 0; repeat < 20; ++repeat) {
      unsigned char bytes[sizeof(F)];
      for (unsigned char& b : bytes) b = static_cast<unsigned char>(random() >> 8);
      F block;
      std::memcpy(&block, bytes, sizeof block);
      for (std::size_t i = 0; i < F::block_size; i += 4) {
        const std::uint32_t four = mote::four_codes(block, i);
        for (std::size_t j = 0; j < 4; ++j) {
          REQUIRE(static_cast<std::uint8_t>(four >> (8 * j)) == static_cast<std::uint8_t>(block.code(i + j)));
        }
      }
    }
  });
}

TEST_CASE("formats: zero, constant, tiny and huge blocks") {
  test::for_each_integer_format([&]<class F>() {
    INFO(F::name);
    const std::size_t n = F::block_size;
    CHECK(decode(encode<F>(std::vector<float>(n))) == std::vector<float>(n));
    CHECK(decode(encode<F>(std::vector<float>(n, -0.0f))) == std::vector<float>(n));

    const float largest = std::numeric_limits<float>::max();
    for (const float value : {1e-45f, 1e-38f, 1e-20f, 3e-8f, 1e-6f, 1e-3f, 0.37f, 12.5f, 6e4f, 1e7f, 1e20f, largest}) {
      for (int pattern = 0; pattern < 6; ++pattern) {
        CAPTURE(value, pattern);
        std::vector<float> x(n, pattern % 2 == 0 ? value : -value);
        if (pattern / 2 == 1) {  // alternating signs
          for (std::size_t i = 0; i < n; i += 2) x[i] = -x[i];
        } else if (pattern / 2 == 2) {  // alone among zeros
          x.assign(n, 0.0f);
          x[n / 3] = pattern % 2 == 0 ? value : -value;
        }
        const auto y = decode(encode<F>(x));
        for (std::size_t i = 0; i < n; ++i) {
          CHECK(std::isfinite(y[i]));
          // Never beyond twice the largest, never of the wrong sign by more than half of it.
          CHECK(std::abs(y[i] - x[i]) <= value + 1e-7f);
        }
        // NVFP4's scales without a scale of the tensor span 2^-10 to 448 only.
        const bool in_range = F::name == "nvfp4" ? value >= 1e-3f && value <= 2600.0f : value >= 1e-3f && value <= 6e4f;
        if (in_range && pattern / 2 != 1) CHECK(squared_distance(x, y) <= 0.12 * squared_norm(x));
      }
    }
  });
}

TEST_CASE("formats of two levels: blocks whose scales of scales would round to zero") {
  test::random_source random(12);
  // A largest integer of 63 or 128 for the groups' scales leaves less than half of the smallest float16 for theirs.
  const auto lost = [&]<class F>(F, float size) {
    auto x = random.normal(4 * F::block_size);
    for (float& v : x) v = size * std::clamp(v, -2.0f, 2.0f);
    return squared_distance(decode(encode<F>(x)), x) / squared_norm(x);
  };
  CHECK(lost(mote::q4_k{}, 4e-6f) < 0.02);
  CHECK(lost(mote::q6_k{}, 3e-5f) < 0.002);
  CHECK(lost(mote::q5_k{}, 4e-6f) < 0.005);
  CHECK(lost(mote::q2_k{}, 2e-6f) < 0.2);
  CHECK(lost(mote::q3_k{}, 2e-6f) < 0.1);
  CHECK(lost(mote::iq4_xs{}, 3e-5f) < 0.02);
  // Where even the smallest float16 is more than all of a block, nothing is better than something wrong.
  const auto at_most_all = [&]<class F>() {
    INFO(F::name);
    CHECK(lost(F{}, 1e-8f) <= 1.0);
  };
  mote::for_each_format(at_most_all,
                        mote::type_list<mote::q2_k, mote::q3_k, mote::q4_k, mote::q5_k, mote::q6_k, mote::iq4_xs>{});
}

TEST_CASE("formats: inverses are finite, and zero of what is too small") {
  CHECK(mote::detail::finite_inverse(0x1p-126f) == 0x1p126f);
  CHECK(mote::detail::finite_inverse(-0x1p-126f) == -0x1p126f);
  CHECK(mote::detail::finite_inverse(-4.0f) == -0.25f);
  for (const float x : {0.0f, 0x1p-127f, -0x1.fffffcp-127f, 1e-45f}) CHECK(mote::detail::finite_inverse(x) == 0.0f);
}

TEST_CASE("nvfp4: blocks beyond its largest number lose least, not what they are cut to") {
  test::random_source random(5);
  auto x = random.normal(1 << 13);
  for (float& v : x) v = std::clamp(v * 2000.0f, -5500.0f, 5500.0f);
  const double error = std::sqrt(squared_distance(x, decode(encode<mote::nvfp4>(x))) / squared_norm(x));
  CAPTURE(error);
  CHECK(error < 0.30);
}

TEST_CASE("formats: one huge element leaves the others finite") {
  test::random_source random(4);
  test::for_each_integer_format([&]<class F>() {
    INFO(F::name);
    auto x = random.normal(F::block_size);
    for (const float huge : {1e5f, 1e10f, -3e38f}) {
      x[7] = huge;
      for (const float v : decode(encode<F>(x))) CHECK(std::isfinite(v));
    }
  });
}

TEST_CASE("iq4_nl: the search comes near the best of all scales") {
  test::random_source random(5);
  double found = 0.0, best = 0.0;
  for (int block = 0; block < 100; ++block) {
    const auto x = block % 2 == 0 ? random.normal(32) : heavy_tailed(random, 32);
    found += squared_distance(x, decode(encode<mote::iq4_nl>(x)));
    const float unit = mote::detail::largest_magnitude(x.data(), 32) / 127.0f;
    double smallest = squared_norm(x);
    for (int step = -200; step <= 200; ++step) {
      const float scale = unit * static_cast<float>(step) / 100.0f;
      double error = 0.0;
      for (const float v : x) {
        double nearest = std::numeric_limits<double>::max();
        for (const auto t : mote::iq4_nl::code_values) {
          nearest = std::min(nearest, std::pow(static_cast<double>(v) - static_cast<double>(scale) * t, 2));
        }
        error += nearest;
      }
      smallest = std::min(smallest, error);
    }
    best += smallest;
  }
  CAPTURE(found / best);
  CHECK(found < 1.03 * best);
}

TEST_CASE("nvfp4: the search comes near the best of all scales") {
  test::random_source random(6);
  double found = 0.0, best = 0.0;
  for (int block = 0; block < 50; ++block) {
    const auto x = block % 2 == 0 ? random.normal(64) : heavy_tailed(random, 64);
    found += squared_distance(x, decode(encode<mote::nvfp4>(x)));
    for (std::size_t g = 0; g < 4; ++g) {
      double smallest = std::numeric_limits<double>::max();
      for (unsigned code = 0; code < 0x7F; ++code) {
        mote::nvfp4 trial{};
        trial.scales[g] = static_cast<std::uint8_t>(code);
        double error = 0.0;
        for (std::size_t i = 0; i < 16; ++i) {
          double nearest = std::numeric_limits<double>::max();
          for (const auto t : mote::nvfp4::code_values) {
            nearest = std::min(
                nearest,
                std::pow(static_cast<double>(x[16 * g + i]) - static_cast<double>(mote::group_scale(trial, g)) * t, 2));
          }
          error += nearest;
        }
        smallest = std::min(smallest, error);
      }
      best += smallest;
    }
  }
  CAPTURE(found / best);
  CHECK(found < 1.03 * best);
}

TEST_CASE("q4_k and q6_k: better than the ranges of each group at full precision") {
  test::random_source random(7);
  for (int kind = 0; kind < 3; ++kind) {
    auto x = kind == 1 ? heavy_tailed(random, 1 << 14) : random.normal(1 << 14);
    if (kind == 2) {
      for (float& v : x) v += 3.0f;
    }
    double affine = 0.0, symmetric = 0.0;
    for (std::size_t begin = 0; begin < x.size(); begin += 16) {
      const std::size_t group = begin / 32 * 32;
      const auto [low, high] = std::minmax_element(x.begin() + static_cast<std::ptrdiff_t>(group),
                                                   x.begin() + static_cast<std::ptrdiff_t>(group + 32));
      const float min = std::min(*low, 0.0f), step = (*high - min) / 15.0f;
      const float peak = mote::detail::largest_element(x.data() + begin, 16) / -32.0f;
      for (std::size_t i = begin; i < begin + 16; ++i) {
        affine += std::pow(std::nearbyint((x[i] - min) / step) * step + min - x[i], 2);
        symmetric += std::pow(std::min(std::nearbyint(x[i] / peak), 31.0f) * peak - x[i], 2);
      }
    }
    const double q4_k = squared_distance(x, decode(encode<mote::q4_k>(x))) / affine;
    const double q6_k = squared_distance(x, decode(encode<mote::q6_k>(x))) / symmetric;
    CAPTURE(kind, q4_k, q6_k);
    CHECK(q4_k < (kind == 1 ? 1.0 : 0.95));
    CHECK(q6_k < 0.97);
  }
}

TEST_CASE("q4_k: blocks of two values lose no more than the rounding of their super scales") {
  const auto lost = [](float one, float other, std::size_t period) {
    std::vector<float> x(mote::q4_k::block_size, one);
    for (std::size_t i = 5; i < x.size(); i += period) x[i] = other;
    return std::sqrt(squared_distance(x, decode(encode<mote::q4_k>(x))) / squared_norm(x));
  };
  for (const float a : {0.7f, 1.0f, 3.7f}) CHECK(lost(-a, a, 3) < 4e-4);
  CHECK(lost(0.0f, 0.7f, 2) < 4e-4);
  CHECK(lost(0.0f, -3.0f, mote::q4_k::block_size) < 4e-4);
}

TEST_CASE("mxfp4 and nvfp4: every scale and every code") {
  for (unsigned bits = 0; bits < 256; ++bits) {
    mote::mxfp4 block{};
    block.e = mote::f8_e8m0::from_bits(static_cast<std::uint8_t>(bits));
    const float power = mote::group_scale(block, 0);
    CHECK((bits == 255 ? std::isnan(power) : power == std::ldexp(1.0f, static_cast<int>(bits) - 128)));
    mote::nvfp4 four{};
    four.scales[2] = static_cast<std::uint8_t>(bits);
    const unsigned exponent = bits >> 3 & 15u, mantissa = bits & 7u;
    const float scale = exponent == 0
                            ? std::ldexp(static_cast<float>(mantissa), -9)
                            : std::ldexp(1.0f + static_cast<float>(mantissa) / 8.0f, static_cast<int>(exponent) - 7);
    CHECK(mote::group_scale(four, 2) == (bits == 0x7F ? 0.0f : scale / 2.0f));
  }
  for (unsigned code = 0; code < 16; ++code) {
    const float value = static_cast<float>(mote::f4_e2m1::from_bits(static_cast<std::uint8_t>(code)));
    CHECK(static_cast<float>(mote::mxfp4::code_values[code]) == 2.0f * value);
  }
}

TEST_CASE("mxfp4: of two codes as near the first, beyond the largest the largest") {
  std::vector<float> x(32);
  const std::vector<float> ties = {4.0f, 0.25f, -0.25f, 0.75f, -0.75f, 1.25f, 1.75f, 2.5f, -3.5f, 5.0f, 7.9f, -7.9f};
  std::copy(ties.begin(), ties.end(), x.begin());
  const auto y = decode(encode<mote::mxfp4>(x));
  const std::vector<float> want = {4.0f, 0.0f, 0.0f, 0.5f, -0.5f, 1.0f, 1.5f, 2.0f, -3.0f, 4.0f, 6.0f, -6.0f};
  CHECK(std::vector<float>(y.begin(), y.begin() + 12) == want);
}

TEST_CASE("quantize: rows lie apart, any number of threads, and back") {
  test::random_source random(8);
  test::for_each_integer_format([&]<class F>() {
    INFO(F::name);
    const std::size_t rows = 5, columns = 2 * F::block_size, gap = 2;
    const auto values = random.normal(rows * columns);
    test::framed w(rows, columns, values);
    std::vector<F> want(rows * 2), spaced(rows * (2 + gap));
    for (std::size_t b = 0; b < want.size(); ++b) want[b] = F::encode(values.data() + b * F::block_size);
    std::memset(static_cast<void*>(spaced.data()), 0x5A, spaced.size() * sizeof(F));
    const mote::view<F, 2> out(spaced.data(), {rows, 2}, {2 + gap, 1});
    const auto check = [&](auto& be) {
      mote::quantize<F>(be, w.view(), out);
      test::framed back(rows, columns);
      mote::dequantize<F>(be, out, back.view());
      CHECK(test::same_bits(back.values(), decode(want)));
      CHECK(back.intact());
      std::size_t wrong = 0;
      for (std::size_t r = 0; r < rows; ++r) {
        wrong += std::memcmp(out.row(r), &want[2 * r], 2 * sizeof(F)) != 0;
        const auto* between = reinterpret_cast<const unsigned char*>(out.row(r) + 2);
        for (std::size_t i = 0; i < gap * sizeof(F); ++i) wrong += between[i] != 0x5A;
      }
      CHECK(wrong == 0);
    };
    mote::reference serial;
    mote::simd<> threads{mote::threads{3}};
    check(serial);
    check(threads);
    mote::quantize<F>({values.data(), 0, columns}, {want.data(), 0, 2});
    mote::quantize<F>({values.data(), rows, 0}, {want.data(), rows, 0});
  });
}

TEST_CASE("quantize: wrong shapes name the argument") {
  std::vector<float> x(80);
  std::vector<mote::q8_0> blocks(4);
  CHECK_THROWS_WITH(mote::quantize<mote::q8_0>({x.data(), 2, 40}, {blocks.data(), 2, 1}),
                    "quantize: q8_0: expected columns in multiples of 32, got 40");
  CHECK_THROWS_WITH(mote::quantize<mote::q8_0>({x.data(), 2, 32}, {blocks.data(), 2, 2}),
                    "quantize: blocks: expected shape [2, 1], got [2, 2]");
  CHECK_THROWS_WITH(mote::dequantize<mote::q8_0>({blocks.data(), 2, 2}, {x.data(), 1, 64}),
                    "dequantize: blocks: expected shape [1, 2], got [2, 2]");
}

TEST_CASE("formats: ties and equal magnitudes become the bytes that gguf's encoders write") {
  // `first`, then halves from -4 to 4 over and over.
  const auto halves = [](std::vector<float> first) {
    for (int i = 0; first.size() < 32; ++i) first.push_back(static_cast<float>(i % 17 - 8) / 2.0f);
    return first;
  };
  // `first`, then numbers around the ties of e2m1.
  const auto eighths = [](float first) {
    std::vector<float> x = {first};
    for (int i = 0; x.size() < 32; ++i) x.push_back(static_cast<float>(i % 25 - 12) / 8.0f * first / 4.0f);
    return x;
  };
  const auto hex = [](auto blocks) {
    std::string text;
    char digits[3];
    for (const std::uint8_t byte : bytes_of(blocks)) {
      std::snprintf(digits, sizeof digits, "%02x", static_cast<unsigned>(byte));
      text += digits;
    }
    return text;
  };
  CHECK(hex(encode<mote::q8_0>(halves({127}))) ==
        "003c7ffcfcfdfdfefeffff000101020203030404fcfcfdfdfefeffff000101020203");
  CHECK(hex(encode<mote::q4_0>(halves({-8}))) == "003cc0c4455556666777788889999aaaabbb");
  CHECK(hex(encode<mote::q4_0>(halves({8}))) == "00bc504ccccbbbbaaaa99998888777766665");
  CHECK(hex(encode<mote::q4_0>(halves({8, -8}))) == "00bc505f4ccccbbbbaaaa999988887777666");
  CHECK(hex(encode<mote::q4_0>(halves({-8, 8}))) == "003cb0cfc4455556666777788889999aaaab");
  CHECK(hex(encode<mote::q5_0>(halves({-16}))) == "003c00ff03fe404ccddddeeeeffff000011112222333");
  CHECK(hex(encode<mote::q5_0>(halves({16}))) == "00bcfe07fc0fd0c44443333222211110000ffffeeeed");
  CHECK(hex(encode<mote::q5_0>(halves({16, -16}))) == "00bcfe0ff81fd0dfc44443333222211110000ffffeee");
  CHECK(hex(encode<mote::q5_0>(halves({-16, 16}))) == "003c02fe07fc304f4ccddddeeeeffff0000111122223");
  CHECK(hex(encode<mote::mxfp4>(eighths(4.0f))) == "7f161b1b1a2a2a2a293939b9b0a0a0a0a0");
  CHECK(hex(encode<mote::mxfp4>(eighths(6.0f))) == "7f171c2c2c3b3b3b4a4a49c9c9c0b0b0b1");
  CHECK(hex(encode<mote::mxfp4>(eighths(3.0f))) == "7e171c2c2c3b3b3b4a4a49c9c9c0b0b0b1");
  CHECK(hex(encode<mote::mxfp4>(eighths(3.5f))) == "7e172d2c3c3c3b4b4b4a5ad9c9c0c0b0b1");
  CHECK(hex(encode<mote::mxfp4>(eighths(0.25f))) == "7b161b1b1a2a2a2a293939b9b0a0a0a0a0");
}
