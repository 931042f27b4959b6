// How an interrupted run is gone on with.
#pragma once

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <vector>

#include <nlohmann/json.hpp>

#include <mote/core/error.hpp>
#include <mote/io/json.hpp>

#include "encode.hpp"

namespace quantize {

// DIR.partial/progress.jsonl: first what is being done, then a line for each tensor that is complete.
class journal {
 public:
  static bool is_in(const std::string& directory) {
    std::error_code none;
    return std::filesystem::exists(directory + file_name, none);
  }

  journal(const std::string& directory, const nlohmann::ordered_json& task) : path_(directory + file_name) {
    std::vector<std::string> lines;
    std::uintmax_t whole = 0;  // bytes; the last line may be cut off
    {
      std::ifstream file(path_);
      for (std::string line; std::getline(file, line) && !file.eof(); whole += line.size() + 1) lines.push_back(line);
    }
    if (!lines.empty() && lines[0] != task.dump()) {
      mote::raise<mote::format_error>(
          directory + ": was begun with other options or another model: remove it, or choose another --output_dir");
    }
    for (std::size_t i = 1; i < lines.size(); ++i) {
      const auto entry = mote::parse_json(lines[i], path_);
      const mote::json_object o(entry, path_);
      done_.push_back({o.number("error"), o.integer("matrices", 0, std::size_t{1} << 32)});
    }
    file_.open(path_, std::ios::app);
    std::error_code problem;
    std::filesystem::resize_file(path_, whole, problem);
    if (lines.empty()) file_ << task.dump() << std::endl;
    if (!file_ || problem) mote::raise<mote::format_error>(path_ + ": cannot be written");
  }

  const std::vector<squared_error>& done() const { return done_; }

  void add(const std::string& tensor, const squared_error& e) {
    nlohmann::ordered_json line;
    line["tensor"] = tensor;
    line["error"] = e.sum;
    line["matrices"] = e.matrices;
    file_ << line.dump() << std::endl;
    if (!file_) mote::raise<mote::format_error>(path_ + ": cannot be written");
  }
  void remove() {
    file_.close();
    std::filesystem::remove(path_);
  }

 private:
  static constexpr const char* file_name = "/progress.jsonl";

  std::string path_;
  std::ofstream file_;
  std::vector<squared_error> done_;
};

}  // namespace quantize
