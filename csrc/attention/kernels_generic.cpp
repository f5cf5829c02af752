// Vectors of four floats: SSE2, NEON, or whatever the compiler makes of them.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "attention/kernel_table.h"

#define AGMH_ISA generic
#define AGMH_LANES 4
#define AGMH_ROWS 6
#include "attention/kernels.h"
