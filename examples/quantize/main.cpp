// mote-quantize: quantizes DeepSeek V2 and V3 checkpoints.
//
// Exit codes: 0 success, 2 wrong usage, bad input or output that cannot be written (one line on standard error says what and
// where).
#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <mote/core/config.hpp>
#include <mote/core/error.hpp>
#include <mote/core/executors/thread_pool.hpp>

#include "lm/option_values.hpp"
#include "lm/program.hpp"
#include "run.hpp"

namespace {

// bf16, which is not quantized, only for gguf: a safetensors checkpoint is in bf16 already.
std::vector<std::string> names(quantize::container kind) {
  std::vector<std::string> all;
  for (const auto& p : quantize::precisions(kind)) all.emplace_back(p.name);
  if (kind == quantize::container::safetensors) all.pop_back();
  return all;
}

std::string joined(const std::vector<std::string>& all) {
  std::string text;
  for (const std::string& name : all) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  using quantize::container;
  CLI::App program(
      "Quantizes a DeepSeek V2 or V3 checkpoint, one tensor at a time. An interrupted run goes on when it is "
      "started again.",
      "mote-quantize");
  program.set_version_flag("--version", std::string(mote::abi_name));
  quantize::options o;
  o.threads = mote::threads::all().count;
  o.max_shard_size = std::size_t{4} << 30;
  program.add_option("--model", o.model, "Directory with config.json and a safetensors checkpoint")
      ->required()
      ->check(lm::file_name());
  program.add_option("--output_dir", o.output_dir, "Directory to make; DIR.partial until it is complete")
      ->required()
      ->type_name("DIR");
  program
      .add_option("--precision", o.precision,
                  "Of the linear layers' weights. safetensors: " + joined(names(container::safetensors)) +
                      "; gguf: " + joined(names(container::gguf)))
      ->required()
      ->type_name("NAME");
  std::optional<container> format;
  program
      .add_option(
          "--format", format,
          "safetensors or gguf (default: gguf for GGUF's block formats and bf16, safetensors for int8, int4, fp8, "
          "mxfp4 and nvfp4)")
      ->transform(lm::one_of<container>({{"safetensors", container::safetensors}, {"gguf", container::gguf}}))
      ->type_name("NAME");
  program
      .add_option("--calibration", o.calibration,
                  "Text file to run the model on: rounding and errors are then those of the layers' outputs")
      ->type_name("FILE");
  program
      .add_option(
          "--channel_scaling", o.scaling,
          "awq or smoothquant: scales channels by how large they are on the calibration text, in the layer before "
          "instead; or none (default)")
      ->transform(lm::one_of<quantize::channel_scaling>({{"none", quantize::channel_scaling::none},
                                                         {"awq", quantize::channel_scaling::awq},
                                                         {"smoothquant", quantize::channel_scaling::smoothquant}}))
      ->type_name("NAME");
  std::optional<quantize::rounding> how;
  program.add_option("--rounding", how, "gptq (default with --calibration) or nearest (default without)")
      ->transform(lm::one_of<quantize::rounding>(
          {{"nearest", quantize::rounding::nearest}, {"gptq", quantize::rounding::gptq}}))
      ->type_name("NAME");
  program
      .add_option("--adaptive_layers", o.adaptive_layers,
                  "true: layers that the precision would hurt most get more bits or stay bf16, within a budget")
      ->check(lm::one_of<bool>({{"true", true}, {"false", false}}))
      ->type_name("true|false");
  program
      .add_option(
          "--sensitivity", o.by,
          "What --adaptive_layers goes by: error of a layer's output (default), or perplexity of the calibration "
          "text with that layer alone quantized")
      ->transform(lm::one_of<quantize::sensitivity>(
          {{"error", quantize::sensitivity::error}, {"perplexity", quantize::sensitivity::perplexity}}))
      ->type_name("NAME");
  program
      .add_option("--size_budget", o.size_budget,
                  "Most bytes of all tensors with --adaptive_layers, e.g. 3GB, that is 3 · 2^30 bytes (default: 10 % "
                  "above --precision alone)")
      ->transform(lm::size_in_bytes())
      ->type_name("SIZE");
  program
      .add_option("--quality_budget", o.quality_budget,
                  "Most percent by which perplexity may rise, instead of a size; needs --sensitivity perplexity")
      ->type_name("PERCENT")
      ->check(lm::positive_number());
  program.add_option("--max_shard_size", o.max_shard_size, "Most bytes of one safetensors file (default: 4GB)")
      ->transform(lm::size_in_bytes())
      ->type_name("SIZE");
  program.add_option("--threads", o.threads, "Threads (default: one for each processor)")
      ->transform(lm::count_of_threads());
  program.add_flag("--dry_run", o.dry_run, "Only print what each layer would become");
  return lm::run_program(program, "", [&] {
    program.parse(argc, argv);
    const auto has = [&](container kind) {
      const auto known = names(kind);
      return std::find(known.begin(), known.end(), o.precision) != known.end();
    };
    const bool published = quantize::published_in_safetensors(o.precision);
    o.kind = format.value_or(has(container::gguf) && !published ? container::gguf : container::safetensors);
    if (!has(o.kind)) {
      auto known = names(o.kind);
      if (!format) known.emplace_back("bf16");
      throw CLI::ValidationError("--precision", "expected one of " + joined(known) + ", got " + o.precision);
    }
    const auto needs = [](bool given, const char* option, bool met, const char* what) {
      if (given && !met) throw CLI::ValidationError(option, what);
    };
    const bool calibrated = !o.calibration.empty(), by_perplexity = o.by == quantize::sensitivity::perplexity;
    needs(program.count("--calibration") > 0, "--calibration", calibrated, "expected a file, got an empty name");
    o.how = how.value_or(calibrated ? quantize::rounding::gptq : quantize::rounding::nearest);
    needs(o.how == quantize::rounding::gptq, "--rounding", calibrated, "gptq needs --calibration");
    needs(o.scaling != quantize::channel_scaling::none, "--channel_scaling", calibrated, "needs --calibration");
    needs(program.count("--max_shard_size") > 0, "--max_shard_size", o.kind == container::safetensors,
          "is of safetensors files only");
    needs(o.size_budget > 0, "--size_budget", o.adaptive_layers, "needs --adaptive_layers true");
    needs(by_perplexity, "--sensitivity", o.adaptive_layers, "needs --adaptive_layers true");
    needs(by_perplexity, "--sensitivity", calibrated, "perplexity needs --calibration");
    needs(o.quality_budget > 0.0, "--quality_budget", by_perplexity, "needs --sensitivity perplexity");
    needs(o.quality_budget > 0.0, "--quality_budget", o.size_budget == 0, "and --size_budget exclude each other");
    quantize::run(o);
  });
}
