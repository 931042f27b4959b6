// Any bytes either are a GGUF file, all of whose tensors can be listed, or give a format_error.
#include <mote/io/gguf.hpp>

#include "fuzz/support.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const test::memory_file bytes(data, size);
  try {
    const mote::gguf_checkpoint file(bytes.path());
    for (const auto& [key, value] : file.metadata().values()) {
      try {
        static_cast<void>(file.metadata().number(key));
      } catch (const mote::format_error&) {
      }
    }
    for (const mote::gguf_tensor& tensor : file.tensors()) {
      try {
        mote::read_float(tensor);
      } catch (const mote::format_error&) {
      }
    }
  } catch (const mote::format_error&) {
  }
  return 0;
}
