// What the writers of model files share: a header, then the tensors' data in a known order, piece by piece, in a file that
// gets its name only when it is complete.
#pragma once

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
#include "part_file.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

class tensor_stream {
 public:
  // `writer` names the class in errors. Throws format_error when PATH.part cannot be written.
  tensor_stream(std::string writer, std::string path, unfinished policy)
      : writer_(std::move(writer)), file_(std::move(path), policy) {}

  const std::string& path() const { return file_.path(); }
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
    file_.truncate(0);
    file_.put(header.data(), header.size());
  }

  // Goes on behind the data of the first `count` tensors, which PATH.part must hold behind the same header.
  void resume(const std::string& header, std::size_t count) {
    expect(!started_, "resume: after the first data");
    expect(count <= tensors_.size(), "resume: expected at most " + std::to_string(tensors_.size()) + " tensors");
    if (count == 0) return start(header);
    started_ = true;
    std::string found(header.size(), '\0');
    std::rewind(file_.file());
    if (std::fread(found.data(), 1, found.size(), file_.file()) != found.size() || found != header) {
      raise<format_error>(file_.part() + ": is not the beginning of this file: remove it to begin anew");
    }
    std::uintmax_t end = header.size();
    for (; current_ < count; ++current_) end += tensors_[current_].size + tensors_[current_].padding;
    std::error_code problem;
    const std::uintmax_t size = std::filesystem::file_size(file_.part(), problem);
    if (problem || size < end) {
      raise<format_error>(file_.part() + ": expected at least " + std::to_string(end) + " bytes, got " +
                          std::to_string(size));
    }
    file_.truncate(end);
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
    file_.put(bytes.data(), bytes.size());
    written_ += bytes.size();
    if (written_ < t.size) return;
    const std::string zeros(t.padding, '\0');
    file_.put(zeros.data(), zeros.size());
    written_ = 0;
    ++current_;
  }

  void flush() { file_.flush(); }

  void finish() {
    skip_empty();
    expect(current_ == tensors_.size(),
           "finish: " + (current_ < tensors_.size() ? tensors_[current_].name : std::string()) + ": data is missing");
    file_.finish();
  }

 private:
  struct tensor {
    std::string name;
    std::size_t size, padding;  // bytes
  };

  // Tensors without elements have no data to wait for.
  void skip_empty() {
    while (current_ < tensors_.size() && tensors_[current_].size == 0) ++current_;
  }

  std::string writer_;
  part_file file_;
  std::unordered_set<std::string> names_;
  std::vector<tensor> tensors_;
  bool started_ = false;     // the header is written
  std::size_t current_ = 0;  // the tensor whose data comes next, and how much of it was written
  std::size_t written_ = 0;
};

}  // namespace detail

MOTE_END_NAMESPACE
