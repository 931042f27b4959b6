// Any bytes either are a safetensors file, all of whose tensors can be read, or give a format_error.
#include <mote/io/safetensors.hpp>

#include "fuzz/support.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const test::memory_file bytes(data, size);
  try {
    const mote::safetensors_file file(bytes.path());
    for (const auto& [name, tensor] : file.tensors()) {
      try {
        mote::read_float(tensor);
      } catch (const mote::format_error&) {
      }
    }
  } catch (const mote::format_error&) {
  }
  return 0;
}
