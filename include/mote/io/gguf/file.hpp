// GGUF files, memory-mapped, and models of one or several of them.
//
// Layout, little-endian: "GGUF", a 32-bit version (2 or 3), 64-bit counts of tensors and of metadata entries; the entries
// {key, 32-bit type, value}; the tensors {name, 32-bit count of dimensions, 64-bit extents, innermost first, 32-bit type,
// 64-bit offset}; then, from the next multiple of `general.alignment` on, the data to which the offsets refer. A string is
// a 64-bit length and its bytes, an array a 32-bit type, a 64-bit count and the elements. Every size and offset is checked;
// the file may be hostile. Source: the GGUF specification (ggml's docs/gguf.md).
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "../../core/buffer.hpp"
#include "../../core/error.hpp"
#include "../../core/view.hpp"
#include "../../quant/formats.hpp"
#include "../mapped_file.hpp"
#include "metadata.hpp"
#include "types.hpp"

MOTE_BEGIN_NAMESPACE

inline constexpr std::size_t gguf_default_alignment = 32;

// A tensor in a mapped file; valid as long as the file's object.
struct gguf_tensor {
  std::string name;
  ggml_type type = ggml_type::f32;
  std::vector<std::size_t> shape;    // outermost first, in elements; the last is a multiple of the type's block size
  std::span<const std::byte> bytes;  // aligned to at least 8 bytes
  const std::string* file = nullptr;

  // Elements.
  std::size_t size() const { return bytes.size() / info(type).bytes * info(type).block_size; }

  [[noreturn]] void fail(const std::string& message) const {
    raise<format_error>(*file + ": tensor " + name + ": " + message);
  }
};

namespace detail {

// Reads a file's bytes in order; what does not fit is refused by what it belongs to.
class gguf_cursor {
 public:
  gguf_cursor(std::span<const std::byte> bytes, const std::string& path) : bytes_(bytes), path_(path) {}

  std::size_t position() const { return position_; }

  // What is being read, for errors, e.g. "metadata entry 3".
  void enter(std::string what) { what_ = std::move(what); }
  [[noreturn]] void fail(const std::string& message) const {
    raise<format_error>(path_ + ": " + what_ + ": " + message);
  }

  template <class T>
  T number() {
    T value{};
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }

  bool boolean() {
    const auto value = number<std::uint8_t>();
    if (value > 1) fail("expected the boolean 0 or 1, got " + std::to_string(value));
    return value == 1;
  }

  std::string string(std::size_t longest) {
    const auto length = number<std::uint64_t>();
    const std::size_t limit = std::min(longest, left());
    if (length > limit) {
      fail("a string of " + std::to_string(length) + " bytes at byte " + std::to_string(position_) +
           ", expected at most " + std::to_string(limit));
    }
    const auto size = static_cast<std::size_t>(length);
    return {reinterpret_cast<const char*>(take(size)), size};
  }

  // A count of things of at least `smallest` bytes each.
  std::size_t count(const char* of, std::size_t smallest) {
    const auto n = number<std::uint64_t>();
    if (n > left() / smallest) {
      fail(std::to_string(n) + " " + of + ", more than the file's " + std::to_string(bytes_.size()) +
           " bytes can hold");
    }
    return static_cast<std::size_t>(n);
  }

 private:
  std::size_t left() const { return bytes_.size() - position_; }

  const std::byte* take(std::size_t size) {
    if (size > left()) {
      fail("expected " + std::to_string(size) + " bytes at byte " + std::to_string(position_) +
           ", the file ends at byte " + std::to_string(bytes_.size()));
    }
    return bytes_.data() + std::exchange(position_, position_ + size);
  }

  std::span<const std::byte> bytes_;
  const std::string& path_;
  std::size_t position_ = 0;
  std::string what_ = "header";
};

// One value of type T, inside `depth` arrays.
template <class T>
T read_gguf(gguf_cursor& in, int depth);

// The alternative of the variant whose number the file gives.
template <class Variant, std::size_t... I, class Read>
Variant read_gguf_alternative(std::uint32_t type, std::index_sequence<I...>, Read&& read) {
  Variant value;
  ((type == I
        ? static_cast<void>(value.template emplace<I>(read(std::in_place_type<std::variant_alternative_t<I, Variant>>)))
        : static_cast<void>(0)),
   ...);
  return value;
}

inline std::uint32_t read_gguf_type(gguf_cursor& in) {
  const auto type = in.number<std::uint32_t>();
  if (type >= std::size(gguf_type_names)) in.fail("unknown value type " + std::to_string(type));
  return type;
}

inline gguf_array read_gguf_array(gguf_cursor& in, int depth) {
  constexpr int deepest = 8;
  if (depth >= deepest) in.fail("arrays nested more than " + std::to_string(deepest) + " deep");
  const std::uint32_t type = read_gguf_type(in);
  constexpr std::size_t smallest[] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};  // bytes of an element
  const std::size_t size = in.count("array elements", smallest[type]);
  using variant = decltype(gguf_array::data);
  return {read_gguf_alternative<variant>(type, std::make_index_sequence<std::variant_size_v<variant>>{},
                                         [&]<class Elements>(std::in_place_type_t<Elements>) {
                                           Elements elements;
                                           elements.reserve(size);
                                           for (std::size_t i = 0; i < size; ++i) {
                                             elements.push_back(
                                                 read_gguf<typename Elements::value_type>(in, depth + 1));
                                           }
                                           return elements;
                                         })};
}

template <class T>
T read_gguf(gguf_cursor& in, int depth) {
  if constexpr (std::is_same_v<T, bool>) {
    return in.boolean();
  } else if constexpr (std::is_same_v<T, std::string>) {
    return in.string(std::numeric_limits<std::size_t>::max());
  } else if constexpr (std::is_same_v<T, gguf_array>) {
    return read_gguf_array(in, depth);
  } else {
    return in.number<T>();
  }
}

inline gguf_value read_gguf_value(gguf_cursor& in) {
  const std::uint32_t type = read_gguf_type(in);
  return read_gguf_alternative<gguf_value>(type, std::make_index_sequence<std::variant_size_v<gguf_value>>{},
                                           [&]<class T>(std::in_place_type_t<T>) { return read_gguf<T>(in, 0); });
}

}  // namespace detail

class gguf_file {
 public:
  // Throws format_error naming file and metadata key, tensor or offset for anything that breaks the format.
  explicit gguf_file(const std::string& path)
      : file_(path), path_(std::make_unique<std::string>(path)), metadata_(path) {
    detail::gguf_cursor in(file_.bytes(), *path_);
    read_header(in);
    const std::size_t tensors = in.count("tensors", 24), entries = in.count("metadata entries", 13);
    for (std::size_t i = 0; i < entries; ++i) read_entry(in, i);
    alignment_ = metadata_.integer_or("general.alignment", gguf_default_alignment, 8, std::size_t{1} << 31);
    if ((alignment_ & (alignment_ - 1)) != 0) {
      metadata_.fail("general.alignment", "expected a power of two, got " + std::to_string(alignment_));
    }
    std::vector<std::uint64_t> offsets;
    std::vector<gguf_tensor> found;
    for (std::size_t i = 0; i < tensors; ++i) {
      found.push_back(read_tensor(in, i));
      offsets.push_back(in.number<std::uint64_t>());
    }
    const std::span<const std::byte> all = file_.bytes();
    const std::size_t start = (in.position() + alignment_ - 1) / alignment_ * alignment_;
    data_ = all.subspan(std::min(start, all.size()));
    for (std::size_t i = 0; i < tensors; ++i) place(std::move(found[i]), offsets[i]);
    detail::check_overlap(tensors_);
  }

  const std::string& path() const { return *path_; }
  std::uint32_t version() const { return version_; }
  std::size_t alignment() const { return alignment_; }
  const gguf_metadata& metadata() const { return metadata_; }

  // In the order of their names.
  const std::map<std::string, gguf_tensor, std::less<>>& tensors() const { return tensors_; }
  bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }

  // Throws format_error naming the file when it has no such tensor.
  const gguf_tensor& tensor(std::string_view name) const {
    const auto it = tensors_.find(name);
    if (it == tensors_.end()) raise<format_error>(*path_ + ": tensor " + std::string(name) + ": missing");
    return it->second;
  }

 private:
  void read_header(detail::gguf_cursor& in) {
    const auto magic = in.number<std::array<char, 4>>();
    if (std::string_view(magic.data(), 4) != "GGUF") in.fail("expected a file that begins with GGUF");
    version_ = in.number<std::uint32_t>();
    if (version_ != 0 && (version_ & 0xFFFFu) == 0) {
      in.fail("a big-endian file, expected a little-endian one");
    }
    if (version_ != 2 && version_ != 3) in.fail("version " + std::to_string(version_) + ", expected 2 or 3");
  }

  void read_entry(detail::gguf_cursor& in, std::size_t i) {
    in.enter("metadata entry " + std::to_string(i));
    std::string key = in.string(65535);
    if (key.empty()) in.fail("expected a key, got none");
    in.enter("key " + key);
    gguf_value value = detail::read_gguf_value(in);
    if (!metadata_.add(std::move(key), std::move(value))) in.fail("stands twice");
  }

  gguf_tensor read_tensor(detail::gguf_cursor& in, std::size_t i) {
    constexpr std::size_t longest_name = 64, most_dimensions = 4;
    in.enter("tensor " + std::to_string(i));
    gguf_tensor t;
    t.file = path_.get();
    t.name = in.string(longest_name);
    if (t.name.empty()) in.fail("expected a name, got none");
    in.enter("tensor " + t.name);
    const auto dimensions = in.number<std::uint32_t>();
    if (dimensions > most_dimensions) {
      in.fail(std::to_string(dimensions) + " dimensions, expected at most " + std::to_string(most_dimensions));
    }
    t.shape.resize(dimensions);
    for (std::size_t d = dimensions; d-- > 0;) {
      const auto extent = in.number<std::uint64_t>();
      if (extent > std::numeric_limits<std::size_t>::max() / 2) {
        in.fail("an extent of " + std::to_string(extent) + " elements overflows");
      }
      t.shape[d] = static_cast<std::size_t>(extent);
    }
    const auto code = in.number<std::uint32_t>();
    const ggml_type_info* known = find_ggml_type(code);
    if (known == nullptr) in.fail("unknown type " + std::to_string(code));
    t.type = known->type;
    return t;
  }

  // Finds the tensor's bytes and adds it.
  void place(gguf_tensor t, std::uint64_t offset) {
    const ggml_type_info& type = info(t.type);
    const std::size_t columns = t.shape.empty() ? 1 : t.shape.back();
    if (columns % type.block_size != 0) {
      t.fail("expected rows in multiples of " + std::to_string(type.block_size) + " elements for " +
             std::string(type.name) + ", got " + shape_text(t.shape));
    }
    std::size_t size = type.bytes;
    for (std::size_t d = 0; d < t.shape.size(); ++d) {
      const std::size_t n = d + 1 == t.shape.size() ? t.shape[d] / type.block_size : t.shape[d];
      if (n != 0 && size > std::numeric_limits<std::size_t>::max() / n) {
        t.fail("shape " + shape_text(t.shape) + ": its product overflows");
      }
      size *= n;
    }
    if (offset % alignment_ != 0) {
      t.fail("offset " + std::to_string(offset) + ", expected a multiple of " + std::to_string(alignment_));
    }
    if (offset > data_.size() || size > data_.size() - offset) {
      t.fail(std::string(type.name) + " " + shape_text(t.shape) + " needs " + std::to_string(size) +
             " bytes at offset " + std::to_string(offset) + ", outside the file's " + std::to_string(data_.size()) +
             " bytes of data");
    }
    t.bytes = data_.subspan(static_cast<std::size_t>(offset), size);
    std::string name = t.name;
    const auto [it, added] = tensors_.emplace(std::move(name), std::move(t));
    if (!added) it->second.fail("stands twice");
  }

  mapped_file file_;
  std::unique_ptr<std::string> path_;  // its address stays when the object moves
  gguf_metadata metadata_;
  std::uint32_t version_ = 0;
  std::size_t alignment_ = gguf_default_alignment;
  std::span<const std::byte> data_;
  std::map<std::string, gguf_tensor, std::less<>> tensors_;
};

// A model of one file, or of the files NAME-00001-of-00003.gguf, -00002-… that it was split into.
class gguf_checkpoint {
 public:
  // `path`: the file, or any one of a split model's. Throws format_error naming the file that is missing or malformed.
  explicit gguf_checkpoint(const std::string& path) {
    constexpr std::size_t most = 65535;
    files_.emplace_back(path);
    const gguf_metadata& given = files_[0].metadata();
    const std::size_t count = given.integer_or("split.count", 1, 0, most);
    if (count > 1) {
      const std::size_t number = given.integer("split.no", 0, count - 1);
      const std::string ending = part_ending(number, count);
      if (!path.ends_with(ending)) {
        given.fail("split.no", "the name of part " + std::to_string(number + 1) + " of " + std::to_string(count) +
                                   " must end with \"" + ending + "\"");
      }
      open_parts(path.substr(0, path.size() - ending.size()), count);
    }
    std::size_t total = 0;
    for (const gguf_file& file : files_) {
      total += file.tensors().size();
      for (const auto& [name, t] : file.tensors()) {
        if (!tensors_.emplace(name, &t).second) t.fail("stands in another part as well");
      }
    }
    const gguf_metadata& first = metadata();
    if (count > 1 && first.integer("split.tensors.count", 0, std::numeric_limits<std::uint32_t>::max()) != total) {
      first.fail("split.tensors.count", "the parts hold " + std::to_string(total) + " tensors");
    }
  }

  // The first file's path and metadata.
  const std::string& path() const { return files_[0].path(); }
  const gguf_metadata& metadata() const { return files_[0].metadata(); }
  const std::vector<gguf_file>& files() const { return files_; }

  bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }

  // Every tensor, in the order of their names.
  std::vector<gguf_tensor> tensors() const {
    std::vector<gguf_tensor> all;
    for (const auto& [name, t] : tensors_) all.push_back(*t);
    return all;
  }

  // Throws format_error naming the file and the tensor when it is missing.
  const gguf_tensor& tensor(std::string_view name) const {
    const auto it = tensors_.find(name);
    if (it == tensors_.end()) raise<format_error>(path() + ": tensor " + std::string(name) + ": missing");
    return *it->second;
  }

  // The same, of the given shape.
  const gguf_tensor& tensor(std::string_view name, std::span<const std::size_t> shape) const {
    const gguf_tensor& t = tensor(name);
    if (!std::equal(shape.begin(), shape.end(), t.shape.begin(), t.shape.end())) {
      t.fail("expected shape " + shape_text(shape) + ", got " + shape_text(t.shape));
    }
    return t;
  }

 private:
  // "-00001-of-00003.gguf" for the first (0) of three.
  static std::string part_ending(std::size_t number, std::size_t count) {
    char text[64] = {};
    std::snprintf(text, sizeof text, "-%05zu-of-%05zu.gguf", number + 1, count);
    return text;
  }

  void open_parts(const std::string& prefix, std::size_t count) {
    files_.clear();
    for (std::size_t i = 0; i < count; ++i) {
      const gguf_metadata& m = files_.emplace_back(prefix + part_ending(i, count)).metadata();
      if (m.integer("split.count", 0, 65535) != count) {
        m.fail("split.count", "expected " + std::to_string(count));
      }
      if (m.integer("split.no", 0, 65535) != i) m.fail("split.no", "expected " + std::to_string(i));
    }
  }

  std::vector<gguf_file> files_;
  std::map<std::string, const gguf_tensor*, std::less<>> tensors_;
};

// The tensor's blocks or elements straight from the map: [rows, columns / block size], all but the last dimension taken
// together as rows. T is a block format, float, f16, bf16 or double. Throws format_error for a tensor of another type.
template <class T>
view<const T, 2> mapped_view(const gguf_tensor& t) {
  if (t.type != ggml_type_of<T>()) {
    t.fail("expected type " + std::string(ggml_type_name(ggml_type_of<T>())) + ", got " +
           std::string(ggml_type_name(t.type)));
  }
  const std::size_t across = (t.shape.empty() ? 1 : t.shape.back()) / info(t.type).block_size;
  const std::size_t blocks = t.bytes.size() / sizeof(T);
  return {reinterpret_cast<const T*>(t.bytes.data()), across == 0 ? 0 : blocks / across, across};
}

// Calls f.template operator()<T>() with the block format or element type of a tensor that mote can read as numbers. Throws
// format_error naming the tensor when it can not.
template <class F>
void visit_type(const gguf_tensor& t, F&& f) {
  bool known = false;
  const auto consider = [&]<class T>() {
    if constexpr (has_ggml_type<T>) {
      if (t.type != ggml_type_of<T>()) return;
      known = true;
      f.template operator()<T>();
    }
  };
  for_each_format(consider, type_list<float, f16, bf16, double>{});
  for_each_format(consider);
  if (!known) t.fail("type " + std::string(ggml_type_name(t.type)) + " is not supported");
}

// Elements as float32, blocks decoded. Throws format_error for a type that mote has no format for.
inline buffer<float> read_float(const gguf_tensor& t) {
  buffer<float> values(t.size());
  visit_type(t, [&]<class T>() {
    const view<const T, 2> stored = mapped_view<T>(t);
    for (std::size_t i = 0; i < stored.size(); ++i) {
      if constexpr (block_format<T>) {
        stored.data()[i].decode(values.data() + i * T::block_size);
      } else {
        values[i] = static_cast<float>(stored.data()[i]);
      }
    }
  });
  return values;
}

MOTE_END_NAMESPACE
