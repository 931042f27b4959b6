// The chat template of a model: how a conversation becomes the text that the model was trained on.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#include "jinja.hpp"
#include "json.hpp"
#include "tokenizer/token_name.hpp"

MOTE_BEGIN_NAMESPACE

struct chat_message {
  std::string role, content;
};

class chat_template {
 public:
  struct template_source {
    std::string text, where;  // `where` names it in errors
  };

  // The model's template as it is written: the file DIR/chat_template.jinja, or the `chat_template` of
  // DIR/tokenizer_config.json (a string, or a list of which the one named "default" counts); nothing where it has none.
  static std::optional<template_source> read_source(const std::string& directory) {
    auto found = read_file(directory);
    return found ? std::move(found) : read_source(read_config(directory));
  }

  // The template of read_source, ready for use. Throws format_error for one that is malformed or uses what is not
  // supported.
  static std::optional<chat_template> load(const std::string& directory) {
    const auto file = read_config(directory);
    auto found = read_file(directory);
    if (!found) found = read_source(file);
    if (!found) return std::nullopt;
    jinja_template::value variables = jinja_template::value::object();
    if (file) {
      const json_object config = file->root();
      for (const char* name : {"bos_token", "eos_token", "unk_token", "pad_token"}) {
        if (auto token = detail::token_name(config, name)) variables[name] = std::move(*token);
      }
    }
    return chat_template(std::move(found->text), std::move(found->where), std::move(variables));
  }

  // `variables`: bos_token and the like.
  chat_template(std::string source, std::string where, jinja_template::value variables)
      : template_(std::make_unique<jinja_template>(std::move(source), std::move(where))),
        variables_(std::move(variables)) {}

  // The conversation as text; with `add_generation_prompt` it ends where the model's answer begins.
  std::string render(std::span<const chat_message> messages, bool add_generation_prompt) const {
    jinja_template::value variables = variables_;
    variables["messages"] = jinja_template::value::array();
    for (const chat_message& m : messages) variables["messages"].push_back({{"role", m.role}, {"content", m.content}});
    variables["add_generation_prompt"] = add_generation_prompt;
    return template_->render(variables);
  }

 private:
  static std::optional<template_source> read_file(const std::string& directory) {
    const std::string path = directory + "/chat_template.jinja";
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored)) return std::nullopt;
    const mapped_file file(path);
    return template_source{{reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}, path};
  }

  static std::optional<json_file> read_config(const std::string& directory) {
    const std::string path = directory + "/tokenizer_config.json";
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored)) return std::nullopt;
    return json_file(path);
  }

  static std::optional<template_source> read_source(const std::optional<json_file>& file) {
    if (!file || !file->root().has_value("chat_template")) return std::nullopt;
    const json_object config = file->root();
    return template_source{text_of(config), config.where() + ": chat_template"};
  }
  static std::string text_of(const json_object& config) {
    const nlohmann::json& entry = config.at("chat_template");
    if (!entry.is_array()) return config.string("chat_template");
    for (const nlohmann::json& choice : entry) {
      const json_object named(choice, config.where() + ": chat_template");
      if (named.string("name") == "default") return named.string("template");
    }
    config.fail("chat_template", "no template is named \"default\"");
  }

  std::unique_ptr<jinja_template> template_;  // its statements refer to it
  jinja_template::value variables_;
};

MOTE_END_NAMESPACE
