// Writing GGUF files, version 3: metadata and the list of tensors first, then the tensors' data in that order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

#include "../../core/error.hpp"
#include "../../core/view.hpp"
#include "../tensor_stream.hpp"
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
// The file has the name PATH.part until finish() gives it its own.
class gguf_writer {
 public:
  // `alignment`: of every tensor's data, a power of two of at least 8. Throws format_error when the file cannot be created.
  explicit gguf_writer(std::string path, std::size_t alignment = gguf_default_alignment,
                       unfinished policy = unfinished::removed)
      : stream_("gguf_writer", std::move(path), policy), alignment_(alignment) {
    stream_.expect(alignment >= 8 && alignment <= (std::size_t{1} << 31) && (alignment & (alignment - 1)) == 0,
                   "alignment: expected a power of two of at least 8");
    if (alignment != gguf_default_alignment) put_entry("general.alignment", static_cast<std::uint32_t>(alignment));
  }

  // A metadata entry; `general.alignment` is the writer's own. Throws shape_error for a key given twice or too late, when
  // data was written.
  void add(const std::string& key, const gguf_value& value) {
    stream_.expect(!stream_.started(), "add: " + key + ": after the first data");
    stream_.expect(!key.empty() && key.size() <= 65535, "add: expected a key of 1 to 65535 bytes");
    stream_.expect(key != "general.alignment", "add: general.alignment: is an argument of the constructor");
    put_entry(key, value);
  }

  // A tensor to come, `shape` outermost first. Throws shape_error for a name given twice or longer than 63 bytes, a shape
  // of more than four dimensions or with rows that are no whole blocks, or too late, when data was written.
  void add_tensor(const std::string& name, ggml_type type, std::span<const std::size_t> shape) {
    const std::string where = "add_tensor: " + name;
    stream_.expect(!name.empty() && name.size() <= 63, where + ": expected a name of 1 to 63 bytes");
    stream_.expect(shape.size() <= 4, where + ": expected at most 4 dimensions");
    const std::size_t columns = shape.empty() ? 1 : shape.back(), block = info(type).block_size;
    stream_.expect(columns % block == 0, where + ": expected rows in multiples of " + std::to_string(block));
    std::size_t size = columns / block * info(type).bytes;
    for (std::size_t d = 0; d + 1 < shape.size(); ++d) {
      stream_.expect(shape[d] == 0 || size <= std::numeric_limits<std::size_t>::max() / 2 / shape[d],
                     where + ": its size overflows");
      size *= shape[d];
    }
    stream_.add(name, size, alignment_);
    put_string(list_, name);
    put(list_, static_cast<std::uint32_t>(shape.size()));
    for (std::size_t d = shape.size(); d-- > 0;) put(list_, static_cast<std::uint64_t>(shape[d]));
    put(list_, static_cast<std::uint32_t>(type));
    put(list_, static_cast<std::uint64_t>(next_offset_));
    next_offset_ += (size + alignment_ - 1) / alignment_ * alignment_;
    ++tensors_;
  }

  // The next bytes of the first tensor that is not complete, which must be `name`. Throws shape_error for another one or
  // too many bytes, format_error when they cannot be written.
  void write(std::string_view name, std::span<const std::byte> bytes) {
    stream_.start(header());
    stream_.write(name, bytes);
  }

  // The same for contiguous blocks or elements.
  template <class T, std::size_t Rank>
  void write(std::string_view name, const view<const T, Rank>& values) {
    stream_.expect(values.contiguous(), "write: " + std::string(name) + ": expected contiguous values");
    write(name, std::as_bytes(std::span<const T>(values.data(), values.size())));
  }

  // Goes on behind the data of the first `count` tensors, written by a writer of the same metadata and tensors that left its
  // file (unfinished::kept). Throws format_error when the file is another one or shorter.
  void resume(std::size_t count) { stream_.resume(header(), count); }

  // Hands what was written to the operating system: it outlives the process. Throws format_error when it cannot.
  void flush() { stream_.flush(); }

  // Gives the file its name. Throws format_error when it cannot be written, shape_error when data is missing.
  void finish() {
    stream_.start(header());
    stream_.finish();
  }

 private:
  void put_entry(const std::string& key, const gguf_value& value) {
    stream_.expect(keys_.insert(key).second, "add: " + key + ": given twice");
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

  std::string header() const {
    if (stream_.started()) return {};
    std::string all = "GGUF";
    put(all, std::uint32_t{3});
    put(all, static_cast<std::uint64_t>(tensors_));
    put(all, static_cast<std::uint64_t>(keys_.size()));
    all += metadata_ + list_;
    all.append((alignment_ - all.size() % alignment_) % alignment_, '\0');
    return all;
  }

  detail::tensor_stream stream_;
  std::size_t alignment_;
  std::unordered_set<std::string> keys_;
  std::string metadata_, list_;  // as they will stand in the file
  std::size_t tensors_ = 0, next_offset_ = 0;
};

MOTE_END_NAMESPACE
