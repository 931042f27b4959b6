// A whole file, mapped read-only into memory (POSIX).
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "../core/error.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// A regular file, open for reading while the object lives.
class regular_file {
 public:
  // Throws format_error naming the file when it is no regular file or cannot be opened.
  explicit regular_file(const std::string& path)
      // Without O_NONBLOCK a named pipe would be waited for before it can be refused.
      : descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (descriptor_ < 0) raise<format_error>(path + ": cannot be opened: " + std::strerror(errno));
    if (::fstat(descriptor_, &status_) == 0 && S_ISREG(status_.st_mode)) return;
    ::close(descriptor_);
    raise<format_error>(path + ": is not a regular file");
  }
  regular_file(const regular_file&) = delete;
  regular_file& operator=(const regular_file&) = delete;
  ~regular_file() { ::close(descriptor_); }

  int descriptor() const { return descriptor_; }
  const struct stat& status() const { return status_; }
  std::size_t size() const { return static_cast<std::size_t>(status_.st_size); }

 private:
  int descriptor_;
  struct stat status_ {};
};

}  // namespace detail

class mapped_file {
 public:
  // Throws format_error naming the file when it is no regular file or cannot be opened or mapped.
  explicit mapped_file(const std::string& path) : path_(path) {
    const detail::regular_file file(path);
    size_ = file.size();
    if (size_ > 0) data_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.descriptor(), 0);
    if (data_ == MAP_FAILED) {
      data_ = nullptr;
      raise<format_error>(path + ": cannot be mapped: " + std::strerror(errno));
    }
  }

  mapped_file(mapped_file&& other) noexcept
      : path_(std::move(other.path_)),
        data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  mapped_file& operator=(mapped_file&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  mapped_file(const mapped_file&) = delete;
  mapped_file& operator=(const mapped_file&) = delete;
  ~mapped_file() {
    if (data_ != nullptr) ::munmap(data_, size_);
  }

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }

 private:
  std::string path_;
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

namespace detail {

// Of a map from names to tensors of one file: whoever shares bytes with the tensor before fails.
template <class Tensors>
void check_overlap(const Tensors& tensors) {
  std::vector<const typename Tensors::mapped_type*> order;
  for (const auto& [name, t] : tensors) {
    if (!t.bytes.empty()) order.push_back(&t);
  }
  std::sort(order.begin(), order.end(), [](auto* a, auto* b) { return a->bytes.data() < b->bytes.data(); });
  for (std::size_t i = 1; i < order.size(); ++i) {
    if (order[i - 1]->bytes.data() + order[i - 1]->bytes.size() > order[i]->bytes.data()) {
      order[i]->fail("its data overlaps that of " + order[i - 1]->name);
    }
  }
}

}  // namespace detail

MOTE_END_NAMESPACE
