#include "config.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <utility>

#include <mote/core/error.hpp>
#include <mote/io/mapped_file.hpp>
#include <mote/io/part_file.hpp>
#include <nlohmann/json.hpp>

#include "encoder.hpp"

namespace quantize {
namespace {

using nlohmann::ordered_json;

// What compressed-tensors says of the weights, and of the activations that are quantized on the fly.
ordered_json scheme(std::string_view precision) {
  const auto numbers = [](int bits, const char* type, const char* strategy, ordered_json group_size,
                          ordered_json dynamic) {
    ordered_json s = {{"num_bits", bits},
                      {"type", type},
                      {"symmetric", true},
                      {"strategy", strategy},
                      {"dynamic", std::move(dynamic)}};
    if (!group_size.is_null()) s["group_size"] = std::move(group_size);
    return s;
  };
  ordered_json group;
  if (precision == "int8") {
    group["weights"] = numbers(8, "int", "channel", nullptr, false);
    group["input_activations"] = numbers(8, "int", "token", nullptr, true);
    group["format"] = "int-quantized";
  } else if (precision == "int4") {
    group["weights"] = numbers(4, "int", "group", 32, false);
    group["input_activations"] = nullptr;
    group["format"] = "pack-quantized";
  } else if (precision == "nvfp4") {
    group["weights"] = numbers(4, "float", "tensor_group", 16, false);
    group["input_activations"] = nullptr;
    group["format"] = "nvfp4-pack-quantized";
  } else {
    group["weights"] = numbers(4, "float", "group", 32, false);
    group["weights"]["scale_dtype"] = "torch.uint8";
    group["input_activations"] = nullptr;
    group["format"] = "mxfp4-pack-quantized";
  }
  group["output_activations"] = nullptr;
  return group;
}

// A module's name, or a regular expression for the experts that it stands for, as the package compressed-tensors reads it.
std::string pattern_of(const std::string& target) {
  if (target.find(".experts.*.") == std::string::npos) return target;
  std::string pattern;
  for (const char c : target) pattern += c == '.' ? "\\." : c == '*' ? "\\d+" : std::string(1, c);
  return "re:" + pattern + "$";
}

// `kept` are linear layers, by name, that keep their numbers beside those of `not_converted`.
ordered_json quantization_config(const std::map<std::string, std::set<std::string>>& layers,
                                 const std::vector<const output_tensor*>& not_converted,
                                 const std::vector<std::string>& kept) {
  if (layers.count("fp8") != 0) {
    ordered_json q = {
        {"quant_method", "fp8"}, {"fmt", "e4m3"}, {"activation_scheme", "dynamic"}, {"weight_block_size", {128, 128}}};
    // Names alone: who reads this knows no patterns.
    ordered_json names = ordered_json::array({"lm_head"});
    for (const std::string& name : kept) names.push_back(name);
    for (const output_tensor* t : not_converted) names.push_back(t->name);
    if (names.size() > 1) q["modules_to_not_convert"] = std::move(names);
    return q;
  }
  ordered_json ignore = ordered_json::array({"lm_head", "re:.*mlp\\.gate$"});
  std::set<std::string> names(kept.begin(), kept.end());
  for (const output_tensor* t : not_converted) names.insert(pattern_of(t->target));
  for (const std::string& name : names) ignore.push_back(name);
  if (!std::all_of(layers.begin(), layers.end(), [](const auto& l) { return published_in_safetensors(l.first); })) {
    return {{"quant_method", "mote"}, {"ignore", std::move(ignore)}};  // tensors' names say the rest
  }
  ordered_json q = {{"quant_method", "compressed-tensors"}, {"quantization_status", "compressed"}};
  ordered_json groups = ordered_json::object();
  for (const auto& [precision, targets] : layers) {
    ordered_json group = scheme(precision);
    group["targets"] = ordered_json::array();
    if (layers.size() == 1) {
      group["targets"].push_back("Linear");
    } else {
      for (const std::string& name : targets) group["targets"].push_back(name);
    }
    q["format"] = layers.size() == 1 ? group["format"] : ordered_json("mixed-precision");
    groups["group_" + std::to_string(groups.size())] = std::move(group);
  }
  q["config_groups"] = std::move(groups);
  q["ignore"] = std::move(ignore);
  return q;
}

}  // namespace

void write_config(const mote::json_file& config, const std::vector<output_tensor>& tensors,
                  const std::function<std::string_view(const output_tensor&)>& precision_of,
                  const std::string& directory) {
  std::map<std::string, std::set<std::string>> layers;
  std::vector<const output_tensor*> not_converted;
  std::vector<std::string> kept;
  for (const output_tensor& t : tensors) {
    if (!t.is_matrix()) {
      // Of the multi-token-prediction module.
      for (const std::string_view module : {".eh_proj", ".shared_head.head"}) {
        if (t.name.ends_with(std::string(module) + ".weight")) kept.push_back(t.name.substr(0, t.name.rfind('.')));
      }
      continue;
    }
    const std::string precision(precision_of(t));
    if (precision == "bf16") {
      not_converted.push_back(&t);
    } else {
      layers[precision].insert(pattern_of(t.target));
    }
  }
  ordered_json result = ordered_json::parse(config.value().dump());
  result.erase("quantization_config");
  if (!layers.empty()) result["quantization_config"] = quantization_config(layers, not_converted, kept);
  std::ofstream file(directory + "/config.json");
  file << result.dump(2) << '\n';
  if (!file.flush()) mote::raise_unwritable(directory + "/config.json");
}

void copy_tokenizer(const std::string& model, const std::string& directory) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                           "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json"}) {
    const std::string from = model + "/" + name, to = directory + "/" + name;
    std::error_code none;
    if (!std::filesystem::is_regular_file(from, none)) continue;
    const mote::mapped_file file(from);
    std::ofstream copy(to, std::ios::binary);
    copy.write(reinterpret_cast<const char*>(file.bytes().data()), static_cast<std::streamsize>(file.bytes().size()));
    if (!copy.flush()) mote::raise_unwritable(to);
  }
}

}  // namespace quantize
