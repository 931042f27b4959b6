// What option values may be, and what is said of others.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <map>
#include <string>
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

// Any that 64 bits hold. CLI11 itself takes -1 for the largest, and what is larger still for that, too.
inline CLI::Validator whole_number() {
  return {[](std::string& given) {
            char* end = nullptr;
            errno = 0;
            std::strtoull(given.c_str(), &end, 0);
            const bool digits = !given.empty() && given.front() >= '0' && given.front() <= '9';
            return digits && *end == '\0' && errno == 0 ? std::string()
                                                        : "expected a whole number of 64 bits, got " + given;
          },
          ""};
}

}  // namespace lm
