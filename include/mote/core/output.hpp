// What an op does with the values already in its output.
#pragma once

#include "config.hpp"

MOTE_BEGIN_NAMESPACE

enum class output { overwrite, accumulate };

MOTE_END_NAMESPACE
