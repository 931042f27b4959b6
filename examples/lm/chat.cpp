#include "commands.hpp"
namespace lm {
void add_chat(CLI::App&) {}
}  // namespace lm
