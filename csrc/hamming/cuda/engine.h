// Launchers of the CUDA kernels, callable from code that has no CUDA header.
#pragma once

#include <cstdint>

namespace agmh::cuda {

// Distances of all pairs of `queries` codes and `items` codes of `words` 64-bit words each, rows adjoining and 8-byte
// aligned, on `stream` (a cudaStream_t): out is (queries, items), uint16_t if `wide`, else uint8_t.
// Returns a cudaError_t, 0 for success.
int distance(const void* query_rows, const void* item_rows, int64_t queries, int64_t items, int words, bool wide,
             void* out, void* stream);

const char* error_text(int error);

}  // namespace agmh::cuda
