// Checksums: of bytes, and of a large file quickly enough to be taken at every start.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <system_error>

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
// have their list of tensors) and 64 samples of 4 KiB, spread evenly up to its end. Not noticed: a change between the
// samples that keeps size and time. Throws format_error naming the file when it cannot be read.
inline std::uint64_t fingerprint(const std::string& path, std::uint64_t hash = fnv1a_start) {
  constexpr std::size_t head = std::size_t{1} << 20, sample = 4096, samples = 64;
  const mapped_file file(path);
  const std::span<const std::byte> all = file.bytes();
  std::error_code problem;
  const auto written = std::filesystem::last_write_time(path, problem).time_since_epoch().count();
  if (problem) raise<format_error>(path + ": " + problem.message());
  const std::uint64_t facts[] = {all.size(), static_cast<std::uint64_t>(written)};
  hash = fnv1a(std::as_bytes(std::span(facts)), hash);
  hash = fnv1a(all.first(std::min(head, all.size())), hash);
  if (all.size() <= head) return hash;
  const std::size_t rest = all.size() - head;
  for (std::size_t i = 1; i <= samples; ++i) {
    const std::size_t end = head + rest / samples * i + rest % samples * i / samples;
    hash = fnv1a(all.subspan(end - sample, sample), hash);
  }
  return hash;
}

MOTE_END_NAMESPACE
