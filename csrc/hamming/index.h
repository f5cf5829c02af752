// A searchable collection of codes with ids. Searches run side by side; add and remove wait for them and for each
// other, and a fork waits for all: in the child every index is whole and free. After an exception from any function the
// index is as it was.
#pragma once

#include <memory>
#include <mutex>
#include <shared_mutex>
#include <vector>

#include "hamming/engine.h"
#include "hamming/groups.h"
#include "hamming/storage.h"

namespace agmh {

// Which items may be found: all; those a mask keeps (one row for all queries, or one a query); or those with these ids.
struct Allowed {
  const uint8_t* mask = nullptr;  // (mask_rows, mask_columns), not 0 keeps an item
  int64_t mask_rows = 0;          // 0: no mask
  int64_t mask_columns = 0;
  const int64_t* ids = nullptr;
  int64_t id_count = -1;  // -1: no list of ids
};

struct RangeResult {
  std::unique_ptr<int64_t[]> lims;
  std::unique_ptr<int32_t[]> distances;
  std::unique_ptr<int64_t[]> ids;
};

class Index {
 public:
  explicit Index(int bits) : Index(bits, std::make_shared<Storage>(bits), 0) {}
  Index(int bits, std::shared_ptr<Storage> storage, int64_t next_id);
  ~Index();

  int bits() const { return bits_; }
  int64_t size() const;

  // Whether codes and ids still lie where they were mapped.
  bool mapped() const;

  // The codes and ids of this moment, and the id that the next code added without one gets, one above the largest ever
  // used; what is handed out does not change when the index does.
  std::shared_ptr<const Storage> snapshot(int64_t* next_id) const;

  // Adds packed codes; `ids` (unique, >= 0, none in the index) or, where null, the next free ones.
  void add(const Codes& codes, const int64_t* ids);

  // Removes items; every id must be in the index, once in the list.
  void remove(const int64_t* ids, int64_t count);

  // The k nearest by (distance, id): (queries, k) each.
  void search(const Codes& queries, int64_t k, int max_distance, const Allowed& allowed, int threads,
              int32_t* distances, int64_t* ids) const;

  // All within `radius`, inclusive, sorted by (distance, id) for each query.
  RangeResult range_search(const Codes& queries, int radius, const Allowed& allowed, int threads) const;

 private:
  std::shared_lock<std::shared_mutex> read_lock() const;
  Task make_task(const Codes& queries, const Allowed& allowed, int threads, std::vector<int64_t>& selection) const;
  std::shared_ptr<const Groups> groups(int64_t queries) const;
  void ungroup();
  bool exclusive() const;
  std::shared_ptr<Storage> merged(const Codes& codes, const std::vector<int64_t>& order, const int64_t* ids) const;

  int bits_;
  std::shared_ptr<Storage> storage_;
  int64_t next_id_ = 0;
  mutable std::shared_mutex mutex_;
  // A writer holds the gate while it waits, so that searches without pause cannot keep it out for ever.
  mutable std::mutex gate_;
  // What the searches so far have made it worth to group: the first rows of the storage.
  mutable std::mutex grouping_;
  mutable std::shared_ptr<const Groups> groups_;
  mutable int64_t asked_ = 0;     // queries since the last grouping or change
  mutable int64_t patience_ = 0;  // queries to wait for before the next

  friend class Registry;
};

}  // namespace agmh
