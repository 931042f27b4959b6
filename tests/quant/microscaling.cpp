#include <mote/quant/microscaling.hpp>
#include <mote/quant/quantize.hpp>

#include <cstring>

#include "support/backends.hpp"
#include "support/golden.hpp"
#include "support/random.hpp"

namespace {

template <class F>
std::vector<float> decode_blocks(const std::vector<F>& blocks, float factor = 1.0f) {
  std::vector<float> y(blocks.size() * F::block_size);
  mote::dequantize<F>({blocks.data(), 1, blocks.size()}, {y.data(), 1, y.size()});
  for (float& v : y) v *= factor;
  return y;
}

template <class T>
std::vector<T> scales_of(const std::vector<std::uint8_t>& bits) {
  std::vector<T> scales;
  for (const auto b : bits) scales.push_back(T::from_bits(b));
  return scales;
}

template <class T>
std::vector<std::uint8_t> bits_of(const std::vector<T>& scales) {
  std::vector<std::uint8_t> bits;
  for (const auto s : scales) bits.push_back(s.bits);
  return bits;
}

}  // namespace

TEST_CASE("mxfp4: the safetensors layout, both ways, and the MX rounding") {
  const test::golden golden("block_formats");
  const auto x = golden.floats("x");
  const std::size_t rows = golden.extent("x", 0), columns = golden.extent("x", 1), blocks = columns / 32;
  const auto bytes = golden.unsigned_bytes("mxfp4.bytes"), scale_bits = golden.unsigned_bytes("mxfp4.scales");
  const auto scales = scales_of<mote::f8_e8m0>(scale_bits);
  std::vector<mote::mxfp4> loaded(rows * blocks), encoded;
  mote::load_mxfp4({bytes.data(), rows, columns / 2}, {scales.data(), rows, blocks}, {loaded.data(), rows, blocks});
  test::check_close(decode_blocks(loaded), golden.floats("mxfp4.dequantized"), 0.0f);

  for (std::size_t b = 0; b < rows * blocks; ++b) encoded.push_back(mote::encode_mx(x.data() + 32 * b));
  std::vector<std::uint8_t> stored(bytes.size());
  std::vector<mote::f8_e8m0> stored_scales(scales.size());
  mote::store_mxfp4({encoded.data(), rows, blocks}, {stored.data(), rows, columns / 2},
                    {stored_scales.data(), rows, blocks});
  CHECK(stored == bytes);
  CHECK(bits_of(stored_scales) == scale_bits);
}

TEST_CASE("nvfp4: the safetensors layout with a scale of the tensor, both ways") {
  const test::golden golden("block_formats");
  const auto x = golden.floats("x");
  const std::size_t rows = golden.extent("x", 0), blocks = golden.extent("x", 1) / 64, columns = 64 * blocks;
  const float g = mote::nvfp4_tensor_scale({x.data(), rows, golden.extent("x", 1)});
  CHECK(g == golden.floats("nvfp4.global_scale")[0]);
  // What whole blocks hold of each row.
  const auto used = [&](const auto& all, std::size_t each) {
    std::remove_cvref_t<decltype(all)> part;
    for (std::size_t r = 0; r < rows; ++r) {
      const auto row = all.begin() + static_cast<std::ptrdiff_t>(r * (all.size() / rows));
      part.insert(part.end(), row, row + static_cast<std::ptrdiff_t>(each));
    }
    return part;
  };
  const auto values = used(x, columns);
  const auto bytes = used(golden.unsigned_bytes("nvfp4.bytes"), columns / 2);
  const auto scale_bits = used(golden.unsigned_bytes("nvfp4.scales"), columns / 16);
  const auto scales = scales_of<mote::f8_e4m3>(scale_bits);
  std::vector<mote::nvfp4> loaded(rows * blocks), encoded;
  mote::load_nvfp4({bytes.data(), rows, columns / 2}, {scales.data(), rows, 4 * blocks}, {loaded.data(), rows, blocks});
  test::check_close(decode_blocks(loaded, g), used(golden.floats("nvfp4.dequantized"), columns), 0.0f, 1e-6f);

  for (std::size_t b = 0; b < rows * blocks; ++b) encoded.push_back(mote::encode_nvfp4(values.data() + 64 * b, g));
  std::vector<std::uint8_t> stored(bytes.size());
  std::vector<mote::f8_e4m3> stored_scales(scales.size());
  mote::store_nvfp4({encoded.data(), rows, blocks}, {stored.data(), rows, columns / 2},
                    {stored_scales.data(), rows, 4 * blocks});
  CHECK(bits_of(stored_scales) == scale_bits);
  // A division may land on a tie: then a code may be one off.
  std::size_t off = 0;
  for (std::size_t i = 0; i < 2 * bytes.size(); ++i) {
    const int got = stored[i / 2] >> (i % 2 * 4) & 15, want = bytes[i / 2] >> (i % 2 * 4) & 15;
    CHECK(std::abs(got - want) <= 1);
    off += got != want;
  }
  CHECK(off <= bytes.size() / 100);
}

TEST_CASE("microscaling: any bytes survive both ways; rows lie apart") {
  test::random_source random(1);
  const std::size_t rows = 3, columns = 128;
  std::vector<std::uint8_t> bytes(rows * columns / 2), other(rows * columns / 2);
  for (auto& b : bytes) b = static_cast<std::uint8_t>(random.below(256));
  std::vector<mote::f8_e8m0> powers(rows * columns / 32), other_powers(powers.size());
  for (auto& s : powers) s.bits = static_cast<std::uint8_t>(random.below(256));
  std::vector<mote::mxfp4> mx(rows * 6);
  const mote::view<mote::mxfp4, 2> mx_rows(mx.data(), {rows, 4}, {6, 1});
  mote::load_mxfp4({bytes.data(), rows, 64}, {powers.data(), rows, 4}, mx_rows);
  mote::store_mxfp4(mx_rows, {other.data(), rows, 64}, {other_powers.data(), rows, 4});
  CHECK(other == bytes);
  CHECK(bits_of(other_powers) == bits_of(powers));

  std::vector<mote::f8_e4m3> scales(rows * columns / 16), other_scales(scales.size());
  for (auto& s : scales) s.bits = static_cast<std::uint8_t>(random.below(256));
  std::vector<mote::nvfp4> nv(rows * 2);
  other.assign(other.size(), 0);
  mote::load_nvfp4({bytes.data(), rows, 64}, {scales.data(), rows, 8}, {nv.data(), rows, 2});
  mote::store_nvfp4({nv.data(), rows, 2}, {other.data(), rows, 64}, {other_scales.data(), rows, 8});
  CHECK(other == bytes);
  CHECK(bits_of(other_scales) == bits_of(scales));
}

TEST_CASE("microscaling: zero, tiny and huge blocks") {
  for (const float value : {0.0f, 1e-45f, 1e-38f, 1e-20f, 1.0f, 1e20f, 3.4e38f}) {
    CAPTURE(value);
    const std::vector<float> x(64, -value);
    for (const float v : decode_blocks(std::vector<mote::mxfp4>{mote::encode_mx(x.data())})) {
      CHECK(std::isfinite(v));
      CHECK(std::abs(v + value) <= 0.26f * value + 1e-38f);
    }
    const float g = mote::nvfp4_tensor_scale({x.data(), 1, 64});
    for (const float v : decode_blocks(std::vector<mote::nvfp4>{mote::encode_nvfp4(x.data(), g)}, g)) {
      CHECK(std::isfinite(v));
      CHECK(std::abs(v + value) <= 0.01f * value + 1e-38f);
    }
  }
  CHECK(mote::nvfp4_tensor_scale({nullptr, 0, 64}) == 1.0f);
}

TEST_CASE("microscaling: wrong shapes name the argument") {
  std::vector<std::uint8_t> bytes(64);
  std::vector<mote::f8_e8m0> powers(8);
  std::vector<mote::f8_e4m3> scales(8);
  std::vector<mote::mxfp4> mx(4);
  std::vector<mote::nvfp4> nv(2);
  CHECK_THROWS_WITH(mote::load_mxfp4({bytes.data(), 2, 16}, {powers.data(), 2, 2}, {mx.data(), 2, 2}),
                    "load_mxfp4: bytes: expected shape [2, 32], got [2, 16]");
  CHECK_THROWS_WITH(mote::store_mxfp4({mx.data(), 2, 2}, {bytes.data(), 2, 32}, {powers.data(), 2, 1}),
                    "store_mxfp4: scales: expected shape [2, 2], got [2, 1]");
  CHECK_THROWS_WITH(mote::load_nvfp4({bytes.data(), 2, 32}, {scales.data(), 2, 2}, {nv.data(), 2, 1}),
                    "load_nvfp4: scales: expected shape [2, 4], got [2, 2]");
}
