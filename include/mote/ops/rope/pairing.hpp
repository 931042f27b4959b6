// Which channels a rotary embedding rotates together.
#pragma once

#include "../../core/config.hpp"

MOTE_BEGIN_NAMESPACE

enum class rope_pairing { interleaved, half_split, interleaved_to_half_split };

MOTE_END_NAMESPACE
