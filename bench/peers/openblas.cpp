// OpenBLAS: float32 only.
#include <cblas.h>

#include "peers/peers.hpp"

namespace {

class openblas_weights : public bench::peer_weights {
 public:
  explicit openblas_weights(const bench::weight_source& source)
      : w_({source.form, bench::arithmetic::float32}, source.out, source.in, source.count) {}

  bench::peer_product matmul(mote::view<const float, 2> x, std::size_t threads) override {
    const std::size_t out = mote::out_features(w_[0]);
    const auto y = std::make_shared<mote::buffer<float>>(x.extent(0) * out);
    const auto run = [this, x, y, threads, out](std::size_t turn) {
      openblas_set_num_threads(static_cast<int>(threads));
      const auto tokens = static_cast<int>(x.extent(0)), n = static_cast<int>(out), k = static_cast<int>(x.extent(1));
      const float* w = std::get<mote::view<const float, 2>>(w_[turn % w_.size()]).data();
      if (tokens == 1) {
        cblas_sgemv(CblasRowMajor, CblasNoTrans, n, k, 1.0f, w, k, x.data(), 1, 0.0f, y->data(), 1);
      } else {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, tokens, n, k, 1.0f, x.data(), k, w, k, 0.0f, y->data(), n);
      }
    };
    return {run, std::as_const(*y).as(x.extent(0), out)};
  }

 private:
  bench::matrices w_;
};

class openblas_peer : public bench::peer {
 public:
  std::string name() const override { return "openblas"; }
  std::string version() const override { return openblas_get_config(); }
  std::unique_ptr<bench::peer_weights> load(const bench::weight_source& source) const override {
    if (source.form != "f32") return nullptr;
    return std::make_unique<openblas_weights>(source);
  }
};

const bool registered = (bench::peers().push_back(std::make_unique<openblas_peer>()), true);

}  // namespace
