// Files of weights in the form in which kernels read them: mapped, a model is ready without being converted or packed.
//
// Layout, in the byte order of the machine that wrote it: "MOTEPACK", then as 64-bit numbers the version (1), the offset, size
// and fnv1a of the table; the weights' bytes, each from a multiple of 4096 on; then the table, JSON
// {"key": text, "weights": {NAME: {"form": "packed q4_0", "shape": [out, in], "offset": …}}}, and what else a form needs (detail::
// stored_form). The table is checked whole, every size and offset in it, and may be hostile. The weights'
// own bytes are taken as they are: whatever they hold, they are numbers.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include "../core/error.hpp"
#include "../quant/weight.hpp"
#include "fingerprint.hpp"
#include "json.hpp"
#include "mapped_file.hpp"
#include "part_file.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

inline constexpr std::string_view weight_file_magic = "MOTEPACK";
inline constexpr std::size_t weight_alignment = 4096;
inline constexpr std::size_t region_alignment = std::size_t{1} << 16;

inline constexpr std::size_t largest_extent = std::size_t{1} << 30;  // no size of such a matrix overflows

// Two whole numbers from 1 on.
inline std::pair<std::size_t, std::size_t> extents(const json_object& json, const std::string& field) {
  const nlohmann::json& pair = json.array(field);
  const auto extent = [&](std::size_t i) {
    if (pair.size() != 2 || !pair[i].is_number_unsigned() || pair[i].get<std::uint64_t>() - 1 >= largest_extent) {
      json.fail(field, "expected two whole numbers from 1 to " + std::to_string(largest_extent));
    }
    return pair[i].get<std::size_t>();
  };
  const std::size_t first = extent(0);
  return {first, extent(1)};
}

struct weight_file_header {
  std::array<char, 8> magic{};
  std::uint64_t version = 0, table_offset = 0, table_size = 0, table_checksum = 0;
};

// How a form of matrix is kept: its name, what its entry of the table says besides (`describe`), its bytes for a shape
// (`size`, nothing where it has no such shape), its parts, and the matrix again from the bytes that the parts gave one after
// another (`make`).
template <class Matrix>
struct stored_form;

inline void check_contiguous(bool contiguous) {
  check(contiguous, "weight_file_writer", "write: expected contiguous rows");
}

template <class T>
std::span<const std::byte> bytes_of(const view<const T, 2>& v) {
  check_contiguous(v.contiguous());
  return std::as_bytes(std::span(v.data(), v.size()));
}

template <class T>
struct stored_form<view<const T, 2>> {
  static std::string name() {
    if constexpr (block_format<T>) {
      return std::string(std::string_view(T::name));
    } else {
      static_assert(std::is_same_v<T, float> || std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
      return std::is_same_v<T, float> ? "f32" : std::is_same_v<T, bf16> ? "bf16" : "f16";
    }
  }
  static void describe(const view<const T, 2>&, nlohmann::json&) {}
  static std::optional<std::size_t> size(const json_object&, std::size_t out, std::size_t in) {
    if (in % columns_of<T> != 0) return std::nullopt;
    return out * (in / columns_of<T>)*sizeof(T);
  }
  static std::vector<std::span<const std::byte>> parts(const view<const T, 2>& m) { return {bytes_of(m)}; }
  static weight make(const json_object&, const std::byte* bytes, std::size_t out, std::size_t in) {
    return view<const T, 2>(reinterpret_cast<const T*>(bytes), out, in / columns_of<T>);
  }
};

// The scales first: behind them the codes need no alignment.
template <>
struct stored_form<int8_matrix> {
  static std::string name() { return "int8"; }
  static void describe(const int8_matrix&, nlohmann::json&) {}
  static std::optional<std::size_t> size(const json_object&, std::size_t out, std::size_t in) {
    return out * sizeof(float) + out * in;
  }
  static std::vector<std::span<const std::byte>> parts(const int8_matrix& m) {
    check_contiguous(m.scale.contiguous());
    return {std::as_bytes(std::span(m.scale.data(), m.scale.size())), bytes_of(m.codes)};
  }
  static weight make(const json_object&, const std::byte* bytes, std::size_t out, std::size_t in) {
    return int8_matrix{{reinterpret_cast<const std::int8_t*>(bytes + out * sizeof(float)), out, in},
                       {reinterpret_cast<const float*>(bytes), out}};
  }
};

// Scales, codes, zero points.
template <>
struct stored_form<scaled_matrix> {
  static constexpr std::array<std::string_view, 4> code_names = {"f8_e4m3", "f8_e5m2", "int8", "int4"};

  struct layout {
    std::size_t code, row_bytes, tile_rows, tile_columns, scale_rows, scale_columns;
    bool zero;
  };

  static std::string name() { return "scaled"; }
  static void describe(const scaled_matrix& m, nlohmann::json& entry) {
    check(m.first_row == 0, "weight_file_writer", "write: expected a whole matrix");
    entry["codes"] = code_names[m.codes.index()];
    entry["tile"] = {std::min(m.tile_rows, largest_extent), std::min(m.tile_columns, largest_extent)};
    entry["zero"] = !m.zero.empty();
  }
  static std::optional<std::size_t> size(const json_object& json, std::size_t out, std::size_t in) {
    const layout l = read(json, out, in);
    const bool pairs = code_names[l.code] == "int4", floats = l.code < 2;
    if (pairs && (in % 2 != 0 || (l.tile_columns % 2 != 0 && l.tile_columns < in))) return std::nullopt;
    if (floats && l.zero) json.fail("zero", "fp8 has no zero points");
    const std::size_t scales = l.scale_rows * l.scale_columns;
    return scales * sizeof(float) + out * l.row_bytes + (l.zero ? scales : 0);
  }
  static std::vector<std::span<const std::byte>> parts(const scaled_matrix& m) {
    std::vector<std::span<const std::byte>> all = {bytes_of(m.scale)};
    std::visit([&](const auto& codes) { all.push_back(bytes_of(codes)); }, m.codes);
    if (!m.zero.empty()) all.push_back(bytes_of(m.zero));
    return all;
  }
  static weight make(const json_object& json, const std::byte* bytes, std::size_t out, std::size_t in) {
    const layout l = read(json, out, in);
    const std::byte* codes = bytes + l.scale_rows * l.scale_columns * sizeof(float);
    scaled_matrix m;
    m.tile_rows = l.tile_rows;
    m.tile_columns = l.tile_columns;
    m.scale = {reinterpret_cast<const float*>(bytes), l.scale_rows, l.scale_columns};
    const auto set = [&]<class Code>(view<const Code, 2>) {
      m.codes = view<const Code, 2>(reinterpret_cast<const Code*>(codes), out, l.row_bytes);
    };
    if (l.code == 0) set(view<const f8_e4m3, 2>());
    if (l.code == 1) set(view<const f8_e5m2, 2>());
    if (l.code == 2) set(view<const std::int8_t, 2>());
    if (l.code == 3) set(view<const int4_pair, 2>());
    if (l.zero) {
      m.zero = {reinterpret_cast<const std::int8_t*>(codes + out * l.row_bytes), l.scale_rows, l.scale_columns};
    }
    return m;
  }

 private:
  static layout read(const json_object& json, std::size_t out, std::size_t in) {
    layout l{};
    const std::string codes = json.string("codes");
    while (l.code < code_names.size() && code_names[l.code] != codes) ++l.code;
    if (l.code == code_names.size()) json.fail("codes", "unknown codes \"" + codes + "\"");
    l.row_bytes = codes == "int4" ? in / 2 : in;
    std::tie(l.tile_rows, l.tile_columns) = extents(json, "tile");
    l.scale_rows = (out - 1) / l.tile_rows + 1;
    l.scale_columns = (in - 1) / l.tile_columns + 1;
    l.zero = json.boolean("zero");
    return l;
  }
};

template <class T>
struct stored_form<packed_matrix<T>> {
  static std::string name() {
    if constexpr (block_format<T>) {
      return "packed " + std::string(std::string_view(T::name));
    } else {
      return std::is_same_v<T, std::int8_t> ? "packed int8" : "packed bf16";
    }
  }
  static void describe(const packed_matrix<T>& m, nlohmann::json& entry) {
    if constexpr (integer_format<T>) {  // of which the order depends on the instruction set
      entry["lanes"] = m.order().lanes;
      entry["largest_code"] = m.order().largest_code;
    }
  }
  static std::optional<std::size_t> size(const json_object&, std::size_t out, std::size_t in) {
    if (in % columns_of<T> != 0) return std::nullopt;
    return packed_matrix<T>::size(out, in);
  }
  static std::vector<std::span<const std::byte>> parts(const packed_matrix<T>& m) {
    return {std::as_bytes(std::span(m.bytes().data(), m.bytes().size()))};
  }
  static weight make(const json_object& json, const std::byte* bytes, std::size_t out, std::size_t in) {
    packing order{};
    if constexpr (integer_format<T>) {
      order.lanes = json.integer("lanes", 1, packed_rows);
      if (packed_rows % order.lanes != 0) json.fail("lanes", "expected a divisor of " + std::to_string(packed_rows));
      order.largest_code = static_cast<int>(json.integer("largest_code", 0, 255));
    }
    return packed_matrix<T>({reinterpret_cast<const std::uint8_t*>(bytes), packed_matrix<T>::size(out, in)}, out, in,
                            order);
  }
};

// f.template operator()<Form>() with the form of that name; whether there is one.
template <class Function, std::size_t... I>
bool with_stored_form(std::string_view name, Function&& f, std::index_sequence<I...>) {
  bool found = false;
  const auto consider = [&]<class Form>() {
    if (found || Form::name() != name) return;
    found = true;
    f.template operator()<Form>();
  };
  (consider.template operator()<stored_form<std::variant_alternative_t<I, weight>>>(), ...);
  return found;
}

inline bool begins_as_weight_file(std::span<const std::byte> bytes) {
  return bytes.size() >= weight_file_magic.size() &&
         std::memcmp(bytes.data(), weight_file_magic.data(), weight_file_magic.size()) == 0;
}

}  // namespace detail

// Whether a file begins as one of these does. Throws format_error when it cannot be read.
inline bool is_weight_file(const std::string& path) { return detail::begins_as_weight_file(mapped_file(path).bytes()); }

//   weight_file_writer file("model.mote", key);
//   file.write("lm_head.weight", weight);       // as they are made, in any order
//   file.finish();
//
// The file has the name PATH.part until finish() gives it its own; without finish() nothing is left.
class weight_file_writer {
 public:
  // `key`: what the weights were made from and for, any text. Throws format_error when the file cannot be written, or
  // PATH.part is there and does not begin as such a file.
  weight_file_writer(std::string path, const std::string& key) : file_(std::move(path), unfinished::removed) {
    const auto mark = magic();
    file_.begin_anew({mark.data(), mark.size()});
    table_ = {{"key", key}, {"weights", nlohmann::json::object()}};
    const detail::weight_file_header begun{.magic = magic(), .version = 0};  // a version that is never read
    put(std::as_bytes(std::span(&begun, 1)));
  }

  // The weights that follow, up to the next call, may be brought into memory and given back by themselves: they begin where
  // no page that the system maps in passing belongs to others. The last region ends with a call too.
  void begin_region() { align(detail::region_alignment); }

  // Throws shape_error for a name given twice or an empty matrix, format_error when the file cannot be written.
  void write(const std::string& name, const weight& w) {
    check(!table_["weights"].contains(name), "weight_file_writer", "write: " + name + ": given twice");
    check(out_features(w) > 0 && in_features(w) > 0, "weight_file_writer", "write: " + name + ": is empty");
    align(detail::weight_alignment);
    nlohmann::json entry = {{"shape", {out_features(w), in_features(w)}}, {"offset", size_}};
    std::visit(
        [&](const auto& m) {
          using form = detail::stored_form<std::remove_cvref_t<decltype(m)>>;
          entry["form"] = form::name();
          form::describe(m, entry);
          for (const std::span<const std::byte> part : form::parts(m)) put(part);
        },
        w);
    table_["weights"][name] = std::move(entry);
  }

  // Throws format_error when the file cannot be written.
  void finish() {
    const std::string table = table_.dump();
    const detail::weight_file_header header{.magic = magic(),
                                            .version = 1,
                                            .table_offset = size_,
                                            .table_size = table.size(),
                                            .table_checksum = fnv1a(std::as_bytes(std::span(table)))};
    put(std::as_bytes(std::span(table)));
    if (std::fseek(file_.file(), 0, SEEK_SET) != 0) file_.fail();
    file_.put(&header, sizeof header);
    file_.finish();
  }

 private:
  static std::array<char, 8> magic() {
    std::array<char, 8> text{};
    std::copy_n(detail::weight_file_magic.data(), text.size(), text.data());
    return text;
  }
  void put(std::span<const std::byte> bytes) {
    file_.put(bytes.data(), bytes.size());
    size_ += bytes.size();
  }

  void align(std::size_t alignment) {
    const std::vector<std::byte> zeros((alignment - size_ % alignment) % alignment);
    put(zeros);
  }

  detail::part_file file_;
  nlohmann::json table_;
  std::size_t size_ = 0;
};

// Such a file, mapped. The weights refer to it and live as long.
class weight_file {
 public:
  // Throws format_error naming the file and what in it breaks the format.
  explicit weight_file(const std::string& path) : file_(path) {
    const std::span<const std::byte> all = file_.bytes();
    if (!detail::begins_as_weight_file(all)) fail("is no file of weights: expected it to begin with MOTEPACK");
    detail::weight_file_header header{};
    if (all.size() < sizeof header) fail("its header is cut off");
    std::memcpy(&header, all.data(), sizeof header);
    if (header.version != 1) fail("version " + std::to_string(header.version) + ", expected 1");
    if (header.table_offset > all.size() || header.table_size > all.size() - header.table_offset) {
      fail("its table lies beyond the file's " + std::to_string(all.size()) + " bytes");
    }
    const auto table =
        all.subspan(static_cast<std::size_t>(header.table_offset), static_cast<std::size_t>(header.table_size));
    if (fnv1a(table) != header.table_checksum) fail("its table is damaged");
    const nlohmann::json json =
        parse_json({reinterpret_cast<const char*>(table.data()), table.size()}, path + ": table");
    const json_object root(json, path + ": table");
    key_ = root.string("key");
    const json_object entries = root.object("weights");
    for (const auto& [name, value] : entries.value().items()) {
      weights_.emplace(name, read(json_object(value, path + ": weight " + name),
                                  all.first(static_cast<std::size_t>(header.table_offset))));
    }
  }

  const std::string& path() const { return file_.path(); }
  const std::string& key() const { return key_; }

  struct entry {
    mote::weight weight;
    std::span<const std::byte> bytes;  // where it lies in the map
  };
  const std::map<std::string, entry, std::less<>>& weights() const { return weights_; }
  bool contains(std::string_view name) const { return weights_.find(name) != weights_.end(); }

  // The bytes from one weight to another that was written behind it, with the padding up to the next region. Throws
  // format_error when they do not lie so.
  std::span<const std::byte> region(const entry& first, const entry& last) const {
    const auto begin = static_cast<std::size_t>(first.bytes.data() - file_.bytes().data());
    const auto end = static_cast<std::size_t>(last.bytes.data() - file_.bytes().data()) + last.bytes.size();
    if (end < begin) fail("weights of one region do not follow one another");
    const std::size_t alignment = detail::region_alignment;
    return file_.bytes().subspan(begin,
                                 std::min((end + alignment - 1) / alignment * alignment, file_.bytes().size()) - begin);
  }

  // Throws format_error when there is no such weight or it has another shape.
  const entry& at(std::string_view name, std::size_t out, std::size_t in) const {
    const auto found = weights_.find(name);
    if (found == weights_.end()) fail("weight " + std::string(name) + ": missing");
    const std::size_t got[] = {out_features(found->second.weight), in_features(found->second.weight)};
    const std::size_t want[] = {out, in};
    if (got[0] != out || got[1] != in) {
      fail("weight " + std::string(name) + ": expected shape " + shape_text(want) + ", got " + shape_text(got));
    }
    return found->second;
  }

 private:
  [[noreturn]] void fail(const std::string& message) const { raise<format_error>(path() + ": " + message); }

  static entry read(const json_object& json, std::span<const std::byte> data) {
    const auto [out, in] = detail::extents(json, "shape");
    const std::size_t offset = json.integer("offset", sizeof(detail::weight_file_header), data.size());
    if (offset % detail::weight_alignment != 0) {
      json.fail("offset", "expected a multiple of " + std::to_string(detail::weight_alignment));
    }
    const std::string form = json.string("form");
    std::optional<entry> result;
    const auto place = [&, rows = out, columns = in]<class Form>() {
      const std::optional<std::size_t> size = Form::size(json, rows, columns);
      if (!size) json.fail("shape", form + " has no rows of " + std::to_string(columns));
      if (*size > data.size() - offset) {
        json.fail("offset", std::to_string(*size) + " bytes from byte " + std::to_string(offset) +
                                " on, the weights end at byte " + std::to_string(data.size()));
      }
      const auto bytes = data.subspan(offset, *size);
      result = entry{Form::make(json, bytes.data(), rows, columns), bytes};
    };
    const bool known =
        detail::with_stored_form(form, place, std::make_index_sequence<std::variant_size_v<mote::weight>>{});
    if (!known) json.fail("form", "unknown form \"" + form + "\"");
    return *result;
  }

  mapped_file file_;
  std::string key_;
  std::map<std::string, entry, std::less<>> weights_;
};

MOTE_END_NAMESPACE
