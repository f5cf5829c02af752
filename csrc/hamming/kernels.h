// Distances of one query to the rows of a tile: the innermost loop, compiled once for each instruction set.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace agmh {

// out[i] = number of bits in which `query` and row i differ. Rows are padded and adjoining; `words` is the number of
// 64-bit words of a row (unused where a row has fewer than 8 bytes).
using DistanceKernel = void (*)(const uint8_t* query, const uint8_t* rows, int count, int words, int16_t* out);

// The kernel for padded rows of `row_bytes` bytes, for the instruction set in use.
DistanceKernel distance_kernel(int row_bytes);

// Instruction sets that this build has and this processor runs, slowest first.
std::vector<std::string> available_isas();

// The one in use: the fastest, or the one that the environment variable AGMH_FAST_ISA names (read once).
std::string isa();

// Use another from now on, in the whole process; throws InputError if it is not available.
void use_isa(const std::string& name);

}  // namespace agmh
