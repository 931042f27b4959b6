// Writing NumPy's .npy files, format 1.0.
#pragma once

#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <system_error>

#include "../core/error.hpp"
#include "../core/view.hpp"
#include "part_file.hpp"

MOTE_BEGIN_NAMESPACE

// A float32 matrix [rows, columns], written row by row. A regular file gets its name in finish(), when it is whole; anything
// else (a pipe, a device) is written directly.
class npy_writer {
 public:
  // Throws format_error naming the file when it cannot be created.
  npy_writer(const std::string& path, std::size_t rows, std::size_t columns)
      : path_(detail::behind_links(path)), left_(rows), columns_(columns) {
    std::error_code ignored;
    const auto status = std::filesystem::status(path_, ignored);
    if (!std::filesystem::exists(status) || std::filesystem::is_regular_file(status)) {
      file_.emplace(path_, unfinished::removed).begin_anew("\x93NUMPY");
    } else if (device_.reset(std::fopen(path_.c_str(), "wb")); device_ == nullptr) {
      raise_unwritable(path_);
    }
    std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + std::to_string(rows) + ", " +
                         std::to_string(columns) + "), }";
    constexpr std::size_t preamble = 10;  // magic, version, length; the data starts at a multiple of 64
    header.append(63 - (preamble + header.size()) % 64, ' ');
    header += '\n';
    const char start[] = {'\x93',
                          'N',
                          'U',
                          'M',
                          'P',
                          'Y',
                          1,
                          0,
                          static_cast<char>(header.size() & 0xFF),
                          static_cast<char>(header.size() >> 8)};
    write(start, sizeof start);
    write(header.data(), header.size());
  }

  // The next rows. Throws format_error when they cannot be written, shape_error when they are too many or too wide.
  void append(view<const float, 2> rows) {
    check_shape("npy_writer", "rows", rows.extents(), {rows.extent(0), columns_});
    check(rows.extent(0) <= left_, "npy_writer", "rows: more than the file was made for");
    for (std::size_t i = 0; i < rows.extent(0); ++i) write(rows.row(i), columns_ * sizeof(float));
    left_ -= rows.extent(0);
  }

  // Gives the file its name. Throws like append, or when rows are missing.
  void finish() {
    check(left_ == 0, "npy_writer", "finish: rows are missing");
    if (file_) return file_->finish();
    if (std::fclose(device_.release()) != 0) raise_unwritable(path_);
  }

 private:
  struct close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  void write(const void* data, std::size_t size) {
    if (file_) return file_->put(data, size);
    if (std::fwrite(data, 1, size, device_.get()) != size) raise_unwritable(path_);
  }

  std::string path_;
  std::size_t left_, columns_;
  std::optional<detail::part_file> file_;
  std::unique_ptr<std::FILE, close> device_;
};

MOTE_END_NAMESPACE
