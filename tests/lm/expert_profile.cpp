// A profile of experts that cannot be written whole.
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <string>

#include <lm/memory_limit.hpp>

#include "io/temporary.hpp"
#include "support/catch.hpp"

namespace {

// No file may become longer, as if the disk were full.
class full_disk {
 public:
  explicit full_disk(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &before_);
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  full_disk(const full_disk&) = delete;
  full_disk& operator=(const full_disk&) = delete;
  ~full_disk() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int);
};

}  // namespace

TEST_CASE("expert profile: the old one stays where a new one cannot be written whole") {
  const test::temporary_directory directory;
  const std::string old = R"({"expert_uses": [[1, 2]]})", path = directory.write("profile.json", old);
  const mote::expert_cache cache({{1, 1, 1, 1}});
  std::string problem;
  try {
    const full_disk disk(8);
    lm::write_expert_profile(path, cache);
  } catch (const mote::format_error& e) {
    problem = e.what();
  }
  CHECK(problem == path + ": cannot be written: File too large");
  CHECK(test::read_bytes(path) == old);
  CHECK(!std::filesystem::exists(path + ".part"));
  lm::write_expert_profile(path, cache);
  CHECK(lm::read_expert_profile(path) == lm::expert_uses{{0, 0, 0, 0}});
}
