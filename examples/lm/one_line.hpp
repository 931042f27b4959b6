// Text from outside, as one line that a terminal shows.
#pragma once

#include <string>

namespace lm {

// Messages quote names from files, which may hold line breaks and terminal escapes.
inline std::string one_line(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  }
  return text;
}

}  // namespace lm
