// What MLX's Python interface does not offer, compiled on this machine against the installed MLX.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "mlx/distributed/distributed.h"

namespace nb = nanobind;
namespace dist = mlx::core::distributed;

NB_MODULE(mlxbench_native, m) {
  // Registers the types (Group, array) that this module shares with MLX's own.
  nb::module_::import_("mlx.core");
  // Two versions of nanobind keep their types apart: found here, not at the first call.
  if (!nb::type<dist::Group>().is_valid()) {
    throw nb::import_error("MLX was built with another version of nanobind");
  }

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
}
