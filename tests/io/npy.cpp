#include <mote/io/npy.hpp>

#include <filesystem>
#include <vector>

#include "io/temporary.hpp"
#include "support/catch.hpp"

TEST_CASE("npy: header and rows, named only when whole") {
  const test::temporary_directory directory;
  const std::string path = directory.path() + "/x.npy";
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  {
    mote::npy_writer out(path, 2, 3);
    out.append({values.data(), std::size_t{1}, std::size_t{3}});
    CHECK_THROWS_WITH(out.finish(), contains("rows are missing"));
    CHECK_FALSE(std::filesystem::exists(path));
    out.append({values.data() + 3, std::size_t{1}, std::size_t{3}});
    CHECK_THROWS_AS(out.append({values.data(), std::size_t{1}, std::size_t{3}}), mote::shape_error);
    out.finish();
  }
  const std::string bytes = test::read_bytes(path);
  REQUIRE(bytes.size() == 128 + 24);
  CHECK(bytes.substr(0, 8) == std::string("\x93NUMPY\x01\0", 8));
  CHECK(bytes.find("'shape': (2, 3)") != std::string::npos);
  CHECK(bytes[127] == '\n');
  float last = 0;
  bytes.copy(reinterpret_cast<char*>(&last), 4, 148);
  CHECK(last == 6.0f);
}

TEST_CASE("npy: nothing is left behind by a writer that did not finish") {
  const test::temporary_directory directory;
  { const mote::npy_writer out(directory.path() + "/x.npy", 2, 3); }
  CHECK(std::filesystem::is_empty(directory.path()));
}

TEST_CASE("npy: what lies where it writes and is not its own stays") {
  const test::temporary_directory directory;
  const std::string path = directory.path() + "/x.npy";
  directory.write("x.npy.part", "somebody's");
  CHECK_THROWS_WITH(mote::npy_writer(path, 1, 1), contains("x.npy.part: was left by something else"));
  CHECK(test::read_bytes(path + ".part") == "somebody's");
  // What an earlier writer left, cut off even in its first bytes, is begun anew.
  directory.write("x.npy.part", "\x93NUM");
  const float one = 1.0f;
  mote::npy_writer out(path, 1, 1);
  out.append({&one, std::size_t{1}, std::size_t{1}});
  out.finish();
  CHECK(test::read_bytes(path).size() == 128 + 4);
}

TEST_CASE("npy: what cannot be written is named") {
  CHECK_THROWS_WITH(mote::npy_writer("no-such-directory/x.npy", 1, 1), contains("no-such-directory/x.npy"));
  if (std::filesystem::exists("/dev/full")) {
    const auto fill = [] {
      mote::npy_writer out("/dev/full", 4096, 4);
      const std::vector<float> row(4096 * 4);
      out.append({row.data(), std::size_t{4096}, std::size_t{4}});
      out.finish();
    };
    CHECK_THROWS_WITH(fill(), contains("/dev/full"));
    CHECK(std::filesystem::is_character_file("/dev/full"));
  }
}
