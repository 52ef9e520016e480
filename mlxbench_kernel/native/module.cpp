// What MLX's Python interface does not offer, compiled on this machine against the installed MLX.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/set.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstdint>
#include <thread>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <unordered_map>
#include <unordered_set>

#include "compiled_calls.h"
#include "graph_bindings.h"
#include "group.h"
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

// The memory behind each array: which buffer, and its size; (0, 0) for an array without one.
//
// Meant for a thread beside the one that evaluates, so it only reads: array::is_available would
// change the array. Python's own references, and the GIL, keep the arrays where they are; an
// evaluation, which has no GIL, may just be giving one its buffer. A buffer is therefore looked
// into only some time after its pointer was seen, when the other thread has written all of it.
static std::vector<std::pair<uintptr_t, size_t>> buffers(const nb::list& arrays) {
  std::vector<std::pair<const mx::array*, const mx::array::Data*>> seen;
  seen.reserve(nb::len(arrays));
  for (nb::handle item : arrays) {
    const auto& array = nb::cast<const mx::array&>(item);
    bool evaluated = array.status() != mx::array::Status::unscheduled;
    seen.emplace_back(&array, evaluated ? array.data_shared_ptr().get() : nullptr);
  }
  std::this_thread::sleep_for(std::chrono::microseconds(20));
  std::vector<std::pair<uintptr_t, size_t>> found;
  found.reserve(seen.size());
  for (auto [array, data] : seen) {
    auto buffer = data == nullptr ? mx::allocator::Buffer(nullptr) : data->buffer();
    size_t size = 0;
    if (buffer.ptr() != nullptr) {
      // Of memory that came from elsewhere the allocator does not know the size.
      size = data->is_owned() ? mx::allocator::allocator().size(buffer)
                              : array->data_size() * array->itemsize();
    }
    found.emplace_back(reinterpret_cast<uintptr_t>(buffer.ptr()), size);
  }
  return found;
}

// The array in a Python object, or null. nanobind would look the type up for each one.
static mx::array* as_array(nb::handle object) {
  static const auto type = reinterpret_cast<PyTypeObject*>(nb::type<mx::array>().ptr());
  return PyObject_TypeCheck(object.ptr(), type) ? nb::inst_ptr<mx::array>(object) : nullptr;
}

// Walks dicts, lists and tuples; `see` is called with each array and says whether to go on.
template <typename See>
static bool walk(nb::handle tree, See&& see) {
  if (auto array = as_array(tree)) {
    return see(*array);
  }
  if (PyDict_Check(tree.ptr())) {
    PyObject *key, *value;
    for (Py_ssize_t at = 0; PyDict_Next(tree.ptr(), &at, &key, &value);) {
      if (!walk(value, see)) {
        return false;
      }
    }
  } else if (PyList_Check(tree.ptr()) || PyTuple_Check(tree.ptr())) {
    for (auto each : nb::cast<nb::sequence>(tree)) {
      if (!walk(each, see)) {
        return false;
      }
    }
  }
  return true;
}

// MLX leaves what it has evaluated at the status `evaluated` until somebody asks whether it is
// available. So after an evaluation was broken off, what still has it may hold anything.
static bool is_complete(mx::array& array) {
  try {
    return array.status() != mx::array::Status::unscheduled && array.is_available();
  } catch (const std::exception&) {
    return false;  // an asynchronous evaluation has failed
  }
}

// Calls `see` with arrays and what they are computed from, each once; without recursion.
template <typename See>
static void walk_graph(const std::vector<mx::array>& arrays, See&& see) {
  std::unordered_set<std::uintptr_t> seen;
  std::vector<mx::array> waiting = arrays;
  while (!waiting.empty()) {
    auto array = std::move(waiting.back());
    waiting.pop_back();
    if (seen.insert(array.id()).second) {
      see(array);
      for (auto& input : array.inputs()) {
        waiting.push_back(input);
      }
    }
  }
}

static void settle(const std::vector<mx::array>& arrays) {
  walk_graph(arrays, [](mx::array& array) { is_complete(array); });
}

// For each array, whether it or something that it is computed from was evaluated and has not been
// found complete since.
static std::vector<bool> unsettled(const std::vector<mx::array>& arrays) {
  std::unordered_map<std::uintptr_t, bool> known;
  std::vector<bool> found;
  for (auto& array : arrays) {
    std::vector<std::pair<mx::array, size_t>> path{{array, 0}};
    while (!path.empty()) {
      auto& [current, next] = path.back();
      auto [entry, is_new] = known.try_emplace(current.id(), false);
      if (is_new) {
        entry->second = current.status() == mx::array::Status::evaluated;
      }
      if (next > 0) {
        entry->second = entry->second || known[current.inputs()[next - 1].id()];
      } else if (!is_new) {
        path.pop_back();
        continue;
      }
      if (next == current.inputs().size()) {
        path.pop_back();
      } else {
        auto input = current.inputs()[next++];
        path.emplace_back(std::move(input), 0);
      }
    }
    found.push_back(known[array.id()]);
  }
  return found;
}

static nb::object copied(nb::handle value, nb::list& copies) {
  if (auto array = as_array(value)) {
    return nb::cast(mx::array(*array));
  }
  if (PyTuple_CheckExact(value.ptr())) {
    nb::list parts;
    for (auto each : nb::cast<nb::tuple>(value)) {
      parts.append(copied(each, copies));
    }
    return nb::tuple(parts);
  }
  if (PyDict_Check(value.ptr())) {
    nb::dict copy;
    copies.append(nb::make_tuple(nb::borrow(value), copy));
    PyObject *key, *each;
    for (Py_ssize_t at = 0; PyDict_Next(value.ptr(), &at, &key, &each);) {
      copy[nb::handle(key)] = copied(each, copies);
    }
  } else if (PyList_Check(value.ptr())) {
    nb::list copy;
    copies.append(nb::make_tuple(nb::borrow(value), copy));
    for (auto each : nb::cast<nb::list>(value)) {
      copy.append(copied(each, copies));
    }
  }
  return nb::borrow(value);
}

// Whether two frozen trees hold the same nodes of the graph and equal values otherwise.
static bool is_same(nb::handle one, nb::handle other) {
  if (one.is(other)) {
    return true;
  }
  auto first = as_array(one), second = as_array(other);
  if (first || second) {
    return first && second && first->id() == second->id();
  }
  if (PyDict_CheckExact(one.ptr()) && PyDict_CheckExact(other.ptr())) {
    if (PyDict_Size(one.ptr()) != PyDict_Size(other.ptr())) {
      return false;
    }
    PyObject *key, *value;
    for (Py_ssize_t at = 0; PyDict_Next(one.ptr(), &at, &key, &value);) {
      auto found = PyDict_GetItemWithError(other.ptr(), key);
      if (!found || !is_same(value, found)) {
        return false;
      }
    }
    return true;
  }
  bool lists = PyList_CheckExact(one.ptr()) && PyList_CheckExact(other.ptr());
  if (lists || (PyTuple_CheckExact(one.ptr()) && PyTuple_CheckExact(other.ptr()))) {
    auto size = nb::len(one);
    if (size != nb::len(other)) {
      return false;
    }
    for (size_t i = 0; i < size; i++) {
      if (!is_same(one[i], other[i])) {
        return false;
      }
    }
    return true;
  }
  return nb::isinstance<nb::int_>(one) && one.equal(other);
}

static nb::object freeze(nb::handle tree) {
  if (!walk(tree, is_complete)) {
    return nb::none();
  }
  nb::list copies;
  copied(tree, copies);
  return copies;
}

static bench::Group& group_of(const dist::Group& group) {
  auto site = dynamic_cast<bench::Site*>(group.raw_group().get());
  if (!site) {
    throw std::invalid_argument("not a group that was made by `lasting`");
  }
  return *site->group;
}

static std::shared_ptr<bench::Link> link_of(
    const dist::Group& raw, const std::vector<int>& sockets, bool on_lane) {
  return std::make_shared<bench::Link>(raw.raw_group(), sockets, on_lane);
}

static nb::object as_tuple(const std::optional<bench::Turn>& turn) {
  if (!turn) {
    return nb::none();
  }
  return nb::make_tuple(turn->operation, turn->peer, turn->number);
}

static nb::tuple as_tuple(const mx::Shape& shape) {
  nb::list extents;
  for (auto extent : shape) {
    extents.append(extent);
  }
  return nb::tuple(extents);
}

static nb::dict progress(const dist::Group& group) {
  auto now = group_of(group).progress();
  nb::dict said;
  said["link"] = now.link;
  said["whole"] = now.whole;
  said["peers"] = now.peers;
  said["chain"] = now.chain;
  said["limited"] = now.limited;
  said["refused"] = now.refused;
  said["broken"] = now.broken;
  said["running"] = as_tuple(now.running);
  if (auto record = now.running ? bench::log().at(now.record) : std::nullopt) {
    said["shape"] = as_tuple(record->shape);
    said["dtype"] = record->dtype;
    said["line"] = record->line;
  }
  said["certain"] = now.certain;
  said["since"] = now.since;
  return said;
}

static nb::tuple collectives(uint64_t since) {
  auto [first, records] = bench::log().since(since);
  nb::list rows;
  for (auto& record : records) {
    rows.append(nb::make_tuple(
        record.link,
        record.turn.operation,
        record.turn.peer,
        record.turn.number,
        as_tuple(record.shape),
        record.dtype,
        record.group,
        record.line,
        record.chain,
        record.asked,
        record.begun,
        record.done));
  }
  return nb::make_tuple(first, rows);
}

NB_MODULE(mlxbench_native, m) {
  // Registers the types (Group, array) that this module shares with MLX's own.
  nb::module_::import_("mlx.core");
  // Two versions of nanobind keep their types apart: found here, not at the first call.
  if (!nb::type<dist::Group>().is_valid()) {
    throw nb::import_error("MLX was built with another version of nanobind");
  }

  bench::bind_graph(m);
  bench::bind_compiled_calls(m);

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
      "buffers",
      &buffers,
      nb::arg("arrays"),
      "Of each array its buffer and that one's size in bytes; (0, 0) before it is evaluated.");

  m.def(
      "handle",
      [](const mx::array& array) { return mx::array(array); },
      nb::arg("array"),
      "The same value as another object, which a[i] = v on the first one does not change.");

  m.def(
      "settle",
      &settle,
      nb::arg("arrays"),
      "Mark arrays, and what they are computed from, as complete as far as they are evaluated.");

  m.def(
      "unsettled",
      &unsettled,
      nb::arg("arrays"),
      "For each array, whether it, or what it is computed from, was evaluated without having been "
      "read or settled since.");

  m.def(
      "settle_tree",
      [](nb::handle tree) {
        walk(tree, [](mx::array& array) {
          is_complete(array);
          return true;
        });
      },
      nb::arg("tree"),
      "Mark the evaluated arrays in dicts, lists and tuples as complete.");

  m.def(
      "is_same",
      &is_same,
      nb::arg("one"),
      nb::arg("other"),
      "Whether two trees hold the same nodes of the graph, and equal numbers.");

  m.def(
      "freeze",
      &freeze,
      nb::arg("tree"),
      "Shallow copies of all dicts and lists of a tree, as (original, copy), with arrays as new "
      "handles; None if an array is not complete.");

  m.def(
      "lasting",
      [](const dist::Group& raw, const std::vector<int>& sockets, bool on_lane) {
        auto group = std::make_shared<bench::Group>("", link_of(raw, sockets, on_lane));
        return dist::Group(std::make_shared<bench::Site>(std::move(group), ""));
      },
      nb::arg("raw"),
      nb::arg("sockets"),
      nb::arg("on_lane"),
      "A group that forwards to `raw`, whose sockets (duplicates, owned from now on) are shut to "
      "break it off. `on_lane`: MLX's threads may block in it for ever.");

  m.def(
      "at",
      [](const dist::Group& group, const std::string& line) {
        auto site = std::make_shared<bench::Site>(group_of(group).shared_from_this(), line);
        return dist::Group(std::move(site));
      },
      nb::arg("group"),
      nb::arg("line"),
      "The same group, as it is called from a line of Python.");

  m.def(
      "is_lasting",
      [](const dist::Group& group) {
        return dynamic_cast<bench::Site*>(group.raw_group().get()) != nullptr;
      },
      nb::arg("group"));

  m.def(
      "replace",
      [](const dist::Group& group,
         const dist::Group& raw,
         const std::vector<int>& sockets,
         bool on_lane) {
        nb::gil_scoped_release free;
        group_of(group).replace(link_of(raw, sockets, on_lane));
      },
      nb::arg("group"),
      nb::arg("raw"),
      nb::arg("sockets"),
      nb::arg("on_lane"),
      "Have a lasting group go on with another one of MLX's.");

  m.def(
      "limit",
      [](const dist::Group& group,
         uint64_t whole,
         std::map<int, std::pair<uint64_t, uint64_t>> peers,
         std::string reason) {
        nb::gil_scoped_release free;
        group_of(group).limit({whole, std::move(peers), std::move(reason)});
      },
      nb::arg("group"),
      nb::arg("whole"),
      nb::arg("peers"),
      nb::arg("reason"),
      "Refuse all collectives beyond these numbers, and free one that waits beyond them.");

  m.def(
      "lift",
      [](const dist::Group& group, bool force) {
        nb::gil_scoped_release free;
        group_of(group).lift(force);
      },
      nb::arg("group"),
      nb::arg("force"),
      "Take limits back; those that have refused something only when forced.");

  m.def(
      "rest",
      [](const dist::Group& group) { group_of(group).rest(); },
      nb::arg("group"),
      "Take note that nothing is being evaluated, where MLX does not tell when something ends.");

  m.def(
      "release",
      [](const dist::Group& group, const std::string& reason) {
        nb::gil_scoped_release free;
        group_of(group).release(reason);
      },
      nb::arg("group"),
      nb::arg("reason"),
      "Free what waits in the group, and refuse everything until it is replaced.");

  m.def(
      "only",
      [](const dist::Group& group, std::set<int> ranks, std::string reason) {
        group_of(group).only(std::move(ranks), std::move(reason));
      },
      nb::arg("group"),
      nb::arg("ranks"),
      nb::arg("reason"),
      "Refuse all but sends and receives among these ranks; an empty set lets all through.");

  m.def("progress", &progress, nb::arg("group"), "How far the group has come, as a dict.");

  m.def("collectives", &collectives, nb::arg("since"), "The log, from a number on.");

  m.def(
      "flush",
      [](const dist::Group& group) {
        nb::gil_scoped_release free;
        group_of(group).flush();
      },
      nb::arg("group"),
      "Drop the errors that MLX keeps of a link that was broken off; nothing may be evaluated.");
}
