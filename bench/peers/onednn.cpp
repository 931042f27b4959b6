// oneDNN: int8 and, where it has a kernel for this machine, bf16 and float32. Weights are kept in the order that oneDNN
// chooses for the number of tokens. int8 activations are quantized on the way with one scale for all tokens, which is what
// oneDNN 2 can apply; where there is no VNNI its sums saturate, as its manual says, unless weights have seven bits.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <deque>
#include <optional>
#include <unordered_map>

#include <omp.h>
#include <dnnl.hpp>

#include <mote/quant/int8.hpp>

#include "peers/peers.hpp"

namespace {

using dnnl::memory;

memory::dims dims(std::size_t a, std::size_t b) { return {static_cast<memory::dim>(a), static_cast<memory::dim>(b)}; }

float largest_magnitude(mote::view<const float, 2> x) {
  std::int32_t largest = 0;  // as integers, which compilers find the maximum of by vectors
  for (std::size_t i = 0; i < x.size(); ++i) {
    largest = std::max(largest, std::bit_cast<std::int32_t>(x.data()[i]) & 0x7FFFFFFF);
  }
  return std::bit_cast<float>(largest);
}

bool has_vnni() {
  const unsigned bits =
      (dnnl_cpu_isa_avx512_core_vnni & ~dnnl_cpu_isa_avx512_core) | (dnnl_cpu_isa_avx2_vnni & ~dnnl_cpu_isa_avx2);
  return (static_cast<unsigned>(dnnl_get_effective_cpu_isa()) & bits) != 0;
}

class onednn_weights : public bench::peer_weights {
 public:
  onednn_weights(const bench::weight_source& source, memory::data_type type)
      : out_(source.out), in_(source.in), count_(source.count), type_(type) {
    const std::size_t rows = source.values.extent(0);
    auto* to = static_cast<std::uint8_t*>(plain_.get_data_handle());
    mote::buffer<std::int8_t> codes(int8() ? source.values.size() : 0);
    mote::buffer<float> scale(int8() ? rows : 0);
    if (int8()) {
      mote::quantize_int8(source.values, codes.as(rows, source.in), scale.as(rows));
      if (!has_vnni()) {
        for (auto& code : codes) code = static_cast<std::int8_t>(code / 2);
        for (auto& step : scale) step *= 2.0f;
      }
    }
    const std::uint8_t* few = int8() ? reinterpret_cast<const std::uint8_t*>(codes.data()) : source.stored.data();
    const std::size_t row_bytes = int8() ? source.in : source.stored.extent(1);
    for (std::size_t n = 0; n < source.out; ++n) {
      std::memcpy(to + n * row_bytes, few + n % rows * row_bytes, row_bytes);
      if (int8()) scale_.push_back(scale[n % rows]);
    }
    in_order_for(64);  // throws where oneDNN has no kernel
  }

  bench::peer_product matmul(mote::view<const float, 2> x, std::size_t threads) override {
    omp_set_num_threads(static_cast<int>(threads));  // before the primitives, which are made for a number of threads
    struct state {
      memory given, narrow, y, scale_in, scale_out;
      std::optional<dnnl::reorder> convert;
      dnnl::matmul product;
      float step = 1.0f;
    };
    const std::size_t tokens = x.extent(0);
    const auto plain = memory::format_tag::ab;
    const std::vector<memory>& w = in_order_for(tokens);
    const auto product = description(tokens, w[0].get_desc());
    const auto s = std::make_shared<state>();
    s->given = memory({dims(tokens, in_), memory::data_type::f32, plain}, engine_, const_cast<float*>(x.data()));
    s->narrow = memory(product.src_desc(), engine_);
    s->y = memory(product.dst_desc(), engine_);
    s->product = dnnl::matmul(product);
    const memory::dims one = {1}, each = {static_cast<memory::dim>(out_)};
    s->scale_in = memory({one, memory::data_type::f32, memory::format_tag::x}, engine_);
    s->scale_out = memory({each, memory::data_type::f32, memory::format_tag::x}, engine_);
    dnnl::primitive_attr scaled;
    if (int8()) scaled.set_output_scales(0, {DNNL_RUNTIME_F32_VAL});
    s->convert = dnnl::reorder(dnnl::reorder::primitive_desc(s->given, s->narrow, scaled));
    const auto run = [this, s, x, threads, &w](std::size_t turn) {
      omp_set_num_threads(static_cast<int>(threads));
      std::unordered_map<int, memory> conversion{{DNNL_ARG_FROM, s->given}, {DNNL_ARG_TO, s->narrow}};
      std::unordered_map<int, memory> arguments{
          {DNNL_ARG_SRC, s->narrow}, {DNNL_ARG_WEIGHTS, w[turn % w.size()]}, {DNNL_ARG_DST, s->y}};
      if (int8()) {
        const float step = largest_magnitude(x) / 127.0f;
        *static_cast<float*>(s->scale_in.get_data_handle()) = 1.0f / step;
        auto* scale = static_cast<float*>(s->scale_out.get_data_handle());
        for (std::size_t n = 0; n < scale_.size(); ++n) scale[n] = step * scale_[n];
        conversion.emplace(DNNL_ARG_ATTR_OUTPUT_SCALES, s->scale_in);
        arguments.emplace(DNNL_ARG_ATTR_OUTPUT_SCALES, s->scale_out);
      }
      if (type_ == memory::data_type::f32) {
        arguments.insert_or_assign(DNNL_ARG_SRC, s->given);
      } else {
        s->convert->execute(stream_, conversion);
      }
      s->product.execute(stream_, arguments);
      stream_.wait();
    };
    return {run, {static_cast<const float*>(s->y.get_data_handle()), tokens, out_}};
  }

 private:
  bool int8() const { return type_ == memory::data_type::s8; }

  // All copies of the matrix, in the order that suits so many tokens best.
  const std::vector<memory>& in_order_for(std::size_t tokens) {
    const auto order = description(tokens, memory::format_tag::any).weights_desc();
    for (const auto& copies : orders_) {
      if (copies[0].get_desc() == order) return copies;
    }
    auto& copies = orders_.emplace_back();
    for (std::size_t i = 0; i < count_; ++i) {
      copies.emplace_back(order, engine_);
      dnnl::reorder(plain_, copies.back()).execute(stream_, plain_, copies.back());
    }
    stream_.wait();
    return copies;
  }

  template <class Order>
  dnnl::matmul::primitive_desc description(std::size_t tokens, const Order& order) const {
    const memory::desc x(dims(tokens, in_), type_, memory::format_tag::ab);
    const memory::desc y(dims(tokens, out_), memory::data_type::f32, memory::format_tag::ab);
    dnnl::primitive_attr scaled;
    if (int8()) scaled.set_output_scales(1 << 1, {DNNL_RUNTIME_F32_VAL});
    const auto w = [&] {
      if constexpr (std::is_same_v<Order, memory::desc>) {
        return order;
      } else {
        return memory::desc(dims(in_, out_), type_, order);
      }
    }();
    return {{x, w, y}, scaled, engine_};
  }

  std::size_t out_, in_, count_;
  memory::data_type type_;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  std::vector<float> scale_;
  memory plain_{{dims(in_, out_), type_, memory::format_tag::ba}, engine_};
  std::deque<std::vector<memory>> orders_;
};

class onednn_peer : public bench::peer {
 public:
  // Vectors only: with matrix tiles (AMX) a run beside mote's ended in an illegal instruction.
  onednn_peer() { dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx512_core_bf16); }

  std::string name() const override { return "onednn"; }
  std::string version() const override {
    const auto* v = dnnl::version();
    return std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch);
  }
  std::unique_ptr<bench::peer_weights> load(const bench::weight_source& source) const override {
    const auto type = source.form == "int8"   ? memory::data_type::s8
                      : source.form == "bf16" ? memory::data_type::bf16
                      : source.form == "f32"  ? memory::data_type::f32
                                              : memory::data_type::undef;
    if (type == memory::data_type::undef) return nullptr;
    try {
      return std::make_unique<onednn_weights>(source, type);
    } catch (const dnnl::error& e) {
      if (e.status == dnnl_unimplemented) return nullptr;  // bf16 below AVX-512
      throw;
    }
  }
};

const bool registered = (bench::peers().push_back(std::make_unique<onednn_peer>()), true);

}  // namespace
