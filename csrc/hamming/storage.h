// The codes and ids of an index: padded rows in ascending order of id, so that (distance, id) is (distance, position).
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "hamming/layout.h"

namespace agmh {

// Throws InputError, naming `name` and the row, where a code has bits set beyond `bits`.
void check_padding(const char* name, const Codes& codes, int bits);

class Storage {
 public:
  explicit Storage(int bits) : bits_(bits), row_bytes_(padded_bytes(bits)) {}

  // Padded rows and ascending ids that live elsewhere (a mapped file), kept alive by `owner`; never written to.
  // Throws InputError where they break the rules of an index.
  Storage(int bits, const uint8_t* rows, const int64_t* ids, int64_t count, std::shared_ptr<void> owner);

  const uint8_t* rows() const { return owner_ ? borrowed_rows_ : rows_.data(); }
  const int64_t* ids() const { return owner_ ? borrowed_ids_ : ids_.data(); }
  int64_t count() const { return owner_ ? borrowed_count_ : static_cast<int64_t>(ids_.size()); }
  int row_bytes() const { return row_bytes_; }
  bool borrowed() const { return owner_ != nullptr; }
  Codes codes() const { return {rows(), count(), row_bytes_, row_bytes_}; }

  // A copy of its own, with room for `extra` more rows.
  std::shared_ptr<Storage> copy(int64_t extra) const;

  // For storage of its own only. After reserve(), as many appends cannot throw.
  void reserve(int64_t extra);
  void append(const Codes& codes, int64_t row, int64_t id);

  // Drops the rows at these ascending positions; cannot throw.
  void erase(const std::vector<int64_t>& positions);

 private:
  int bits_;
  int row_bytes_;
  std::vector<uint8_t> rows_;
  std::vector<int64_t> ids_;
  const uint8_t* borrowed_rows_ = nullptr;
  const int64_t* borrowed_ids_ = nullptr;
  int64_t borrowed_count_ = 0;
  std::shared_ptr<void> owner_;
};

}  // namespace agmh
