// What option values may be, and what is said of others.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <system_error>
#include <type_traits>

#include <CLI/CLI.hpp>

namespace lm {

// The names, as they are listed to people.
template <class Value>
std::string names_of(const std::map<std::string, Value>& values) {
  std::string names;
  for (const auto& [name, value] : values) names += (names.empty() ? "" : ", ") + name;
  return names;
}

// One of the names; an option of an enumeration type receives the value.
template <class Value>
CLI::Validator one_of(const std::map<std::string, Value>& values) {
  return {[values](std::string& given) {
            const auto found = values.find(given);
            if (found == values.end()) return "expected one of " + names_of(values) + ", got " + given;
            if constexpr (std::is_enum_v<Value>) {
              given = std::to_string(static_cast<std::underlying_type_t<Value>>(found->second));
            }
            return std::string();
          },
          ""};
}

// A number of bytes, not zero, with or without a unit: 2GB, 700MB, powers of 1024. (CLI11 takes 010 for eight, and numbers
// of more than 64 bits for the largest.)
inline CLI::Validator size_in_bytes() {
  return {[](std::string& given) {
            const std::string refusal = "expected a size such as 2GB, got " + given;
            if (given.empty() || given.front() < '1' || given.front() > '9') return refusal;
            if (std::min(given.find_first_not_of("0123456789"), given.size()) > 19) return refusal;
            try {
              return CLI::AsSizeValue(false)(given);
            } catch (const CLI::ValidationError&) {
              return refusal;
            }
          },
          ""};
}

namespace detail {

// A number, finite in float32, that `accepts` takes there; `expected` says which those are.
template <class Accepts>
CLI::Validator float_number(const std::string& expected, Accepts accepts) {
  return {[=](std::string& given) {
            char* end = nullptr;
            const float value = std::strtof(given.c_str(), &end);
            const bool whole = end == given.c_str() + given.size() && !given.empty();
            return whole && std::isfinite(value) && accepts(value) ? std::string()
                                                                   : "expected " + expected + ", got " + given;
          },
          ""};
}

}  // namespace detail

inline CLI::Validator positive_number() {
  return detail::float_number("a number above 0 and at most 3.4e38", [](float value) { return value > 0.0f; });
}
inline CLI::Validator number_from_zero() {
  return detail::float_number("a number from 0 to 3.4e38", [](float value) { return value >= 0.0f; });
}

inline CLI::Validator share_above_zero() {
  return detail::float_number("a number above 0 and at most 1", [](float p) { return p > 0.0f && p <= 1.0f; });
}
inline CLI::Validator share_from_zero() {
  return detail::float_number("a number from 0 to 1", [](float p) { return p >= 0.0f && p <= 1.0f; });
}

// Decimal, as people write it. (CLI11 takes 010 for eight, -1 for the largest of 64 bits, and what is larger still for that,
// too.)
inline CLI::Validator whole_number(std::uint64_t least = 0, std::uint64_t most = ~std::uint64_t{0}) {
  return {[=](std::string& given) {
            std::uint64_t value = 0;
            const char* const end = given.data() + given.size();
            const auto [stop, status] = std::from_chars(given.data(), end, value);
            if (status != std::errc() || stop != end || value < least || value > most) {
              return "expected a whole number from " + std::to_string(least) + " to " + std::to_string(most) +
                     ", got " + given;
            }
            given = std::to_string(value);
            return std::string();
          },
          ""};
}
inline CLI::Validator count_of_threads() { return whole_number(1, 1024); }

// A name that a shell variable did not leave empty.
inline CLI::Validator file_name() {
  return {[](std::string& given) {
            return given.empty() ? std::string("expected a name, got an empty one") : std::string();
          },
          ""};
}

// A file to write, in a directory that is there.
inline CLI::Validator file_to_write() {
  return {[](std::string& given) {
            if (given.empty()) return std::string("expected a name, got an empty one");
            std::error_code none;
            const std::filesystem::path parent = std::filesystem::path(given).parent_path();
            return parent.empty() || std::filesystem::is_directory(parent, none)
                       ? std::string()
                       : parent.string() + ": is no directory, so that " + given + " cannot be written";
          },
          ""};
}

}  // namespace lm
