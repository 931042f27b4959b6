#include "config.hpp"

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <utility>

#include <mote/core/error.hpp>
#include <mote/io/part_file.hpp>
#include <nlohmann/json.hpp>

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

// A layer's name, or a regular expression for the experts that it stands for, as the package compressed-tensors reads it.
std::string target(const std::string& layer) {
  if (layer.find(".experts.*.") == std::string::npos) return layer;
  std::string pattern;
  for (const char c : layer) pattern += c == '.' ? "\\." : c == '*' ? "\\d+" : std::string(1, c);
  return "re:" + pattern + "$";
}

ordered_json quantization_config(const std::map<std::string, std::set<std::string>>& layers,
                                 const std::vector<const output_tensor*>& not_converted) {
  if (layers.count("fp8") != 0) {
    ordered_json q = {
        {"quant_method", "fp8"}, {"fmt", "e4m3"}, {"activation_scheme", "dynamic"}, {"weight_block_size", {128, 128}}};
    // Names alone: who reads this knows no patterns.
    ordered_json names = ordered_json::array({"lm_head"});
    for (const output_tensor* t : not_converted) names.push_back(t->name);
    if (!not_converted.empty()) q["modules_to_not_convert"] = std::move(names);
    return q;
  }
  ordered_json ignore = ordered_json::array({"lm_head", "re:.*mlp\\.gate$"});
  std::set<std::string> kept;
  for (const output_tensor* t : not_converted) kept.insert(target(t->layer));
  for (const std::string& name : kept) ignore.push_back(name);
  ordered_json q = {{"quant_method", "compressed-tensors"}, {"quantization_status", "compressed"}};
  ordered_json groups = ordered_json::object();
  for (const auto& [precision, names] : layers) {
    ordered_json group = scheme(precision);
    group["targets"] = ordered_json::array();
    if (layers.size() == 1) {
      group["targets"].push_back("Linear");
    } else {
      for (const std::string& name : names) group["targets"].push_back(name);
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
  for (const output_tensor& t : tensors) {
    if (!t.is_matrix()) continue;
    const std::string precision(precision_of(t));
    if (precision == "bf16") {
      not_converted.push_back(&t);
    } else {
      layers[precision].insert(target(t.layer));
    }
  }
  ordered_json result = ordered_json::parse(config.value().dump());
  result.erase("quantization_config");
  if (!layers.empty()) result["quantization_config"] = quantization_config(layers, not_converted);
  std::ofstream file(directory + "/config.json");
  file << result.dump(2) << '\n';
  if (!file.flush()) mote::raise_unwritable(directory + "/config.json");
}

void copy_tokenizer(const std::string& model, const std::string& directory) {
  namespace fs = std::filesystem;
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                           "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json"}) {
    const fs::path from = fs::path(model) / name;
    std::error_code problem;
    if (!fs::is_regular_file(from, problem)) continue;
    fs::copy_file(from, fs::path(directory) / name, fs::copy_options::overwrite_existing, problem);
    if (problem) mote::raise<mote::format_error>(from.string() + ": cannot be copied: " + problem.message());
  }
}

}  // namespace quantize
