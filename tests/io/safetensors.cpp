// Hostile and well-formed safetensors files and checkpoints.
#include <mote/io/safetensors.hpp>

#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "io/refused.hpp"
#include "io/temporary.hpp"
#include "support/catch.hpp"

namespace {

// A file with this header and `data` zero bytes behind it.
std::string with_header(const std::string& header, std::size_t data = 0) {
  std::string bytes(8, '\0');
  const std::uint64_t length = header.size();
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(length >> (8 * i));
  return bytes + header + std::string(data, '\0');
}

// A file with one tensor "w" of the given entry.
std::string with_tensor(const std::string& entry, std::size_t data) {
  return with_header("{\"w\":" + entry + "}", data);
}

void refuses_safetensors(const std::string& bytes, const std::string& what) {
  test::check_refused("model.safetensors", bytes, what,
                      [](const std::string& path) { return mote::safetensors_file(path); });
}

}  // namespace

TEST_CASE("safetensors: reads tensors of every type, aligned or not") {
  const test::temporary_directory directory;
  // b starts at an odd offset.
  std::string bytes =
      with_header(R"({"__metadata__":{"format":"pt"},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                  R"("b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]},)"
                  R"("c":{"dtype":"BF16","shape":[0,4],"data_offsets":[9,9]}})",
                  9);
  const float values[] = {1.5f, -2.25f};
  std::memcpy(bytes.data() + bytes.size() - 8, values, sizeof values);
  const mote::safetensors_file file(directory.write("x.safetensors", bytes));
  CHECK(file.tensors().size() == 3);
  CHECK(file.tensor("b").shape == std::vector<std::size_t>{2});
  const auto b = mote::read_float(file.tensor("b"));
  CHECK(b[0] == 1.5f);
  CHECK(b[1] == -2.25f);
  CHECK(file.tensor("c").size() == 0);
  CHECK_THROWS_WITH(file.tensor("nope"), contains("x.safetensors") && contains("nope"));
  CHECK_THROWS_WITH(mote::read_float(file.tensor("a")), contains("tensor a") && contains("U8"));
  CHECK_THROWS_WITH(mote::mapped_view<float>(file.tensor("a")), contains("tensor a"));
  const auto mapped = mote::mapped_view<float>(file.tensor("b"));  // only where it happens to be aligned
  if (mapped) CHECK((*mapped)(1) == -2.25f);
}

TEST_CASE("safetensors: a broken header is refused") {
  refuses_safetensors("", "8 bytes");
  refuses_safetensors("1234567", "8 bytes");
  refuses_safetensors(std::string("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 8), "header's length");
  refuses_safetensors(std::string("\x10\0\0\0\0\0\0\0{}", 10), "header's length");
  refuses_safetensors(with_header(""), "malformed JSON");
  refuses_safetensors(with_header("{"), "malformed JSON");
  refuses_safetensors(with_header("{\"w\":\"\xFF\xFE\"}"), "malformed JSON");
  refuses_safetensors(with_header("[]"), "JSON object");
  refuses_safetensors(with_header("null"), "JSON object");
  refuses_safetensors(with_header(std::string(100000, '[')), "nested");
  refuses_safetensors(with_header("{\"w\":" + std::string(80, '[') + std::string(80, ']') + "}"), "nested");
  refuses_safetensors(
      with_header(
          R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
          1),
      "twice");
}

TEST_CASE("safetensors: a broken tensor entry is refused by name") {
  refuses_safetensors(with_tensor("1", 0), "tensor w");
  refuses_safetensors(with_tensor("{}", 0), "dtype");
  refuses_safetensors(with_tensor(R"({"dtype":"F99","shape":[1],"data_offsets":[0,4]})", 4), "F99");
  refuses_safetensors(with_tensor(R"({"dtype":7,"shape":[1],"data_offsets":[0,4]})", 4), "dtype");
  refuses_safetensors(with_tensor(R"({"dtype":"F32","data_offsets":[0,4]})", 4), "shape");
  refuses_safetensors(with_tensor(R"({"dtype":"F32","shape":4,"data_offsets":[0,4]})", 4), "shape");
  refuses_safetensors(with_tensor(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", 4), "shape");
  refuses_safetensors(with_tensor(R"({"dtype":"F32","shape":[1.5],"data_offsets":[0,4]})", 4), "shape");
  refuses_safetensors(with_tensor(R"({"dtype":"F32","shape":["1"],"data_offsets":[0,4]})", 4), "shape");
  refuses_safetensors(with_tensor(R"({"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,4]})", 4),
                      "overflow");
  refuses_safetensors(with_tensor(R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]})", 4),
                      "overflow");
  refuses_safetensors(with_tensor(R"({"dtype":"F32","shape":[99999999999999999999999],"data_offsets":[0,4]})", 4),
                      "shape");
  refuses_safetensors(with_tensor(R"({"dtype":"F32","shape":[1]})", 4), "data_offsets");
  refuses_safetensors(with_tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0]})", 4), "data_offsets");
  refuses_safetensors(with_tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4,8]})", 8), "data_offsets");
  refuses_safetensors(with_tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[-4,0]})", 4), "data_offsets");
  refuses_safetensors(with_tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})", 4), "outside");
  refuses_safetensors(with_tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})", 3), "outside");
  refuses_safetensors(with_tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]})", 4),
                      "outside");
  refuses_safetensors(with_tensor(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})", 4), "needs 8");
  refuses_safetensors(
      with_header(
          R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
          4),
      "overlaps");
}

TEST_CASE("checkpoint: one file or shards; what is missing is named") {
  const test::temporary_directory directory;
  const std::string path = directory.path();
  CHECK_THROWS_WITH(mote::checkpoint(path), contains("model.safetensors"));
  CHECK_THROWS_WITH(mote::checkpoint("no-such-directory"), contains("no-such-directory"));

  const std::string a = with_header(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1);
  const std::string b = with_header(R"({"b":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}})", 8);
  const auto index = [&](const std::string& map) {
    directory.write("model.safetensors.index.json", "{\"metadata\":{},\"weight_map\":" + map + "}");
  };
  directory.write("one.safetensors", a);
  index(R"({"a":"one.safetensors","b":"two.safetensors"})");
  CHECK_THROWS_WITH(mote::checkpoint(path), contains("two.safetensors"));
  directory.write("two.safetensors", b);
  mote::checkpoint files(path);
  CHECK(files.tensors().size() == 2);
  CHECK(files.contains("b"));
  const mote::checkpoint moved(std::move(files));
  CHECK(moved.tensor("b").size() == 2);
  const std::vector<std::size_t> right = {2, 1}, wrong = {1, 2};
  CHECK(moved.tensor("b", right).shape == right);
  CHECK_THROWS_WITH(moved.tensor("b", wrong),
                    contains("two.safetensors") && contains("tensor b") && contains("[1, 2]") && contains("[2, 1]"));
  CHECK_THROWS_WITH(moved.tensor("c"), contains("tensor c"));

  index(R"({"a":"one.safetensors","c":"two.safetensors"})");
  CHECK_THROWS_WITH(mote::checkpoint(path), contains("two.safetensors") && contains("tensor c"));
  for (const char* map : {R"({"a":"../one.safetensors"})", R"({"a":"/etc/passwd"})", R"({"a":""})", R"({"a":7})", "[]",
                          "7", R"({"a":"one.safetensors\u0000x"})"}) {
    index(map);
    CHECK_THROWS_AS(mote::checkpoint(path), mote::format_error);
  }
  directory.write("model.safetensors.index.json", "{}");
  CHECK_THROWS_WITH(mote::checkpoint(path), contains("weight_map"));
  std::filesystem::create_directory(path + "/model.safetensors");
  CHECK_THROWS_WITH(mote::checkpoint(path), contains("model.safetensors") && contains("regular"));
}

TEST_CASE("safetensors: a named pipe is refused, not waited for") {
  const test::temporary_directory directory;
  const std::string path = directory.path() + "/model.safetensors";
  REQUIRE(mkfifo(path.c_str(), 0600) == 0);
  CHECK_THROWS_WITH(mote::safetensors_file(path), contains("model.safetensors") && contains("regular"));
}
