// Every block format, one after another.
#pragma once

#include <string_view>

#include "formats/iq4_nl.hpp"
#include "formats/iq4_xs.hpp"
#include "formats/mxfp4.hpp"
#include "formats/nvfp4.hpp"
#include "formats/q2_k.hpp"
#include "formats/q3_k.hpp"
#include "formats/q4_0.hpp"
#include "formats/q4_1.hpp"
#include "formats/q4_k.hpp"
#include "formats/q5_0.hpp"
#include "formats/q5_1.hpp"
#include "formats/q5_k.hpp"
#include "formats/q6_k.hpp"
#include "formats/q8_0.hpp"

MOTE_BEGIN_NAMESPACE

template <class... Types>
struct type_list {};

using formats = type_list<q8_0, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, mxfp4, nvfp4>;

// f.template operator()<F>() for each F of the list, in order: for_each_format([]<class F>() { … });
template <class Function, class... F>
void for_each_format(Function&& f, type_list<F...>) {
  (f.template operator()<F>(), ...);
}
template <class Function>
void for_each_format(Function&& f) {
  for_each_format(f, formats{});
}

// f.template operator()<F>() for the F of that name, where there is one.
template <class Function>
void with_format(std::string_view name, Function&& f) {
  for_each_format([&]<class F>() {
    if (F::name == name) f.template operator()<F>();
  });
}

MOTE_END_NAMESPACE
