// Any bytes either are a config.json that a model can be built from, or give an error that names what is wrong.
#include <lm/config.hpp>

#include "fuzz/support.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const test::memory_file bytes(data, size);
  try {
    const mote::json_file file(bytes.path());
    const lm::model_config c = lm::parse_config(file.root());
    if (c.n_routed_experts > 0) mote::check_router(c.decoder.router, c.n_routed_experts);
  } catch (const mote::format_error&) {
  }
  return 0;
}
