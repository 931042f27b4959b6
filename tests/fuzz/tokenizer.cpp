// Any bytes either are a tokenizer.json, whose tokenizer then encodes and decodes a text, or give a format_error.
#include <mote/io/tokenizer.hpp>

#include "fuzz/support.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const test::memory_file bytes(data, size);
  try {
    const mote::tokenizer tokenizer(mote::json_file(bytes.path()));
    const auto ids = tokenizer.encode("It's 1234 \xE6\xBC\xA2\xF0\x9F\x98\x80  \xFF<s>\n\n");
    static_cast<void>(tokenizer.decode(ids, false));
    static_cast<void>(tokenizer.vocab_size());
  } catch (const mote::format_error&) {
  }
  return 0;
}
