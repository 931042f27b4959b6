// What the safetensors writer writes the reader reads; unfinished files go or can be gone on with.
#include <mote/io/gguf.hpp>
#include <mote/io/safetensors.hpp>
#include <mote/io/safetensors_writer.hpp>

#include <cstring>
#include <filesystem>
#include <string>
#include <type_traits>
#include <vector>

#include "io/temporary.hpp"
#include "support/catch.hpp"

namespace {

using shape = std::vector<std::size_t>;

void add_tensors(mote::safetensors_writer& file) {
  file.add("format", "pt");
  file.add_tensor("weight", mote::dtype::i8, shape{2, 3});
  file.add_tensor("none", mote::dtype::f32, shape{0, 4});
  file.add_tensor("scale", mote::dtype::f32, shape{2, 1});
}
void add_tensors(mote::gguf_writer& file) {
  file.add("general.architecture", std::string("test"));
  file.add_tensor("weight", mote::ggml_type::i8, shape{2, 3});
  file.add_tensor("none", mote::ggml_type::f32, shape{0, 4});
  file.add_tensor("scale", mote::ggml_type::f32, shape{2, 1});
}

template <class Writer>
Writer make_writer(const std::string& path, mote::unfinished policy) {
  if constexpr (std::is_same_v<Writer, mote::gguf_writer>) {
    return Writer(path, mote::gguf_default_alignment, policy);
  } else {
    return Writer(path, policy);
  }
}

template <class Writer>
void check_resume(const std::string& name) {
  const test::temporary_directory directory;
  const std::string whole = directory.path() + "/whole-" + name, path = directory.path() + "/" + name;
  const std::string weight = "abcdef", scale = "12345678";
  const auto write_rest = [&](Writer& file, std::size_t from) {
    if (from < 1) file.write("weight", test::bytes_of(weight));
    file.write("scale", test::bytes_of(scale));
    file.finish();
  };
  {
    Writer file = make_writer<Writer>(whole, mote::unfinished::removed);
    add_tensors(file);
    write_rest(file, 0);
  }
  for (const std::size_t done : {0u, 1u, 2u, 3u}) {
    CAPTURE(done);
    {
      Writer file = make_writer<Writer>(path, mote::unfinished::kept);
      add_tensors(file);
      file.write("weight", test::bytes_of(weight));
      file.write("scale", test::bytes_of(done == 3 ? scale : scale.substr(0, 3)));
      file.flush();
    }
    CHECK(std::filesystem::exists(path + ".part"));
    CHECK(!std::filesystem::exists(path));
    {
      Writer file = make_writer<Writer>(path, mote::unfinished::kept);
      add_tensors(file);
      file.resume(done);
      if (done < 3) {
        write_rest(file, done);
      } else {
        file.finish();
      }
    }
    CHECK(!std::filesystem::exists(path + ".part"));
    CHECK(test::read_bytes(path) == test::read_bytes(whole));
    std::filesystem::remove(path);
  }
  // Another file's beginning, and one that is too short.
  {
    Writer file = make_writer<Writer>(path, mote::unfinished::kept);
    if constexpr (std::is_same_v<Writer, mote::gguf_writer>) {
      file.add_tensor("other", mote::ggml_type::f32, shape{1});
    } else {
      file.add_tensor("other", mote::dtype::f32, shape{1});
    }
    file.write("other", test::bytes_of("abcd"));
  }
  {
    Writer file = make_writer<Writer>(path, mote::unfinished::kept);
    add_tensors(file);
    CHECK_THROWS_WITH(file.resume(1), contains(name + ".part: is not the beginning of this file"));
  }
  {
    Writer file = make_writer<Writer>(path, mote::unfinished::kept);
    add_tensors(file);
    file.write("weight", test::bytes_of("abc"));
  }
  {
    Writer file = make_writer<Writer>(path, mote::unfinished::kept);
    add_tensors(file);
    CHECK_THROWS_WITH(file.resume(1), contains(name + ".part: expected at least "));
  }
}

}  // namespace

TEST_CASE("safetensors_writer: the reader reads what was written") {
  const test::temporary_directory directory;
  const std::string path = directory.path() + "/model.safetensors";
  const std::vector<float> scale = {0.5f, 2.0f};
  {
    mote::safetensors_writer file(path);
    add_tensors(file);
    file.write("weight", test::bytes_of("abc"));
    CHECK(!std::filesystem::exists(path));
    file.write("weight", test::bytes_of("def"));
    file.write("scale", mote::view<const float, 1>(scale.data(), 2));
    file.finish();
  }
  CHECK(!std::filesystem::exists(path + ".part"));
  const mote::safetensors_file read(path);
  CHECK(read.tensors().size() == 3);
  CHECK(read.tensor("weight").dtype == mote::dtype::i8);
  CHECK(read.tensor("weight").shape == shape{2, 3});
  CHECK(std::memcmp(read.tensor("weight").bytes.data(), "abcdef", 6) == 0);
  CHECK(read.tensor("none").shape == shape{0, 4});
  CHECK(mote::read_float(read.tensor("scale"))[1] == 2.0f);
  CHECK(test::read_bytes(path).find("\"__metadata__\":{\"format\":\"pt\"}") != std::string::npos);
  // The data begins at a multiple of 8 bytes.
  CHECK(static_cast<unsigned char>(test::read_bytes(path)[0]) % 8 == 0);
}

TEST_CASE("safetensors_writer: wrong use is refused, and nothing is left behind") {
  const test::temporary_directory directory;
  const std::string path = directory.path() + "/model.safetensors";
  {
    mote::safetensors_writer file(path);
    add_tensors(file);
    CHECK_THROWS_WITH(file.add_tensor("scale", mote::dtype::f32, shape{1}), contains("scale: given twice"));
    CHECK_THROWS_WITH(file.add_tensor("__metadata__", mote::dtype::f32, shape{1}), contains("is reserved"));
    CHECK_THROWS_WITH(file.add_tensor("huge", mote::dtype::f32, shape{std::size_t{1} << 40, std::size_t{1} << 40}),
                      contains("huge: its size overflows"));
    CHECK_THROWS_WITH(file.write("scale", test::bytes_of("12345678")), contains("write: scale: expected weight"));
    CHECK_THROWS_WITH(file.write("weight", test::bytes_of("1234567")), contains("weight: more than its 6 bytes"));
    CHECK_THROWS_WITH(file.add_tensor("late", mote::dtype::f32, shape{1}), contains("late: after the first data"));
    CHECK_THROWS_WITH(file.add("late", "x"), contains("late: after the first data"));
    file.write("weight", test::bytes_of("abcdef"));
    CHECK_THROWS_WITH(file.finish(), contains("finish: scale: data is missing"));
  }
  CHECK(std::filesystem::is_empty(directory.path()));
  CHECK_THROWS_WITH(mote::safetensors_writer(directory.path() + "/no/model"), contains("no/model: cannot be written"));
}

TEST_CASE("writers: an unfinished file that was kept is gone on with") {
  check_resume<mote::safetensors_writer>("model.safetensors");
  check_resume<mote::gguf_writer>("model.gguf");
}
