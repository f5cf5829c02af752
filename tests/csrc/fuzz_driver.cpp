// Runs a fuzz target on random inputs where there is no libFuzzer; takes its options of the same names:
//   -max_total_time=SECONDS  -seed=NUMBER (the first input's)  -runs=COUNT
// An input depends on its own seed alone, so a failure is repeated with -seed=THE ONE THAT IS NAMED -runs=1.
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
// Whatever a sanitizer finds ends in SIGABRT, as a failed check does.
extern "C" const char* __asan_default_options() { return "abort_on_error=1"; }
extern "C" const char* __ubsan_default_options() { return "abort_on_error=1:print_stacktrace=1"; }

static uint64_t seed = 0;

static void name_input(int) { std::fprintf(stderr, "failing input: -seed=%llu -runs=1\n", (unsigned long long)seed); }

// Short inputs reach most; bytes are small numbers or any, so that counts stay small where they decide sizes.
static std::vector<uint8_t> make_input() {
  std::mt19937_64 generator(seed);
  const auto draw = [&](int limit) { return static_cast<int>(generator() % static_cast<uint64_t>(limit)); };
  std::vector<uint8_t> bytes(static_cast<size_t>(draw(1 << (4 + draw(9)))));
  const int range = 1 << (1 + draw(8));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(draw(4) == 0 ? draw(256) : draw(range));
  return bytes;
}

int main(int argc, char** argv) {
  double seconds = 10;
  uint64_t runs = UINT64_MAX;
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "-max_total_time=", 16) == 0) seconds = std::atof(argv[i] + 16);
    if (std::strncmp(argv[i], "-seed=", 6) == 0) seed = std::strtoull(argv[i] + 6, nullptr, 10);
    if (std::strncmp(argv[i], "-runs=", 6) == 0) runs = std::strtoull(argv[i] + 6, nullptr, 10);
  }
  std::signal(SIGABRT, name_input);
  const auto start = std::chrono::steady_clock::now();
  uint64_t done = 0;
  for (; done < runs; ++done, ++seed) {
    if (std::chrono::steady_clock::now() - start > std::chrono::duration<double>(seconds)) break;
    const std::vector<uint8_t> input = make_input();
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::printf("%llu inputs, none failed\n", (unsigned long long)done);
  return 0;
}
