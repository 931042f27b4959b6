// Writing safetensors files (the layout is described in safetensors.hpp): the list of tensors first, then their data in
// that order, piece by piece, so that nothing needs to be in memory whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include "../core/error.hpp"
#include "../core/view.hpp"
#include "dtype.hpp"
#include "tensor_stream.hpp"

MOTE_BEGIN_NAMESPACE

//   safetensors_writer file("model.safetensors");
//   file.add_tensor("lm_head.weight", dtype::bf16, shape);    // all of them
//   file.write("lm_head.weight", bytes);                      // in the same order, whole or piece by piece
//   file.finish();
//
// The file has the name PATH.part until finish() gives it its own.
class safetensors_writer {
 public:
  // Throws format_error when the file cannot be created.
  explicit safetensors_writer(std::string path, unfinished policy = unfinished::removed)
      : stream_("safetensors_writer", std::move(path), policy) {}

  // An entry of __metadata__. Throws shape_error when data was written.
  void add(const std::string& key, const std::string& value) {
    stream_.expect(!stream_.started(), "add: " + key + ": after the first data");
    header_["__metadata__"][key] = value;
  }

  // A tensor to come. Throws shape_error for a name given twice or the reserved one, an overflowing size, or too late, when
  // data was written.
  void add_tensor(const std::string& name, dtype type, std::span<const std::size_t> shape) {
    stream_.expect(name != "__metadata__", "add_tensor: " + name + ": is reserved");
    std::size_t size = dtype_size(type);
    for (const std::size_t n : shape) {
      stream_.expect(n == 0 || size <= std::numeric_limits<std::size_t>::max() / 2 / n,
                     "add_tensor: " + name + ": its size overflows");
      size *= n;
    }
    stream_.add(name, size, 1);
    header_[name] = {{"dtype", dtype_name(type)},
                     {"shape", nlohmann::json(shape)},
                     {"data_offsets", {next_offset_, next_offset_ + size}}};
    next_offset_ += size;
  }

  // The next bytes of the first tensor that is not complete, which must be `name`. Throws shape_error for another one or
  // too many bytes, format_error when they cannot be written.
  void write(std::string_view name, std::span<const std::byte> bytes) {
    stream_.start(header());
    stream_.write(name, bytes);
  }
  template <class T, std::size_t Rank>
  void write(std::string_view name, const view<const T, Rank>& values) {
    stream_.expect(values.contiguous(), "write: " + std::string(name) + ": expected contiguous values");
    write(name, std::as_bytes(std::span<const T>(values.data(), values.size())));
  }

  // Goes on behind the data of the first `count` tensors, written by a writer of the same tensors that left its file
  // (unfinished::kept). Throws format_error when the file is another one or shorter.
  void resume(std::size_t count) { stream_.resume(header(), count); }

  // Hands what was written to the operating system: it outlives the process. Throws format_error when it cannot.
  void flush() { stream_.flush(); }

  // Gives the file its name. Throws format_error when it cannot be written, shape_error when data is missing.
  void finish() {
    stream_.start(header());
    stream_.finish();
  }

 private:
  // Filled with spaces to a multiple of 8 bytes, so that the data begins aligned.
  std::string header() const {
    if (stream_.started()) return {};
    std::string json = header_.dump();
    json.append((8 - json.size() % 8) % 8, ' ');
    std::string prefix(8, '\0');
    for (std::size_t i = 0; i < 8; ++i) prefix[i] = static_cast<char>(std::uint64_t{json.size()} >> (8 * i) & 0xFF);
    return prefix + json;
  }

  detail::tensor_stream stream_;
  nlohmann::ordered_json header_ = nlohmann::ordered_json::object();
  std::size_t next_offset_ = 0;
};

MOTE_END_NAMESPACE
