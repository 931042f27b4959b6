// Statistics of every linear layer of a model, by name, and which of them the calibration text never reached.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "../core/error.hpp"
#include "statistics.hpp"

MOTE_BEGIN_NAMESPACE

class calibration {
 public:
  // Registers a layer with `in` channels whose second moments are kept in blocks of `block`. Throws shape_error when the
  // name is taken.
  void add_layer(const std::string& name, std::size_t in, std::size_t block) {
    check(layers_.emplace(name, activation_statistics(in, block)).second, "calibration", name + ": registered twice");
  }

  // x [tokens, in] entered layer `name`. Throws shape_error when there is no such layer or x does not fit it.
  template <host Backend>
  void observe(Backend& be, std::string_view name, const view<const float, 2>& x) {
    layers_.at(find(name)->first).add(be, x);
  }

  bool contains(std::string_view name) const { return layers_.find(name) != layers_.end(); }
  const activation_statistics& of(std::string_view name) const { return find(name)->second; }

  // Layers that no token entered, in the order of names: experts that the router never chose. They have no second moment;
  // inverse_hessian and output_error take the identity for it, so they are rounded to nearest.
  std::vector<std::string> unreached() const {
    std::vector<std::string> names;
    for (const auto& [name, statistics] : layers_) {
      if (statistics.tokens() == 0) names.push_back(name);
    }
    return names;
  }

 private:
  using layer_map = std::map<std::string, activation_statistics, std::less<>>;

  layer_map::const_iterator find(std::string_view name) const {
    const auto found = layers_.find(name);
    check(found != layers_.end(), "calibration", std::string(name) + ": no such layer");
    return found;
  }

  layer_map layers_;
};

MOTE_END_NAMESPACE
