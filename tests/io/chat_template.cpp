// Chat templates against Jinja2 (tests/golden/chat_template.json), and what is refused.
#include <mote/io/chat_template.hpp>

#include <string>
#include <vector>

#include "io/temporary.hpp"
#include "support/catch.hpp"

namespace {

std::string render(const std::string& source) {
  const mote::chat_template t(source, "template", {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
  const std::vector<mote::chat_message> messages = {{"user", "hi"}, {"assistant", "yes"}};
  return t.render(messages, true);
}

}  // namespace

TEST_CASE("chat template: the text that Jinja2 gives") {
  const mote::json_file golden(std::string(MOTE_GOLDEN_DIR) + "/chat_template.json");
  for (const auto& entry : golden.value()["cases"]) {
    const auto name = entry["template"].get<std::string>();
    const mote::chat_template t(golden.value()["templates"][name].get<std::string>(), name,
                                {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
    std::vector<mote::chat_message> messages;
    for (const auto& m : entry["messages"]) {
      messages.push_back({m["role"].get<std::string>(), m["content"].get<std::string>()});
    }
    CAPTURE(name, entry["messages"].dump());
    const bool prompt = entry["add_generation_prompt"].get<bool>();
    if (entry["text"].is_null()) {
      CHECK_THROWS_WITH(t.render(messages, prompt), contains("roles must alternate"));
    } else {
      CHECK(t.render(messages, prompt) == entry["text"].get<std::string>());
    }
  }
}

TEST_CASE("chat template: found in the model's directory") {
  const test::temporary_directory directory;
  CHECK_FALSE(mote::chat_template::load(directory.path()).has_value());
  directory.write("tokenizer_config.json", R"({"bos_token":{"content":"<b>"}})");
  CHECK_FALSE(mote::chat_template::load(directory.path()).has_value());
  const std::vector<mote::chat_message> messages = {{"user", "hi"}};
  directory.write("tokenizer_config.json",
                  R"({"bos_token":{"content":"<b>"},"chat_template":"{{ bos_token }}{{ messages[0].content }}"})");
  CHECK(mote::chat_template::load(directory.path())->render(messages, false) == "<b>hi");
  directory.write("tokenizer_config.json",
                  R"({"chat_template":[{"name":"tool","template":"t"},{"name":"default","template":"d"}]})");
  CHECK(mote::chat_template::load(directory.path())->render(messages, false) == "d");
  CHECK(mote::chat_template::read_source(directory.path())->text == "d");
  directory.write("tokenizer_config.json", R"({"chat_template":7})");
  CHECK_THROWS_WITH(mote::chat_template::load(directory.path()), contains("chat_template"));
  directory.write("chat_template.jinja", "from a file");
  CHECK(mote::chat_template::load(directory.path())->render(messages, false) == "from a file");
  directory.write("chat_template.jinja", "{% if %}");
  CHECK_THROWS_WITH(mote::chat_template::load(directory.path()), contains("chat_template.jinja") && contains("line 1"));
}

TEST_CASE("chat template: malformed or unsupported parts are refused by line") {
  for (const char* source : {"{{",
                             "{%",
                             "{#",
                             "{% if true %}",
                             "{% endif %}",
                             "{% for x in %}{% endfor %}",
                             "{% for in x %}{% endfor %}",
                             "{{ }}",
                             "{{ 'open }}",
                             "{{ 1 + }}",
                             "{{ (1 }}",
                             "{{ [1 }}",
                             "{{ {'a' 1} }}",
                             "{{ a b }}",
                             "{{ $ }}",
                             "{% macro f() %}{% endmacro %}",
                             "{% include 'x' %}",
                             "{{ x | nofilter }}",
                             "{{ 'a'.nomethod() }}",
                             "{{ nofunction() }}",
                             "{{ 1 is notest }}",
                             "{{ '\\q' }}",
                             "{{ 99999999999999999999 }}",
                             "{{ 1 / 0 }}",
                             "{{ 'a' * 3 }}",
                             "{{ [] < 1 }}",
                             "{{ missing.x }}",
                             "{% set missing.x = 1 %}",
                             "{{ [1] }}",
                             "{{ {} }}",
                             "{{ 'abc'[::2] }}"}) {
    CAPTURE(source);
    CHECK_THROWS_AS(render(std::string("\n") + source), mote::format_error);
    CHECK_THROWS_WITH(render(std::string("\n") + source), contains("template: line 2"));
  }
}

TEST_CASE("chat template: a hostile template ends with an error") {
  CHECK_THROWS_WITH(render("{{ " + std::string(100000, '(') + " }}"), contains("nested"));
  CHECK_THROWS_WITH(render("{{ " + std::string(100000, '-') + "1 }}"), contains("nested"));
  std::string nested;
  for (int i = 0; i < 1000; ++i) nested += "{% if true %}";
  CHECK_THROWS_WITH(render(nested), contains("nested"));
  CHECK_THROWS_WITH(render("{% for i in range(999999999999) %}{% endfor %}"), contains("too long"));
  std::string loops, text = "x";
  for (int i = 0; i < 8; ++i) loops += "{% for i in range(1000) %}";
  for (int i = 0; i < 8; ++i) text += "{% endfor %}";
  CHECK_THROWS_WITH(render(loops + text), contains("too long"));
  CHECK_THROWS_WITH(render("{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(100) %}{% set ns.s = ns.s "
                           "+ ns.s %}{% endfor %}"),
                    contains("too long"));
}
