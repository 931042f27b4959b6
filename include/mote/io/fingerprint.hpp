// Checksums: of bytes, and of a large file quickly enough to be taken at every start.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "../core/error.hpp"
#include "mapped_file.hpp"

MOTE_BEGIN_NAMESPACE

// FNV-1a, 64 bits: notices accidents, not forgery. `hash` is what came before, to go on from.
inline constexpr std::uint64_t fnv1a_start = 0xcbf29ce484222325u;
inline std::uint64_t fnv1a(std::span<const std::byte> bytes, std::uint64_t hash = fnv1a_start) {
  for (const std::byte b : bytes) hash = (hash ^ static_cast<std::uint64_t>(b)) * 0x100000001b3u;
  return hash;
}

// A number that changes with the file: of its size, the time it was last written, its first megabyte (where model files
// have their list of tensors) and 64 samples of 4 KiB, spread evenly up to its end. No more than that is read from the disk.
// Not noticed: a change between the samples that keeps size and time. Throws format_error naming the file when it cannot be read.
inline std::uint64_t fingerprint(const std::string& path, std::uint64_t hash = fnv1a_start) {
  constexpr std::size_t head = std::size_t{1} << 20, sample = 4096, samples = 64;
  const detail::regular_file file(path);
#ifdef POSIX_FADV_RANDOM
  static_cast<void>(::posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_RANDOM));  // no reading ahead
#endif
  const std::size_t size = file.size();
#ifdef __APPLE__
  const timespec& written = file.status().st_mtimespec;
#else
  const timespec& written = file.status().st_mtim;
#endif
  const std::uint64_t facts[] = {size, static_cast<std::uint64_t>(written.tv_sec),
                                 static_cast<std::uint64_t>(written.tv_nsec)};
  hash = fnv1a(std::as_bytes(std::span(facts)), hash);
  std::vector<std::byte> bytes(std::min(head, size));
  const auto add = [&](std::size_t begin, std::size_t count) {
    for (std::size_t done = 0; done < count;) {
      const ssize_t n = ::pread(file.descriptor(), bytes.data() + done, count - done, static_cast<off_t>(begin + done));
      if (n < 0) raise<format_error>(path + ": cannot be read: " + std::strerror(errno));
      if (n == 0) break;  // it has been cut meanwhile; its size is another then
      done += static_cast<std::size_t>(n);
    }
    hash = fnv1a(std::span(bytes).first(count), hash);
  };
  add(0, bytes.size());
  const std::size_t rest = size - bytes.size();
  for (std::size_t i = 1; i <= samples && rest > 0; ++i) {
    add(head + rest / samples * i + rest % samples * i / samples - sample, sample);
  }
  return hash;
}

MOTE_END_NAMESPACE
