// mote-lm inspect: what is in a checkpoint and what it costs to run.
#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>

#include <fmt/core.h>
#include <fmt/ranges.h>
#include <mote/io/safetensors.hpp>

#include "commands.hpp"
#include "config.hpp"

namespace lm {
namespace {

struct parameter_count {
  std::size_t total = 0;   // of the main model
  std::size_t active = 0;  // read for one token
  std::size_t mtp = 0;     // of the multi-token-prediction module, its copies of embedding and head included
};

// Whether `name` is a routed expert's tensor.
bool is_routed(const std::string& name) { return name.find(".mlp.experts.") != std::string::npos; }

parameter_count count_parameters(const mote::checkpoint& files, const model_config& c) {
  const std::string mtp = "model.layers." + std::to_string(c.num_hidden_layers) + ".";
  parameter_count count;
  std::size_t routed = 0;
  for (const mote::tensor_ref& tensor : files.tensors()) {
    const std::size_t n = tensor.size();
    if (tensor.name.ends_with("_scale_inv")) continue;
    if (c.num_nextn_predict_layers > 0 && tensor.name.starts_with(mtp)) {
      count.mtp += n;
      continue;
    }
    count.total += n;
    if (is_routed(tensor.name)) {
      routed += n;
    } else {
      count.active += n;
    }
  }
  if (c.n_routed_experts > 0) count.active += routed / c.n_routed_experts * c.decoder.router.num_experts_per_tok;
  return count;
}

void run(const std::string& model) {
  const model_config c = read_config(model);
  const mote::checkpoint files(model);
  std::size_t stored = 0;
  std::size_t width = 6;
  for (const mote::tensor_ref& tensor : files.tensors()) width = std::max(width, tensor.name.size());
  fmt::print("{:{}}  {:8}  {:>12}  {}\n", "tensor", width, "dtype", "bytes", "shape");
  for (const mote::tensor_ref& tensor : files.tensors()) {
    fmt::print("{:{}}  {:8}  {:>12}  [{}]\n", tensor.name, width, mote::dtype_name(tensor.dtype), tensor.bytes.size(),
               fmt::join(tensor.shape, ", "));
    stored += tensor.bytes.size();
  }
  const parameter_count parameters = count_parameters(files, c);
  const mote::mla_config& a = c.decoder.attention;
  const std::size_t latent = c.num_hidden_layers * a.cache_width();
  const std::size_t full = c.num_hidden_layers * a.num_attention_heads * (a.qk_head_dim() + a.v_head_dim);
  fmt::print("\nstored                    {} bytes\n", stored);
  fmt::print("parameters, total         {}\n", parameters.total);
  fmt::print("parameters, active        {} a token\n", parameters.active);
  if (parameters.mtp > 0) fmt::print("parameters, MTP module    {}\n", parameters.mtp);
  fmt::print("latent cache              {} bytes a token (float32)\n", latent * sizeof(float));
  fmt::print("full multi-head attention {} bytes a token (float32), {:.1f} times as much\n", full * sizeof(float),
             static_cast<double>(full) / static_cast<double>(latent));
}

}  // namespace

void add_inspect(CLI::App& program) {
  auto model = std::make_shared<std::string>();
  CLI::App* command = program.add_subcommand("inspect", "Tensors, parameters and cache size of a checkpoint");
  command->add_option("--model", *model, "Directory with config.json and the checkpoint")->required();
  command->callback([model] { run(*model); });
}

}  // namespace lm
