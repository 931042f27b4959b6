// What option values may be, and what is said of others.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <string>
#include <type_traits>

#include <CLI/CLI.hpp>

namespace lm {

// One of the names; an option of an enumeration type receives the value.
template <class Value>
CLI::Validator one_of(const std::map<std::string, Value>& values) {
  return {[values](std::string& given) {
            const auto found = values.find(given);
            if (found == values.end()) {
              std::string names;
              for (const auto& [name, value] : values) names += (names.empty() ? "" : ", ") + name;
              return "expected one of " + names + ", got " + given;
            }
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

// Above zero, finite.
inline CLI::Validator positive_number() {
  return {[](std::string& given) {
            char* end = nullptr;
            const double value = std::strtod(given.c_str(), &end);
            const bool whole = end == given.c_str() + given.size() && !given.empty();
            return whole && value > 0.0 && std::isfinite(value) ? std::string()
                                                                : "expected a number above zero, got " + given;
          },
          ""};
}

}  // namespace lm
