#pragma once

// Vectors of the instruction set that a file is compiled for: what they are, and what is done with
// them beside arithmetic, which is the compiler's.

#include "common/vec_mask.h"
#include "common/vec_memory.h"
#include "common/vec_transpose.h"
#include "common/vec_types.h"
