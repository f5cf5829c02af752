#include "hamming/index.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <set>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "hamming/kernels.h"

namespace agmh {

// All indexes of the process. A fork takes each between two calls: the child has only the thread that forked, and what
// another thread had locked or half changed would stay so in it for ever.
class Registry {
 public:
  static Registry& instance() {
    static Registry* const registry = new Registry;  // never deleted: indexes may outlive any static object
    return *registry;
  }

  void add(Index* index) {
    const std::lock_guard<std::mutex> lock(mutex_);
    indexes_.insert(index);
  }

  void remove(Index* index) {
    const std::lock_guard<std::mutex> lock(mutex_);
    indexes_.erase(index);
  }

 private:
  Registry() {
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork([] { instance().hold(); }, [] { instance().release(); }, [] { instance().renew(); });
#endif
  }

  // Python's lock may be held meanwhile, so nothing may wait for that one under an index's.
  void hold() {
    mutex_.lock();
    for (Index* index : indexes_) {
      index->gate_.lock();
      index->mutex_.lock();
    }
  }

  void release() {
    for (Index* index : indexes_) {
      index->mutex_.unlock();
      index->gate_.unlock();
    }
    mutex_.unlock();
  }

  // In the child a lock is no longer its owner's to open: the thread has another number there.
  void renew() {
    for (Index* index : indexes_) {
      std::construct_at(&index->mutex_);
      std::construct_at(&index->gate_);
    }
    std::construct_at(&mutex_);
  }

  std::mutex mutex_;
  std::set<Index*> indexes_;
};

namespace {

constexpr int64_t kMaxId = std::numeric_limits<int64_t>::max() - 1;
// Items from which on, and queries after which they are grouped by code; and the most that are where the rows are
// mapped, because groups take four bytes of memory an item.
constexpr int64_t kLeastGrouped = 4096, kQueriesForGroups = 64, kMostMappedGrouped = int64_t{1} << 26;

// The rows in ascending order of their ids; throws InputError for a negative or repeated id.
std::vector<int64_t> order_of(const int64_t* ids, int64_t count) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), int64_t{0});
  if (!std::is_sorted(ids, ids + count))
    std::sort(order.begin(), order.end(), [ids](int64_t a, int64_t b) { return ids[a] < ids[b]; });
  for (size_t i = 0; i < order.size(); ++i) {
    const int64_t id = ids[order[i]];
    if (id < 0 || id > kMaxId) throw InputError("ids must be from 0 to 2**63 - 2, got " + std::to_string(id));
    if (i > 0 && id == ids[order[i - 1]])
      throw InputError("ids: " + std::to_string(id) + " is given twice; ids must be unique");
  }
  return order;
}

// The position of `id` in the storage, or -1.
int64_t position_of(const Storage& storage, int64_t id) {
  const int64_t *begin = storage.ids(), *end = begin + storage.count(), *found = std::lower_bound(begin, end, id);
  return found != end && *found == id ? found - begin : -1;
}

// Entries that are not 0, counted in bytes for as long as these hold: that is many at a time.
int64_t count_kept(const uint8_t* mask, int64_t count) {
  int64_t kept = 0;
  for (int64_t first = 0; first < count; first += 128) {
    uint8_t some = 0;
    const int64_t last = std::min(first + 128, count);
    for (int64_t i = first; i < last; ++i) some = static_cast<uint8_t>(some + (mask[i] != 0));
    kept += some;
  }
  return kept;
}

// The positions that a mask keeps.
std::vector<int64_t> kept_positions(const uint8_t* mask, int64_t count) {
  std::vector<int64_t> positions(static_cast<size_t>(count_kept(mask, count)));
  int64_t* to = positions.data();
  constexpr int64_t kStep = 4096;
  uint16_t index[kStep + kIndexSlack];
  const auto nonzero = kernels().nonzero;
  for (int64_t first = 0; first < count; first += kStep) {
    const int found = nonzero(mask + first, static_cast<int>(std::min(kStep, count - first)), index);
    for (int i = 0; i < found; ++i) *to++ = first + index[i];
  }
  return positions;
}

std::string counted(int64_t count, const char* what) {
  return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

}  // namespace

Index::Index(int bits, std::shared_ptr<Storage> storage, int64_t next_id)
    : bits_(bits), storage_(std::move(storage)), next_id_(next_id) {
  const int64_t count = storage_->count();
  if (next_id < 0 || (count > 0 && next_id <= storage_->ids()[count - 1]))
    throw InputError("next_id must be above every id, got " + std::to_string(next_id));
  Registry::instance().add(this);
}

Index::~Index() { Registry::instance().remove(this); }

std::shared_lock<std::shared_mutex> Index::read_lock() const {
  const std::lock_guard<std::mutex> gate(gate_);
  return std::shared_lock<std::shared_mutex>(mutex_);
}

int64_t Index::size() const {
  const auto lock = read_lock();
  return storage_->count();
}

bool Index::mapped() const {
  const auto lock = read_lock();
  return storage_->borrowed();
}

std::shared_ptr<const Storage> Index::snapshot(int64_t* next_id) const {
  const auto lock = read_lock();
  *next_id = next_id_;
  return storage_;
}

// Whether the storage may be changed in place: its own, and in no one's hands as a snapshot.
bool Index::exclusive() const {
  if (storage_->borrowed() || storage_.use_count() != 1) return false;
  // Pairs with the release of the last snapshot: its reads come before our writes.
  std::atomic_thread_fence(std::memory_order_acquire);
  return true;
}

void Index::add(const Codes& codes, const int64_t* ids) {
  if (codes.count == 0) return;
  check_padding("codes", codes, bits_);
  const std::vector<int64_t> order = ids != nullptr ? order_of(ids, codes.count) : std::vector<int64_t>{};
  std::shared_ptr<Storage> replaced;  // let go of after the locks: its owner may wait for Python's
  const std::lock_guard<std::mutex> gate(gate_);
  const std::unique_lock<std::shared_mutex> lock(mutex_);
  const int64_t count = storage_->count();
  if (ids == nullptr && codes.count > kMaxId - next_id_ + 1)
    throw InputError("ids: none are left above " + std::to_string(next_id_ - 1) + "; give ids yourself");
  for (const int64_t row : order)
    if (position_of(*storage_, ids[row]) >= 0)
      throw InputError("ids: " + std::to_string(ids[row]) +
                       " is in the index already; remove it first or give another");
  const int64_t lowest = ids != nullptr ? ids[order.front()] : next_id_;
  const int64_t highest = ids != nullptr ? ids[order.back()] : next_id_ + codes.count - 1;
  if (count > 0 && lowest <= storage_->ids()[count - 1]) {
    replaced = std::exchange(storage_, merged(codes, order, ids));
    ungroup();
  } else {
    const bool in_place = exclusive();
    const std::shared_ptr<Storage> storage = in_place ? storage_ : storage_->copy(codes.count);
    storage->reserve(codes.count);
    for (int64_t i = 0; i < codes.count; ++i)
      ids != nullptr ? storage->append(codes, order[static_cast<size_t>(i)], ids[order[static_cast<size_t>(i)]])
                     : storage->append(codes, i, next_id_ + i);
    if (!in_place) replaced = std::exchange(storage_, storage);
  }
  next_id_ = std::max(next_id_, highest + 1);
}

// The present codes and the new ones, taken in `order` of ascending ids, in one storage.
std::shared_ptr<Storage> Index::merged(const Codes& codes, const std::vector<int64_t>& order,
                                       const int64_t* ids) const {
  const Storage& present = *storage_;
  const Codes rows = present.codes();
  auto all = std::make_shared<Storage>(bits_);
  all->reserve(present.count() + codes.count);
  int64_t next = 0;
  for (const int64_t row : order) {
    for (; next < present.count() && present.ids()[next] < ids[row]; ++next)
      all->append(rows, next, present.ids()[next]);
    all->append(codes, row, ids[row]);
  }
  for (; next < present.count(); ++next) all->append(rows, next, present.ids()[next]);
  return all;
}

void Index::remove(const int64_t* ids, int64_t count) {
  const std::vector<int64_t> order = order_of(ids, count);
  std::shared_ptr<Storage> replaced;
  const std::lock_guard<std::mutex> gate(gate_);
  const std::unique_lock<std::shared_mutex> lock(mutex_);
  std::vector<int64_t> positions;
  positions.reserve(order.size());
  for (const int64_t row : order) {
    positions.push_back(position_of(*storage_, ids[row]));
    if (positions.back() < 0)
      throw InputError("ids: " + std::to_string(ids[row]) + " is not in the index; nothing was removed");
  }
  if (positions.empty()) return;
  if (!exclusive()) replaced = std::exchange(storage_, storage_->copy(0));
  storage_->erase(positions);
  ungroup();
}

Task Index::make_task(const Codes& queries, const Allowed& allowed, int threads,
                      std::vector<int64_t>& selection) const {
  const int64_t count = storage_->count();
  Task task;
  task.bits = bits_;
  task.queries = queries;
  task.items = storage_->codes();
  const int64_t* ids = storage_->ids();
  // Ascending and unique, so that their ends say whether any is missing between them.
  if (count > 0 && ids[count - 1] - ids[0] == count - 1)
    task.first_id = ids[0];
  else
    task.ids = ids;
  task.threads = threads;
  if (allowed.mask_rows > 0 && allowed.mask_columns != count)
    throw InputError("mask must have one entry for each of the " + counted(count, "item") + " of the index, got " +
                     std::to_string(allowed.mask_columns));
  if (allowed.mask_rows > 1) {
    task.mask = allowed.mask;
    task.mask_stride = allowed.mask_columns;
  } else if (allowed.mask_rows == 1) {
    selection = kept_positions(allowed.mask, count);
  } else if (allowed.id_count >= 0) {
    for (int64_t i = 0; i < allowed.id_count; ++i)
      if (const int64_t position = position_of(*storage_, allowed.ids[i]); position >= 0) selection.push_back(position);
    std::sort(selection.begin(), selection.end());
    selection.erase(std::unique(selection.begin(), selection.end()), selection.end());
  }
  if (allowed.mask_rows == 1 || allowed.id_count >= 0) {
    task.selection = selection.data();
    task.selected = static_cast<int64_t>(selection.size());
    // A selection of everything would only cost copies.
    if (task.selected == count) task.selected = -1;
  }
  return task;
}

// The groups of the storage's first rows, made once so many queries were asked that it pays; null: a scan is as good.
std::shared_ptr<const Groups> Index::groups(int64_t queries) const {
  const int64_t count = storage_->count();
  if (count < kLeastGrouped || (storage_->borrowed() && count > kMostMappedGrouped)) return nullptr;
  const std::lock_guard<std::mutex> lock(grouping_);
  asked_ += queries;
  const bool current = groups_ != nullptr && count - groups_->size() <= groups_->size() / 8;
  if (!current && asked_ >= std::max(patience_, kQueriesForGroups)) {
    groups_ = Groups::of(storage_->codes(), bits_);
    // Where it did not pay, much has to be asked before it is tried again.
    patience_ = groups_ == nullptr ? 8 * asked_ : 0;
    asked_ = 0;
  }
  return groups_;
}

// For when rows were moved.
void Index::ungroup() {
  groups_ = nullptr;
  asked_ = patience_ = 0;
}

void Index::search(const Codes& queries, int64_t k, int max_distance, const Allowed& allowed, int threads,
                   int32_t* distances, int64_t* ids) const {
  check_padding("queries", queries, bits_);
  const auto lock = read_lock();
  std::vector<int64_t> selection;
  Task task = make_task(queries, allowed, threads, selection);
  const bool all = task.mask == nullptr && task.selected < 0;
  const std::shared_ptr<const Groups> grouped = all ? groups(queries.count) : nullptr;
  if (grouped == nullptr) return topk(task, k, max_distance, distances, ids);
  grouped->topk(task, k, max_distance, distances, ids);
  const int64_t first = grouped->size();
  if (first == storage_->count()) return;
  // Rows that came later are scanned; at equal distances they come after those of the groups.
  task.drop(first);
  const size_t results = static_cast<size_t>(queries.count * k);
  std::vector<int32_t> late_distances(results), early_distances(distances, distances + results);
  std::vector<int64_t> late_ids(results), early_ids(ids, ids + results);
  topk(task, k, max_distance, late_distances.data(), late_ids.data());
  for (int64_t q = 0; q < queries.count; ++q) {
    size_t early = static_cast<size_t>(q * k), late = early;
    for (int64_t i = q * k; i < (q + 1) * k; ++i) {
      const bool earlier = early_distances[early] <= late_distances[late];
      distances[i] = earlier ? early_distances[early] : late_distances[late];
      ids[i] = earlier ? early_ids[early++] : late_ids[late++];
    }
  }
}

RangeResult Index::range_search(const Codes& queries, int radius, const Allowed& allowed, int threads) const {
  check_padding("queries", queries, bits_);
  const auto lock = read_lock();
  std::vector<int64_t> selection;
  const Task task = make_task(queries, allowed, threads, selection);
  RangeResult result;
  result.lims = std::make_unique_for_overwrite<int64_t[]>(static_cast<size_t>(queries.count) + 1);
  RangeCounts counts = range_count(task, radius, result.lims.get());
  const size_t found = static_cast<size_t>(result.lims[static_cast<size_t>(queries.count)]);
  result.distances = std::make_unique_for_overwrite<int32_t[]>(found);
  result.ids = std::make_unique_for_overwrite<int64_t[]>(found);
  range_fill(task, std::move(counts), result.lims.get(), result.distances.get(), result.ids.get());
  return result;
}

}  // namespace agmh
