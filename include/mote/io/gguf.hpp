// GGUF files: reading (memory-mapped), writing, metadata and typed tensors. The tokenizer that such a file holds is in
// gguf/tokenizer.hpp.
#pragma once

#include "gguf/file.hpp"
#include "gguf/metadata.hpp"
#include "gguf/types.hpp"
#include "gguf/writer.hpp"
