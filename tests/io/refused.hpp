#pragma once

#include <mote/core/error.hpp>

#include <string>

#include "io/temporary.hpp"
#include "support/catch.hpp"

namespace test {

// open(path) refuses a file of these bytes: the message names its path and `what`.
template <class Open>
void check_refused(const std::string& name, const std::string& bytes, const std::string& what, Open&& open) {
  const temporary_directory directory;
  const std::string path = directory.write(name, bytes);
  CAPTURE(what, bytes.substr(0, 300));
  CHECK_THROWS_AS(open(path), mote::format_error);
  CHECK_THROWS_WITH(open(path), contains(path + ": ") && contains(what));
}

}  // namespace test
