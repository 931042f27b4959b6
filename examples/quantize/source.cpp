#include "source.hpp"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include <mote/compress/channel_scale.hpp>
#include <mote/core/error.hpp>
#include <mote/core/types.hpp>
#include <mote/io/fingerprint.hpp>
#include <mote/io/resident.hpp>

#include "model.hpp"

namespace quantize {
namespace {

// Calls f.operator()<T>() for the type's numbers.
template <class Function>
void with_numbers_of(mote::dtype type, Function&& f) {
  switch (type) {
    case mote::dtype::f64:
      return f.template operator()<double>();
    case mote::dtype::f32:
      return f.template operator()<float>();
    case mote::dtype::f16:
      return f.template operator()<mote::f16>();
    case mote::dtype::bf16:
      return f.template operator()<mote::bf16>();
    default:
      mote::raise<mote::format_error>("expected float64, float32, float16 or bfloat16, got " +
                                      std::string(mote::dtype_name(type)));
  }
}

}  // namespace

mapped_pages::mapped_pages(const mote::checkpoint& files) {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  for (const mote::tensor_ref& t : files.tensors()) {
    const auto begin = reinterpret_cast<std::uintptr_t>(t.bytes.data());
    ranges_.emplace_back(begin / page * page, (begin + t.bytes.size() + page - 1) / page * page);
  }
  std::sort(ranges_.begin(), ranges_.end());
  std::size_t last = 0;
  for (const auto& range : ranges_) {
    if (range.first <= ranges_[last].second) {
      ranges_[last].second = std::max(ranges_[last].second, range.second);
    } else {
      ranges_[++last] = range;
    }
  }
  ranges_.resize(std::min(ranges_.size(), last + 1));
}

void mapped_pages::used(std::size_t bytes) {
  constexpr std::size_t most = std::size_t{1} << 26;
  used_ += bytes;
  if (used_ < most) return;
  used_ = 0;
  for (const auto& [begin, end] : ranges_) {
    mote::release_pages({reinterpret_cast<const std::byte*>(begin), static_cast<std::size_t>(end - begin)});
  }
}

void channel_scales::apply(const std::string& tensor, std::size_t begin, const mote::view<float, 2>& rows) const {
  if (const auto found = multiplied.find(tensor); found != multiplied.end()) {
    mote::scale_columns(rows, mote::view<const float, 1>(*found->second), rows);
  }
  if (const auto found = divided.find(tensor); found != divided.end()) {
    mote::divide_rows(rows, mote::view<const float, 1>(*found->second).slice(0, begin, rows.extent(0)));
  }
}

std::vector<std::byte> stored_as(mote::dtype type, std::span<const float> values) {
  std::vector<std::byte> bytes(values.size() * mote::dtype_size(type));
  with_numbers_of(type, [&]<class T>() {
    for (std::size_t i = 0; i < values.size(); ++i) {
      const T number(values[i]);
      std::memcpy(bytes.data() + i * sizeof(T), &number, sizeof(T));
    }
  });
  return bytes;
}

float rounded_to(mote::dtype type, float value) {
  with_numbers_of(type, [&]<class T>() { value = static_cast<float>(T(value)); });
  return value;
}

std::uint64_t channel_scales::fingerprint() const {
  std::uint64_t hash = mote::fnv1a_start;
  for (const auto* side : {&multiplied, &divided}) {
    for (const auto& [name, s] : *side) {
      hash = mote::fnv1a(std::as_bytes(std::span(name)), hash);
      hash = mote::fnv1a(std::as_bytes(std::span(*s)), hash);
    }
  }
  return hash;
}

void model_source::finish(const mote::tensor_ref& t, const std::string& name, std::size_t begin,
                          const mote::view<float, 2>& rows) const {
  scales_.apply(name, begin, rows);
  const bool rounds = types_stay_ && scales_.change(name) && !is_linear_layer(name);
  for (std::size_t r = 0; r < rows.extent(0); ++r) {
    for (std::size_t c = 0; c < rows.extent(1); ++c) {
      if (rounds) rows(r, c) = rounded_to(t.dtype, rows(r, c));
      if (!std::isfinite(rows(r, c))) t.fail("row " + std::to_string(begin + r) + ": holds a value that is not finite");
    }
  }
}

void model_source::matrix::read(std::size_t begin, const mote::view<float, 2>& rows) const {
  stored_.read(begin, rows);
  source_.finish(stored_.weight(), name_, begin, rows);
  source_.used(stored_.weight().bytes.size() / std::max(stored_.out_features(), std::size_t{1}) * rows.extent(0));
}

mote::buffer<float> model_source::floats(const mote::tensor_ref& t) const {
  mote::buffer<float> values = mote::read_float(t);
  const std::size_t rows = t.shape.empty() ? 1 : t.shape[0];
  if (t.size() > 0) finish(t, t.name, 0, values.as(rows, t.size() / rows));
  used(t.bytes.size());
  return values;
}

}  // namespace quantize
