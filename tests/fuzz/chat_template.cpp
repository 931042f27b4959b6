// Any bytes either are a template that renders a conversation, or give a format_error.
#include <mote/io/chat_template.hpp>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const mote::chat_template t(std::string(reinterpret_cast<const char*>(data), size), "fuzz", {{"bos_token", "<s>"}});
    const mote::chat_message messages[] = {{"system", "a"}, {"user", "b c"}, {"assistant", "d"}};
    static_cast<void>(t.render(messages, true));
  } catch (const mote::format_error&) {
  }
  return 0;
}
