#include "run.hpp"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string_view>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <mote/io/json.hpp>
#include <mote/io/safetensors.hpp>

#include "calibrate.hpp"
#include "config.hpp"
#include "encode.hpp"
#include "gguf.hpp"
#include "journal.hpp"
#include "model.hpp"
#include "output.hpp"
#include "planner.hpp"
#include "report.hpp"

namespace quantize {
namespace {

namespace fs = std::filesystem;

nlohmann::ordered_json task_of(const options& o, const mote::checkpoint& files,
                               const std::map<std::string, layer_plan>& plan) {
  nlohmann::ordered_json task;
  task["model"] = fs::weakly_canonical(o.model).string();
  task["calibration"] = o.calibration;
  task["format"] = o.kind == container::gguf ? "gguf" : "safetensors";
  task["max_shard_size"] = o.max_shard_size;
  std::size_t bytes = 0, tensors = 0;
  for (const mote::tensor_ref& t : files.tensors()) {
    bytes += t.bytes.size();
    ++tensors;
  }
  task["tensors"] = tensors;
  task["bytes"] = bytes;
  task["changed"] = fs::last_write_time(files.tensors().at(0).file->c_str()).time_since_epoch().count();
  for (const auto& [name, layer] : plan) task["precision"][name] = layer.precision;
  return task;
}

// Lets the pages of a mapped file go, so that only what is worked on is resident.
void release(const mote::checkpoint& files) {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  for (const mote::tensor_ref& t : files.tensors()) {
    const auto begin = (reinterpret_cast<std::uintptr_t>(t.bytes.data()) + page - 1) / page * page;
    const auto end = reinterpret_cast<std::uintptr_t>(t.bytes.data() + t.bytes.size()) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }
}

void make_directory(const std::string& path) {
  std::error_code problem;
  fs::create_directories(path, problem);
  if (problem) mote::raise<mote::format_error>(path + ": cannot be created: " + problem.message());
}

}  // namespace

void run(const options& o) {
  const mote::json_file config(o.model + "/config.json");
  const mote::checkpoint files(o.model);
  if (files.tensors().empty()) mote::raise<mote::format_error>(o.model + ": holds no tensors");
  const bool gguf = o.kind == container::gguf;
  lm::model_config sizes;
  if (gguf) sizes = lm::parse_config(config.root());
  const std::vector<output_tensor> tensors = gguf ? plan_gguf(files, sizes) : plan_safetensors(files);
  const auto is_matrix = [](const output_tensor& t) { return t.is_matrix(); };
  if (std::none_of(tensors.begin(), tensors.end(), is_matrix)) {
    mote::raise<mote::format_error>(o.model + ": holds no linear layers to quantize (names that end in _proj.weight)");
  }
  const std::string output = fs::path(o.output_dir + "/").parent_path().string(), partial = output + ".partial";
  if (!o.dry_run && fs::exists(output)) mote::raise<mote::format_error>(output + ": exists already");

  backend be{mote::threads{o.threads}};
  std::optional<calibration_run> calibrated;
  if (!o.calibration.empty()) calibrated = calibrate(o.model, o.calibration, o.threads);
  const mote::calibration* inputs = calibrated ? &calibrated->inputs : nullptr;
  const planner planning(o, tensors);
  const auto plan = planning.plan(be, inputs);
  if (o.dry_run) {
    print_table(planning.order(), plan, {}, planning.fixed_bytes());
    if (calibrated) print_unreached(*calibrated);
    return;
  }
  const auto precision_of = [&](const output_tensor& t) {
    return t.is_matrix() ? plan.at(t.layer).precision : std::string_view();
  };
  std::size_t total = planning.fixed_bytes();
  for (const auto& [name, layer] : plan) total += layer.bytes;

  make_directory(partial);
  journal progress(partial, task_of(o, files, plan));
  const auto out = gguf ? make_gguf_output(partial, gguf_entries(config, sizes, o.model))
                        : make_safetensors_output(partial, o.max_shard_size);
  std::size_t complete = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto parts = stored(o.kind, tensors[i], precision_of(tensors[i]));
    for (const stored_tensor& part : parts) out->declare(part);
    if (i < progress.done().size()) complete += parts.size();
  }
  out->resume(complete);

  std::map<std::string, squared_error> errors;
  progress_bar bar(total);
  std::size_t since_release = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const output_tensor& t = tensors[i];
    const std::string_view precision = precision_of(t);
    squared_error e;
    if (i < progress.done().size()) {
      e = progress.done()[i];
    } else if (!t.is_matrix()) {
      t.copy([&](std::span<const std::byte> bytes) { out->write(t.name, bytes); });
    } else {
      const auto parts = stored(o.kind, t, precision);
      const auto encoder = make_encoder(o.kind, precision, t.rows(), t.columns());
      e = encode(be, *encoder, t, inputs, [&](std::span<const std::byte> bytes) { out->write(parts[0].name, bytes); });
      const auto rest = encoder->rest();
      for (std::size_t p = 0; p < rest.size(); ++p) out->write(parts[p + 1].name, rest[p]);
    }
    if (i >= progress.done().size()) {
      out->flush();
      progress.add(t.name, e);
    }
    if (t.is_matrix()) errors[t.layer] += e;
    const std::size_t bytes = bytes_of(o.kind, t, precision);
    bar.advance(bytes, t.name);
    since_release += bytes;
    if (since_release > std::size_t{1} << 26) {
      release(files);
      since_release = 0;
    }
  }
  out->finish();
  if (!gguf) {
    write_config(config, tensors, precision_of, partial);
    copy_tokenizer(o.model, partial);
  }
  progress.remove();
  fs::rename(partial, output);

  print_table(planning.order(), plan, errors, planning.fixed_bytes());
  if (calibrated) print_unreached(*calibrated);
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  fmt::print("{} written; peak memory {:.1f} MB\n", output, static_cast<double>(usage.ru_maxrss) / 1024.0);
}

}  // namespace quantize
