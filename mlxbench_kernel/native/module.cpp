// What MLX's Python interface does not offer, compiled on this machine against the installed MLX.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "buffers.h"
#include "compiled_calls.h"
#include "frozen.h"
#include "graph_bindings.h"
#include "group_bindings.h"
#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/compile_impl.h"
#include "mlx/distributed/distributed.h"

namespace nb = nanobind;
namespace mx = mlx::core;
namespace dist = mlx::core::distributed;

// Linux gives out memory by small pages, at a cost of its own for each, unless it is asked for
// huge ones. Of no use elsewhere, and ignored where the system has them switched off.
static void ask_for_huge_pages(void* data, size_t size) {
#ifdef __linux__
  auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  auto begin = (reinterpret_cast<size_t>(data) + page - 1) / page * page;
  auto end = (reinterpret_cast<size_t>(data) + size) / page * page;
  if (begin < end) {
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#endif
}

// mx.zeros would write all of it once, only for it to be written again.
static mx::array blank(const std::vector<int>& shape, mx::Dtype dtype) {
  size_t size = mx::size_of(dtype);
  for (int extent : shape) {
    size *= static_cast<size_t>(extent);
  }
  auto data = mx::allocator::malloc(size);
  ask_for_huge_pages(data.buffer().raw_ptr(), size);
  return mx::array(std::move(data), mx::Shape(shape.begin(), shape.end()), dtype);
}

NB_MODULE(mlxbench_native, m) {
  // Registers the types (Group, array) that this module shares with MLX's own.
  nb::module_::import_("mlx.core");
  // Two versions of nanobind keep their types apart: found here, not at the first call.
  if (!nb::type<dist::Group>().is_valid()) {
    throw nb::import_error("MLX was built with another version of nanobind");
  }

  bench::bind_graph(m);
  bench::bind_buffers(m);
  bench::bind_compiled_calls(m);
  bench::bind_frozen(m);
  bench::bind_groups(m);

  m.def(
      "init",
      [](const std::string& backend) {
        // MLX's binding waits for the other ranks while it holds the GIL, which stops every
        // thread of the process, the control channel's too.
        nb::gil_scoped_release free;
        return dist::init(/* strict = */ true, backend);
      },
      nb::arg("backend"),
      "mx.distributed.init(strict=True, backend=backend), without holding the GIL.");

  m.def(
      "forget_backends",
      [] {
        // The last group to go waits for its threads, which may be waiting for the GIL.
        nb::gil_scoped_release free;
        dist::clear_backends();
      },
      "Let the next init make new connections.");

  m.def(
      "forget_compiled",
      [] { mx::detail::compile_clear_cache(mx::detail::compile_cache()); },
      "Let functions of mx.compile, of this thread, be traced anew when they are called.");

  m.def(
      "blank",
      &blank,
      nb::arg("shape"),
      nb::arg("dtype"),
      "An evaluated array whose memory holds anything, to be written through a NumPy view.");

  m.def(
      "handle",
      [](const mx::array& array) { return mx::array(array); },
      nb::arg("array"),
      "The same value as another object, which a[i] = v on the first one does not change.");
}
