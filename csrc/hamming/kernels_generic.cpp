// What every processor runs.
#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

#include "hamming/kernels.h"

#define AGMH_ISA generic
#define AGMH_VECTOR_BYTES 16
#define AGMH_RUNS_HERE true
#define AGMH_PLANE_QUERIES 2, 2, 2
#include "hamming/kernel_set.h"
