// All kernels, as a template of the instruction set: included once by each kernels_*.cpp, inside a region that tells
// the compiler what it may use. AGMH_ISA names the set, AGMH_VECTOR_BYTES is its vector, AGMH_TERNARY says that it has
// AVX-512's three-operand logic and popcounts, AGMH_NEON that it has NEON, AGMH_COMPRESS that it has VBMI2's
// compression and GFNI, AGMH_RUNS_HERE when it runs. The including file has included every header that is used here, so
// that none is compiled inside that region.

#if defined(__GNUC__)
#define AGMH_INLINE inline __attribute__((always_inline))
#else
#define AGMH_INLINE inline
#endif

#include "hamming/kernel_words.h"

#if defined(AGMH_TERNARY)
#include "hamming/kernel_distances_avx512.h"
#elif defined(AGMH_NEON)
#include "hamming/kernel_distances_neon.h"
#else
#include "hamming/kernel_distances_generic.h"
#endif

#include "hamming/kernel_distances.h"

// These call them.
#include "hamming/kernel_bytes.h"
#include "hamming/kernel_near.h"
#include "hamming/kernel_planes.h"
#include "hamming/kernel_tally.h"

namespace agmh::AGMH_ISA {
namespace {

bool runs_here() { return AGMH_RUNS_HERE; }

}  // namespace

#define AGMH_TEXT_(name) #name
#define AGMH_TEXT(name) AGMH_TEXT_(name)

const KernelSet kSet{.name = AGMH_TEXT(AGMH_ISA),
                     .runs_here = runs_here,
                     .distances = distances,
                     .distance_bytes = distance_bytes,
                     .within = within,
                     .near = near,
                     .nonzero = nonzero,
                     .set_bits = set_bits,
                     .distances_at = distances_at,
                     .keys_at = keys_at,
                     .planes = {build, count, tally, AGMH_PLANE_QUERIES}};

}  // namespace agmh::AGMH_ISA
