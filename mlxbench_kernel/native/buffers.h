// Which memory arrays hold, and who else holds it, without evaluating or changing anything.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstdint>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "frozen.h"
#include "graph_bindings.h"
#include "mlx/allocator.h"

namespace bench {

// A real buffer; the pointer is null for an array without one.
struct Buffer {
  uint64_t pointer = 0;
  int64_t bytes = 0;
  bool is_mlx = false;  // memory that came from elsewhere is no part of MLX's active memory
};

inline const mx::array::Data* data_of(const mx::array& array) {
  bool evaluated = array.status() != mx::array::Status::unscheduled;
  return evaluated ? array.data_shared_ptr().get() : nullptr;
}

inline Buffer buffer_of(const mx::array& array, const mx::array::Data* data) {
  auto buffer = data ? data->buffer() : mx::allocator::Buffer(nullptr);
  if (!buffer.ptr()) {
    return {};
  }
  // Of memory that came from elsewhere the allocator does not know the size.
  bool is_mlx = data->is_owned();
  auto size = is_mlx ? mx::allocator::allocator().size(buffer) : array.data_size() * array.itemsize();
  return {reinterpret_cast<uint64_t>(buffer.ptr()), static_cast<int64_t>(size), is_mlx};
}

// The buffers of arrays, also beside a thread that evaluates: it only reads, and
// array::is_available would change the array. Python's own references, and the GIL, keep the
// arrays where they are; an evaluation, which has no GIL, may just be giving one its buffer. A
// buffer is therefore looked into only some time after its pointer was seen, when the other thread
// has written all of it.
inline std::vector<Buffer> buffers(const std::vector<const mx::array*>& arrays) {
  std::vector<const mx::array::Data*> seen;
  seen.reserve(arrays.size());
  for (auto array : arrays) {
    seen.push_back(data_of(*array));
  }
  std::this_thread::sleep_for(std::chrono::microseconds(20));
  std::vector<Buffer> found;
  found.reserve(seen.size());
  for (size_t i = 0; i < seen.size(); i++) {
    found.push_back(buffer_of(*arrays[i], seen[i]));
  }
  return found;
}

// The first two of those that hold something: enough to know whether letting go of one frees it.
struct Holders {
  static constexpr int32_t NONE = -1, UNKNOWN = -2;
  int32_t first = NONE, second = NONE;

  bool add(int32_t root) {  // whether that says anything new
    if (first == root || second != NONE) {
      return false;
    }
    (first == NONE ? first : second) = root;
    return true;
  }
};

// Follows arrays of several roots (variables) to the buffers that they keep alive, through the
// graphs behind them. Not beside a thread that evaluates: that takes graphs apart.
//
// Memory can be held by what no walk of Python's objects finds: a local variable, a trace, an array
// on its way through a stream. MLX counts the references to arrays and to their data, Python those
// to objects; where they are more than were found, somebody UNKNOWN holds it as well.
class Holdings {
 public:
  struct Behind {
    int32_t array;
    Buffer buffer;
  };

  std::vector<int64_t> nodes;  // not evaluated, behind each array and no array before it
  std::vector<Behind> behind;  // buffers that each array's graph keeps alive, once for a root
  std::unordered_map<uint64_t, Holders> buffers;

  // `counted` of the references from Python to an object are known with each of its places.
  void read(
      const std::vector<nb::handle>& objects,
      const std::vector<int32_t>& roots,
      const std::vector<int32_t>& counted) {
    nodes.assign(objects.size(), 0);
    std::unordered_map<PyObject*, int64_t> known;
    known.reserve(objects.size());
    arrays_.reserve(objects.size());
    buffers.reserve(objects.size());
    for (size_t i = 0; i < objects.size(); i++) {
      auto& array = *nb::inst_ptr<mx::array>(objects[i]);
      current_ = static_cast<int32_t>(i);
      visit(array, roots[i]);
      auto [entry, is_new] = known.try_emplace(objects[i].ptr(), 0);
      entry->second += counted[i];
      arrays_.at(array.id()).references += is_new;
    }
    for (auto object : objects) {
      if (Py_REFCNT(object.ptr()) > known[object.ptr()]) {
        visit(*nb::inst_ptr<mx::array>(object), Holders::UNKNOWN);
      }
    }
    std::vector<const mx::array*> held;
    std::unordered_map<const mx::array::Data*, long> found;
    found.reserve(arrays_.size());
    for (auto& [id, each] : arrays_) {
      if (((*each.array).*open(Descriptor{})).use_count() > each.references) {
        held.push_back(each.array);
      }
      if (auto data = data_of(*each.array)) {
        found[data]++;
      }
    }
    for (auto array : held) {
      visit(*array, Holders::UNKNOWN);
    }
    for (auto& [id, each] : arrays_) {
      auto data = data_of(*each.array);
      if (data && each.array->data_shared_ptr().use_count() > found[data]) {
        add(*each.array, Holders::UNKNOWN);
      }
    }
  }

 private:
  struct Seen {
    const mx::array* array;
    long references = 0;
    Holders holders;
  };

  void visit(const mx::array& start, int32_t root) {
    std::vector<const mx::array*> waiting{&start};
    while (!waiting.empty()) {
      auto array = waiting.back();
      waiting.pop_back();
      auto& seen = arrays_.try_emplace(array->id(), Seen{array}).first->second;
      bool is_new = seen.holders.first == Holders::NONE;
      if (!seen.holders.add(root)) {
        continue;
      }
      auto buffer = add(*array, root);
      if (buffer.pointer && array != &start && root != Holders::UNKNOWN) {
        behind.push_back({current_, buffer});
      }
      if (is_new && array->status() == mx::array::Status::unscheduled) {
        nodes[current_] += array->has_primitive() && array->sibling_position() == 0;
      }
      for (auto list : {&array->inputs(), &array->siblings()}) {
        for (auto& each : *list) {
          if (is_new) {
            arrays_.try_emplace(each.id(), Seen{&each}).first->second.references++;
          }
          waiting.push_back(&each);
        }
      }
    }
  }

  Buffer add(const mx::array& array, int32_t root) {
    auto buffer = buffer_of(array, data_of(array));
    if (buffer.pointer) {
      buffers[buffer.pointer].add(root);
    }
    return buffer;
  }

  int32_t current_ = 0;
  std::unordered_map<uint64_t, Seen> arrays_;  // by id
};

inline nb::dict read_holdings(
    const nb::list& list,
    const std::vector<int32_t>& roots,
    const std::vector<int32_t>& counted,
    bool graphs) {
  std::vector<nb::handle> objects;
  std::vector<const mx::array*> arrays;
  std::vector<uint8_t> lazy;
  for (auto item : list) {
    objects.push_back(item);
    arrays.push_back(&nb::cast<const mx::array&>(item));
    lazy.push_back(arrays.back()->status() == mx::array::Status::unscheduled);
  }
  if (roots.size() != arrays.size() || counted.size() != arrays.size()) {
    throw nb::value_error("as many roots and counts as arrays");
  }
  std::vector<uint64_t> buffer, behind_buffer, of;
  std::vector<int64_t> bytes, behind_bytes;
  std::vector<uint8_t> is_mlx;
  std::vector<int32_t> behind_array, first, second;
  Holdings holdings;
  for (auto& each : buffers(arrays)) {
    buffer.push_back(each.pointer);
    bytes.push_back(each.bytes);
    is_mlx.push_back(each.is_mlx);
  }
  if (graphs) {
    holdings.read(objects, roots, counted);
  } else {
    holdings.nodes.assign(arrays.size(), 0);
    for (size_t i = 0; i < buffer.size(); i++) {
      if (buffer[i]) {
        holdings.buffers[buffer[i]].add(roots[i]);
      }
    }
  }
  for (auto& each : holdings.behind) {
    if (each.buffer.is_mlx) {
      behind_array.push_back(each.array);
      behind_buffer.push_back(each.buffer.pointer);
      behind_bytes.push_back(each.buffer.bytes);
    }
  }
  for (auto& [pointer, holders] : holdings.buffers) {
    of.push_back(pointer);
    first.push_back(holders.first);
    second.push_back(holders.second);
  }
  nb::dict read;
  read["buffer"] = as_numpy(std::move(buffer));
  read["bytes"] = as_numpy(std::move(bytes));
  read["is_mlx"] = as_numpy(std::move(is_mlx));
  read["lazy"] = as_numpy(std::move(lazy));
  read["nodes"] = as_numpy(std::move(holdings.nodes));
  read["behind_array"] = as_numpy(std::move(behind_array));
  read["behind_buffer"] = as_numpy(std::move(behind_buffer));
  read["behind_bytes"] = as_numpy(std::move(behind_bytes));
  read["of"] = as_numpy(std::move(of));
  read["first"] = as_numpy(std::move(first));
  read["second"] = as_numpy(std::move(second));
  return read;
}

inline void bind_buffers(nb::module_& m) {
  m.def(
      "buffers",
      [](const nb::list& list) {
        std::vector<const mx::array*> arrays;
        for (auto item : list) {
          arrays.push_back(&nb::cast<const mx::array&>(item));
        }
        std::vector<std::pair<uint64_t, int64_t>> found;
        for (auto& each : buffers(arrays)) {
          found.emplace_back(each.pointer, each.bytes);
        }
        return found;
      },
      nb::arg("arrays"),
      "Of each array its buffer and that one's size in bytes; (0, 0) before it is evaluated.");

  m.def(
      "read_holdings",
      &read_holdings,
      nb::arg("arrays"),
      nb::arg("roots"),
      nb::arg("counted"),
      nb::arg("graphs"),
      "What arrays hold, as flat arrays by name; see mlxbench_kernel/memory/attribution.py.");
}

}  // namespace bench
