// Other libraries' products of the same matrices, measured in the same process. A peer that was found when mote_bench was
// built puts itself into peers(); see ./dev bench --peers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <mote/core/view.hpp>

#include "support/weights.hpp"

namespace bench {

// run(turn) multiplies by matrix `turn` and leaves the result in y [tokens, out].
struct peer_product {
  std::function<void(std::size_t turn)> run;
  mote::view<const float, 2> y;
};

// Matrices in a peer's own memory and order.
class peer_weights {
 public:
  virtual ~peer_weights() = default;
  virtual peer_product matmul(mote::view<const float, 2> x, std::size_t threads) = 0;
};

// Experts in a peer's own memory and order; run(turn) routes as indices[turn] [tokens, top_k] says.
class peer_experts {
 public:
  virtual ~peer_experts() = default;
  virtual peer_product moe(mote::view<const float, 2> x, std::span<const mote::view<const std::int32_t, 2>> indices,
                           mote::view<const float, 2> weights, std::size_t threads) = 0;
};

class peer {
 public:
  virtual ~peer() = default;
  virtual std::string name() const = 0;  // of the counter, vs_<name>
  virtual std::string version() const = 0;
  // Nothing where the peer has no such format.
  virtual std::unique_ptr<peer_weights> load(const weight_source& source) const = 0;
  virtual std::unique_ptr<peer_experts> load(const weight_source&, const weight_source&, const weight_source&) const {
    return nullptr;
  }
};

inline std::vector<std::unique_ptr<peer>>& peers() {
  static std::vector<std::unique_ptr<peer>> all;
  return all;
}

}  // namespace bench
