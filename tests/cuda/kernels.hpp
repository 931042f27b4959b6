// What the CUDA kernels must do, compared with the reference back end on any machine that runs them: the host emulation
// or a GPU. A machine has `backend()`, `wait()` and `array<T>`, its memory: made from a std::vector, with data() and host().
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include <mote/ops/matmul/cuda.cuh>
#include <mote/ops/rms_norm/cuda.cuh>
#include <mote/quant/int8.hpp>

#include "support/backends.hpp"
#include "support/random.hpp"

namespace test {

// A matrix in a machine's memory. Before, between and behind its rows all bits are one, which is NaN.
template <class Machine, class T>
class device_matrix {
 public:
  device_matrix(std::size_t rows, std::size_t columns, const std::vector<T>& values, std::size_t gap = 0,
                std::size_t offset = 0)
      : rows_(rows), columns_(columns), gap_(gap), offset_(offset), array_(framed(values)) {}

  mote::view<T, 2> view() { return {array_.data() + offset_, {rows_, columns_}, {columns_ + gap_, 1}}; }

  std::vector<T> values() const {
    const auto all = array_.host();
    std::vector<T> inside;
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (is_inside(i)) inside.push_back(all[i]);
    }
    return inside;
  }

  // Whether nothing was written outside the rows.
  bool intact() const {
    const auto all = array_.host(), fresh = framed(std::vector<T>(rows_ * columns_));
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (!is_inside(i) && std::memcmp(&all[i], &fresh[i], sizeof(T)) != 0) return false;
    }
    return true;
  }

 private:
  bool is_inside(std::size_t i) const {
    return columns_ != 0 && i >= offset_ && i < offset_ + rows_ * (columns_ + gap_) &&
           (i - offset_) % (columns_ + gap_) < columns_;
  }

  std::vector<T> framed(const std::vector<T>& values) const {
    std::vector<T> all(offset_ + rows_ * (columns_ + gap_) + 4);
    std::memset(static_cast<void*>(all.data()), 0xFF, all.size() * sizeof(T));
    std::size_t next = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (is_inside(i)) all[i] = values[next++];
    }
    return all;
  }

  std::size_t rows_, columns_, gap_, offset_;
  typename Machine::template array<T> array_;
};

template <class Machine>
void check_rms_norm(Machine& machine) {
  random_source random(1);
  for (const std::size_t n : sizes{0, 1, 3, 4, 130, 515, 1024}) {
    for (const std::size_t tokens : sizes{0, 1, 3}) {
      const auto x = random.normal(tokens * n), gain = random.normal(n);
      for (const bool weighted : {true, false}) {
        CAPTURE(n, tokens, weighted);
        mote::reference reference;
        std::vector<float> want(x.size());
        mote::rms_norm(reference, mote::view<const float, 2>(x.data(), tokens, n),
                       weighted ? mote::view<const float, 1>(gain) : mote::view<const float, 1>(), 1e-5f,
                       mote::view<float, 2>(want.data(), tokens, n));

        device_matrix<Machine, float> in(tokens, n, x), out(tokens, n, std::vector<float>(x.size()), 5, 1);
        device_matrix<Machine, float> strided(tokens, n, x, 3, 2), w(1, n, gain);
        const auto g = weighted ? mote::view<const float, 1>(w.view().data(), n) : mote::view<const float, 1>();
        mote::rms_norm(machine.backend(), in.view(), g, 1e-5f, out.view());
        mote::rms_norm(machine.backend(), strided.view(), g, 1e-5f, strided.view());
        machine.wait();
        check_close(out.values(), want, 2e-6f, 2e-6f);
        CHECK(out.intact());
        CHECK(same_bits(strided.values(), out.values()));  // unaligned, in place
        CHECK(strided.intact());
      }
    }
  }
}

// y = 1 + k, then matmul into it; the reference does the same on the host.
template <class Machine, class Weight>
void check_product(Machine& machine, const std::vector<float>& x, std::size_t tokens, std::size_t out, std::size_t in,
                   const mote::weight& host, const Weight& weight, bool exact) {
  for (const auto mode : {mote::output::overwrite, mote::output::accumulate}) {
    const bool accumulate = mode == mote::output::accumulate;
    CAPTURE(tokens, out, in, host.index(), accumulate);
    mote::reference reference;
    std::vector<float> want(tokens * out, 1.5f);
    device_matrix<Machine, float> input(tokens, in, x, 3, 1), y(tokens, out, want, 2, 3);
    mote::matmul(reference, mote::view<const float, 2>(x.data(), tokens, in), host,
                 mote::view<float, 2>(want.data(), tokens, out), mode);
    mote::matmul(machine.backend(), input.view(), weight, y.view(), mode);
    machine.wait();
    const auto got = y.values();
    check_close(got, want, exact ? 0.0f : 1e-5f, exact ? 0.0f : 1e-5f);
    CHECK(y.intact());

    if (tokens < 2 || accumulate) continue;
    device_matrix<Machine, float> alone(1, out, std::vector<float>(out));
    mote::matmul(machine.backend(), input.view().slice(0, tokens - 1, 1), weight, alone.view());
    machine.wait();
    CHECK(same_bits(alone.values(), std::span(got).subspan((tokens - 1) * out)));
  }
}

template <class Machine>
void check_matmul(Machine& machine) {
  struct shape {
    std::size_t tokens, out, in;
  };
  random_source random(2);
  for (const auto [tokens, out, in] : {shape{0, 3, 4}, shape{1, 0, 4}, shape{2, 3, 0}, shape{1, 1, 1}, shape{1, 5, 300},
                                       shape{3, 17, 33}, shape{9, 18, 257}, shape{8, 16, 256}}) {
    const auto x = random.normal(tokens * in), values = random.normal(out * in, 0.1f);
    const mote::view<const float, 2> rows(values.data(), out, in);
    {
      device_matrix<Machine, float> w(out, in, values, 3, 1);
      check_product(machine, x, tokens, out, in, rows, mote::view<const float, 2>(w.view()), false);
    }
    {
      std::vector<mote::bf16> narrow;
      for (const float v : values) narrow.push_back(mote::bf16(v));
      device_matrix<Machine, mote::bf16> w(out, in, narrow, 3, 1);
      check_product(machine, x, tokens, out, in, mote::view<const mote::bf16, 2>(narrow.data(), out, in),
                    mote::view<const mote::bf16, 2>(w.view()), false);
    }
    {
      std::vector<std::int8_t> codes(out * in);
      std::vector<float> scale(out);
      mote::quantize_int8(rows, {codes.data(), out, in}, scale);
      device_matrix<Machine, std::int8_t> w(out, in, codes, 3, 1);
      device_matrix<Machine, float> s(1, out, scale);
      const mote::int8_matrix host{{codes.data(), out, in}, scale};
      const mote::int8_matrix weight{w.view(), {s.view().data(), out}};
      check_product(machine, x, tokens, out, in, host, weight, true);
    }
  }
}

}  // namespace test
