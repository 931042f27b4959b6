// Any bytes either are a GGUF file of a model that can be run, with its tokenizer and chat template, or give a format_error.
#include <lm/model_files.hpp>

#include "fuzz/support.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const test::memory_file bytes(data, size);
  using test::attempt;
  attempt([&] {
    const mote::gguf_checkpoint file(bytes.path());
    attempt([&] {
      const lm::model_config c = lm::read_gguf_config(file);
      if (c.n_routed_experts > 0) mote::check_router(c.decoder.router, c.n_routed_experts);
    });
    attempt([&] {
      const mote::tokenizer t = mote::read_gguf_tokenizer(file.metadata());
      for (const std::int32_t id : t.encode("a b <s>1")) static_cast<void>(t.decode({&id, 1}));
    });
    attempt([&] {
      const mote::chat_message messages[] = {{"user", "a"}};
      if (const auto chat = mote::read_gguf_chat_template(file.metadata())) chat->render(messages, true);
    });
  });
  return 0;
}
