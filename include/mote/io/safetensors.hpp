// safetensors files, memory-mapped, and checkpoints of one or several of them.
//
// Layout: an unsigned 64-bit little-endian length n, n bytes of JSON {name: {dtype, shape, data_offsets: [begin, end]}},
// then the data, to which the offsets refer. Every size and offset is checked; the file may be hostile.
// Source: the safetensors format description.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/buffer.hpp"
#include "../core/error.hpp"
#include "../core/types.hpp"
#include "../core/view.hpp"
#include "dtype.hpp"
#include "json.hpp"
#include "mapped_file.hpp"

MOTE_BEGIN_NAMESPACE

// A tensor in a mapped file; valid as long as the file's object.
struct tensor_ref {
  std::string name;
  mote::dtype dtype = dtype::f32;
  std::vector<std::size_t> shape;
  std::span<const std::byte> bytes;  // may be unaligned
  const std::string* file = nullptr;

  std::size_t size() const { return bytes.size() / dtype_size(dtype); }

  [[noreturn]] void fail(const std::string& message) const {
    raise<format_error>(*file + ": tensor " + name + ": " + message);
  }
};

class safetensors_file {
 public:
  // Throws format_error naming file and tensor or offset for anything that breaks the format.
  explicit safetensors_file(const std::string& path) : file_(path), path_(std::make_unique<std::string>(path)) {
    const std::span<const std::byte> all = file_.bytes();
    constexpr std::size_t prefix = 8, longest_header = 100'000'000;
    if (all.size() < prefix) fail("expected at least 8 bytes, the header's length, got " + std::to_string(all.size()));
    std::uint64_t length = 0;
    for (std::size_t i = 0; i < prefix; ++i) length |= static_cast<std::uint64_t>(all[i]) << (8 * i);
    if (length > longest_header || length > all.size() - prefix) {
      fail("byte 0: the header's length " + std::to_string(length) + " exceeds " +
           (length > longest_header ? "the format's limit of 100000000"
                                    : "the file's " + std::to_string(all.size()) + " bytes"));
    }
    const std::size_t header = static_cast<std::size_t>(length);
    data_ = all.subspan(prefix + header);
    const nlohmann::json json =
        parse_json({reinterpret_cast<const char*>(all.data() + prefix), header}, path + ": header");
    const json_object root(json, path + ": header");
    for (const auto& [name, entry] : json.items()) {
      if (name == "__metadata__") continue;
      add(name, json_object(entry, path + ": tensor " + name));
    }
    detail::check_overlap(tensors_);
  }

  const std::string& path() const { return *path_; }

  // In the order of their names.
  const std::map<std::string, tensor_ref, std::less<>>& tensors() const { return tensors_; }
  bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }

  // Throws format_error naming the file when it has no such tensor.
  const tensor_ref& tensor(std::string_view name) const {
    const auto it = tensors_.find(name);
    if (it == tensors_.end()) fail("tensor " + std::string(name) + ": missing");
    return it->second;
  }

 private:
  [[noreturn]] void fail(const std::string& message) const { raise<format_error>(*path_ + ": " + message); }

  void add(const std::string& name, const json_object& entry) {
    tensor_ref t;
    t.name = name;
    t.file = path_.get();
    const std::string type = entry.string("dtype");
    const std::optional<dtype> known = dtype_of(type);
    if (!known) entry.fail("dtype", "unknown type \"" + type + "\"");
    t.dtype = *known;
    const std::size_t limit = std::numeric_limits<std::size_t>::max();
    std::size_t bytes = dtype_size(t.dtype);
    for (const nlohmann::json& extent : entry.array("shape")) {
      if (!extent.is_number_unsigned()) entry.fail("shape", "expected whole numbers of at least 0");
      const std::size_t n = extent.get<std::size_t>();
      if (n != 0 && bytes > limit / n) entry.fail("shape", "its product overflows");
      bytes *= n;
      t.shape.push_back(n);
    }
    const nlohmann::json& offsets = entry.array("data_offsets");
    if (offsets.size() != 2 || !offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned()) {
      entry.fail("data_offsets", "expected [begin, end]");
    }
    const std::size_t begin = offsets[0].get<std::size_t>(), end = offsets[1].get<std::size_t>();
    if (begin > end || end > data_.size()) {
      entry.fail("data_offsets", "[" + std::to_string(begin) + ", " + std::to_string(end) +
                                     ") lies outside the file's " + std::to_string(data_.size()) + " bytes of data");
    }
    if (end - begin != bytes) {
      entry.fail("data_offsets", "hold " + std::to_string(end - begin) + " bytes, " + type + " " + shape_text(t.shape) +
                                     " needs " + std::to_string(bytes));
    }
    t.bytes = data_.subspan(begin, bytes);
    tensors_.emplace(name, std::move(t));
  }

  mapped_file file_;
  std::unique_ptr<std::string> path_;  // its address stays when the object moves
  std::span<const std::byte> data_;
  std::map<std::string, tensor_ref, std::less<>> tensors_;
};

// A directory with model.safetensors, or with model.safetensors.index.json and the shards that it names.
class checkpoint {
 public:
  // Throws format_error naming the file that is missing or malformed, or the tensor that its shard does not hold.
  explicit checkpoint(const std::string& directory) : directory_(directory) {
    const std::string single = directory + "/model.safetensors", index = directory + "/model.safetensors.index.json";
    std::error_code ignored;
    if (std::filesystem::exists(single, ignored) || !std::filesystem::exists(index, ignored)) {
      shards_.emplace_back(single);
      for (const auto& [name, t] : shards_[0].tensors()) tensors_.emplace(name, &t);
      return;
    }
    const json_file file(index);
    const json_object map = file.root().object("weight_map");
    std::map<std::string, std::size_t> shard_of;
    for (const auto& [name, shard] : map.value().items()) shard_of.emplace(map.string(name), 0);
    shards_.reserve(shard_of.size());  // tensors_ points into them
    for (auto& [name, i] : shard_of) {
      if (name.empty() || name.find('/') != std::string::npos || name.find('\0') != std::string::npos) {
        map.fail("\"" + name + "\"", "a shard must be a file of the checkpoint's own directory");
      }
      i = shards_.size();
      shards_.emplace_back(directory + "/" + name);
    }
    for (const auto& [name, shard] : map.value().items()) {
      tensors_.emplace(name, &shards_[shard_of.at(shard.get<std::string>())].tensor(name));
    }
  }

  const std::string& directory() const { return directory_; }

  // The files that hold tensors, in the order of their names.
  const std::vector<safetensors_file>& files() const { return shards_; }

  bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }

  // Every tensor, in the order of their names.
  std::vector<tensor_ref> tensors() const {
    std::vector<tensor_ref> all;
    for (const auto& [name, t] : tensors_) all.push_back(*t);
    return all;
  }

  // Throws format_error naming the directory and the tensor when it is missing.
  const tensor_ref& tensor(std::string_view name) const {
    const auto it = tensors_.find(name);
    if (it == tensors_.end()) raise<format_error>(directory_ + ": tensor " + std::string(name) + ": missing");
    return *it->second;
  }

  // The same, of the given shape.
  const tensor_ref& tensor(std::string_view name, std::span<const std::size_t> shape) const {
    const tensor_ref& t = tensor(name);
    if (!std::equal(shape.begin(), shape.end(), t.shape.begin(), t.shape.end())) {
      t.fail("expected shape " + shape_text(shape) + ", got " + shape_text(t.shape));
    }
    return t;
  }

 private:
  std::string directory_;
  std::vector<safetensors_file> shards_;
  std::map<std::string, const tensor_ref*, std::less<>> tensors_;
};

// The tensor's elements straight from the map, or nothing when they are not aligned for T. T is the element type.
template <class T>
std::optional<view<const T, 1>> mapped_view(const tensor_ref& t) {
  if (sizeof(T) != dtype_size(t.dtype)) t.fail("expected elements of " + std::to_string(sizeof(T)) + " bytes");
  if (reinterpret_cast<std::uintptr_t>(t.bytes.data()) % alignof(T) != 0) return std::nullopt;
  return view<const T, 1>(reinterpret_cast<const T*>(t.bytes.data()), t.size());
}

// Elements of a floating-point tensor as float32. Throws format_error for another type.
inline buffer<float> read_float(const tensor_ref& t) {
  buffer<float> values(t.size());
  const auto convert = [&]<class T>(T element) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      std::memcpy(&element, t.bytes.data() + i * sizeof(T), sizeof(T));
      values[i] = static_cast<float>(element);
    }
  };
  switch (t.dtype) {
    case dtype::f64:
      convert(double{});
      break;
    case dtype::f32:
      convert(float{});
      break;
    case dtype::f16:
      convert(f16{});
      break;
    case dtype::bf16:
      convert(bf16{});
      break;
    case dtype::f8_e4m3:
      convert(f8_e4m3{});
      break;
    case dtype::f8_e5m2:
      convert(f8_e5m2{});
      break;
    default:
      t.fail("expected a floating-point type, got " + std::string(dtype_name(t.dtype)));
  }
  return values;
}

MOTE_END_NAMESPACE
