// A file in memory for readers that take paths, and what fuzzed readers may throw.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include <mote/core/error.hpp>

namespace test {

// f(), which may find that bytes are malformed.
template <class F>
void attempt(F&& f) {
  try {
    f();
  } catch (const mote::format_error&) {
  }
}

class memory_file {
 public:
  memory_file(const std::uint8_t* data, std::size_t size) : descriptor_(memfd_create("fuzz", 0)) {
    for (std::size_t done = 0; done < size;) {
      const ssize_t n = write(descriptor_, data + done, size - done);
      if (n <= 0) break;
      done += static_cast<std::size_t>(n);
    }
  }
  memory_file(const memory_file&) = delete;
  memory_file& operator=(const memory_file&) = delete;
  ~memory_file() { close(descriptor_); }

  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

}  // namespace test
