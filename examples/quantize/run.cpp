#include "run.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string_view>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <mote/io/fingerprint.hpp>
#include <mote/io/json.hpp>
#include <mote/io/safetensors.hpp>

#include "calibrate.hpp"
#include "channel_scaling.hpp"
#include "config.hpp"
#include "encode.hpp"
#include "gguf.hpp"
#include "journal.hpp"
#include "lm/model_files.hpp"
#include "model.hpp"
#include "output.hpp"
#include "planner.hpp"
#include "progress.hpp"
#include "report.hpp"

namespace quantize {
namespace {

namespace fs = std::filesystem;

// Of every file that the result depends on.
std::uint64_t fingerprint(const std::string& model, const mote::checkpoint& files) {
  std::uint64_t hash = lm::fingerprint(files);
  for (const char* name : {"/tokenizer.json", "/tokenizer_config.json", "/chat_template.jinja"}) {
    if (fs::exists(model + name)) hash = mote::fingerprint(model + name, hash);
  }
  return hash;
}

nlohmann::ordered_json task_of(const options& o, const mote::checkpoint& files, const channel_scales& scales) {
  nlohmann::ordered_json task;
  task["model"] = fs::weakly_canonical(o.model).string();
  task["model_fingerprint"] = fingerprint(o.model, files);
  if (!o.calibration.empty()) {
    task["calibration"] = fs::weakly_canonical(o.calibration).string();
    task["calibration_fingerprint"] = mote::fingerprint(o.calibration);
    task["rounding"] = o.how == rounding::gptq ? "gptq" : "nearest";
    task["channel_scales"] = scales.fingerprint();
  }
  task["format"] = o.kind == container::gguf ? "gguf" : "safetensors";
  task["max_shard_size"] = o.max_shard_size;
  task["precision"] = o.precision;
  if (o.adaptive_layers) task["sensitivity"] = o.by == sensitivity::perplexity ? "perplexity" : "error";
  return task;
}

// The directory to make, which is not there yet.
std::string output_name(const options& o) {
  const fs::path output = o.output_dir.ends_with('/') ? fs::path(o.output_dir).parent_path() : fs::path(o.output_dir);
  if (const fs::path name = output.filename(); name.empty() || name == "." || name == "..") {
    mote::raise<mote::format_error>("--output_dir: expected the name of a directory to make, got \"" + o.output_dir +
                                    "\"");
  }
  std::error_code problem;
  const fs::file_status there = fs::symlink_status(output, problem);
  if (there.type() == fs::file_type::none) mote::raise<mote::format_error>(output.string() + ": " + problem.message());
  if (!o.dry_run && there.type() != fs::file_type::not_found) {
    mote::raise<mote::format_error>(output.string() + ": exists already");
  }
  return output.string();
}

// What lies under the temporary name must be a run's.
void check_partial(const std::string& path) {
  std::error_code none;
  if (fs::exists(path, none) && !journal::is_in(path) && !fs::is_empty(path, none)) {
    mote::raise<mote::format_error>(path + ": was left by something else: remove it, or choose another --output_dir");
  }
}

// Columns in the order of their weight, unless a precision at hand must encode whole blocks.
std::optional<mote::gptq_options> gptq_of(const options& o) {
  if (o.how != rounding::gptq) return std::nullopt;
  const auto all = precisions(o.kind);
  return mote::gptq_options{.act_order = std::all_of(all.begin(), all.end(), [&](const precision_info& p) {
                              return p.by_element || (!o.adaptive_layers && p.name != o.precision);
                            })};
}

void make_directory(const std::string& path) {
  std::error_code problem;
  fs::create_directories(path, problem);
  if (problem) mote::raise<mote::format_error>(path + ": cannot be created: " + problem.message());
}

}  // namespace

void run(const options& o) {
  const std::string output = output_name(o), partial = output + ".partial";
  if (!o.dry_run) check_partial(partial);
  if (fs::is_regular_file(o.model)) {
    mote::raise<mote::format_error>(o.model + ": is a file, expected a directory with config.json and safetensors");
  }
  const mote::json_file config(o.model + "/config.json");
  const mote::json_object entries = config.root();
  const mote::checkpoint files(o.model);
  if (files.tensors().empty()) mote::raise<mote::format_error>(o.model + ": holds no tensors");
  const bool gguf = o.kind == container::gguf;
  lm::model_config sizes;
  if (gguf || !o.calibration.empty()) sizes = lm::parse_config(entries);
  if (gguf) sizes.num_nextn_predict_layers = 0;  // that module is left out
  model_source values(files, !gguf);
  const std::vector<output_tensor> tensors =
      gguf ? plan_gguf(values, sizes) : plan_safetensors(values, published_in_safetensors(o.precision));
  const auto is_matrix = [](const output_tensor& t) { return t.is_matrix(); };
  if (std::none_of(tensors.begin(), tensors.end(), is_matrix)) {
    mote::raise<mote::format_error>(o.model + ": holds no linear layers to quantize (names that end in _proj.weight)");
  }
  // Both throw for what is wrong with the model now, not when hours have passed.
  const metadata_entries metadata = gguf ? gguf_entries(config, sizes, o.model) : metadata_entries();
  for (std::size_t i = 0; i < (o.calibration.empty() ? 0 : sizes.num_hidden_layers); ++i) {
    files.tensor("model.layers." + std::to_string(i) + ".input_layernorm.weight");
  }

  backend be{mote::threads{o.threads}};
  scaled_channels channels;
  if (o.scaling != channel_scaling::none) {
    calibration text(values, sizes, o.calibration, std::nullopt, o.threads);
    channels = scale_channels(be, o, values, sizes, text);
    values.scale(channels.scales);
  }
  std::optional<calibration> calibrated;
  if (!o.calibration.empty()) calibrated.emplace(values, sizes, o.calibration, gptq_of(o), o.threads);
  calibration* text = calibrated ? &*calibrated : nullptr;
  const planner planning(o, tensors);
  std::optional<journal> progress;
  if (!o.dry_run) {
    make_directory(partial);
    progress.emplace(partial, task_of(o, files, channels.scales));
  }
  const model_plan decided = planning.plan(be, text, progress ? &*progress : nullptr);
  const auto& plan = decided.layers;
  const auto print_notes = [&] {
    if (decided.rise) fmt::print("perplexity of the calibration text: {:+.3f} %\n", *decided.rise);
    if (text) print_calibration(o, *text, channels);
    if (!gguf) return;
    for (const std::string& difference : llama_cpp_differences(sizes)) fmt::print("note: llama.cpp {}\n", difference);
  };
  if (o.dry_run) {
    print_table(planning.order(), plan, o.by == sensitivity::error ? "error" : "added loss", decided.sensitivity,
                planning.fixed_bytes());
    print_notes();
    return;
  }
  const auto precision_of = [&](const output_tensor& t) {
    return t.is_matrix() ? plan.at(t.layer).precision : std::string_view();
  };
  std::size_t total = planning.fixed_bytes();
  for (const auto& [name, layer] : plan) total += layer.bytes;

  const auto out = gguf ? make_gguf_output(partial, metadata) : make_safetensors_output(partial, o.max_shard_size);
  std::size_t complete = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto parts = stored(o.kind, tensors[i], precision_of(tensors[i]));
    for (const stored_tensor& part : parts) out->declare(part);
    if (i < progress->done().size()) complete += parts.size();
  }
  try {
    out->resume(complete);
  } catch (const mote::error& e) {
    mote::raise<mote::format_error>(std::string(e.what()) + " (to begin anew, remove " + partial + ")");
  }

  std::map<std::string, squared_error> errors;
  progress_bar bar(total);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const output_tensor& t = tensors[i];
    const std::string_view precision = precision_of(t);
    squared_error e;
    if (i < progress->done().size()) {
      e = progress->done()[i];
    } else if (!t.is_matrix()) {
      t.copy([&](std::span<const std::byte> bytes) { out->write(t.name, bytes); });
    } else {
      const auto parts = stored(o.kind, t, precision);
      const auto encoder = make_encoder(o.kind, precision, t.rows(), t.columns());
      e = encode(be, *encoder, t, text, [&](std::span<const std::byte> bytes) { out->write(parts[0].name, bytes); });
      const auto rest = encoder->rest();
      for (std::size_t p = 0; p < rest.size(); ++p) out->write(parts[p + 1].name, rest[p]);
    }
    if (i >= progress->done().size()) {
      out->flush();
      progress->add(t.name, e);
    }
    if (t.is_matrix()) errors[t.layer] += e;
    bar.advance(bytes_of(o.kind, t, precision), t.name);
  }
  out->finish();
  if (!gguf) {
    write_config(config, tensors, precision_of, partial);
    copy_tokenizer(o.model, partial);
  }
  std::map<std::string, double> relative;
  for (const auto& [layer, e] : errors) relative[layer] = std::sqrt(e.mean());
  print_table(planning.order(), plan, "error", relative, planning.fixed_bytes());
  print_notes();
  progress->remove();
  std::error_code problem;
  fs::rename(partial, output, problem);
  if (problem) {
    mote::raise<mote::format_error>(output + ": " + problem.message() + "; " + partial +
                                    " is complete but for its name");
  }

  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  fmt::print("{} written; peak memory {:.1f} MB\n", output, static_cast<double>(usage.ru_maxrss) * 1024.0 * 1e-6);
}

}  // namespace quantize
