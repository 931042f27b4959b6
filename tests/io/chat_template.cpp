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
                             "{{ (1 }} }}",
                             "{% set d = {} %}{% set d.x = 1 %}",
                             "{{ namespace({}) }}",
                             "{{ messages | first.role }}",
                             "{{ 'abc'[::2] }}",
                             "{{ 1 | tojson(sort_keys=true) }}",
                             "{{ 1 | tojson(ensure_ascii=true) }}",
                             "{{ 1 | tojson(indent=100) }}",
                             "{{ 'abc'.startswith('b', 1) }}",
                             "{{ [1] | join(',', attribute='x') }}",
                             "{{ [{'a': 1}] | selectattr('a.b') | list }}",
                             "{{ 'a' | default('b', default_value='c') }}",
                             "{{ 9007199254740993 + 1 }}"}) {
    CAPTURE(source);
    CHECK_THROWS_AS(render(std::string("\n") + source), mote::format_error);
    CHECK_THROWS_WITH(render(std::string("\n") + source), contains("template: line 2"));
  }
}

TEST_CASE("chat template: a hostile template ends with an error") {
  CHECK_THROWS_WITH(render("{{ " + std::string(100000, '(') + "1" + std::string(100000, ')') + " }}"),
                    contains("nested"));
  CHECK_THROWS_WITH(render("{{ " + std::string(100000, '-') + "1 }}"), contains("nested"));
  std::string nested;
  for (int i = 0; i < 1000; ++i) nested += "{% if true %}";
  CHECK_THROWS_WITH(render(nested), contains("nested"));
  CHECK_THROWS_WITH(render("{% for i in range(999999999999) %}{% endfor %}"), contains("too long"));
  std::string loops, text = "x";
  for (int i = 0; i < 8; ++i) loops += "{% for i in range(1000) %}";
  for (int i = 0; i < 8; ++i) text += "{% endfor %}";
  CHECK_THROWS_WITH(render(loops + text), contains("too long"));
  const auto repeated = [](const std::string& part, int times) {
    std::string all;
    for (int i = 0; i < times; ++i) all += part;
    return all;
  };
  const auto grown = [](int times, const std::string& rest) {  // ns.s has 16 characters, doubled so many times
    return "{% set ns = namespace(s='xxxxxxxxxxxxxxxx', a=[1], b=[1]) %}{% for i in range(" + std::to_string(times) +
           ") %}{% set ns.s = ns.s + ns.s %}{% endfor %}" + rest;
  };
  CHECK_THROWS_WITH(render(grown(100, "")), contains("too long"));
  CHECK(render(grown(15, "{{ ns.s.replace('x', 'yz') | length }}")) == "1048576");
  CHECK(render(grown(15, "{{ ns.s | list | join('+') | length }}")) == "1048575");
  CHECK_THROWS_WITH(render(grown(15, "{{ ns.s.replace('x', ns.s) }}")), contains("too long"));
  CHECK_THROWS_WITH(render(grown(20, "{{ ns.s }}{{ ns.s }}")), contains("too long"));
  for (const std::string each : {"{% set ns.a = ns.a + ns.a %}", "{% set ns.a = ns.a + [ns.s ~ i] %}",
                                 "{% if ns.s[1:] ~ 'y' in ns.s %}{% endif %}", "{{ ns.s.split('x') | length }}",
                                 "{% if (ns.s ~ '') == ns.s %}{% endif %}", "{% for c in ns.s %}{% endfor %}"}) {
    CAPTURE(each);
    CHECK_THROWS_WITH(render(grown(20, "{% for i in range(1000) %}" + each + "{% endfor %}")), contains("too long"));
  }
  // Lists that share their parts: few in memory, many to write or to compare.
  const std::string shared =
      "{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}";
  CHECK_THROWS_WITH(render(grown(0, shared + "{{ ns.a | tojson }}")), contains("too long"));
  CHECK_THROWS_WITH(render(grown(0, shared + "{{ ns.a == ns.b }}")), contains("too long"));
  CHECK_THROWS_WITH(render(grown(0, "{% for i in range(1000) %}{% set ns.a = [ns.a] %}{% endfor %}")),
                    contains("nested"));
  CHECK_THROWS_WITH(render(grown(0, "{% set ns.a = ns %}")), contains("namespace"));
  CHECK_THROWS_WITH(render(grown(0, "{% set ns.a = [ns] %}")), contains("namespace"));
  CHECK_THROWS_WITH(render("{% for i in range(500000) %}" + repeated("{% set x = 1 %}", 10000) + "{% endfor %}"),
                    contains("too long"));
  CHECK_THROWS_WITH(render("{% set ns = namespace(a=['']) %}{% for i in range(19) %}{% set ns.a = ns.a + ns.a %}"
                           "{% endfor %}{% for i in range(1000) %}{{ ns.a | join }}{% endfor %}"),
                    contains("too long"));
  // Long expressions are not deep ones.
  CHECK(render("{{ 1" + repeated(" + 1", 100000) + " }}") == "100001");
  CHECK(render("{{ 0" + repeated(" or 0", 100000) + repeated(" == 0", 100000) + " }}") == "True");
  CHECK(render("{{ 'a'" + repeated(" | trim", 100000) + repeated(" ~ ''", 100000) + " }}") == "a");
  CHECK(render("{{ 'a'" + repeated("[0]", 100000) + " }}") == "a");
}
