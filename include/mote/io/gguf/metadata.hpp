// The metadata of a GGUF file: named values of thirteen types.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "../../core/error.hpp"

MOTE_BEGIN_NAMESPACE

// The values are those of the file, and the order that of the variants below.
enum class gguf_type : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

inline constexpr std::string_view gguf_type_names[] = {"u8",      "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                       "boolean", "string", "array", "u64", "i64", "f64"};

// Elements of one type; of arrays, too.
struct gguf_array {
  std::variant<std::vector<std::uint8_t>, std::vector<std::int8_t>, std::vector<std::uint16_t>,
               std::vector<std::int16_t>, std::vector<std::uint32_t>, std::vector<std::int32_t>, std::vector<float>,
               std::vector<bool>, std::vector<std::string>, std::vector<gguf_array>, std::vector<std::uint64_t>,
               std::vector<std::int64_t>, std::vector<double>>
      data;

  gguf_type type() const { return static_cast<gguf_type>(data.index()); }  // of the elements
  std::size_t size() const {
    return std::visit([](const auto& elements) { return elements.size(); }, data);
  }
  friend bool operator==(const gguf_array& a, const gguf_array& b) { return a.data == b.data; }
};

using gguf_value = std::variant<std::uint8_t, std::int8_t, std::uint16_t, std::int16_t, std::uint32_t, std::int32_t,
                                float, bool, std::string, gguf_array, std::uint64_t, std::int64_t, double>;

inline gguf_type type_of(const gguf_value& value) { return static_cast<gguf_type>(value.index()); }

// Values by key, and the file that they came from. Getters throw format_error "file: key: expected …" for a missing key,
// a wrong type or a number out of range; the `_or` forms give a default for a missing key.
class gguf_metadata {
 public:
  gguf_metadata() = default;
  explicit gguf_metadata(std::string where) : where_(std::move(where)) {}

  const std::string& where() const { return where_; }
  const std::map<std::string, gguf_value, std::less<>>& values() const { return values_; }

  // Whether the key was new.
  bool add(std::string key, gguf_value value) { return values_.emplace(std::move(key), std::move(value)).second; }

  [[noreturn]] void fail(std::string_view key, const std::string& message) const {
    raise<format_error>(where_ + ": " + std::string(key) + ": " + message);
  }

  bool contains(std::string_view key) const { return values_.find(key) != values_.end(); }
  const gguf_value& at(std::string_view key) const {
    const auto it = values_.find(key);
    if (it == values_.end()) fail(key, "missing");
    return it->second;
  }

  const std::string& string(std::string_view key) const { return get<std::string>(key, "a string"); }
  std::string string_or(std::string_view key, const std::string& fallback) const {
    return contains(key) ? string(key) : fallback;
  }

  bool boolean(std::string_view key) const { return get<bool>(key, "a boolean"); }
  bool boolean_or(std::string_view key, bool fallback) const { return contains(key) ? boolean(key) : fallback; }

  // A whole number in [least, most], of whatever integer type.
  std::size_t integer(std::string_view key, std::size_t least, std::size_t most) const {
    const std::optional<std::uint64_t> n = std::visit(
        [](const auto& v) -> std::optional<std::uint64_t> {
          using T = std::remove_cvref_t<decltype(v)>;
          if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
            if (v >= T{0}) return static_cast<std::uint64_t>(v);
          }
          return std::nullopt;
        },
        at(key));
    if (!n || *n < least || *n > most) {
      fail(key, "expected a whole number from " + std::to_string(least) + " to " + std::to_string(most) + ", got " +
                    (n ? std::to_string(*n) : shown(at(key))));
    }
    return static_cast<std::size_t>(*n);
  }
  std::size_t integer_or(std::string_view key, std::size_t fallback, std::size_t least, std::size_t most) const {
    return contains(key) ? integer(key, least, most) : fallback;
  }

  // A finite number of whatever type.
  double number(std::string_view key) const {
    const double n = std::visit(
        [](const auto& v) {
          using T = std::remove_cvref_t<decltype(v)>;
          if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>) {
            return static_cast<double>(v);
          } else {
            return std::nan("");
          }
        },
        at(key));
    if (!std::isfinite(n)) fail(key, "expected a finite number, got " + shown(at(key)));
    return n;
  }
  double number_or(std::string_view key, double fallback) const { return contains(key) ? number(key) : fallback; }

  // The elements of an array of T, e.g. array<std::string>.
  template <class T>
  const std::vector<T>& array(std::string_view key) const {
    const gguf_array& a = get<gguf_array>(key, "an array");
    const auto* elements = std::get_if<std::vector<T>>(&a.data);
    if (elements == nullptr) {
      fail(key, "expected an array of " + std::string(name_of<std::vector<T>>(a.data)) + ", got one of " +
                    std::string(gguf_type_names[a.data.index()]));
    }
    return *elements;
  }

 private:
  template <class T>
  const T& get(std::string_view key, const char* expected) const {
    const gguf_value& value = at(key);
    const T* v = std::get_if<T>(&value);
    if (v == nullptr) fail(key, std::string("expected ") + expected + ", got " + shown(value));
    return *v;
  }

  // The name of the alternative T of a variant in the order of gguf_type.
  template <class T, class... Alternatives>
  static std::string_view name_of(const std::variant<Alternatives...>&) {
    std::size_t i = 0, found = 0;
    ((std::is_same_v<T, Alternatives> ? (found = i++) : i++), ...);
    return gguf_type_names[found];
  }

  static std::string shown(const gguf_value& value) {
    return std::visit(
        [&](const auto& v) -> std::string {
          if constexpr (std::is_arithmetic_v<std::remove_cvref_t<decltype(v)>>) {
            return std::string(gguf_type_names[value.index()]) + " " + std::to_string(v);
          } else {
            return std::string(gguf_type_names[value.index()]);
          }
        },
        value);
  }

  std::string where_;
  std::map<std::string, gguf_value, std::less<>> values_;
};

MOTE_END_NAMESPACE
