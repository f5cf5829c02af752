#include "hamming/storage.h"

#include <algorithm>
#include <cstring>

namespace agmh {

void check_padding(const char* name, const Codes& codes, int bits) {
  const uint8_t mask = padding_mask(bits);
  const int last = packed_bytes(bits) - 1;
  if (mask == 0 && codes.width == last + 1) return;
  for (int64_t i = 0; i < codes.count; ++i) {
    unsigned set = codes.row(i)[last] & mask;
    for (int byte = last + 1; byte < codes.width; ++byte) set |= codes.row(i)[byte];
    if (set == 0) continue;
    throw InputError(std::string(name) + ": row " + std::to_string(i) + " has bits set beyond the " +
                     std::to_string(bits) +
                     " bits of a code; the unused low bits of the last byte must be 0, as numpy.packbits leaves them");
  }
}

Storage::Storage(int bits, const uint8_t* rows, const int64_t* ids, int64_t count, std::shared_ptr<void> owner)
    : Storage(bits) {
  borrowed_rows_ = rows;
  borrowed_ids_ = ids;
  borrowed_count_ = count;
  owner_ = std::move(owner);
  check_padding("codes", codes(), bits);
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || (i > 0 && ids[i] <= ids[i - 1]))
      throw InputError("ids must be 0 or more, each above the one before; entry " + std::to_string(i) + " is " +
                       std::to_string(ids[i]));
}

std::shared_ptr<Storage> Storage::copy(int64_t extra) const {
  auto storage = std::make_shared<Storage>(bits_);
  storage->reserve(count() + extra);
  storage->rows_.assign(rows(), rows() + count() * row_bytes_);
  storage->ids_.assign(ids(), ids() + count());
  return storage;
}

void Storage::reserve(int64_t extra) {
  const size_t needed = ids_.size() + static_cast<size_t>(extra);
  if (needed <= std::min(ids_.capacity(), rows_.capacity() / static_cast<size_t>(row_bytes_))) return;
  // Doubling keeps many small adds linear.
  const size_t room = std::max(needed, 2 * ids_.size());
  rows_.reserve(room * static_cast<size_t>(row_bytes_));
  ids_.reserve(room);
}

void Storage::append(const Codes& codes, int64_t row, int64_t id) {
  const uint8_t* from = codes.row(row);
  rows_.insert(rows_.end(), from, from + std::min(codes.width, row_bytes_));
  ids_.push_back(id);
  rows_.resize(ids_.size() * static_cast<size_t>(row_bytes_));
}

void Storage::erase(const std::vector<int64_t>& positions) {
  if (positions.empty()) return;
  const int64_t total = count();
  int64_t kept = positions.front();
  for (size_t i = 0; i < positions.size(); ++i) {
    const int64_t begin = positions[i] + 1, end = i + 1 < positions.size() ? positions[i + 1] : total;
    std::memmove(rows_.data() + kept * row_bytes_, rows_.data() + begin * row_bytes_,
                 static_cast<size_t>((end - begin) * row_bytes_));
    std::memmove(ids_.data() + kept, ids_.data() + begin, static_cast<size_t>(end - begin) * sizeof(int64_t));
    kept += end - begin;
  }
  rows_.resize(static_cast<size_t>(kept * row_bytes_));
  ids_.resize(static_cast<size_t>(kept));
}

}  // namespace agmh
