#include "options.hpp"

#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <map>

#include <fmt/core.h>
#include <mote/core/executors/thread_pool.hpp>

#include "memory_limit.hpp"
#include "one_line.hpp"
#include "option_values.hpp"

namespace lm {

void add_engine_options(CLI::App& command, engine_options& options) {
  static const std::map<std::string, weight_format> formats = weight_format_names();
  static const std::map<std::string, mote::row_format> caches = [] {
    std::map<std::string, mote::row_format> names = {{"fp8", mote::row_format::of<mote::mxfp8>()}};
    mote::for_each_format([&]<class T>() { names.emplace(mote::row_format::of<T>().name, mote::row_format::of<T>()); },
                          mote::row_elements{});
    return names;
  }();
  static const std::map<std::string, mote::mla_form> forms = {{"absorbed", mote::mla_form::absorbed},
                                                              {"cheapest", mote::mla_form::cheapest}};
  static const std::map<std::string, backend_kind> backends = {{"reference", backend_kind::reference},
                                                               {"simd", backend_kind::simd}};
  options.threads = mote::threads::all().count;
  command.add_option("--model", options.model, "Directory with config.json and the checkpoint, or GGUF file")
      ->required()
      ->check(file_name());
  command
      .add_option(
          "--weights", options.weights,
          "Format of the matrices in memory: " + names_of(formats) + " (default: exactly what the checkpoint stores)")
      ->transform(one_of(formats))
      ->type_name("FORMAT");
  command
      .add_option_function<std::string>(
          "--cache", [&options](const std::string& name) { options.cache = caches.at(name); },
          "Format of the latent cache: f32 (default), bf16, fp8 (e4m3, that is mxfp8), or a block format of --weights "
          "whose blocks divide a row")
      ->check(one_of(caches))
      ->type_name("FORMAT");
  command
      .add_option(
          "--attention", options.attention,
          "absorbed (default) or cheapest: which computes long prefills faster, but whose results depend in their "
          "last bits on how a text is cut into chunks")
      ->transform(one_of(forms))
      ->type_name("FORM");
  command.add_option("--backend", options.backend, "reference (plain loops) or simd (default)")
      ->transform(one_of(backends))
      ->type_name("NAME");
  command.add_option("--threads", options.threads, "Threads (default: one for each processor)")
      ->transform(count_of_threads());
  command.add_option("--context", options.context, "Most tokens of the sequence (default: the model's, at most 4096)")
      ->transform(whole_number(1, std::uint64_t{1} << 24));
  command.add_option("--chunk", options.chunk, "Most tokens of one prefill step (default: 512)")
      ->transform(whole_number(1, std::uint64_t{1} << 16));

  CLI::Option* packed = command
                            .add_option_function<std::string>(
                                "--packed_cache",
                                [&options](const std::string& path) {
                                  options.packed_cache = true;
                                  options.packed_cache_path = path;
                                },
                                "Keep the weights, ready to compute with, in a file, and map it at the next start "
                                "(default: beside the model)")
                            ->expected(0, 1)
                            ->check(file_name())
                            ->type_name("[FILE]");
  CLI::Option* limit =
      command
          .add_option(
              "--memory_limit", options.memory_limit,
              "Most memory of the process, e.g. 2GB, that is 2 · 2^30 bytes: experts stay in the --packed_cache file, "
              "those used most in memory too")
          ->transform(size_in_bytes())
          ->needs(packed)
          ->type_name("SIZE");
  command
      .add_option("--expert_profile", options.expert_profile,
                  "How often experts were used: read at the start where it exists, written at the end")
      ->needs(limit)
      ->check(file_to_write())
      ->type_name("FILE");
  options.note = [](const std::string& line) { fmt::print(stderr, "{}\n", one_line(line)); };
}

void finish_experts(const engine& e, const engine_options& options) {
  const mote::mapped_experts* experts = e.experts();
  if (experts == nullptr) return;
  const mote::expert_cache& cache = experts->cache();
  const mote::expert_cache_statistics& s = cache.statistics();
  const std::size_t uses = s.hits + s.misses;
  fmt::print(stderr, "experts      {} of {} uses in memory ({:.1f} %), {:.1f} MB read, {:.1f} MB resident\n", s.hits,
             uses, uses == 0 ? 100.0 : 100.0 * static_cast<double>(s.hits) / static_cast<double>(uses),
             static_cast<double>(s.bytes_brought) * 1e-6, static_cast<double>(cache.resident_bytes()) * 1e-6);
  if (!options.expert_profile.empty()) write_expert_profile(options.expert_profile, cache);
}

std::vector<std::int32_t> parse_ids(const std::string& text, const std::string& where) {
  std::vector<std::int32_t> ids;
  const auto separator = [](char c) { return c == ' ' || c == ',' || c == '\n' || c == '\t' || c == '\r'; };
  for (const char *p = text.data(), *end = p + text.size(); p != end;) {
    if (separator(*p)) {
      ++p;
      continue;
    }
    const char* last = p;
    while (last != end && !separator(*last)) ++last;
    std::int32_t id = 0;
    const auto [stop, status] = std::from_chars(p, last, id);
    if (status != std::errc() || stop != last) {
      mote::raise<mote::format_error>(where + ": expected token ids separated by spaces, got \"" +
                                      std::string(p, std::min(last, p + 40)) + "\"");
    }
    ids.push_back(id);
    p = last;
  }
  return ids;
}

std::string read_file(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string text;
  for (char part[4096]; file; text.append(part, static_cast<std::size_t>(file.gcount()))) {
    file.read(part, sizeof(part));
  }
  if (file.bad() || !file.eof()) {
    mote::raise<mote::format_error>(path + ": cannot be read" +
                                    (errno != 0 ? std::string(": ") + std::strerror(errno) : ""));
  }
  return text;
}

}  // namespace lm
