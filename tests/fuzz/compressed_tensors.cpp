// Any bytes either are a safetensors checkpoint whose matrices can be read, in whatever layout, or give a format_error.
#include <mote/io/compressed_tensors.hpp>

#include <filesystem>
#include <string>

#include "fuzz/support.hpp"
#include "io/temporary.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using test::attempt;
  const test::memory_file bytes(data, size);
  const test::temporary_directory directory;
  std::filesystem::create_symlink(bytes.path(), directory.path() + "/model.safetensors");
  attempt([&] {
    const mote::checkpoint checkpoint(directory.path());
    for (const mote::tensor_ref& t : checkpoint.tensors()) {
      const std::size_t end = t.name.find(".weight");
      if (end == std::string::npos || t.shape.size() != 2) continue;
      // Codes of a byte, two a byte, eight a word, blocks of 32: what the columns may stand for.
      for (const std::size_t each : {1u, 2u, 8u, 32u}) {
        const std::size_t out = t.shape[0], in = t.shape[1] * each;
        if (out > 4096 || t.shape[1] > 4096) continue;
        attempt([&] { mote::matrix_ref(checkpoint, t.name.substr(0, end), out, in).read(); });
      }
    }
  });
  return 0;
}
