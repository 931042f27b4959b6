// Matrices of quantized checkpoints: every layout by hand, and malformed ones.
#include <mote/io/compressed_tensors.hpp>
#include <mote/io/safetensors_writer.hpp>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "io/temporary.hpp"
#include "support/catch.hpp"

namespace {

using shape = std::vector<std::size_t>;

struct tensor {
  std::string name;
  mote::dtype type;
  std::vector<std::size_t> extents;
  std::string bytes;
};

template <class T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

void write(const test::temporary_directory& directory, const std::vector<tensor>& tensors) {
  mote::safetensors_writer file(directory.path() + "/model.safetensors");
  for (const tensor& t : tensors) file.add_tensor(t.name, t.type, t.extents);
  for (const tensor& t : tensors) file.write(t.name, std::as_bytes(std::span(t.bytes)));
  file.finish();
}

std::vector<float> read(const std::vector<tensor>& tensors, std::size_t out, std::size_t in) {
  const test::temporary_directory directory;
  write(directory, tensors);
  const mote::checkpoint files(directory.path());
  const mote::matrix_ref matrix(files, "w", out, in);
  const auto all = matrix.read();
  // Rows one by one are the same.
  for (std::size_t n = 0; n < out; ++n) {
    std::vector<float> row(in);
    matrix.read(n, mote::view<float, 2>(row.data(), 1, in));
    CHECK(std::equal(row.begin(), row.end(), all.data() + n * in));
  }
  return {all.begin(), all.end()};
}

void refuses(const std::vector<tensor>& tensors, std::size_t out, std::size_t in, const std::string& what) {
  const test::temporary_directory directory;
  write(directory, tensors);
  const mote::checkpoint files(directory.path());
  CHECK_THROWS_WITH(mote::matrix_ref(files, "w", out, in), contains("tensor w.weight") && contains(what));
}

// Codes 0, 1, 2, … 15, 0, … two a byte.
std::string nibbles(std::size_t count) {
  std::string bytes;
  for (std::size_t i = 0; i < count; i += 2) bytes += static_cast<char>(i % 16 | (i + 1) % 16 << 4);
  return bytes;
}

constexpr float e2m1[] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};

}  // namespace

TEST_CASE("matrix_ref: plain and int8") {
  CHECK(read({{"w.weight", mote::dtype::f32, {2, 2}, raw<float>({1, 2, 3, 4})}}, 2, 2) ==
        std::vector<float>{1, 2, 3, 4});
  CHECK(read({{"w.weight", mote::dtype::i8, {2, 3}, raw<std::int8_t>({1, -2, 3, 127, -127, 0})},
              {"w.weight_scale", mote::dtype::f32, {2, 1}, raw<float>({0.5f, 2.0f})}},
             2, 3) == std::vector<float>{0.5f, -1.0f, 1.5f, 254.0f, -254.0f, 0.0f});
}

TEST_CASE("matrix_ref: int8 with a scale for the tensor or for groups, and zero points") {
  const tensor codes{"w.weight", mote::dtype::i8, {2, 4}, raw<std::int8_t>({1, -2, 3, 127, -128, 0, 5, 6})};
  CHECK(read({codes, {"w.weight_scale", mote::dtype::bf16, {1}, std::string("\x00\x3F", 2)}}, 2, 4) ==  // 0.5
        std::vector<float>{0.5f, -1.0f, 1.5f, 63.5f, -64.0f, 0.0f, 2.5f, 3.0f});
  CHECK(read({codes,
              {"w.weight_scale", mote::dtype::f32, {2, 1}, raw<float>({1.0f, 2.0f})},
              {"w.weight_zero_point", mote::dtype::i8, {2, 1}, raw<std::int8_t>({1, -128})}},
             2, 4) == std::vector<float>{0.0f, -3.0f, 2.0f, 126.0f, 0.0f, 256.0f, 266.0f, 268.0f});
  CHECK(read({codes,
              {"w.weight_scale", mote::dtype::f32, {2}, raw<float>({1.0f, 2.0f})},
              {"w.weight_zero_point", mote::dtype::i8, {2}, raw<std::int8_t>({1, -128})}},
             2, 4) == std::vector<float>{0.0f, -3.0f, 2.0f, 126.0f, 0.0f, 256.0f, 266.0f, 268.0f});
  CHECK(read({codes,
              {"w.weight_scale", mote::dtype::f32, {2, 2}, raw<float>({1.0f, 2.0f, 3.0f, 4.0f})},
              {"w.weight_zero_point", mote::dtype::i8, {2, 2}, raw<std::int8_t>({1, 2, 0, -1})}},
             2, 4) == std::vector<float>{0.0f, -3.0f, 2.0f, 250.0f, -384.0f, 0.0f, 24.0f, 28.0f});
}

TEST_CASE("matrix_ref: fp8 with a scale for each block of 128, for each row or for the tensor") {
  const std::size_t out = 130, in = 129;
  const tensor ones{"w.weight", mote::dtype::f8_e4m3, {out, in}, std::string(out * in, '\x38')};
  const auto values = read({ones, {"w.weight_scale_inv", mote::dtype::f32, {2, 2}, raw<float>({1, 2, 3, 4})}}, out, in);
  CHECK((values[0] == 1 && values[128] == 2 && values[129 * in] == 3 && values[129 * in + 128] == 4));
  std::vector<float> each_row(out, 1.0f);
  each_row[129] = 7.0f;
  const auto rows = read({ones, {"w.weight_scale", mote::dtype::f32, {out, 1}, raw(each_row)}}, out, in);
  CHECK((rows[128 * in] == 1 && rows[129 * in] == 7 && rows[129 * in + 128] == 7));
  CHECK(read({ones, {"w.weight_scale", mote::dtype::f32, {out}, raw(each_row)}}, out, in) == rows);
  const tensor halves{"w.weight", mote::dtype::f8_e5m2, {1, 2}, "\x3C\xB8"};  // 1 and -0.5
  CHECK(read({halves, {"w.weight_scale", mote::dtype::f32, {1}, raw<float>({3})}}, 1, 2) ==
        std::vector<float>{3.0f, -1.5f});
}

TEST_CASE("matrix_ref: an empty fp8 matrix of absurdly many rows is read at once") {
  const std::size_t rows = std::size_t{1} << 60;
  const test::temporary_directory directory;
  write(directory, {{"w.weight", mote::dtype::f8_e4m3, {rows, 0}, ""},
                    {"w.weight_scale_inv", mote::dtype::f32, {rows / 128, 0}, ""}});
  const mote::checkpoint files(directory.path());
  CHECK(mote::matrix_ref(files, "w", rows, 0).read().empty());
}

TEST_CASE("matrix_ref: int4 in words of eight, exactly as q4_0 blocks where the scales allow") {
  const std::size_t in = 64;
  std::vector<std::uint32_t> words;
  for (std::size_t w = 0; w < 2 * in / 8; ++w) words.push_back(w % 2 == 0 ? 0x76543210u : 0xFEDCBA98u);
  const auto tensors = [&](std::vector<float> scale) {
    return std::vector<tensor>{{"w.weight_packed", mote::dtype::i32, {2, in / 8}, raw(words)},
                               {"w.weight_scale", mote::dtype::f32, {2, 2}, raw(scale)},
                               {"w.weight_shape", mote::dtype::i64, {2}, raw<std::int64_t>({2, 64})}};
  };
  const auto values = read(tensors({1.0f, 2.0f, 0.5f, 4.0f}), 2, in);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float scale[] = {1.0f, 2.0f, 0.5f, 4.0f};
    CHECK(values[i] == (static_cast<float>(i % 16) - 8.0f) * scale[i / 32]);
  }
  const test::temporary_directory directory;
  write(directory, tensors({1.0f, 2.0f, 0.5f, 4.0f}));
  const mote::checkpoint files(directory.path());
  const auto blocks = mote::matrix_ref(files, "w", 2, in).to_q4_0();
  REQUIRE(blocks);
  REQUIRE(blocks->size() == 4);
  std::vector<float> decoded(32);
  for (std::size_t b = 0; b < 4; ++b) {
    (*blocks)[b].decode(decoded.data());
    CHECK(std::equal(decoded.begin(), decoded.end(), values.begin() + static_cast<std::ptrdiff_t>(32 * b)));
  }
  const test::temporary_directory other;
  write(other, tensors({1.0f, 2.0f, 0.1f, 4.0f}));  // 0.1 is no float16
  const mote::checkpoint inexact(other.path());
  CHECK(!mote::matrix_ref(inexact, "w", 2, in).to_q4_0());
}

TEST_CASE("matrix_ref: int4 with zero points, whose words hold eight rows") {
  // Codes 7, -8 in every row; zero points 1 in row 0 and -3 in row 8, else 0.
  const auto values = read({{"w.weight_packed", mote::dtype::i32, {9, 1}, raw(std::vector<std::uint32_t>(9, 0x0Fu))},
                            {"w.weight_scale", mote::dtype::f32, {9, 1}, raw(std::vector<float>(9, 0.5f))},
                            {"w.weight_zero_point", mote::dtype::i32, {2, 1}, raw<std::uint32_t>({0x88888889u, 5u})},
                            {"w.weight_shape", mote::dtype::i64, {2}, raw<std::int64_t>({9, 2})}},
                           9, 2);
  CHECK((values[0] == 3.0f && values[1] == -4.5f && values[2] == 3.5f && values[3] == -4.0f));
  CHECK((values[16] == 5.0f && values[17] == -2.5f));
}

TEST_CASE("matrix_ref: mxfp4 and nvfp4") {
  const std::vector<tensor> mx = {
      {"w.weight_packed", mote::dtype::u8, {1, 32}, nibbles(64)},
      {"w.weight_scale", mote::dtype::u8, {1, 2}, raw<std::uint8_t>({127, 129})},
  };
  const auto values = read(mx, 1, 64);
  for (std::size_t i = 0; i < 64; ++i) {
    CHECK(values[i] == (i % 16 < 8 ? 1.0f : -1.0f) * e2m1[i % 8] * (i < 32 ? 1.0f : 4.0f));
  }
  const test::temporary_directory directory;
  write(directory, mx);
  const mote::checkpoint files(directory.path());
  const auto blocks = mote::matrix_ref(files, "w", 1, 64).to_mxfp4();
  REQUIRE(blocks);
  std::vector<float> decoded(64);
  (*blocks)[0].decode(decoded.data());
  (*blocks)[1].decode(decoded.data() + 32);
  CHECK(decoded == values);

  const auto nv = read({{"w.weight_packed", mote::dtype::u8, {1, 16}, nibbles(32)},
                        {"w.weight_scale", mote::dtype::f8_e4m3, {1, 2}, "\x38\x40"},  // 1 and 2
                        {"w.weight_global_scale", mote::dtype::f32, {1}, raw<float>({4.0f})}},
                       1, 32);
  for (std::size_t i = 0; i < 32; ++i) {
    CHECK(nv[i] == (i % 16 < 8 ? 0.25f : -0.25f) * e2m1[i % 8] * (i < 16 ? 1.0f : 2.0f));
  }
}

TEST_CASE("matrix_ref: nvfp4 as blocks times the tensor's scale") {
  const auto nv = [](const std::string& scales) {
    return std::vector<tensor>{{"w.weight_packed", mote::dtype::u8, {2, 32}, nibbles(128)},
                               {"w.weight_scale", mote::dtype::f8_e4m3, {2, 4}, scales},
                               {"w.weight_global_scale", mote::dtype::f32, {1}, raw<float>({3.0f})}};
  };
  const test::temporary_directory directory;
  write(directory, nv("\x38\x40\x01\x7E\x39\x3A\x3B\x3C"));
  const mote::checkpoint files(directory.path());
  const mote::matrix_ref matrix(files, "w", 2, 64);
  const auto blocks = matrix.to_nvfp4();
  REQUIRE(blocks);
  const auto values = matrix.read();
  float decoded[128];
  for (std::size_t b = 0; b < 2; ++b) (*blocks)[b].decode(decoded + 64 * b);
  for (std::size_t i = 0; i < 128; ++i) {
    CHECK(decoded[i] * matrix.tensor_scale() == Approx(values[i]).epsilon(1e-6));
    CHECK(values[i] == Approx(decoded[i] / 3.0f).epsilon(1e-6));
  }
  const test::temporary_directory other;
  write(other, nv(std::string("\x38\x40\x81\x7E\x39\x3A\x3B\x3C", 8)));  // blocks have no negative scales
  const mote::checkpoint negative(other.path());
  CHECK(!mote::matrix_ref(negative, "w", 2, 64).to_nvfp4());
}

TEST_CASE("matrix_ref: blocks of every format, by its name") {
  mote::for_each_format([]<class F>() {
    CAPTURE(F::name);
    constexpr std::size_t out = 3, in = 2 * F::block_size;
    std::vector<float> values(out * in), decoded(out * in);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(i));
    std::string bytes;
    for (std::size_t i = 0; i < values.size(); i += F::block_size) {
      const F block = F::encode(values.data() + i);
      block.decode(decoded.data() + i);
      bytes.append(reinterpret_cast<const char*>(&block), sizeof block);
    }
    const std::string name = "w.weight_" + std::string(F::name);
    const test::temporary_directory directory;
    write(directory, {{"a", mote::dtype::u8, {1}, "x"}, {name, mote::dtype::u8, {out, 2 * sizeof(F)}, bytes}});
    const mote::checkpoint files(directory.path());
    CHECK(mote::stored_matrix_name(files, "w") == name);
    const mote::matrix_ref matrix(files, "w", out, in);
    const auto all = matrix.read();
    CHECK(std::vector<float>(all.begin(), all.end()) == decoded);
    const auto blocks = matrix.template to_blocks<F>();
    REQUIRE(blocks);
    CHECK(std::memcmp(blocks->data(), bytes.data(), bytes.size()) == 0);
    using other = std::conditional_t<std::is_same_v<F, mote::q8_0>, mote::q4_0, mote::q8_0>;
    CHECK(!matrix.template to_blocks<other>());
  });
  refuses({{"w.weight_q8_0", mote::dtype::u8, {1, 34}, std::string(34, 'a')}}, 1, 64, "expected shape [1, 68]");
  refuses({{"w.weight_q8_0", mote::dtype::u8, {1, 34}, std::string(34, 'a')}}, 1, 33, "columns in multiples of 32");
  refuses({{"w.weight_q8_0", mote::dtype::i8, {1, 34}, std::string(34, 'a')}}, 1, 32, "expected U8");
}

TEST_CASE("matrix_ref: malformed layers are refused by name") {
  const tensor i8{"w.weight", mote::dtype::i8, {2, 3}, "abcdef"};
  refuses({{"w.weight", mote::dtype::f32, {1}, "abcd"}}, 1, 2, "expected shape [1, 2]");
  const std::string groups = "expected a scale for each group of a row";
  refuses({i8, {"w.weight_scale", mote::dtype::f32, {1, 2}, raw<float>({1, 2})}}, 2, 3, groups);
  refuses({i8, {"w.weight_scale", mote::dtype::f32, {2, 2}, raw<float>({1, 2, 3, 4})}}, 2, 3, groups);
  const tensor i8_scale{"w.weight_scale", mote::dtype::f32, {2, 1}, raw<float>({1, 2})};
  refuses({i8, i8_scale, {"w.weight_zero_point", mote::dtype::i8, {1, 1}, "a"}}, 2, 3, "expected shape [2, 1]");
  refuses({i8, i8_scale, {"w.weight_zero_point", mote::dtype::i8, {1, 2}, "ab"}}, 2, 3, "expected shape [2, 1]");
  refuses({i8, i8_scale, {"w.weight_zero_point", mote::dtype::u8, {2, 1}, "ab"}}, 2, 3, "expected I8");
  refuses({i8, i8_scale, {"w.weight_g_idx", mote::dtype::i32, {3}, std::string(12, 'a')}}, 2, 3, "is not supported");
  refuses({{"w.weight", mote::dtype::f8_e4m3, {1, 2}, "ab"}}, 1, 2, "needs its scales, w.weight_scale_inv");
  const tensor inverse{"w.weight_scale_inv", mote::dtype::f32, {1, 1}, raw<float>({1})};
  refuses({{"w.weight", mote::dtype::bf16, {1, 2}, "abcd"}, inverse}, 1, 2, "expected F8_E4M3 or F8_E5M2");
  refuses({{"w.weight", mote::dtype::f8_e4m3, {1, 2}, "ab"},
           {"w.weight_scale", mote::dtype::f32, {2, 1}, raw<float>({1, 2})}},
          1, 2, "for each block, [1, 1], got shape [2, 1]");
  refuses({{"w.weight", mote::dtype::f8_e4m3, {1, 2}, "ab"},
           {"w.weight_scale_inv", mote::dtype::i32, {1, 1}, raw<std::int32_t>({1})}},
          1, 2, "w.weight_scale_inv: expected a floating-point type");
  const tensor packed{"w.weight_packed", mote::dtype::i32, {1, 4}, std::string(16, 'x')};
  const tensor scale{"w.weight_scale", mote::dtype::f32, {1, 1}, raw<float>({1})};
  refuses({packed, scale, {"w.weight_shape", mote::dtype::i64, {2}, raw<std::int64_t>({32, 1})}}, 1, 32,
          "expected [1, 32]");
  refuses({packed, scale, {"w.weight_shape", mote::dtype::f32, {2}, raw<float>({1, 32})}}, 1, 32,
          "expected I64 or I32");
  refuses({packed,
           {"w.weight_scale", mote::dtype::f32, {1, 3}, raw<float>({1, 1, 1})},
           {"w.weight_shape", mote::dtype::i32, {2}, raw<std::int32_t>({1, 32})}},
          1, 32, "expected a scale for each group");
  refuses({{"w.weight_packed", mote::dtype::i32, {1, 1}, std::string(4, 'x')},
           scale,
           {"w.weight_shape", mote::dtype::i32, {2}, raw<std::int32_t>({1, 3})}},
          1, 3, "even number of columns");
  refuses({packed,
           scale,
           {"w.weight_zero_point", mote::dtype::i32, {1, 2}, std::string(8, 'x')},
           {"w.weight_shape", mote::dtype::i32, {2}, raw<std::int32_t>({1, 32})}},
          1, 32, "expected shape [1, 1], got [1, 2]");
  refuses({{"w.weight_packed", mote::dtype::i8, {1, 16}, std::string(16, 'x')}, scale}, 1, 32, "expected I32 or U8");
  const tensor bytes{"w.weight_packed", mote::dtype::u8, {1, 16}, std::string(16, 'x')};
  refuses({bytes, scale}, 1, 32, "expected U8");
  refuses({bytes, {"w.weight_scale", mote::dtype::u8, {1, 2}, "ab"}}, 1, 32, "expected shape [1, 1]");
  const tensor nv_scale{"w.weight_scale", mote::dtype::f8_e4m3, {1, 2}, "ab"};
  refuses({bytes, nv_scale, {"w.weight_global_scale", mote::dtype::f32, {1}, raw<float>({0})}}, 1, 32,
          "expected a positive number");
}
