// How searches are cut up at sizes that no test can search: nothing overflows, grids are launchable, scratch is
// bounded.
#include <cuda_runtime.h>

#include <cstring>
#include <string_view>

#include "device_cases.h"
#include "hamming/cuda/append.cuh"
#include "hamming/cuda/plan.h"

namespace {

using namespace agmh::cuda;

constexpr Device kDevice = {132, 227 << 10, 256 << 20, 90, Backend::kBmma};

void check_counting(const CountPlan& plan, const DeviceTask& task, int64_t other_bytes) {
  // What README.md says.
  const int64_t tiles = (plan.batch + 7) / 8, bins = plan.bins, n = task.item_count;
  const int64_t fewest =
      std::min({(4 * kDevice.processors + tiles - 1) / tiles, n / (32 * bins), kDevice.scratch_bytes / (1024 * bins)});
  CHECK(plan.parts == 8 * std::max((n >> 31) / 8 + 1, fewest));
  const int64_t scratch = plan.batch * (8 * int64_t{plan.bins} * plan.parts + other_bytes + 24) + 16;
  CHECK(scratch_of(plan, other_bytes) == scratch);
  CHECK(scratch <= kDevice.scratch_bytes);
  CHECK(plan.batch >= 1 && plan.batch <= 65535 * kCountQueries);
  CHECK(plan.parts % kWarps == 0 && plan.parts / kWarps <= 0x7fffffff);
  const int64_t unit = 32 * lane_items(task.words), units = units_of(task);
  CHECK((units - 1) * unit < task.item_count && task.item_count <= units * unit);
  CHECK(plan.part_units * plan.parts >= units);
  CHECK(plan.part_units * unit < int64_t{1} << 32);
}

// Every unit once, in each power of two of places; where there are too many to try, those at both ends.
void check_walk(const Walk& walk) {
  CHECK(walk.places >= walk.units && walk.places < 2 * walk.units);
  CHECK(walk.stride % 2 == 1 && walk.stride > walk.places / 2 && walk.stride < walk.places + (walk.places == 1));
  CHECK(walk.places <= int64_t{1} << 31);  // so that place · stride has 62 bits
  for (const int64_t place : {int64_t{0}, int64_t{1}, walk.places / 2, walk.places - 1}) {
    const int64_t unit = walk.unit_at(place);
    CHECK(unit >= 0 && unit < walk.places);
    CHECK(static_cast<__int128>(place) * walk.stride % walk.places == unit);
  }
}

void check_sizes(int bits, int64_t n, int64_t q, int64_t k) {
  DeviceTask task;
  task.bits = bits;
  task.words = row_words(bits);
  task.item_count = n;
  task.query_count = q;
  const TopkPlan plan = plan_topk(task, k, bits, kDevice);
  check_counting(plan.counting, task, 8 * int64_t{plan.capacity});
  CHECK(topk_scratch(task, k, bits, kDevice) == plan.scratch());
  check_walk(plan.walk);
  CHECK(plan.capacity == 0 || (4 * k <= plan.capacity && 4 * k <= n && 8 * plan.capacity <= kDevice.shared_bytes));
  CHECK((plan.capacity > 0) == (k <= 4096 && k <= n / 4));
  int chunks = 0;
  for (int64_t last = 1; last < plan.walk.places; last *= plan.growth) ++chunks;
  CHECK(chunks <= 32);
  // Positions of items and distances share a key.
  CHECK(n - 1 <= static_cast<int64_t>(kPositionMask));
  const Key key = static_cast<Key>(bits) << kPositionBits | static_cast<Key>(n - 1);
  CHECK(distance_of_key(key) == bits && static_cast<int64_t>(key & kPositionMask) == n - 1);
  CHECK(key <= last_key_at(bits));
  for (const int radius : {0, bits / 4, bits}) {
    const CountPlan counting = plan_counting(task, radius, 0, kDevice);
    check_counting(counting, task, 0);
    CHECK(counting.bins == radius + 1);
    CHECK(range_scratch(task, radius, kDevice) == scratch_of(counting, 0));
  }
}

// By its name a back end is used or refused; unasked, no tensor cores sift until a GPU run has shown where it pays.
void check_backends() {
  Device device;
  CHECK(current_device(device) == 0 && device.architecture == 90);
  CHECK(use_backend("wgmma", device) != nullptr && use_backend("", device) != nullptr);
  CHECK(device.backend == Backend::kAutomatic);
  DeviceTask task;
  task.item_count = int64_t{1} << 30;
  task.query_count = 1000000;
  for (const int architecture : {75, 80, 86, 89, 90, 100, 120})
    for (const int words : {1, 2, 4, 6, 8, 128}) {
      device = {132, 227 << 10, 256 << 20, architecture, Backend::kAutomatic};
      task.bits = 32 * words;
      task.words = words;
      CHECK(backend_for(task, device) == Backend::kPopc);
      CHECK(plan_topk(task, 100, task.bits, device).sift_from == kNever);
      const auto check = [&](const char* name, Backend backend, bool has) {
        const Backend before = device.backend;
        const char* obstacle = use_backend(name, device);
        CHECK((obstacle == nullptr) == has);
        // What is refused advises what is not.
        const std::string_view advice(has ? "" : std::strstr(obstacle, "choose "));
        CHECK(has || (advice.find(name) == advice.npos && advice.find("popc") != advice.npos));
        CHECK(has || (advice.find("imma") != advice.npos) == has_imma(architecture));
        CHECK(device.backend == (has ? backend : before));
        if (!has || backend == Backend::kPopc) return;
        const TopkPlan plan = plan_topk(task, 100, task.bits, device);
        CHECK(plan.backend == backend && plan.sift_from == 200 && plan.growth <= 4);
      };
      check("bmma", Backend::kBmma, architecture >= 80 && architecture <= 90);
      check("imma", Backend::kImma, architecture >= 80);
      check("popc", Backend::kPopc, true);
    }
}

}  // namespace

void check_plan() {
  check_backends();
  for (const int bits : {16, 64, 128, 256, 4096})
    for (const int64_t n : {int64_t{1000}, int64_t{1} << 24, (int64_t{1} << 31) - 1, (int64_t{1} << 31) + 1,
                            (int64_t{1} << 34) - 1, int64_t{1} << 34})
      for (const int64_t q : {1, 1000, 100000, 1000000})
        for (const int64_t k : {int64_t{1}, int64_t{100}, int64_t{4096}, int64_t{4097}, n}) check_sizes(bits, n, q, k);
}
