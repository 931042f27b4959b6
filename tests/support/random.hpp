// Reproducible random data for tests.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include <mote/core/buffer.hpp>
#include <mote/quant/int8.hpp>
#include <mote/quant/weight.hpp>

namespace test {

class random_source {
 public:
  explicit random_source(std::uint32_t seed) : engine_(seed) {}

  // `size` normal numbers of standard deviation `scale`.
  std::vector<float> normal(std::size_t size, float scale = 1.0f) {
    std::normal_distribution<float> distribution(0.0f, scale);
    std::vector<float> values(size);
    for (float& v : values) v = distribution(engine_);
    return values;
  }

  std::size_t below(std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(engine_); }

 private:
  std::mt19937 engine_;
};

// Owns random matrices in every weight format; the weights stay valid as long as it lives.
class random_weights {
 public:
  enum class format { f32, bf16, int8 };

  explicit random_weights(std::uint32_t seed, format f = format::f32) : random_(seed), format_(f) {}

  mote::weight matrix(std::size_t out, std::size_t in) {
    auto& values = floats_.emplace_back(random_.normal(out * in, 1.0f / std::sqrt(static_cast<float>(in + 1))));
    const mote::view<const float, 2> w(values.data(), out, in);
    if (format_ == format::f32) return w;
    if (format_ == format::bf16) {
      auto& narrow = halves_.emplace_back(values.size());
      for (std::size_t i = 0; i < values.size(); ++i) narrow[i] = mote::bf16(values[i]);
      return mote::view<const mote::bf16, 2>(narrow.data(), out, in);
    }
    auto& codes = codes_.emplace_back(out * in);
    auto& scale = floats_.emplace_back(out);
    mote::quantize_int8(w, {codes.data(), out, in}, scale);
    return mote::int8_matrix{{codes.data(), out, in}, {scale.data(), out}};
  }

  // Close to one, as norm weights are.
  mote::view<const float, 1> vector(std::size_t size, float mean = 1.0f) {
    auto& values = floats_.emplace_back(random_.normal(size, 0.1f));
    for (float& v : values) v += mean;
    return values;
  }

  mote::ffn_weights ffn(std::size_t hidden, std::size_t intermediate) {
    return {matrix(intermediate, hidden), matrix(intermediate, hidden), matrix(hidden, intermediate)};
  }

  random_source& random() { return random_; }

 private:
  random_source random_;
  format format_;
  std::vector<std::vector<float>> floats_;
  std::vector<std::vector<mote::bf16>> halves_;
  std::vector<std::vector<std::int8_t>> codes_;
};

}  // namespace test
