// How an interrupted run is gone on with.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <system_error>
#include <vector>

#include <nlohmann/json.hpp>

#include <mote/core/error.hpp>
#include <mote/io/json.hpp>
#include <mote/io/part_file.hpp>

#include "encode.hpp"

namespace quantize {

// What a run holds of the directory that it is at work in. Throws format_error when another one does.
class run_lock {
 public:
  run_lock(const std::string& file, const std::string& directory)
      : descriptor_(::open(file.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666)) {
    if (descriptor_ < 0) mote::raise_unwritable(file);
    if (::flock(descriptor_, LOCK_EX | LOCK_NB) == 0) return;
    ::close(descriptor_);
    mote::raise<mote::format_error>(directory + ": another run is at work in it");
  }
  run_lock(const run_lock&) = delete;
  run_lock& operator=(const run_lock&) = delete;
  ~run_lock() { ::close(descriptor_); }

 private:
  int descriptor_;
};

// DIR.partial/progress.jsonl: first what is being done; then, with --adaptive_layers, a line for each layer that was measured
// and one for what was chosen; then a line for each tensor that is complete.
class journal {
 public:
  static bool is_in(const std::string& directory) {
    std::error_code none;
    return std::filesystem::exists(directory + file_name, none);
  }

  // Throws format_error when another run is at work there, or has been at other work.
  journal(const std::string& directory, const nlohmann::ordered_json& task)
      : directory_(directory), path_(directory + file_name), mine_(path_, directory) {
    std::vector<std::string> lines;
    std::uintmax_t whole = 0;  // bytes; the last line may be cut off
    {
      std::ifstream file(path_);
      for (std::string line; std::getline(file, line) && !file.eof(); whole += line.size() + 1) lines.push_back(line);
    }
    if (!lines.empty() && lines[0] != task.dump()) refuse();
    for (std::size_t i = 1; i < lines.size(); ++i) read(lines[i]);
    file_.open(path_, std::ios::app);
    std::error_code problem;
    std::filesystem::resize_file(path_, whole, problem);
    if (!file_ || problem) mote::raise_unwritable(path_);
    if (lines.empty()) write(task);
  }

  [[noreturn]] void refuse() const {
    mote::raise<mote::format_error>(
        directory_ + ": was begun with other options or another model: remove it, or choose another --output_dir");
  }

  // The errors of a layer's choices, where they were measured.
  const std::vector<double>* measured(const std::string& layer) const {
    const auto found = measured_.find(layer);
    return found == measured_.end() ? nullptr : &found->second;
  }
  void add_measured(const std::string& layer, const std::vector<double>& errors) {
    write({{"layer", layer}, {"errors", errors}});
  }

  // What was chosen, or null.
  const nlohmann::json& chosen() const { return chosen_; }
  void choose(const nlohmann::ordered_json& chosen) { write({{"chosen", chosen}}); }

  const std::vector<squared_error>& done() const { return done_; }
  void add(const std::string& tensor, const squared_error& e) {
    write({{"tensor", tensor}, {"error", e.sum}, {"matrices", e.matrices}});
  }

  void remove() {
    file_.close();
    std::filesystem::remove(path_);
  }

 private:
  void read(const std::string& line) {
    const auto entry = mote::parse_json(line, path_);
    const mote::json_object o(entry, path_);
    if (entry.contains("layer")) {
      std::vector<double>& errors = measured_[o.string("layer")];
      for (const auto& e : o.array("errors")) {
        if (!e.is_number()) o.fail("errors", "expected numbers");
        errors.push_back(e.get<double>());
      }
    } else if (entry.contains("chosen")) {
      chosen_ = entry["chosen"];
    } else {
      done_.push_back({o.number("error"), o.integer("matrices", 0, std::size_t{1} << 32)});
    }
  }
  void write(const nlohmann::ordered_json& line) {
    file_ << line.dump() << std::endl;
    if (!file_) mote::raise_unwritable(path_);
  }

  static constexpr const char* file_name = "/progress.jsonl";

  std::string directory_, path_;
  run_lock mine_;
  std::ofstream file_;
  std::map<std::string, std::vector<double>> measured_;
  nlohmann::json chosen_;
  std::vector<squared_error> done_;
};

}  // namespace quantize
