// Files of weights as kernels read them.
#include <mote/io/weight_file.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <variant>
#include <vector>

#include <mote/core/simd.hpp>
#include <mote/quant/int8.hpp>
#include <mote/quant/quantize.hpp>

#include "io/refused.hpp"
#include "io/temporary.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace {

constexpr std::size_t out = 40, in = 256;

// One matrix in every form there is.
class every_form {
 public:
  every_form()
      : values_(test::random_source(1).normal(out * in)),
        codes_(out * in),
        scale_(out),
        halves_(out * in),
        f16_(out * in) {
    const mote::view<const float, 2> floats(values_.data(), out, in);
    mote::quantize_int8(floats, {codes_.data(), out, in}, scale_);
    for (std::size_t i = 0; i < values_.size(); ++i) halves_[i] = mote::bf16(values_[i]);
    const mote::int8_matrix int8{{codes_.data(), out, in}, {scale_.data(), out}};
    const mote::view<const mote::bf16, 2> bf16(halves_.data(), out, in);
    std::transform(values_.begin(), values_.end(), f16_.begin(), [](float v) { return mote::f16(v); });
    const mote::scaled_matrix scaled{.codes = mote::view<const std::int8_t, 2>(codes_.data(), out, in),
                                     .scale = {values_.data(), out / 8, in / 64},
                                     .zero = {codes_.data(), out / 8, in / 64},
                                     .tile_rows = 8,
                                     .tile_columns = 64};
    weights = {floats,
               bf16,
               mote::view<const mote::f16, 2>(f16_.data(), out, in),
               scaled,
               int8,
               mote::pack(be_, int8, room(mote::packed_matrix<std::int8_t>::size(out, in))),
               mote::pack(be_, bf16, room(mote::packed_matrix<mote::bf16>::size(out, in)))};
    mote::for_each_format([&]<class F>() {
      const auto bytes = room(out * (in / F::block_size) * sizeof(F));
      const mote::view<F, 2> blocks(reinterpret_cast<F*>(bytes.data()), out, in / F::block_size);
      mote::quantize<F>(be_, floats, blocks);
      weights.push_back(mote::view<const F, 2>(blocks));
      if constexpr (mote::integer_format<F>) {
        weights.push_back(mote::pack(be_, mote::view<const F, 2>(blocks), room(mote::packed_matrix<F>::size(out, in))));
      }
    });
  }

  std::vector<mote::weight> weights;

 private:
  mote::view<std::uint8_t, 1> room(std::size_t size) {
    auto& bytes = bytes_.emplace_back(size);
    return bytes.as(size);
  }

  mote::simd<> be_;
  std::vector<float> values_;
  std::vector<std::int8_t> codes_;
  std::vector<float> scale_;
  std::vector<mote::bf16> halves_;
  std::vector<mote::f16> f16_;
  std::vector<mote::buffer<std::uint8_t>> bytes_;
};

std::vector<float> values_of(const mote::weight& w) {
  std::vector<float> all(mote::out_features(w) * mote::in_features(w));
  for (std::size_t n = 0; n < mote::out_features(w); ++n) {
    mote::dequantize_row(w, n, all.data() + n * mote::in_features(w));
  }
  return all;
}

// A file with the given table; 4096 bytes of weights.
std::string with_table(const std::string& table, std::uint64_t version = 1) {
  std::string bytes(8192, '\0');
  mote::detail::weight_file_header header{};
  std::memcpy(header.magic.data(), "MOTEPACK", 8);
  header.version = version;
  header.table_offset = bytes.size();
  header.table_size = table.size();
  header.table_checksum = mote::fnv1a(std::as_bytes(std::span(table)));
  std::memcpy(bytes.data(), &header, sizeof header);
  return bytes + table;
}

}  // namespace

TEST_CASE("weight_file: every form comes back as it was, mapped and aligned") {
  const test::temporary_directory directory;
  const std::string path = directory.path() + "/weights.mote";
  const every_form made;
  {
    mote::weight_file_writer writer(path, "a key");
    for (std::size_t i = 0; i < made.weights.size(); ++i) {
      if (i % 3 == 0) writer.begin_region();
      writer.write(std::string("w").append(std::to_string(i)), made.weights[i]);
    }
    CHECK_THROWS_WITH(writer.write("w0", made.weights[0]), contains("w0: given twice"));
    CHECK(!std::filesystem::exists(path));
    writer.begin_region();
    writer.finish();
    CHECK(!std::filesystem::exists(path + ".part"));
  }
  const mote::weight_file file(path);
  CHECK(mote::is_weight_file(path));
  CHECK(file.key() == "a key");
  CHECK(file.weights().size() == made.weights.size());
  CHECK(made.weights.size() == std::variant_size_v<mote::weight>);
  const auto address = [](const std::byte* p) { return reinterpret_cast<std::uintptr_t>(p); };
  for (std::size_t i = 0; i < made.weights.size(); ++i) {
    const auto& entry = file.at("w" + std::to_string(i), out, in);
    CHECK(entry.weight.index() == made.weights[i].index());
    CHECK(values_of(entry.weight) == values_of(made.weights[i]));
    CHECK(address(entry.bytes.data()) % 4096 == 0);
    if (i % 3 == 0 && i + 2 < made.weights.size()) {
      const auto region = file.region(entry, file.at("w" + std::to_string(i + 2), out, in));
      const std::size_t begin = address(region.data()) - address(file.at("w0", out, in).bytes.data());
      CHECK(begin % 65536 == 0);
      CHECK(region.size() % 65536 == 0);
    }
  }
  CHECK_THROWS_WITH(file.at("none", out, in), contains(path) && contains("none: missing"));
  CHECK_THROWS_WITH(file.at("w0", out, in + 1), contains("w0: expected shape [40, 257], got [40, 256]"));
  CHECK_THROWS_WITH(file.region(file.at("w3", out, in), file.at("w0", out, in)), contains("do not follow"));
}

TEST_CASE("weight_file: scaled matrices of every code come back as they were") {
  const test::temporary_directory directory;
  const std::string path = directory.path() + "/weights.mote";
  std::vector<std::uint8_t> bytes(10 * 14);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::uint8_t>(i * 5 % 120);
  const std::vector<float> scale = test::random_source(2).normal(3 * 4);
  const std::vector<std::int8_t> zero = {1, -2, 3, -4, 5, -6, 7, -8, 9, 10, 11, 12};
  mote::scaled_matrix m;
  m.scale = {scale.data(), 3, 4};
  m.tile_rows = m.tile_columns = 4;
  const auto same = [&] {
    {
      mote::weight_file_writer writer(path, "");
      writer.write("w", m);
      writer.finish();
    }
    const mote::weight_file file(path);
    const auto& found = file.at("w", 10, 14).weight;
    CHECK(values_of(found) == values_of(m));
    CHECK(std::get<mote::scaled_matrix>(found).codes.index() == m.codes.index());
    mote::check_rows("test", "w", found);
  };
  m.codes = mote::view<const mote::f8_e4m3, 2>(reinterpret_cast<const mote::f8_e4m3*>(bytes.data()), 10, 14);
  same();
  m.codes = mote::view<const mote::f8_e5m2, 2>(reinterpret_cast<const mote::f8_e5m2*>(bytes.data()), 10, 14);
  same();
  m.zero = {zero.data(), 3, 4};
  m.codes = mote::view<const std::int8_t, 2>(reinterpret_cast<const std::int8_t*>(bytes.data()), 10, 14);
  same();
  m.codes = mote::view<const mote::int4_pair, 2>(reinterpret_cast<const mote::int4_pair*>(bytes.data()), 10, 7);
  same();
}

TEST_CASE("weight_file_writer: without finish() nothing is left, and two do not write one file") {
  const test::temporary_directory directory;
  const std::string path = directory.path() + "/weights.mote";
  const std::vector<float> values(8, 1.0f);
  const mote::view<const float, 2> w(values.data(), 2, 4);
  {
    mote::weight_file_writer writer(path, "");
    writer.write("w", w);
    CHECK_THROWS_WITH(mote::weight_file_writer(path, ""), contains("another process"));
  }
  CHECK(std::filesystem::is_empty(directory.path()));
  CHECK_THROWS_WITH(mote::weight_file_writer(directory.path() + "/no/w", ""), contains("no/w: cannot be written"));
  mote::weight_file_writer writer(path, "");
  const mote::view<const float, 2> strided(values.data(), {2, 3}, {4, 1});
  CHECK_THROWS_AS(writer.write("strided", strided), mote::shape_error);
  CHECK_THROWS_WITH(writer.write("none", mote::weight()), contains("none: is empty"));
}

TEST_CASE("weight_file_writer: PATH.part of another kind is left alone, a killed writer's is not") {
  const test::temporary_directory directory;
  const std::string path = directory.path() + "/weights.mote";
  directory.write("weights.mote.part", "precious");
  CHECK_THROWS_WITH(mote::weight_file_writer(path, ""), contains(path + ".part: was left by something else"));
  CHECK(test::read_bytes(path + ".part") == "precious");
  directory.write("weights.mote.part", with_table("{}", 0));
  CHECK_NOTHROW(mote::weight_file_writer(path, ""));
}

TEST_CASE("weight_file: what breaks the format is refused by name") {
  const auto refuses = [](const std::string& bytes, const std::string& why) {
    test::check_refused("bad.mote", bytes, why, [](const std::string& path) { return mote::weight_file(path); });
  };
  const auto weight = [](const std::string& fields) {
    return with_table(R"({"key": "", "weights": {"w": {)" + fields + "}}}");
  };
  const test::temporary_directory directory;
  CHECK_NOTHROW(
      mote::weight_file(directory.write("good", weight(R"("form": "f32", "shape": [2, 512], "offset": 4096)"))));

  refuses("", "MOTEPACK");
  refuses("something else, and long enough for a header", "MOTEPACK");
  refuses("MOTEPACK", "cut off");
  refuses(with_table("{}", 2), "version 2");
  const std::string good = weight(R"("form": "f32", "shape": [1, 4], "offset": 4096)");
  refuses(good.substr(0, good.size() - 1), "table lies beyond");
  std::string spoilt = good;
  spoilt[spoilt.size() - 3] ^= 1;
  refuses(spoilt, "damaged");
  refuses(with_table("{"), "malformed");
  refuses(with_table(R"({"weights": {}})"), "key: missing");
  refuses(with_table(R"({"key": ""})"), "weights: missing");
  refuses(with_table(R"({"key": "", "weights": {"w": 1}})"), "weight w: expected a JSON object");
  refuses(weight(R"("form": "f33", "shape": [1, 4], "offset": 4096)"), "unknown form \"f33\"");
  refuses(weight(R"("form": "f32", "shape": [4], "offset": 4096)"), "shape");
  refuses(weight(R"("form": "f32", "shape": [0, 4], "offset": 4096)"), "from 1 to");
  refuses(weight(R"("form": "f32", "shape": [1, -4], "offset": 4096)"), "shape");
  refuses(weight(R"("form": "f32", "shape": [1, 1152921504606846976], "offset": 4096)"), "shape");
  refuses(weight(R"("form": "f32", "shape": [1073741824, 1073741824], "offset": 4096)"), "weights end at byte 8192");
  refuses(
      weight(
          R"("form": "packed q4_0", "shape": [1073741824, 1073741824], "offset": 4096, "lanes": 8, "largest_code": 127)"),
      "weights end at byte 8192");
  refuses(weight(R"("form": "f32", "shape": [1, 4], "offset": 100)"), "multiple of 4096");
  refuses(weight(R"("form": "f32", "shape": [1, 4], "offset": 18446744073709547520)"), "offset");
  refuses(weight(R"("form": "f32", "shape": [1, 1025], "offset": 4096)"), "weights end");
  refuses(weight(R"("form": "q4_0", "shape": [1, 33], "offset": 4096)"), "rows of 33");
  refuses(weight(R"("form": "packed q4_0", "shape": [1, 33], "offset": 4096, "lanes": 8, "largest_code": 127)"),
          "rows of 33");
  refuses(weight(R"("form": "packed q4_0", "shape": [1, 32], "offset": 4096)"), "lanes: missing");
  refuses(weight(R"("form": "scaled", "shape": [1, 32], "offset": 4096, "tile": [1, 32], "zero": false)"),
          "codes: missing");
  refuses(weight(R"("form": "scaled", "shape": [1, 32], "offset": 4096, "codes": "x", "tile": [1, 32], "zero": false)"),
          "codes \"x\"");
  refuses(
      weight(R"("form": "scaled", "shape": [1, 32], "offset": 4096, "codes": "int8", "tile": [0, 32], "zero": false)"),
      "tile");
  refuses(
      weight(R"("form": "scaled", "shape": [1, 33], "offset": 4096, "codes": "int4", "tile": [1, 32], "zero": false)"),
      "rows of 33");
  refuses(
      weight(R"("form": "scaled", "shape": [1, 32], "offset": 4096, "codes": "int4", "tile": [1, 5], "zero": false)"),
      "rows of 32");
  refuses(
      weight(
          R"("form": "scaled", "shape": [1, 32], "offset": 4096, "codes": "f8_e5m2", "tile": [1, 32], "zero": true)"),
      "zero points");
  refuses(
      weight(
          R"("form": "scaled", "shape": [4096, 32], "offset": 4096, "codes": "int8", "tile": [1, 32], "zero": true)"),
      "weights end");
  refuses(weight(R"("form": "packed q4_0", "shape": [1, 32], "offset": 4096, "lanes": 0, "largest_code": 127)"),
          "lanes");
  refuses(weight(R"("form": "packed q4_0", "shape": [1, 32], "offset": 4096, "lanes": 5, "largest_code": 127)"),
          "divisor");
  refuses(weight(R"("form": "packed q4_0", "shape": [1, 32], "offset": 4096, "lanes": 8, "largest_code": 256)"),
          "largest_code");
}

TEST_CASE("fingerprint: notices another size, time, beginning and end") {
  const test::temporary_directory directory;
  std::string bytes(3 << 20, 'a');
  const auto write = [&](const std::string& content) {
    const std::string path = directory.write("file", content);
    std::filesystem::last_write_time(path, std::filesystem::file_time_type(std::chrono::hours(1)));
    return mote::fingerprint(path);
  };
  const std::uint64_t before = write(bytes);
  CHECK(write(bytes) == before);
  bytes[1000] = 'b';
  CHECK(write(bytes) != before);
  bytes[1000] = 'a';
  bytes.back() = 'b';
  CHECK(write(bytes) != before);
  bytes.back() = 'a';
  CHECK(write(bytes) == before);
  CHECK(write(bytes + "a") != before);
  write(bytes);
  std::filesystem::last_write_time(directory.path() + "/file", std::filesystem::file_time_type(std::chrono::hours(2)));
  CHECK(mote::fingerprint(directory.path() + "/file") != before);
  CHECK(write("") != write("a"));
  CHECK(mote::fnv1a(std::as_bytes(std::span("a", 1))) == 0xaf63dc4c8601ec8cu);  // published
  CHECK_THROWS_WITH(mote::fingerprint(directory.path() + "/none"), contains("/none"));
}
