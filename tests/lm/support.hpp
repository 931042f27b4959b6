// Golden results of whole models.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include <mote/io/safetensors.hpp>

#include "support/catch.hpp"
#include "support/kernels.hpp"

namespace test {

inline std::string golden_model(const std::string& name) { return std::string(MOTE_GOLDEN_DIR) + "/models/" + name; }

template <class T>
struct golden_tensor {
  std::vector<std::size_t> shape;
  std::vector<T> values;

  // Entry i of the tensor seen as [.., width].
  std::span<const T> row(std::size_t i, std::size_t width) const { return std::span(values).subspan(i * width, width); }
};

class golden_file {
 public:
  explicit golden_file(const std::string& path) : file_(path) {}

  golden_tensor<float> floats(const std::string& name) const {
    const auto tensor = file_.tensor(name);
    const auto values = mote::read_float(tensor);
    return {tensor.shape, {values.begin(), values.end()}};
  }

  golden_tensor<std::int32_t> integers(const std::string& name) const {
    const auto tensor = file_.tensor(name);
    golden_tensor<std::int32_t> result{tensor.shape, std::vector<std::int32_t>(tensor.size())};
    const std::size_t width = tensor.bytes.size() / tensor.size();
    for (std::size_t i = 0; i < result.values.size(); ++i) {
      std::int64_t value = 0;  // little-endian, sign not needed: ids and indices
      std::memcpy(&value, tensor.bytes.data() + i * width, width);
      result.values[i] = static_cast<std::int32_t>(value);
    }
    return result;
  }

 private:
  mote::safetensors_file file_;
};

inline void check_within(const std::vector<float>& got, std::span<const float> want, float atol, float rtol) {
  REQUIRE(got.size() == want.size());
  double worst = 0.0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    REQUIRE(std::isfinite(got[i]));
    worst = std::max(worst, static_cast<double>(std::abs(got[i] - want[i])) -
                                static_cast<double>(rtol) * static_cast<double>(std::abs(want[i])));
  }
  CHECK(worst <= static_cast<double>(atol));
}

}  // namespace test
