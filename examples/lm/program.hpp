// What the programs' mains have in common: how they end.
#pragma once

#include <fcntl.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <cstdio>
#include <exception>
#include <new>

#include <CLI/CLI.hpp>
#include <mote/core/error.hpp>

#include "one_line.hpp"

namespace lm {

// A file that is opened while standard output is closed would become standard output.
inline void open_standard_streams() {
  for (int stream = 0; stream <= 2; ++stream) {
    if (::fcntl(stream, F_GETFD) == -1) static_cast<void>(::open("/dev/null", stream == 0 ? O_WRONLY : O_RDONLY));
  }
}

// Matrices are given back to the system when they are freed. glibc would come to keep them: with each that is freed it
// takes larger ones from its heap, where aligned blocks leave holes (four times the model's size, once).
inline void give_memory_back() {
#ifdef __GLIBC__
  ::mallopt(M_MMAP_THRESHOLD, 1 << 20);
#endif
}

// Parses the arguments, which runs the program, and gives its exit code: 0; or 2 for wrong usage, bad input, and output that
// does not arrive, of which one line on standard error says what and where. `no_memory` is what to do without memory.
template <class Parse>
int run_program(CLI::App& program, const char* no_memory, Parse&& parse) {
  const char* const name = program.get_name().c_str();
  const char* const unwritable = "standard output cannot be written";
  open_standard_streams();
  give_memory_back();
  try {
    try {
      parse();
    } catch (const CLI::Success& e) {  // --help and --version
      program.exit(e);
    }
    std::fflush(stdout);
    if (std::ferror(stdout) != 0) mote::raise<mote::format_error>(unwritable);
  } catch (const CLI::ParseError& e) {
    std::fprintf(stderr, "%s: %s (see %s --help)\n", name, one_line(e.what()).c_str(), name);
    return 2;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "%s: not enough memory%s\n", name, no_memory);
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s: %s\n", name, std::ferror(stdout) != 0 ? unwritable : one_line(e.what()).c_str());
    return 2;
  }
  return 0;
}

}  // namespace lm
