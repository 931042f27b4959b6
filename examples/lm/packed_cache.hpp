// The weights of a model in the form in which they are computed with, in a file of their own, so that the next start neither
// converts nor packs.
#pragma once

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <variant>

#include <mote/core/backend.hpp>
#include <mote/core/config.hpp>
#include <mote/io/fingerprint.hpp>
#include <mote/io/weight_file.hpp>
#include <mote/quant/packed.hpp>

#include "model_files.hpp"
#include "weight_format.hpp"
#include "weights.hpp"

namespace lm {

// The order of packed weights: kernels of another instruction set read another one.
template <class Backend>
std::string packed_order() {
  return std::is_same_v<Backend, mote::reference> ? "reference" : mote::abi_name;
}

// model.gguf.q4_0-ORDER.mote beside a GGUF file, packed.q4_0-ORDER.mote in a directory.
template <class Backend>
std::string packed_cache_path(const std::string& model, weight_format format) {
  return model + (is_gguf(model) ? "." : "/packed.") + name_of(format) + "-" + packed_order<Backend>() + ".mote";
}

// What kernels want of codes (mote::packing): builds of one version for one instruction set may differ.
template <class Backend>
std::string packing_name() {
  if constexpr (std::is_same_v<Backend, mote::reference>) {
    return "unpacked";
  } else {
    constexpr mote::packing wanted = mote::packing_of<typename Backend::arch>;
    const std::string codes =
        wanted.largest_code == 0 ? "signed codes" : "codes up to " + std::to_string(wanted.largest_code);
    return std::to_string(wanted.lanes) + " lanes, " + codes;
  }
}

// What packed weights depend on: format, order, packing, and a fingerprint of every file of the model that holds weights or
// shapes.
template <class Backend>
std::string packed_cache_key(const model_files& files, weight_format format) {
  std::uint64_t hash = mote::fnv1a_start;
  if (const auto* published = std::get_if<mote::checkpoint>(&files.files())) {
    hash = fingerprint(*published);
  } else {
    for (const mote::gguf_file& file : std::get<mote::gguf_checkpoint>(files.files()).files()) {
      hash = mote::fingerprint(file.path(), hash);
    }
  }
  char hex[17] = {};
  std::snprintf(hex, sizeof hex, "%016llx", static_cast<unsigned long long>(hash));
  return name_of(format) + " " + packed_order<Backend>() + " (" + packing_name<Backend>() + ") " + hex;
}

// The packed weights in `path`, made anew where there are none of this model, format, order and packing, or damaged ones; `note` gets
// a line that says so. Throws format_error when the file is no such file, which is then left alone, or cannot be written.
template <class Backend>
mote::weight_file open_packed_cache(Backend& be, const model_config& config, weight_format format,
                                    const std::string& model, const std::string& path,
                                    const std::function<void(const std::string&)>& note) {
  const std::string key = packed_cache_key<Backend>(model_files(model), format);
  std::error_code none;
  if (std::filesystem::exists(path, none)) {
    if (!mote::is_weight_file(path)) {
      mote::raise<mote::format_error>(path + ": is no file of packed weights and is not overwritten");
    }
    try {
      mote::weight_file found(path);
      if (found.key() == key) return found;
      note(path + ": holds \"" + found.key() + "\", wanted is \"" + key + "\": made anew");
    } catch (const mote::format_error& damaged) {
      note(std::string(damaged.what()) + ": made anew");
    }
  }
  mote::weight_file_writer writer(path, key);
  weight_loader<Backend>(be, config, format, model_files(model)).write(writer);
  if (packed_cache_key<Backend>(model_files(model), format) != key) {
    mote::raise<mote::format_error>(model + ": has changed while it was read");
  }
  writer.finish();
#ifdef __GLIBC__
  ::malloc_trim(0);  // what loading took counts with --memory_limit until it is given back
#endif
  return mote::weight_file(path);
}

}  // namespace lm
