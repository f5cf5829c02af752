// A fuzz target: the bytes of one input are the life of one index, and what it answers is held against a sorted map.
//
// Any bytes are an input, bad calls among them: those must throw InputError and change nothing. Arrays have exactly the
// size that is told, so that a sanitizer sees a read beyond them. With libFuzzer (see CONTRIBUTING.md) or with
// fuzz_driver.cpp.
#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <vector>

#include "hamming/index.h"
#include "hamming/kernels.h"

namespace {

#define CHECK(condition) \
  if (!(condition)) std::fprintf(stderr, "line %d: %s\n", __LINE__, #condition), std::abort()

using Bytes = std::vector<uint8_t>;
using Items = std::map<int64_t, Bytes>;  // by id: packed codes

// What is left of the input; zeros behind its end.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  bool empty() const { return size_ == 0; }
  uint8_t byte() {
    if (size_ == 0) return 0;
    --size_;
    return *data_++;
  }
  bool chance(int of) { return byte() % of == 0; }
  int64_t below(int64_t limit) { return (byte() * 256 + byte()) % limit; }
  Bytes bytes(int64_t count) {
    Bytes taken(static_cast<size_t>(count));
    for (uint8_t& one : taken) one = byte();
    return taken;
  }
  int64_t id() {
    switch (byte() % 16) {
      case 0:
        return -1;
      case 1:
        return std::numeric_limits<int64_t>::max() - byte() % 3;
      default:
        return byte();
    }
  }
  std::vector<int64_t> ids(int64_t count) {
    std::vector<int64_t> taken(static_cast<size_t>(count));
    for (int64_t& one : taken) one = id();
    return taken;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

// Rows as a caller may give them: with gaps, backwards, one row many times, with set padding bits.
struct Rows {
  Bytes memory;
  agmh::Codes codes;

  Rows(Input& input, int bits, int64_t most) {
    const int64_t count = input.below(most), width = agmh::packed_bytes(bits);
    const bool same = input.chance(8), backwards = input.chance(4);
    const int64_t stride = same ? 0 : width + input.byte() % 3;
    memory = input.bytes(count == 0 ? 0 : (count - 1) * stride + width);
    codes = {memory.data(), count, stride, static_cast<int>(width)};
    if (backwards && count > 0) {
      codes.data += (count - 1) * stride;
      codes.stride = -stride;
    }
    if (input.chance(8)) return;
    for (int64_t i = 0; i < count; ++i)
      memory[static_cast<size_t>(i * stride + width - 1)] &= static_cast<uint8_t>(~agmh::padding_mask(bits));
  }

  Bytes row(int64_t i) const { return {codes.row(i), codes.row(i) + codes.width}; }

  bool right(int bits) const {
    for (int64_t i = 0; i < codes.count; ++i)
      if ((row(i).back() & agmh::padding_mask(bits)) != 0) return false;
    return true;
  }
};

int distance(const Bytes& a, const Bytes& b) {
  int sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::popcount(static_cast<unsigned>(a[i] ^ b[i]));
  return sum;
}

bool unique(std::vector<int64_t> ids) {
  std::sort(ids.begin(), ids.end());
  return std::adjacent_find(ids.begin(), ids.end()) == ids.end();
}

struct Life {
  Input& input;
  int bits;
  std::unique_ptr<agmh::Index> index;
  Items items;
  int64_t next_id = 0;
  Bytes file_rows;
  std::vector<int64_t> file_ids;

  // Runs a call that must throw InputError unless `right`.
  template <class Call>
  void expect(bool right, Call&& call) {
    bool thrown = false;
    try {
      call();
    } catch (const agmh::InputError&) {
      thrown = true;
    }
    CHECK(thrown != right);
  }

  // A new index, or one over rows as a mapped file holds them, which may break every rule.
  bool begin() {
    if (!input.chance(3)) {
      index = std::make_unique<agmh::Index>(bits);
      return true;
    }
    const int64_t count = input.below(20), width = agmh::padded_bytes(bits), packed = agmh::packed_bytes(bits);
    file_ids = input.ids(count);
    if (!input.chance(8)) std::sort(file_ids.begin(), file_ids.end());
    file_rows = input.bytes(count * width);
    if (!input.chance(8))
      for (int64_t i = 0; i < count * width; ++i)
        if (i % width >= packed - 1)
          file_rows[static_cast<size_t>(i)] &=
              static_cast<uint8_t>(i % width >= packed ? 0 : ~agmh::padding_mask(bits));
    next_id = input.id();
    bool right = next_id >= 0 && (count == 0 || file_ids.back() < next_id);
    for (int64_t i = 0; i < count; ++i) {
      const auto row = file_rows.begin() + i * width;
      right = right && file_ids[static_cast<size_t>(i)] > (i == 0 ? -1 : file_ids[static_cast<size_t>(i) - 1]);
      right = right && std::all_of(row + packed, row + width, [](uint8_t byte) { return byte == 0; });
      right = right && (row[packed - 1] & agmh::padding_mask(bits)) == 0;
      items[file_ids[static_cast<size_t>(i)]] = Bytes(row, row + packed);
    }
    const auto owner = std::make_shared<int>(0);
    expect(right, [&] {
      auto storage = std::make_shared<agmh::Storage>(bits, file_rows.data(), file_ids.data(), count, owner);
      index = std::make_unique<agmh::Index>(bits, std::move(storage), next_id);
    });
    return right;
  }

  void add() {
    const Rows rows(input, bits, 40);
    const bool named = input.chance(2);
    std::vector<int64_t> ids = named ? input.ids(rows.codes.count) : std::vector<int64_t>{};
    bool right = rows.right(bits) && unique(ids);
    for (const int64_t id : ids)
      right = right && id >= 0 && id < std::numeric_limits<int64_t>::max() && !items.count(id);
    if (!named) right = right && rows.codes.count <= std::numeric_limits<int64_t>::max() - next_id;
    right = right || rows.codes.count == 0;
    expect(right, [&] { index->add(rows.codes, named ? ids.data() : nullptr); });
    if (!right) return;
    for (int64_t i = 0; i < rows.codes.count; ++i) {
      const int64_t id = named ? ids[static_cast<size_t>(i)] : next_id;
      items[id] = rows.row(i);
      next_id = std::max(next_id, id + 1);
    }
  }

  void remove() {
    std::vector<int64_t> ids = input.ids(input.byte() % 6);
    if (!items.empty() && !input.chance(4)) ids = {std::next(items.begin(), input.below(std::ssize(items)))->first};
    const bool right = unique(ids) && std::all_of(ids.begin(), ids.end(), [&](int64_t id) { return items.count(id); });
    expect(right, [&] { index->remove(ids.data(), std::ssize(ids)); });
    if (right)
      for (const int64_t id : ids) items.erase(id);
  }

  // One search of either kind, with or without a mask.
  void search() {
    const Rows rows(input, bits, 12);
    const int64_t queries = rows.codes.count, count = std::ssize(items);
    const int kind = input.byte() % 4;
    agmh::Allowed allowed;
    Bytes mask;
    std::vector<int64_t> ids;
    if (kind == 1 || kind == 2) {
      allowed.mask_rows = kind == 1 ? 1 : queries;
      allowed.mask_columns = input.chance(8) ? input.below(50) : count;
      mask = input.bytes(allowed.mask_rows * allowed.mask_columns);
      for (uint8_t& entry : mask) entry &= 1;
      allowed.mask = mask.data();
    } else if (kind == 3) {
      ids = input.ids(input.byte() % 40);
      allowed.ids = ids.data();
      allowed.id_count = std::ssize(ids);
    }
    const bool right = rows.right(bits) && (allowed.mask_rows == 0 || allowed.mask_columns == count);
    const int limit = static_cast<int>(input.below(bits + 1)), threads = 1 + input.byte() % 3;
    const int64_t k = 1 + input.below(input.chance(4) ? 300 : 12);
    const auto size = static_cast<size_t>(queries * k);
    std::vector<int32_t> distances(size);
    std::vector<int64_t> found(size);
    agmh::RangeResult range;
    expect(right, [&] { index->search(rows.codes, k, limit, allowed, threads, distances.data(), found.data()); });
    expect(right, [&] { range = index->range_search(rows.codes, limit, allowed, threads); });
    if (!right) return;
    CHECK(range.lims[0] == 0);
    for (int64_t q = 0; q < queries; ++q) {
      std::vector<std::pair<int, int64_t>> expected;
      int64_t position = 0;
      for (const auto& [id, code] : items) {
        const int64_t entry = (kind == 2 ? q * count : 0) + position++;
        if ((kind == 1 || kind == 2) && mask[static_cast<size_t>(entry)] == 0) continue;
        if (kind == 3 && std::find(ids.begin(), ids.end(), id) == ids.end()) continue;
        if (const int far = distance(rows.row(q), code); far <= limit) expected.emplace_back(far, id);
      }
      std::sort(expected.begin(), expected.end());
      CHECK(range.lims[static_cast<size_t>(q) + 1] - range.lims[static_cast<size_t>(q)] == std::ssize(expected));
      for (int64_t i = 0; i < std::ssize(expected); ++i) {
        const size_t at = static_cast<size_t>(range.lims[static_cast<size_t>(q)] + i);
        CHECK(range.distances[at] == expected[static_cast<size_t>(i)].first);
        CHECK(range.ids[at] == expected[static_cast<size_t>(i)].second);
      }
      expected.resize(static_cast<size_t>(k), {agmh::kNoDistance, -1});
      for (int64_t i = 0; i < k; ++i) {
        CHECK(distances[static_cast<size_t>(q * k + i)] == expected[static_cast<size_t>(i)].first);
        CHECK(found[static_cast<size_t>(q * k + i)] == expected[static_cast<size_t>(i)].second);
      }
    }
  }

  void check() const {
    int64_t next = 0;
    const auto snapshot = index->snapshot(&next);
    CHECK(next == next_id);
    CHECK(snapshot->count() == std::ssize(items) && index->size() == snapshot->count());
    int64_t position = 0;
    for (const auto& [id, code] : items) {
      const uint8_t* row = snapshot->codes().row(position);
      CHECK(snapshot->ids()[position++] == id);
      CHECK(std::equal(code.begin(), code.end(), row));
      CHECK(std::all_of(row + code.size(), row + snapshot->row_bytes(), [](uint8_t byte) { return byte == 0; }));
    }
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr int kBits[] = {1, 8, 12, 16, 24, 32, 33, 48, 64, 65, 100, 128, 192, 255, 256, 320, 512, 768, 1024, 4096};
  Input input(data, size);
  const std::vector<std::string> isas = agmh::available_isas();
  agmh::use_isa(isas[input.byte() % isas.size()]);
  const int bits = input.chance(2) ? static_cast<int>(1 + input.below(agmh::kMaxBits)) : kBits[input.byte() % 20];
  Life life{input, bits, nullptr, {}, 0, {}, {}};
  if (!life.begin()) return 0;
  std::shared_ptr<const agmh::Storage> held;  // a snapshot that lives through some changes
  for (int calls = 0; calls < 60 && !input.empty(); ++calls) {
    int64_t unused = 0;
    switch (input.byte() % 8) {
      case 0:
        held = input.chance(2) ? life.index->snapshot(&unused) : nullptr;
        break;
      case 1:
      case 2:
      case 3:
        life.add();
        break;
      case 4:
        life.remove();
        break;
      default:
        life.search();
    }
    life.check();
  }
  return 0;
}
