// agmh_fast._engine: the stateful index for NumPy arrays, and what this build and this processor are.
// Arguments come checked from agmh_fast/search/index.py; what depends on the index's contents is checked here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <optional>
#include <thread>

#include "hamming/index.h"
#include "hamming/kernels.h"
#include "hamming/pool.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

// For a thread that Python ends by force because it wants the interpreter's lock after the interpreter has shut down:
// the unwinding that this means (before Python 3.14, which parks such threads itself) must not meet a destructor, or
// the process aborts.
[[noreturn]] void park() {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

// Python's lock, released as long as this lives.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      park();
    }
  }

 private:
  PyThreadState* state_;
};

// Arrays are taken as they are: any conversion would copy behind the caller's back.
using Bytes = py::array_t<uint8_t>;
using Ids = py::array_t<int64_t, py::array::c_style>;
using Mask = py::array_t<bool, py::array::c_style>;

agmh::Codes as_codes(const Bytes& array, int bits) {
  const bool wide = array.ndim() == 2 && array.shape(1) >= agmh::packed_bytes(bits);
  if (!wide || (array.size() > 0 && array.shape(1) > 1 && array.strides(1) != 1))
    throw py::type_error("codes must be (rows, bytes) with adjoining bytes");
  return {array.data(), array.shape(0), array.strides(0), static_cast<int>(array.shape(1))};
}

agmh::Allowed as_allowed(const std::optional<Mask>& mask, const std::optional<Ids>& ids, int64_t queries) {
  agmh::Allowed allowed;
  if (mask) {
    allowed.mask = reinterpret_cast<const uint8_t*>(mask->data());
    allowed.mask_rows = mask->ndim() == 2 ? mask->shape(0) : 1;
    allowed.mask_columns = mask->shape(mask->ndim() - 1);
    if (mask->ndim() == 2 && allowed.mask_rows != queries) throw py::type_error("mask must have one row a query");
  }
  if (ids) {
    allowed.ids = ids->data();
    allowed.id_count = ids->size();
  }
  return allowed;
}

// A NumPy array over memory that C++ allocated.
template <class T>
py::array_t<T> adopt(std::unique_ptr<T[]> data, int64_t count) {
  T* const raw = data.get();
  const py::capsule owner(raw, [](void* memory) { delete[] static_cast<T*>(memory); });
  (void)data.release();
  return py::array_t<T>(count, raw, owner);
}

// A NumPy array of results, whose memory is used again when the array is gone.
template <class T>
py::array_t<T> results(int64_t rows, int64_t columns) {
  if (columns > 0 && rows > PTRDIFF_MAX / static_cast<int64_t>(sizeof(T)) / columns) throw std::bad_alloc();
  auto block = std::make_unique<agmh::Block>(agmh::take_block(static_cast<size_t>(rows * columns) * sizeof(T)));
  T* const data = reinterpret_cast<T*>(block->get());
  const py::capsule owner(block.get(), [](void* memory) { delete static_cast<agmh::Block*>(memory); });
  (void)block.release();
  return py::array_t<T>({rows, columns}, data, owner);
}

// Read-only arrays over a snapshot, which they keep alive.
py::tuple snapshot(const agmh::Index& index) {
  int64_t next_id = 0;
  std::unique_ptr<std::shared_ptr<const agmh::Storage>> held;
  {
    const Unlocked unlocked;
    held = std::make_unique<std::shared_ptr<const agmh::Storage>>(index.snapshot(&next_id));
  }
  const agmh::Storage& storage = **held;
  const py::capsule owner(held.get(),
                          [](void* memory) { delete static_cast<std::shared_ptr<const agmh::Storage>*>(memory); });
  (void)held.release();
  py::array_t<uint8_t> rows({storage.count(), static_cast<int64_t>(storage.row_bytes())}, storage.rows(), owner);
  py::array_t<int64_t> ids(storage.count(), storage.ids(), owner);
  rows.attr("flags").attr("writeable") = false;
  ids.attr("flags").attr("writeable") = false;
  return py::make_tuple(rows, ids, next_id);
}

// An index over arrays that stay where they are, kept alive until the index lets go of them.
std::unique_ptr<agmh::Index> map_arrays(int bits, const Bytes& rows, const Ids& ids, int64_t next_id) {
  const agmh::Codes codes = as_codes(rows, bits);
  if (!codes.padded(bits) || ids.ndim() != 1 || ids.shape(0) != codes.count)
    throw py::type_error("mapped rows must be padded and adjoining, with one id each");
  const std::shared_ptr<void> owner(new py::tuple(py::make_tuple(rows, ids)), [](void* memory) {
    try {
      const py::gil_scoped_acquire gil;
      delete static_cast<py::tuple*>(memory);
    } catch (...) {
      park();
    }
  });
  const int64_t* id_data = ids.data();
  const Unlocked unlocked;
  auto storage = std::make_shared<agmh::Storage>(bits, codes.data, id_data, codes.count, owner);
  return std::make_unique<agmh::Index>(bits, std::move(storage), next_id);
}

void add_codes(agmh::Index& index, const Bytes& codes, const std::optional<Ids>& ids) {
  const agmh::Codes rows = as_codes(codes, index.bits());
  if (ids && ids->size() != rows.count) throw py::type_error("ids must have one entry a code");
  const int64_t* id_data = ids ? ids->data() : nullptr;
  const Unlocked unlocked;
  index.add(rows, id_data);
}

void remove_ids(agmh::Index& index, const Ids& ids) {
  const int64_t *data = ids.data(), count = ids.size();
  const Unlocked unlocked;
  index.remove(data, count);
}

py::tuple search(const agmh::Index& index, const Bytes& queries, int64_t k, int max_distance,
                 const std::optional<Mask>& mask, const std::optional<Ids>& allowed_ids, int threads) {
  const agmh::Codes codes = as_codes(queries, index.bits());
  const agmh::Allowed allowed = as_allowed(mask, allowed_ids, codes.count);
  py::array_t<int32_t> distances = results<int32_t>(codes.count, k);
  py::array_t<int64_t> ids = results<int64_t>(codes.count, k);
  int32_t* distance_data = distances.mutable_data();
  int64_t* id_data = ids.mutable_data();
  {
    const Unlocked unlocked;
    index.search(codes, k, max_distance, allowed, threads, distance_data, id_data);
  }
  return py::make_tuple(distances, ids);
}

py::tuple range_search(const agmh::Index& index, const Bytes& queries, int radius, const std::optional<Mask>& mask,
                       const std::optional<Ids>& allowed_ids, int threads) {
  const agmh::Codes codes = as_codes(queries, index.bits());
  const agmh::Allowed allowed = as_allowed(mask, allowed_ids, codes.count);
  agmh::RangeResult result;
  {
    const Unlocked unlocked;
    result = index.range_search(codes, radius, allowed, threads);
  }
  const int64_t found = result.lims[static_cast<size_t>(codes.count)];
  return py::make_tuple(adopt(std::move(result.lims), codes.count + 1), adopt(std::move(result.distances), found),
                        adopt(std::move(result.ids), found));
}

void distance_loop(int bits, const Bytes& queries, const Bytes& items, int threads) {
  agmh::Task task;
  task.bits = bits;
  task.queries = as_codes(queries, bits);
  task.items = as_codes(items, bits);
  task.threads = threads;
  const Unlocked unlocked;
  agmh::distance_loop(task);
}

py::dict cpu_info() {
  return py::dict("isa"_a = agmh::isa(), "available"_a = agmh::available_isas(),
                  "hardware_threads"_a = static_cast<int>(std::thread::hardware_concurrency()));
}

py::dict build_info() {
#if defined(__clang__)
  const std::string compiler = "Clang " __clang_version__;
#elif defined(__GNUC__)
  const std::string compiler = "GCC " __VERSION__;
#else
  const std::string compiler = "unknown";
#endif
  return py::dict("compiler"_a = compiler, "cplusplus"_a = static_cast<int64_t>(__cplusplus),
                  "cuda_architectures"_a = AGMH_FAST_CUDA_ARCHITECTURES);
}

void translate(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const agmh::InputError& error) {
    py::set_error(py::module_::import("agmh_fast.errors").attr("InputError"), error.what());
  }
}

}  // namespace

PYBIND11_MODULE(_engine, module) {
  module.doc() = "Exact Hamming search on CPUs; use agmh_fast.HammingIndex.";
  py::register_local_exception_translator(translate);
  module.def("cpu_info", &cpu_info, "Instruction set in use, those available, hardware threads.");
  module.def("build_info", &build_info,
             "Compiler, C++ standard, and what the CUDA part was built for (empty: it was not built).");
  module.def("use_isa", &agmh::use_isa, "name"_a, "Use one of the available instruction sets from now on.");
  module.def("distance_loop", &distance_loop, "bits"_a, "queries"_a.noconvert(), "items"_a.noconvert(), "threads"_a,
             "Compute every distance and keep none: what searches are measured against.");
  py::class_<agmh::Index>(module, "Index", "Codes with ids; rows of packed bytes in, arrays out.")
      .def(py::init<int>(), "bits"_a)
      .def_static("map", &map_arrays, "bits"_a, "rows"_a.noconvert(), "ids"_a.noconvert(), "next_id"_a)
      .def_property_readonly("bits", &agmh::Index::bits)
      .def_property_readonly("mapped", py::cpp_function(&agmh::Index::mapped, py::call_guard<Unlocked>()),
                             "Whether it reads arrays that it was given, and no change has made it copy them.")
      .def("__len__", &agmh::Index::size, py::call_guard<Unlocked>())
      .def("snapshot", &snapshot, "Read-only (padded rows, ids, next_id) of this moment, without a copy.")
      .def("add", &add_codes, "codes"_a.noconvert(), "ids"_a.noconvert() = py::none())
      .def("remove", &remove_ids, "ids"_a.noconvert())
      .def("search", &search, "queries"_a.noconvert(), "k"_a, "max_distance"_a, "mask"_a.noconvert() = py::none(),
           "allowed"_a.noconvert() = py::none(), "threads"_a = 1)
      .def("range_search", &range_search, "queries"_a.noconvert(), "radius"_a, "mask"_a.noconvert() = py::none(),
           "allowed"_a.noconvert() = py::none(), "threads"_a = 1);
}
