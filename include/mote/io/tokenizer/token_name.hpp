// Tokens that tokenizer_config.json names.
#pragma once

#include <optional>
#include <string>

#include "../json.hpp"

MOTE_BEGIN_NAMESPACE

namespace detail {

// The text of the token that `field` names by a string or by an object with `content`; nothing where it is missing or null.
// Throws format_error.
inline std::optional<std::string> token_name(const json_object& config, const std::string& field) {
  if (!config.has_value(field)) return std::nullopt;
  return config.at(field).is_string() ? config.string(field) : config.object(field).string("content");
}

}  // namespace detail

MOTE_END_NAMESPACE
