// What the writers of model files share: a header, then the tensors' data in a known order, piece by piece, in a file that
// gets its name only when it is complete.
#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <unordered_set>
#include <utility>
#include <vector>

#include "../core/error.hpp"

MOTE_BEGIN_NAMESPACE

// Until finish() the file is PATH.part. What becomes of that when the writer goes without finish():
enum class unfinished {
  removed,
  kept  // a later writer of the same tensors can go on with it: resume()
};

namespace detail {

class tensor_stream {
 public:
  // `writer` names the class in errors. Throws format_error when PATH.part cannot be written.
  tensor_stream(std::string writer, std::string path, unfinished policy)
      : writer_(std::move(writer)), path_(std::move(path)), part_(path_ + ".part"), policy_(policy) {
    if (policy == unfinished::kept) file_ = std::fopen(part_.c_str(), "r+b");
    if (file_ == nullptr) file_ = std::fopen(part_.c_str(), "w+b");
    if (file_ == nullptr) fail();
  }
  tensor_stream(const tensor_stream&) = delete;
  tensor_stream& operator=(const tensor_stream&) = delete;
  ~tensor_stream() {
    if (file_ == nullptr) return;
    std::fclose(file_);
    if (policy_ == unfinished::removed) std::remove(part_.c_str());
  }

  const std::string& path() const { return path_; }
  bool started() const { return started_; }
  void expect(bool condition, const std::string& message) const { check(condition, writer_, message); }

  // A tensor of `size` bytes, followed by zeros up to a multiple of `alignment` from the beginning of the data.
  void add(const std::string& name, std::size_t size, std::size_t alignment) {
    expect(!started_, "add_tensor: " + name + ": after the first data");
    expect(names_.insert(name).second, "add_tensor: " + name + ": given twice");
    tensors_.push_back({name, size, (alignment - size % alignment) % alignment});
  }

  void start(const std::string& header) {
    if (std::exchange(started_, true)) return;
    if (std::fflush(file_) != 0 || ftruncate(fileno(file_), 0) != 0) fail();
    std::rewind(file_);
    put(header.data(), header.size());
  }

  // Goes on behind the data of the first `count` tensors, which PATH.part must hold behind the same header.
  void resume(const std::string& header, std::size_t count) {
    expect(!started_, "resume: after the first data");
    expect(count <= tensors_.size(), "resume: expected at most " + std::to_string(tensors_.size()) + " tensors");
    if (count == 0) return start(header);
    started_ = true;
    std::string found(header.size(), '\0');
    std::rewind(file_);
    if (std::fread(found.data(), 1, found.size(), file_) != found.size() || found != header) {
      raise<format_error>(part_ + ": is not the beginning of this file");
    }
    std::uintmax_t end = header.size();
    for (; current_ < count; ++current_) end += tensors_[current_].size + tensors_[current_].padding;
    std::error_code problem;
    const std::uintmax_t size = std::filesystem::file_size(part_, problem);
    if (problem || size < end) {
      raise<format_error>(part_ + ": expected at least " + std::to_string(end) + " bytes, got " + std::to_string(size));
    }
    if (ftruncate(fileno(file_), static_cast<off_t>(end)) != 0 || std::fseek(file_, 0, SEEK_END) != 0) fail();
  }

  void write(std::string_view name, std::span<const std::byte> bytes) {
    skip_empty();
    if (bytes.empty()) return;
    expect(current_ < tensors_.size() && tensors_[current_].name == name,
           "write: " + std::string(name) + ": expected " +
               (current_ < tensors_.size() ? tensors_[current_].name : "no more tensors"));
    const tensor& t = tensors_[current_];
    expect(bytes.size() <= t.size - written_,
           "write: " + t.name + ": more than its " + std::to_string(t.size) + " bytes");
    put(bytes.data(), bytes.size());
    written_ += bytes.size();
    if (written_ < t.size) return;
    const std::string zeros(t.padding, '\0');
    put(zeros.data(), zeros.size());
    written_ = 0;
    ++current_;
  }

  // Hands what was written to the operating system, so that the end of this process does not lose it.
  void flush() {
    if (std::fflush(file_) != 0) fail();
  }

  void finish() {
    skip_empty();
    expect(current_ == tensors_.size(),
           "finish: " + (current_ < tensors_.size() ? tensors_[current_].name : std::string()) + ": data is missing");
    flush();
    if (fsync(fileno(file_)) != 0) fail();
    std::error_code problem;
    if (std::fclose(std::exchange(file_, nullptr)) == 0) {
      std::filesystem::rename(part_, path_, problem);
      if (!problem) return;
    }
    std::remove(part_.c_str());
    fail();
  }

 private:
  struct tensor {
    std::string name;
    std::size_t size, padding;  // bytes
  };

  [[noreturn]] void fail() const { raise<format_error>(path_ + ": cannot be written"); }

  // Tensors without elements have no data to wait for.
  void skip_empty() {
    while (current_ < tensors_.size() && tensors_[current_].size == 0) ++current_;
  }

  void put(const void* data, std::size_t size) {
    if (size != 0 && std::fwrite(data, 1, size, file_) != size) fail();
  }

  std::string writer_, path_, part_;
  unfinished policy_;
  std::FILE* file_ = nullptr;
  std::unordered_set<std::string> names_;
  std::vector<tensor> tensors_;
  bool started_ = false;     // the header is written
  std::size_t current_ = 0;  // the tensor whose data comes next, and how much of it was written
  std::size_t written_ = 0;
};

}  // namespace detail

MOTE_END_NAMESPACE
