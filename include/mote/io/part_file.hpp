// A file that gets its name only when it is complete: until then it is PATH.part (POSIX). Where PATH is a symbolic link, what
// it points to is written.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "../core/error.hpp"

MOTE_BEGIN_NAMESPACE

// What becomes of PATH.part when its writer goes without finish():
enum class unfinished {
  removed,
  kept  // a later writer of the same tensors can go on with it: resume()
};

// "PATH: cannot be written: No space left on device", for what errno says.
[[noreturn]] inline void raise_unwritable(const std::string& path) {
  const int reason = errno;
  raise<format_error>(path + ": cannot be written" + (reason != 0 ? std::string(": ") + std::strerror(reason) : ""));
}

namespace detail {

// What `path` stands for when it is a symbolic link to a file or to nothing; anything else stays.
inline std::string behind_links(std::string path) {
  namespace fs = std::filesystem;
  constexpr int most_links = 40;
  for (int i = 0; i < most_links; ++i) {
    std::error_code problem;
    const fs::file_status status = fs::status(path, problem);
    if (fs::exists(status) && !fs::is_regular_file(status)) break;
    const fs::path target = fs::read_symlink(path, problem);
    if (problem) break;
    path = (fs::path(path).parent_path() / target).string();
  }
  return path;
}

class part_file {
 public:
  // Opens PATH.part, which may hold what an earlier writer left. Throws format_error when it cannot be written or another
  // process is writing it.
  part_file(const std::string& path, unfinished policy)
      : path_(behind_links(path)), part_(path_ + ".part"), policy_(policy) {
    const int descriptor = open_locked();
    file_ = ::fdopen(descriptor, "r+b");
    if (file_ == nullptr) {
      ::close(descriptor);
      fail();
    }
  }
  part_file(const part_file&) = delete;
  part_file& operator=(const part_file&) = delete;
  ~part_file() {
    if (file_ == nullptr) return;
    if (policy_ == unfinished::removed) std::remove(part_.c_str());
    std::fclose(file_);
  }

  const std::string& path() const { return path_; }
  const std::string& part() const { return part_; }
  std::FILE* file() { return file_; }

  [[noreturn]] void fail() const { raise_unwritable(path_); }

  // PATH.part will stay as it is; gives its name.
  const std::string& keep() {
    policy_ = unfinished::kept;
    return part_;
  }

  // Empties the file, which must be empty already or begin with `mark`, as an earlier writer's. Throws format_error and leaves
  // anything else as it is.
  void begin_anew(std::string_view mark) {
    std::string found(mark.size(), '\0');
    found.resize(std::fread(found.data(), 1, found.size(), file_));
    if (found != mark.substr(0, found.size())) {
      raise<format_error>(keep() + ": was left by something else and is not overwritten");
    }
    truncate(0);
  }

  // Cuts the file to its first `size` bytes and goes on behind them.
  void truncate(std::size_t size) {
    if (std::fflush(file_) != 0 || ::ftruncate(fileno(file_), static_cast<off_t>(size)) != 0 ||
        std::fseek(file_, 0, SEEK_END) != 0) {
      fail();
    }
  }

  void put(const void* data, std::size_t size) {
    if (size != 0 && std::fwrite(data, 1, size, file_) != size) fail();
  }

  // Hands what was written to the operating system, so that the end of this process does not lose it.
  void flush() {
    if (std::fflush(file_) != 0) fail();
  }

  // Gives the file its name when all of it is on the disk.
  void finish() {
    flush();
    if (::fsync(fileno(file_)) != 0) fail();
    const bool named = std::rename(part_.c_str(), path_.c_str()) == 0;
    const int reason = errno;
    if (!named && policy_ == unfinished::removed) std::remove(part_.c_str());
    std::fclose(std::exchange(file_, nullptr));
    errno = reason;
    if (!named) fail();
  }

 private:
  // Another writer may finish or remove PATH.part after it was opened here and before it is locked: what is locked then has
  // another name or none, and PATH.part is opened anew.
  int open_locked() const {
    constexpr int most_writers = 100;
    for (int i = 0; i < most_writers; ++i) {
      const int descriptor = ::open(part_.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
      if (descriptor < 0) fail();
      const bool locked = ::flock(descriptor, LOCK_EX | LOCK_NB) == 0;
      if (locked && is_part(descriptor)) return descriptor;
      ::close(descriptor);
      if (!locked) break;
    }
    raise<format_error>(part_ + ": is being written by another process");
  }
  bool is_part(int descriptor) const {
    struct stat opened {};
    struct stat named {};
    return ::fstat(descriptor, &opened) == 0 && ::stat(part_.c_str(), &named) == 0 && opened.st_dev == named.st_dev &&
           opened.st_ino == named.st_ino;
  }

  std::string path_, part_;
  unfinished policy_;
  std::FILE* file_ = nullptr;
};

}  // namespace detail

MOTE_END_NAMESPACE
