// Writers of one file beside and after one another; files that cannot get their name.
#include <mote/io/part_file.hpp>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "io/temporary.hpp"
#include "support/catch.hpp"

#ifdef __GLIBC__
#include <sys/syscall.h>
#include <unistd.h>

namespace {
std::function<void()> before_next_lock;
}  // namespace

// Takes the place of the C library's, so that a test can act between opening and locking.
extern "C" int flock(int descriptor, int operation) noexcept {
  if (before_next_lock) std::exchange(before_next_lock, nullptr)();
  return static_cast<int>(syscall(SYS_flock, descriptor, operation));
}

TEST_CASE("part_file: a writer that ends while another one begins loses nothing to it") {
  const test::temporary_directory directory;
  const std::string path = directory.path() + "/file", first_text = "first", second_text = "second";
  const auto begin = [&](const std::string& text) {
    auto file = std::make_unique<mote::detail::part_file>(path, mote::unfinished::removed);
    file->truncate(0);
    file->put(text.data(), text.size());
    return file;
  };
  for (const bool finished : {true, false}) {
    CAPTURE(finished);
    auto first = begin(first_text);
    bool between = false;
    before_next_lock = [&] {
      between = true;
      if (finished) first->finish();
      first.reset();
    };
    const auto second = begin(second_text);
    CHECK(between);
    CHECK(test::read_bytes(path) == (finished ? first_text : ""));
    second->finish();
    CHECK(test::read_bytes(path) == second_text);
    std::filesystem::remove(path);
  }
}
#endif

TEST_CASE("part_file: what cannot get its name is kept or removed as was asked") {
  const test::temporary_directory directory;
  const std::string path = directory.path() + "/file", text = "whole";
  std::filesystem::create_directories(path + "/in the way");
  for (const mote::unfinished policy : {mote::unfinished::kept, mote::unfinished::removed}) {
    mote::detail::part_file file(path, policy);
    file.put(text.data(), text.size());
    CHECK_THROWS_WITH(file.finish(), contains(path + ": cannot be written"));
    CHECK(std::filesystem::exists(path + ".part") == (policy == mote::unfinished::kept));
  }
}

TEST_CASE("part_file: of a symbolic link the target is written; one in the place of PATH.part is refused") {
  const test::temporary_directory directory;
  namespace fs = std::filesystem;
  const std::string link = directory.path() + "/link", text = "whole";
  fs::create_directory(directory.path() + "/elsewhere");
  fs::create_symlink("elsewhere/file", link);
  for (int i = 0; i < 2; ++i) {  // of a target that is not there yet, too
    mote::detail::part_file file(link, mote::unfinished::removed);
    file.truncate(0);
    file.put(text.data(), text.size());
    file.finish();
    CHECK(fs::is_symlink(link));
    CHECK(test::read_bytes(directory.path() + "/elsewhere/file") == text);
  }
  const std::string path = directory.path() + "/other", precious = directory.path() + "/precious";
  directory.write("precious", text);
  fs::create_symlink(precious, path + ".part");
  CHECK_THROWS_WITH(mote::detail::part_file(path, mote::unfinished::removed), contains(path + ": cannot be written"));
  CHECK(test::read_bytes(precious) == text);
}
