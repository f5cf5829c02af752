// How codes lie in memory. A packed row follows numpy.packbits: big-endian bits, ceil(bits / 8) bytes, unused low bits
// of the last byte zero. A padded row adds zero bytes up to 2, 4 or a multiple of 8, so that words can be compared.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace agmh {

inline constexpr int kMaxBits = 4096;

constexpr int packed_bytes(int bits) { return (bits + 7) / 8; }

constexpr int padded_bytes(int bits) {
  const int bytes = packed_bytes(bits);
  return bytes <= 2 ? 2 : bytes <= 4 ? 4 : (bytes + 7) / 8 * 8;
}

// The bits of a packed row's last byte that a code leaves unused.
constexpr uint8_t padding_mask(int bits) { return static_cast<uint8_t>((1 << (packed_bytes(bits) * 8 - bits)) - 1); }

// The first 64-byte boundary in memory that has 64 bytes to spare.
inline uint8_t* aligned(uint8_t* memory) {
  return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64);
}

// A mistake that the caller can mend; the message names the argument and says what to do.
class InputError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// Rows of codes, read in place: row i starts at data + i * stride and holds `width` bytes, packed or padded.
struct Codes {
  const uint8_t* data = nullptr;
  int64_t count = 0;
  int64_t stride = 0;
  int width = 0;

  const uint8_t* row(int64_t i) const { return data + i * stride; }

  // Whether the rows are padded and adjoining, so that a tile of them needs no copy.
  bool padded(int bits) const { return width == padded_bytes(bits) && (stride == width || count <= 1); }
};

}  // namespace agmh
