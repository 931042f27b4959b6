// GGUF files: what the writer writes, what the reader reads, and hostile files.
#include <mote/io/gguf.hpp>
#include <mote/quant/quantize.hpp>

#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "io/refused.hpp"
#include "io/temporary.hpp"
#include "support/catch.hpp"

namespace {

// The bytes of a file, put together by hand so that nothing of the writer is needed to test the reader.
template <class T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}
std::string u32(std::uint32_t v) { return raw(v); }
std::string u64(std::uint64_t v) { return raw(v); }
std::string text(const std::string& s) { return u64(s.size()) + s; }

std::string header(std::uint64_t tensors, std::uint64_t entries, std::uint32_t version = 3) {
  return "GGUF" + u32(version) + u64(tensors) + u64(entries);
}
std::string entry(const std::string& key, std::uint32_t type, const std::string& value) {
  return text(key) + u32(type) + value;
}
// Extents innermost first, as the file has them.
std::string tensor_entry(const std::string& name, const std::vector<std::uint64_t>& extents, std::uint32_t type,
                         std::uint64_t offset) {
  std::string bytes = text(name) + u32(static_cast<std::uint32_t>(extents.size()));
  for (const std::uint64_t n : extents) bytes += u64(n);
  return bytes + u32(type) + u64(offset);
}
// The head filled up to a multiple of the alignment, then the data.
std::string with_data(std::string head, const std::string& data, std::size_t alignment = 32) {
  head.append((alignment - head.size() % alignment) % alignment, '\0');
  return head + data;
}

constexpr std::uint32_t f32 = 0, f16 = 1, q8_0 = 8, q4_k = 12;

void refuses_gguf(const std::string& bytes, const std::string& what) {
  test::check_refused("x.gguf", bytes, what, [](const std::string& path) { return mote::gguf_file(path); });
}

// For every block format that GGUF has a type for.
template <class Function>
void for_each_gguf_format(Function&& f) {
  mote::for_each_format([&]<class F>() {
    if constexpr (mote::has_ggml_type<F>) f.template operator()<F>();
  });
}

}  // namespace

TEST_CASE("gguf: metadata of every type, versions 2 and 3") {
  const test::temporary_directory directory;
  for (const std::uint32_t version : {2u, 3u}) {
    const std::string nested = u32(9) + u64(2) + u32(8) + u64(1) + text("in") + u32(4) + u64(0);
    const mote::gguf_file file(directory.write(
        "x.gguf", header(0, 14, version) + entry("a.u8", 0, raw(std::uint8_t{200})) +
                      entry("a.i8", 1, raw(std::int8_t{-5})) + entry("a.u16", 2, raw(std::uint16_t{60000})) +
                      entry("a.i16", 3, raw(std::int16_t{-300})) + entry("a.u32", 4, u32(4000000000u)) +
                      entry("a.i32", 5, raw(std::int32_t{-70000})) + entry("a.f32", 6, raw(1.5f)) +
                      entry("a.bool", 7, raw(std::uint8_t{1})) + entry("a.string", 8, text("h\xC3\xA9 \0")) +
                      entry("a.array", 9, u32(5) + u64(3) + u32(1) + u32(2) + u32(3)) + entry("a.nested", 9, nested) +
                      entry("a.u64", 10, u64(1ull << 60)) + entry("a.i64", 11, raw(std::int64_t{-1})) +
                      entry("a.f64", 12, raw(0.1))));
    CHECK(file.version() == version);
    const mote::gguf_metadata& m = file.metadata();
    CHECK(m.values().size() == 14);
    CHECK(m.integer("a.u8", 0, 255) == 200);
    CHECK(m.number("a.i8") == -5.0);
    CHECK(m.integer("a.u16", 0, 65535) == 60000);
    CHECK(m.number("a.i16") == -300.0);
    CHECK(m.integer("a.u32", 0, 4000000000u) == 4000000000u);
    CHECK(std::get<std::int32_t>(m.at("a.i32")) == -70000);
    CHECK(m.number("a.f32") == 1.5);
    CHECK(m.boolean("a.bool"));
    CHECK(m.string("a.string") == "h\xC3\xA9 ");
    CHECK(m.array<std::int32_t>("a.array") == std::vector<std::int32_t>{1, 2, 3});
    CHECK(m.integer("a.u64", 0, std::numeric_limits<std::size_t>::max()) == std::size_t{1} << 60);
    CHECK(std::get<std::int64_t>(m.at("a.i64")) == -1);
    CHECK(m.number("a.f64") == 0.1);
    const auto& inner = m.array<mote::gguf_array>("a.nested");
    REQUIRE(inner.size() == 2);
    CHECK(std::get<std::vector<std::string>>(inner[0].data) == std::vector<std::string>{"in"});
    CHECK(inner[1].type() == mote::gguf_type::u32);
    CHECK(inner[1].size() == 0);

    // Getters name the file, the key and what they expected.
    CHECK_THROWS_WITH(m.string("a.none"), contains("x.gguf: a.none: missing"));
    CHECK_THROWS_WITH(m.string("a.u8"), contains("x.gguf: a.u8: expected a string, got u8 200"));
    CHECK_THROWS_WITH(m.boolean("a.u8"), contains("boolean"));
    CHECK_THROWS_WITH(m.integer("a.u8", 0, 199), contains("from 0 to 199") && contains("200"));
    CHECK_THROWS_WITH(m.integer("a.i8", 0, 199), contains("-5"));
    CHECK_THROWS_WITH(m.integer("a.bool", 0, 1), contains("boolean"));
    CHECK_THROWS_WITH(m.integer("a.f32", 0, 9), contains("whole number"));
    CHECK_THROWS_WITH(m.number("a.string"), contains("number"));
    CHECK_THROWS_WITH(m.array<std::string>("a.array"), contains("an array of string, got one of i32"));
    CHECK_THROWS_WITH(m.array<std::string>("a.u8"), contains("an array"));
    CHECK(m.integer_or("a.none", 7, 0, 9) == 7);
    CHECK(m.string_or("a.none", "x") == "x");
    CHECK(m.number_or("a.none", 2.5) == 2.5);
    CHECK(m.boolean_or("a.none", true));
  }
}

TEST_CASE("gguf: tensors as typed views and as floats") {
  const test::temporary_directory directory;
  std::string data(64 + 2 * 2 * 34, '\0');
  const float values[] = {1.5f, -2.25f, 3.0f};
  std::memcpy(data.data(), values, sizeof values);
  float x[64];
  for (int i = 0; i < 64; ++i) x[i] = static_cast<float>(i - 20) / 8.0f;
  const mote::q8_0 blocks[] = {mote::q8_0::encode(x), mote::q8_0::encode(x + 32)};
  std::memcpy(data.data() + 64, blocks, sizeof blocks);
  const std::string head = header(4, 1) + entry("general.alignment", 4, u32(64)) + tensor_entry("row", {3}, f32, 0) +
                           tensor_entry("empty", {0, 5}, f16, 0) + tensor_entry("scalar", {}, f32, 0 + 0) +
                           tensor_entry("q", {32, 2, 2}, q8_0, 64);
  // "scalar" would overlap "row".
  refuses_gguf(with_data(head, data, 64), "tensor scalar: its data overlaps that of row");
  const std::string good = header(3, 1) + entry("general.alignment", 4, u32(64)) + tensor_entry("row", {3}, f32, 0) +
                           tensor_entry("empty", {0, 5}, f16, 0) + tensor_entry("q", {32, 2, 2}, q8_0, 64);
  const mote::gguf_file file(directory.write("x.gguf", with_data(good, data, 64)));
  CHECK(file.alignment() == 64);
  CHECK(file.tensors().size() == 3);
  CHECK(file.tensor("row").shape == std::vector<std::size_t>{3});
  const auto row = mote::mapped_view<float>(file.tensor("row"));
  CHECK(row.extent(0) == 1);
  CHECK(row(0, 1) == -2.25f);
  CHECK(file.tensor("empty").shape == std::vector<std::size_t>{5, 0});
  CHECK(mote::read_float(file.tensor("empty")).empty());
  const mote::gguf_tensor& q = file.tensor("q");
  CHECK(q.shape == std::vector<std::size_t>{2, 2, 32});
  CHECK(q.size() == 128);
  const auto mapped = mote::mapped_view<mote::q8_0>(q);
  CHECK(mapped.extent(0) == 4);
  CHECK(mapped.extent(1) == 1);
  CHECK(std::memcmp(&mapped(1, 0), &blocks[1], sizeof(mote::q8_0)) == 0);
  const auto decoded = mote::read_float(q);
  float want[64];
  blocks[0].decode(want);
  blocks[1].decode(want + 32);
  CHECK(std::equal(want, want + 64, decoded.begin()));
  CHECK_THROWS_WITH(mote::mapped_view<mote::q4_0>(q), contains("tensor q: expected type q4_0, got q8_0"));
  CHECK_THROWS_WITH(file.tensor("nope"), contains("x.gguf: tensor nope: missing"));
}

TEST_CASE("gguf: every known type can be listed; those without a format are named when they are read") {
  const test::temporary_directory directory;
  for (const mote::ggml_type_info& type : mote::ggml_types) {
    CAPTURE(std::string(type.name));
    const std::string head =
        header(1, 0) + tensor_entry("w", {2 * type.block_size, 3}, static_cast<std::uint32_t>(type.type), 0);
    const mote::gguf_file file(directory.write("x.gguf", with_data(head, std::string(6 * type.bytes, '\0'))));
    const mote::gguf_tensor& t = file.tensor("w");
    CHECK(t.type == type.type);
    CHECK(t.size() == 6 * type.block_size);
    refuses_gguf(with_data(head, std::string(6 * type.bytes - 1, '\0')), "needs " + std::to_string(6 * type.bytes));
    if (type.block_size > 1) {
      refuses_gguf(with_data(header(1, 0) +
                                 tensor_entry("w", {type.block_size + 1, 3}, static_cast<std::uint32_t>(type.type), 0),
                             std::string(1000, '\0')),
                   "multiples of " + std::to_string(type.block_size));
    }
    bool has_format = false;
    mote::for_each_format([&]<class F>() { has_format = has_format || F::name == type.name; });
    for (const char* element : {"f32", "f16", "bf16", "f64"}) has_format = has_format || type.name == element;
    if (has_format) {
      CHECK(mote::read_float(t).size() == t.size());
    } else {
      CHECK_THROWS_WITH(mote::read_float(t), contains("tensor w: type " + std::string(type.name)));
    }
  }
}

TEST_CASE("gguf: a broken header is refused") {
  refuses_gguf("", "4 bytes");
  refuses_gguf("GGU", "4 bytes");
  refuses_gguf("GGML" + u32(3) + u64(0) + u64(0), "begins with GGUF");
  refuses_gguf("GGUF", "4 bytes at byte 4");
  refuses_gguf(header(0, 0, 1), "version 1");
  refuses_gguf(header(0, 0, 4), "version 4");
  refuses_gguf(header(0, 0, 0), "version 0");
  refuses_gguf(header(0, 0, 0x03000000u), "big-endian");
  refuses_gguf("GGUF" + u32(3) + u64(0), "the file ends at byte 16");
  refuses_gguf(header(1ull << 60, 0), "1152921504606846976 tensors");
  refuses_gguf(header(0, 1ull << 60), "1152921504606846976 metadata entries");
  refuses_gguf(header(0, ~0ull), "metadata entries");
  refuses_gguf(header(~0ull, 0), "tensors");
  refuses_gguf(header(0, 1) + std::string(12, '\0'), "metadata entries");
}

TEST_CASE("gguf: broken metadata is refused by key") {
  const std::string space(64, '\0');
  refuses_gguf(header(0, 1) + u64(1ull << 60) + space, "metadata entry 0: a string of 1152921504606846976 bytes");
  refuses_gguf(header(0, 1) + u64(0) + space, "metadata entry 0: expected a key");
  refuses_gguf(header(0, 1) + text(std::string(70000, 'k')) + u32(0) + space, "a string of 70000 bytes");
  refuses_gguf(header(0, 1) + entry("k", 13, space), "key k: unknown value type 13");
  refuses_gguf(header(0, 1) + entry("k", 0xFFFFFFFFu, space), "key k: unknown value type");
  refuses_gguf(header(0, 1) + entry("k", 8, u64(1ull << 60) + space), "key k: a string of 1152921504606846976 bytes");
  refuses_gguf(header(0, 1) + entry("k", 7, "\x02" + space), "key k: expected the boolean 0 or 1, got 2");
  refuses_gguf(header(0, 1) + entry("some", 10, "1234"), "key some: expected 8 bytes");
  refuses_gguf(header(0, 1) + entry("k", 9, u32(4) + u64(1ull << 62) + space),
               "key k: 4611686018427387904 array elements");
  refuses_gguf(header(0, 1) + entry("k", 9, u32(8) + u64(100) + space), "key k: 100 array elements");
  refuses_gguf(header(0, 1) + entry("k", 9, u32(13) + u64(1) + space), "key k: unknown value type 13");
  refuses_gguf(header(0, 1) + entry("k", 9, u32(8) + u64(1) + u64(~0ull) + space), "key k: a string of");
  std::string deep;
  for (int i = 0; i < 1000; ++i) deep += u32(9) + u64(1);
  refuses_gguf(header(0, 1) + entry("k", 9, deep + u32(0) + u64(0)), "key k: arrays nested more than 8 deep");
  refuses_gguf(header(0, 2) + entry("k", 0, "1") + entry("k", 0, "1") + space, "key k: stands twice");
  for (const std::uint32_t alignment : {0u, 1u, 4u, 24u, 33u, 0xFFFFFFFFu}) {
    refuses_gguf(header(0, 1) + entry("general.alignment", 4, u32(alignment)) + space, "general.alignment");
  }
  refuses_gguf(header(0, 1) + entry("general.alignment", 8, text("32")) + space, "general.alignment");
}

TEST_CASE("gguf: broken tensors are refused by name") {
  const std::string data(256, '\0');
  const auto one = [&](const std::string& t) { return with_data(header(1, 0) + t, data); };
  refuses_gguf(one(u64(1ull << 60)), "tensor 0: a string of 1152921504606846976 bytes");
  refuses_gguf(one(tensor_entry(std::string(65, 'n'), {1}, f32, 0)), "tensor 0: a string of 65 bytes");
  refuses_gguf(one(tensor_entry("", {1}, f32, 0)), "tensor 0: expected a name");
  refuses_gguf(one(tensor_entry("w", {1, 1, 1, 1, 1}, f32, 0)), "tensor w: 5 dimensions");
  refuses_gguf(one(text("w") + u32(0xFFFFFFFFu)), "tensor w: 4294967295 dimensions");
  refuses_gguf(one(tensor_entry("w", {~0ull}, f32, 0)), "tensor w: an extent of");
  refuses_gguf(one(tensor_entry("w", {1ull << 62, 2}, f32, 0)), "overflows");
  refuses_gguf(one(tensor_entry("w", {1ull << 32, 1ull << 32}, f32, 0)), "overflows");
  refuses_gguf(one(tensor_entry("w", {1ull << 30, 1ull << 30, 16}, f32, 0)), "overflows");
  for (const std::uint32_t type : {4u, 5u, 31u, 36u, 43u, 1000u, ~0u}) {
    refuses_gguf(one(tensor_entry("w", {256}, type, 0)), "tensor w: unknown type " + std::to_string(type));
  }
  refuses_gguf(one(tensor_entry("w", {4}, f32, 4)), "tensor w: offset 4, expected a multiple of 32");
  refuses_gguf(one(tensor_entry("w", {65}, f32, 0)),
               "tensor w: f32 [65] needs 260 bytes at offset 0, outside the file's 256");
  refuses_gguf(one(tensor_entry("w", {4}, f32, 256)), "outside the file's 256");
  refuses_gguf(one(tensor_entry("w", {4}, f32, ~0ull - 31)), "outside the file's 256");
  refuses_gguf(one(tensor_entry("w", {128}, q4_k, 0)), "tensor w: expected rows in multiples of 256");
  refuses_gguf(with_data(header(2, 0) + tensor_entry("a", {16}, f32, 0) + tensor_entry("b", {16}, f32, 32), data),
               "tensor b: its data overlaps that of a");
  refuses_gguf(with_data(header(2, 0) + tensor_entry("a", {8}, f32, 0) + tensor_entry("a", {8}, f32, 32), data),
               "tensor a: stands twice");
  // Cut anywhere, the head never is a file.
  const std::string head = header(1, 1) + entry("k", 8, text("value")) + tensor_entry("w", {4, 2}, f32, 0);
  for (std::size_t n = 0; n < head.size(); ++n) refuses_gguf(head.substr(0, n), "");
}

TEST_CASE("gguf: the writer's bytes") {
  const test::temporary_directory directory;
  const std::string path = directory.path() + "/w.gguf";
  const std::size_t shape[] = {2, 3}, empty[] = {0, 4};
  const float values[] = {1, 2, 3, 4, 5, 6};
  {
    mote::gguf_writer w(path);
    w.add("a", std::string("text"));
    w.add("b", mote::gguf_array{std::vector<std::int32_t>{7, 8}});
    w.add("c", true);
    w.add_tensor("m", mote::ggml_type::f32, shape);
    w.add_tensor("none", mote::ggml_type::f16, empty);
    w.add_tensor("n", mote::ggml_type::f32, std::span<const std::size_t>(shape, 1));
    w.write("m", std::as_bytes(std::span(values)).first(8));
    CHECK_FALSE(std::filesystem::exists(path));
    w.write("m", std::as_bytes(std::span(values)).subspan(8));
    w.write("n", mote::view<const float, 1>(values, 2));
    w.finish();
  }
  const std::string data(reinterpret_cast<const char*>(values), sizeof values);
  const std::string want =
      with_data(header(3, 3) + entry("a", 8, text("text")) + entry("b", 9, u32(5) + u64(2) + u32(7) + u32(8)) +
                    entry("c", 7, "\x01") + tensor_entry("m", {3, 2}, f32, 0) + tensor_entry("none", {4, 0}, f16, 32) +
                    tensor_entry("n", {2}, f32, 32),
                data + std::string(8, '\0') + data.substr(0, 8) + std::string(24, '\0'));
  CHECK(test::read_bytes(path) == want);
  CHECK_FALSE(std::filesystem::exists(path + ".part"));
  const mote::gguf_file file(path);
  CHECK(mote::mapped_view<float>(file.tensor("m"))(1, 2) == 6.0f);
  CHECK(file.tensor("none").size() == 0);
}

TEST_CASE("gguf: what is written is what is read, for every metadata type and format") {
  const test::temporary_directory directory;
  const std::string path = directory.path() + "/w.gguf";
  std::vector<float> x(2 * 256);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 37) - 18.0f;
  const std::size_t shape[] = {2, 256};
  std::vector<std::pair<std::string, mote::gguf_value>> entries;
  const auto both = [&]<class T>(const std::string& key, T value) {
    entries.emplace_back(key, value);
    entries.emplace_back(key + ".array", mote::gguf_array{std::vector<T>{value, value}});
  };
  both("u8", std::uint8_t{255});
  both("i8", std::int8_t{-128});
  both("u16", std::uint16_t{65535});
  both("i16", std::int16_t{-32768});
  both("u32", std::uint32_t{4294967295u});
  both("i32", std::numeric_limits<std::int32_t>::min());
  both("f32", -0.0f);
  both("boolean", true);
  both("string", std::string("\0\xFFline\n", 7));
  both("array", mote::gguf_array{std::vector<std::string>{"", "b"}});
  both("u64", ~std::uint64_t{0});
  both("i64", std::numeric_limits<std::int64_t>::min());
  both("f64", 1e300);
  {
    mote::gguf_writer w(path, 128);
    for (const auto& [key, value] : entries) w.add(key, value);
    for_each_gguf_format([&]<class F>() { w.add_tensor(std::string(F::name), mote::ggml_type_of<F>(), shape); });
    for_each_gguf_format([&]<class F>() {
      std::vector<F> blocks(512 / F::block_size);
      mote::quantize<F>(mote::view<const float, 2>(x.data(), 2, 256),
                        mote::view<F, 2>(blocks.data(), 2, 256 / F::block_size));
      w.write(F::name, mote::view<const F, 2>(blocks.data(), 2, 256 / F::block_size));
    });
    w.finish();
  }
  const mote::gguf_checkpoint file(path);
  CHECK(file.files()[0].alignment() == 128);
  CHECK(file.metadata().values().size() == entries.size() + 1);
  for (const auto& [key, value] : entries) {
    CAPTURE(key);
    const bool equal = file.metadata().at(key) == value;
    CHECK(equal);
  }
  for_each_gguf_format([&]<class F>() {
    CAPTURE(std::string(std::string_view(F::name)));
    const auto values = mote::read_float(file.tensor(F::name, shape));
    float want[F::block_size];
    for (std::size_t b = 0; b < 512 / F::block_size; ++b) {
      F::encode(x.data() + b * F::block_size).decode(want);
      CHECK(std::equal(want, want + F::block_size, values.begin() + b * F::block_size));
    }
  });
}

TEST_CASE("gguf: an unfinished file leaves nothing behind; misuse is named") {
  const test::temporary_directory directory;
  const std::string path = directory.path() + "/w.gguf";
  const std::size_t shape[] = {4}, odd[] = {33}, huge[] = {std::size_t{1} << 62, 4}, many[] = {1, 1, 1, 1, 1};
  const std::string four(16, 'x');
  {
    mote::gguf_writer w(path);
    CHECK(std::filesystem::exists(path + ".part"));
    w.add("k", std::uint32_t{1});
    CHECK_THROWS_WITH(w.add("k", std::uint32_t{1}), contains("k: given twice"));
    CHECK_THROWS_WITH(w.add("", std::uint32_t{1}), contains("key"));
    CHECK_THROWS_WITH(w.add("general.alignment", std::uint32_t{64}), contains("general.alignment"));
    w.add_tensor("a", mote::ggml_type::f32, shape);
    w.add_tensor("b", mote::ggml_type::f32, shape);
    CHECK_THROWS_WITH(w.add_tensor("a", mote::ggml_type::f32, shape), contains("a: given twice"));
    CHECK_THROWS_WITH(w.add_tensor(std::string(64, 'n'), mote::ggml_type::f32, shape), contains("name"));
    CHECK_THROWS_WITH(w.add_tensor("c", mote::ggml_type::q4_0, odd), contains("c: expected rows in multiples of 32"));
    CHECK_THROWS_WITH(w.add_tensor("d", mote::ggml_type::f32, huge), contains("d: its size overflows"));
    CHECK_THROWS_WITH(w.add_tensor("e", mote::ggml_type::f32, many), contains("e: expected at most 4"));
    CHECK_THROWS_WITH(w.write("b", test::bytes_of(four)), contains("b: expected a"));
    CHECK_THROWS_WITH(w.add("late", std::uint32_t{1}), contains("late: after the first data"));
    CHECK_THROWS_WITH(w.write("a", test::bytes_of(four + "y")), contains("a: more than its 16 bytes"));
    w.write("a", test::bytes_of(four));
    CHECK_THROWS_WITH(w.finish(), contains("b: data is missing"));
    w.write("b", test::bytes_of(four.substr(0, 15)));
    CHECK_THROWS_WITH(w.finish(), contains("b: data is missing"));
  }
  CHECK(std::filesystem::is_empty(directory.path()));
  CHECK_THROWS_WITH(mote::gguf_writer(directory.path() + "/no/w.gguf"), contains("no/w.gguf: cannot be written"));
  CHECK_THROWS_WITH(mote::gguf_writer(path, 48), contains("alignment"));
}

TEST_CASE("gguf: a split model is read from any of its parts") {
  const test::temporary_directory directory;
  struct keys {
    std::uint32_t number, count, tensors;
  };
  const auto part = [&](const std::string& name, const std::string& tensor_name, keys k) {
    const std::string path = directory.path() + "/" + name;
    mote::gguf_writer w(path);
    if (k.number == 0) w.add("general.architecture", std::string("x"));
    w.add("split.no", static_cast<std::uint16_t>(k.number));
    w.add("split.count", static_cast<std::uint16_t>(k.count));
    w.add("split.tensors.count", static_cast<std::int32_t>(k.tensors));
    const std::size_t shape[] = {1};
    const float value = static_cast<float>(k.number);
    w.add_tensor(tensor_name, mote::ggml_type::f32, shape);
    w.write(tensor_name, mote::view<const float, 1>(&value, 1));
    w.finish();
    return path;
  };
  const std::string first = part("m-00001-of-00002.gguf", "a", {0, 2, 2});
  CHECK_THROWS_WITH(mote::gguf_checkpoint(first), contains("m-00002-of-00002.gguf"));
  const std::string second = part("m-00002-of-00002.gguf", "b", {1, 2, 2});
  for (const std::string& path : {first, second}) {
    mote::gguf_checkpoint original(path);
    const mote::gguf_checkpoint model(std::move(original));
    CHECK(model.files().size() == 2);
    CHECK(model.path() == first);
    CHECK(model.metadata().string("general.architecture") == "x");
    CHECK(model.tensors().size() == 2);
    CHECK(mote::read_float(model.tensor("b"))[0] == 1.0f);
    const std::size_t wrong[] = {2};
    CHECK_THROWS_WITH(model.tensor("b", wrong),
                      contains("m-00002-of-00002.gguf: tensor b: expected shape [2], got [1]"));
    CHECK_THROWS_WITH(model.tensor("c"), contains("tensor c: missing"));
  }
  CHECK_THROWS_WITH(mote::gguf_checkpoint(part("other.gguf", "a", {0, 2, 2})),
                    contains("other.gguf: split.no") && contains("-00001-of-00002.gguf"));
  CHECK_THROWS_WITH(mote::gguf_checkpoint(part("m-00001-of-00002.gguf", "a", {1, 2, 2})), contains("split.no"));
  part("m-00001-of-00002.gguf", "a", {0, 3, 2});
  CHECK_THROWS_WITH(mote::gguf_checkpoint(second), contains("m-00001-of-00002.gguf: split.count: expected 2"));
  part("m-00001-of-00002.gguf", "a", {0, 2, 3});
  CHECK_THROWS_WITH(mote::gguf_checkpoint(second), contains("split.tensors.count: the parts hold 2"));
  part("m-00001-of-00002.gguf", "b", {0, 2, 2});
  CHECK_THROWS_WITH(mote::gguf_checkpoint(second), contains("tensor b: stands in another part"));
}
