// Files mapped into memory.
#include <mote/io/mapped_file.hpp>

#include <string>
#include <utility>

#include "io/temporary.hpp"
#include "support/catch.hpp"

namespace {

std::string text_of(const mote::mapped_file& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

}  // namespace

TEST_CASE("mapped_file: gives the file's bytes, also after a move") {
  const test::temporary_directory directory;
  mote::mapped_file one(directory.write("one", "first")), two(directory.write("two", "2"));
  CHECK(text_of(one) == "first");
  mote::mapped_file moved(std::move(one));
  CHECK(text_of(moved) == "first");
  two = std::move(moved);
  CHECK(text_of(two) == "first");
  CHECK(two.path() == directory.path() + "/one");
  CHECK(mote::mapped_file(directory.write("empty", "")).bytes().empty());
}

TEST_CASE("mapped_file: what is no readable regular file is refused by name") {
  const test::temporary_directory directory;
  CHECK_THROWS_AS(mote::mapped_file(directory.path() + "/none"), mote::format_error);
  CHECK_THROWS_WITH(mote::mapped_file(directory.path() + "/none"), contains("/none") && contains("No such file"));
  CHECK_THROWS_WITH(mote::mapped_file(directory.path()), contains(directory.path()) && contains("regular"));
  CHECK_THROWS_WITH(mote::mapped_file("/dev/zero"), contains("/dev/zero") && contains("regular"));
}
