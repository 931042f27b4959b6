// Writing GGUF files, version 3: metadata and the list of tensors first, then the tensors' data in that order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

#include "../../core/error.hpp"
#include "../../core/view.hpp"
#include "file.hpp"
#include "metadata.hpp"
#include "types.hpp"

MOTE_BEGIN_NAMESPACE

//   gguf_writer file("model.gguf");
//   file.add("general.architecture", std::string("deepseek2"));
//   file.add_tensor("token_embd.weight", ggml_type::q4_0, shape);    // all of them
//   file.write("token_embd.weight", bytes);                          // in the same order, whole or piece by piece
//   file.finish();
//
// The file has the name PATH.part until finish() gives it its own; unfinished, it is removed with the object.
class gguf_writer {
 public:
  // `alignment`: of every tensor's data, a power of two of at least 8. Throws format_error when the file cannot be created.
  explicit gguf_writer(std::string path, std::size_t alignment = gguf_default_alignment)
      : path_(std::move(path)), part_(path_ + ".part"), alignment_(alignment) {
    check(alignment >= 8 && alignment <= (std::size_t{1} << 31) && (alignment & (alignment - 1)) == 0, "gguf_writer",
          "alignment: expected a power of two of at least 8");
    file_ = std::fopen(part_.c_str(), "wb");
    if (file_ == nullptr) raise<format_error>(path_ + ": cannot be written");
    if (alignment != gguf_default_alignment) put_entry("general.alignment", static_cast<std::uint32_t>(alignment));
  }
  gguf_writer(const gguf_writer&) = delete;
  gguf_writer& operator=(const gguf_writer&) = delete;
  ~gguf_writer() {
    if (file_ == nullptr) return;
    std::fclose(file_);
    std::remove(part_.c_str());
  }

  // A metadata entry; `general.alignment` is the writer's own. Throws shape_error for a key given twice or too late, when
  // data was written.
  void add(const std::string& key, const gguf_value& value) {
    check(!started_, "gguf_writer", "add: " + key + ": after the first data");
    check(!key.empty() && key.size() <= 65535, "gguf_writer", "add: expected a key of 1 to 65535 bytes");
    check(key != "general.alignment", "gguf_writer", "add: general.alignment: is an argument of the constructor");
    put_entry(key, value);
  }

  // A tensor to come, `shape` outermost first. Throws shape_error for a name given twice or longer than 63 bytes, a shape
  // of more than four dimensions or with rows that are no whole blocks, or too late, when data was written.
  void add_tensor(const std::string& name, ggml_type type, std::span<const std::size_t> shape) {
    const std::string where = "add_tensor: " + name;
    check(!started_, "gguf_writer", where + ": after the first data");
    check(!name.empty() && name.size() <= 63, "gguf_writer", where + ": expected a name of 1 to 63 bytes");
    check(shape.size() <= 4, "gguf_writer", where + ": expected at most 4 dimensions");
    check(names_.insert(name).second, "gguf_writer", where + ": given twice");
    const std::size_t columns = shape.empty() ? 1 : shape.back(), block = info(type).block_size;
    check(columns % block == 0, "gguf_writer", where + ": expected rows in multiples of " + std::to_string(block));
    std::size_t size = columns / block * info(type).bytes;
    for (std::size_t d = 0; d + 1 < shape.size(); ++d) {
      check(shape[d] == 0 || size <= std::numeric_limits<std::size_t>::max() / 2 / shape[d], "gguf_writer",
            where + ": its size overflows");
      size *= shape[d];
    }
    put_string(list_, name);
    put(list_, static_cast<std::uint32_t>(shape.size()));
    for (std::size_t d = shape.size(); d-- > 0;) put(list_, static_cast<std::uint64_t>(shape[d]));
    put(list_, static_cast<std::uint32_t>(type));
    put(list_, static_cast<std::uint64_t>(next_offset_));
    next_offset_ += (size + alignment_ - 1) / alignment_ * alignment_;
    tensors_.push_back({name, size});
  }

  // The next bytes of the first tensor that is not complete, which must be `name`. Throws shape_error for another one or
  // too many bytes, format_error when they cannot be written.
  void write(std::string_view name, std::span<const std::byte> bytes) {
    start();
    skip_empty();
    if (bytes.empty()) return;
    check(current_ < tensors_.size() && tensors_[current_].name == name, "gguf_writer",
          "write: " + std::string(name) + ": expected " +
              (current_ < tensors_.size() ? tensors_[current_].name : "no more tensors"));
    tensor& t = tensors_[current_];
    check(bytes.size() <= t.size - written_, "gguf_writer",
          "write: " + t.name + ": more than its " + std::to_string(t.size) + " bytes");
    write_file(bytes.data(), bytes.size());
    written_ += bytes.size();
    if (written_ < t.size) return;
    pad(t.size);
    written_ = 0;
    ++current_;
  }

  // The same for contiguous blocks or elements.
  template <class T, std::size_t Rank>
  void write(std::string_view name, const view<const T, Rank>& values) {
    check(values.contiguous(), "gguf_writer", "write: " + std::string(name) + ": expected contiguous values");
    write(name, std::as_bytes(std::span<const T>(values.data(), values.size())));
  }

  // Gives the file its name. Throws format_error when it cannot be written, shape_error when data is missing.
  void finish() {
    start();
    skip_empty();
    check(current_ == tensors_.size(), "gguf_writer",
          "finish: " + (current_ < tensors_.size() ? tensors_[current_].name : std::string()) + ": data is missing");
    const bool closed = std::fclose(std::exchange(file_, nullptr)) == 0;
    std::error_code problem;
    if (closed) std::filesystem::rename(part_, path_, problem);
    if (!closed || problem) {
      std::remove(part_.c_str());
      raise<format_error>(path_ + ": cannot be written");
    }
  }

 private:
  struct tensor {
    std::string name;
    std::size_t size;  // bytes
  };

  void put_entry(const std::string& key, const gguf_value& value) {
    check(keys_.insert(key).second, "gguf_writer", "add: " + key + ": given twice");
    put_string(metadata_, key);
    put(metadata_, static_cast<std::uint32_t>(value.index()));
    std::visit([&](const auto& v) { put_value(metadata_, v); }, value);
  }

  template <class T>
  static void put(std::string& out, T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  static void put_string(std::string& out, std::string_view text) {
    put(out, static_cast<std::uint64_t>(text.size()));
    out.append(text);
  }
  template <class T>
  static void put_value(std::string& out, const T& value) {
    if constexpr (std::is_same_v<T, std::string>) {
      put_string(out, value);
    } else if constexpr (std::is_same_v<T, bool>) {
      put(out, static_cast<std::uint8_t>(value));
    } else if constexpr (std::is_same_v<T, gguf_array>) {
      put(out, static_cast<std::uint32_t>(value.data.index()));
      put(out, static_cast<std::uint64_t>(value.size()));
      std::visit(
          [&]<class Elements>(const Elements& elements) {
            for (const typename Elements::value_type& e : elements) put_value(out, e);
          },
          value.data);
    } else {
      put(out, value);
    }
  }

  void start() {
    if (std::exchange(started_, true)) return;
    std::string header = "GGUF";
    put(header, std::uint32_t{3});
    put(header, static_cast<std::uint64_t>(tensors_.size()));
    put(header, static_cast<std::uint64_t>(keys_.size()));
    for (const std::string* part : {&header, &metadata_, &list_}) write_file(part->data(), part->size());
    pad(header.size() + metadata_.size() + list_.size());
    metadata_ = list_ = {};
  }

  // Tensors without elements have no data to wait for.
  void skip_empty() {
    while (current_ < tensors_.size() && tensors_[current_].size == 0) ++current_;
  }

  // Zeros up to the next multiple of the alignment after `size` bytes.
  void pad(std::size_t size) {
    const std::string zeros((alignment_ - size % alignment_) % alignment_, '\0');
    write_file(zeros.data(), zeros.size());
  }

  void write_file(const void* data, std::size_t size) {
    if (size != 0 && std::fwrite(data, 1, size, file_) != size) raise<format_error>(path_ + ": cannot be written");
  }

  std::string path_, part_;
  std::size_t alignment_;
  std::FILE* file_ = nullptr;
  std::unordered_set<std::string> keys_, names_;
  std::string metadata_, list_;  // as they will stand in the file
  std::vector<tensor> tensors_;
  std::size_t next_offset_ = 0;
  bool started_ = false;     // the header is written
  std::size_t current_ = 0;  // the tensor whose data comes next, and how much of it was written
  std::size_t written_ = 0;
};

MOTE_END_NAMESPACE
