// Reading JSON that somebody else wrote: every error names the file and the field.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "../core/error.hpp"
#include "mapped_file.hpp"

MOTE_BEGIN_NAMESPACE

// Parses `text`; `where` names it in errors. Throws format_error for malformed text, for nesting deeper than any
// configuration has use for, and for a key that stands twice in one object.
inline nlohmann::json parse_json(std::string_view text, const std::string& where) {
  using event = nlohmann::json::parse_event_t;
  constexpr int deepest = 64;
  std::vector<std::unordered_set<std::string>> keys;
  const auto check_structure = [&](int depth, event e, nlohmann::json& parsed) {
    if (depth > deepest)
      raise<format_error>(where + ": JSON nested more than " + std::to_string(deepest) + " levels deep");
    if (e == event::object_start) keys.emplace_back();
    if (e == event::object_end) keys.pop_back();
    if (e == event::key && !keys.back().insert(parsed.get_ref<const std::string&>()).second) {
      raise<format_error>(where + ": the key \"" + parsed.get_ref<const std::string&>() +
                          "\" stands twice in one object");
    }
    return true;
  };
#if MOTE_EXCEPTIONS
  try {
    return nlohmann::json::parse(text.begin(), text.end(), check_structure);
  } catch (const nlohmann::json::exception& e) {
    raise<format_error>(where + ": malformed JSON: " + e.what());
  }
#else
  nlohmann::json parsed = nlohmann::json::parse(text.begin(), text.end(), check_structure, false);
  if (parsed.is_discarded()) raise<format_error>(where + ": malformed JSON");
  return parsed;
#endif
}

// A JSON object and the place it came from. Getters throw format_error "file: field: expected …" for a missing field, a
// wrong type or a number out of range; the `_or` forms give a default for a field that is absent or null.
class json_object {
 public:
  json_object(const nlohmann::json& value, std::string where) : value_(&value), where_(std::move(where)) {
    if (!value.is_object()) raise<format_error>(where_ + ": expected a JSON object, got " + value.type_name());
  }

  const nlohmann::json& value() const { return *value_; }
  const std::string& where() const { return where_; }

  bool contains(const std::string& field) const { return value_->contains(field); }
  bool has_value(const std::string& field) const { return contains(field) && !(*value_)[field].is_null(); }

  [[noreturn]] void fail(const std::string& field, const std::string& message) const {
    raise<format_error>(where_ + ": " + field + ": " + message);
  }

  const nlohmann::json& at(const std::string& field) const {
    if (!contains(field)) fail(field, "missing");
    return (*value_)[field];
  }

  std::string string(const std::string& field) const {
    const nlohmann::json& v = at(field);
    if (!v.is_string()) fail(field, std::string("expected a string, got ") + v.type_name());
    return v.get<std::string>();
  }
  std::string string_or(const std::string& field, const std::string& fallback) const {
    return has_value(field) ? string(field) : fallback;
  }

  // A finite number.
  double number(const std::string& field) const {
    const nlohmann::json& v = at(field);
    if (!v.is_number() || !std::isfinite(v.get<double>()))
      fail(field, std::string("expected a number, got ") + v.type_name());
    return v.get<double>();
  }
  double number_or(const std::string& field, double fallback) const {
    return has_value(field) ? number(field) : fallback;
  }

  // A number that float32 does not turn into infinity or into a zero that it is not.
  double float_number(const std::string& field) const {
    const double n = number(field);
    const auto narrow = static_cast<float>(n);
    if (!std::isfinite(narrow) || (narrow == 0.0f && n != 0.0))
      fail(field, "expected a number in the range of float32, got " + at(field).dump());
    return n;
  }
  double float_number_or(const std::string& field, double fallback) const {
    return has_value(field) ? float_number(field) : fallback;
  }

  bool boolean(const std::string& field) const {
    const nlohmann::json& v = at(field);
    if (!v.is_boolean()) fail(field, std::string("expected true or false, got ") + v.type_name());
    return v.get<bool>();
  }
  bool boolean_or(const std::string& field, bool fallback) const {
    return has_value(field) ? boolean(field) : fallback;
  }

  // A whole number in [least, most].
  std::size_t integer(const std::string& field, std::size_t least, std::size_t most) const {
    const nlohmann::json& v = at(field);
    const bool whole = v.is_number_unsigned() || (v.is_number_integer() && v.get<std::int64_t>() >= 0);
    if (!whole || v.get<std::uint64_t>() < least || v.get<std::uint64_t>() > most) {
      fail(field, "expected a whole number from " + std::to_string(least) + " to " + std::to_string(most) + ", got " +
                      (v.is_number() ? v.dump() : v.type_name()));
    }
    return v.get<std::size_t>();
  }
  std::size_t integer_or(const std::string& field, std::size_t fallback, std::size_t least, std::size_t most) const {
    return has_value(field) ? integer(field, least, most) : fallback;
  }

  json_object object(const std::string& field) const { return {at(field), where_ + ": " + field}; }

  const nlohmann::json& array(const std::string& field) const {
    const nlohmann::json& v = at(field);
    if (!v.is_array()) fail(field, std::string("expected an array, got ") + v.type_name());
    return v;
  }

 private:
  const nlohmann::json* value_;
  std::string where_;
};

// A parsed JSON file; objects taken from it refer to it.
class json_file {
 public:
  // Throws format_error when the file cannot be read or is not well-formed.
  explicit json_file(const std::string& path) : path_(path) {
    const mapped_file file(path);
    value_ = parse_json({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}, path);
  }

  const std::string& path() const { return path_; }
  const nlohmann::json& value() const { return value_; }
  json_object root() const { return {value_, path_}; }

 private:
  std::string path_;
  nlohmann::json value_;
};

MOTE_END_NAMESPACE
