// Which parts of a mapped file lie in memory (POSIX; resident_memory() is Linux's).
//
// Nothing here changes what a program reads: pages that were given back come again from the file when they are touched.
// The bytes must be those of a mapped_file, or of another mapping that is never written.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <span>

#include "../core/error.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

inline std::size_t memory_page() {
  static const auto size = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return size;
}

// Advises on every page that holds some of the bytes.
inline void advise(std::span<const std::byte> bytes, int advice) {
  if (bytes.empty()) return;
  const auto address = reinterpret_cast<std::uintptr_t>(bytes.data());
  const std::uintptr_t begin = address / memory_page() * memory_page();
  ::madvise(reinterpret_cast<void*>(begin), address + bytes.size() - begin, advice);  // advice may be left untaken
}

}  // namespace detail

// Takes the pages out of the process's memory. Neighbours that share a page with the bytes lose it too.
inline void release_pages(std::span<const std::byte> bytes) { detail::advise(bytes, MADV_DONTNEED); }

// The same, and out of the system's file cache where it lets go of them, so that they leave room in the machine too.
inline void evict_pages(std::span<const std::byte> bytes) {
#ifdef MADV_PAGEOUT
  detail::advise(bytes, MADV_PAGEOUT);
#endif
  release_pages(bytes);
}

// Has the system read the pages while the program goes on. In steps, since Linux takes no more at once than the device's
// largest request.
inline void prefetch_pages(std::span<const std::byte> bytes) {
  constexpr std::size_t step = std::size_t{1} << 17;
  for (std::size_t i = 0; i < bytes.size(); i += step) {
    detail::advise(bytes.subspan(i, std::min(step, bytes.size() - i)), MADV_WILLNEED);
  }
}

// Brings the pages into the process's memory and waits for them.
inline void touch_pages(std::span<const std::byte> bytes) {
  for (std::size_t i = 0; i < bytes.size(); i += detail::memory_page()) {
    static_cast<void>(*static_cast<const volatile std::byte*>(bytes.data() + i));
  }
}

// Bytes of this process that lie in memory now, those of mapped files included. Opens no file and allocates nothing after
// the first call. Throws format_error where the system does not say.
inline std::size_t resident_memory() {
  static const int descriptor = ::open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
  char text[128];
  const ssize_t size = ::pread(descriptor, text, sizeof text, 0);
  const char* end = text + std::max<ssize_t>(size, 0);
  const char* second = std::find(static_cast<const char*>(text), end, ' ');
  std::size_t pages = 0;
  if (second == end || std::from_chars(second + 1, end, pages).ec != std::errc()) {
    raise<format_error>("/proc/self/statm: cannot be read");
  }
  return pages * detail::memory_page();
}

MOTE_END_NAMESPACE
