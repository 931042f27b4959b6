// Golden data of one op: tests/golden/ops/NAME.safetensors and its settings, NAME.json.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include <mote/io/json.hpp>
#include <mote/io/safetensors.hpp>

#include "support/catch.hpp"

namespace test {

class golden {
 public:
  explicit golden(const std::string& name)
      : file_(MOTE_GOLDEN_DIR "/ops/" + name + ".safetensors"), json_(MOTE_GOLDEN_DIR "/ops/" + name + ".json") {}

  mote::json_object settings() const { return json_.root(); }
  std::size_t setting(const char* name) const { return settings().integer(name, 0, 1 << 20); }
  std::size_t extent(const char* name, std::size_t i) const { return file_.tensor(name).shape.at(i); }

  std::vector<float> floats(const std::string& name) const {
    const auto values = mote::read_float(file_.tensor(name));
    return {values.begin(), values.end()};
  }
  std::vector<std::int32_t> integers(const std::string& name) const {
    return elements<std::int32_t>(name, mote::dtype::i32);
  }
  std::vector<std::int8_t> bytes(const std::string& name) const { return elements<std::int8_t>(name, mote::dtype::i8); }
  std::vector<std::uint8_t> unsigned_bytes(const std::string& name) const {
    return elements<std::uint8_t>(name, mote::dtype::u8);
  }

 private:
  template <class T>
  std::vector<T> elements(const std::string& name, mote::dtype type) const {
    const auto& t = file_.tensor(name);
    REQUIRE(t.dtype == type);
    std::vector<T> values(t.size());
    if (!values.empty()) std::memcpy(values.data(), t.bytes.data(), values.size() * sizeof(T));
    return values;
  }

  mote::safetensors_file file_;
  mote::json_file json_;
};

}  // namespace test
