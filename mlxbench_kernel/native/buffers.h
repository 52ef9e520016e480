// Which memory arrays hold, and who else holds it, without evaluating or changing anything.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

#include "arguments.h"
#include "frozen.h"
#include "mlx/allocator.h"
#include "mlx/array.h"

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

// Numbers keys in the order in which they come; std::unordered_map would take four times as long.
class Numbers {
 public:
  explicit Numbers(size_t expected) {
    size_t size = 16;
    while (size < 2 * expected) {
      size *= 2;
    }
    slots_.resize(size);
  }

  // The number of a key, and whether it is new.
  std::pair<int32_t, bool> of(uint64_t key) {
    if (2 * count_ >= static_cast<int32_t>(slots_.size())) {
      grow();
    }
    auto& slot = find(key);
    bool is_new = slot.number < 0;
    if (is_new) {
      slot = {key, count_++};
    }
    return {slot.number, is_new};
  }

 private:
  struct Slot {
    uint64_t key = 0;
    int32_t number = -1;
  };

  Slot& find(uint64_t key) {
    auto at = (key * 0x9E3779B97F4A7C15ull) >> 20;
    while (slots_[at & (slots_.size() - 1)].number >= 0 &&
           slots_[at & (slots_.size() - 1)].key != key) {
      at++;
    }
    return slots_[at & (slots_.size() - 1)];
  }

  void grow() {
    auto old = std::exchange(slots_, std::vector<Slot>(2 * slots_.size()));
    for (auto& slot : old) {
      if (slot.number >= 0) {
        find(slot.key) = slot;
      }
    }
  }

  std::vector<Slot> slots_;
  int32_t count_ = 0;
};

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
  struct Held {
    Buffer buffer;
    Holders holders;
    long arrays = 0;  // that share it
  };

  std::vector<int32_t> buffer;  // of each array given, -1 for none
  std::vector<int64_t> nodes;  // not evaluated, behind each array and no array before it
  std::vector<std::pair<int32_t, int32_t>> behind;  // (array, buffer that its graph keeps alive)
  std::vector<Held> buffers;

  explicit Holdings(size_t arrays)
      : nodes(arrays, 0), objects_(arrays), numbers_(arrays), of_buffers_(arrays) {}

  void read(const std::vector<Buffer>& found, const std::vector<int32_t>& roots) {
    for (size_t i = 0; i < found.size(); i++) {
      buffer.push_back(add(found[i], roots[i]));
    }
  }

  // `counted` of the references from Python to an object are known with each of its places.
  void read_graphs(
      const std::vector<nb::handle>& objects,
      const std::vector<int32_t>& roots,
      const std::vector<int32_t>& counted) {
    std::vector<std::pair<PyObject*, long>> known;
    for (size_t i = 0; i < objects.size(); i++) {
      auto& array = *nb::inst_ptr<mx::array>(objects[i]);
      current_ = static_cast<int32_t>(i);
      visit(array, roots[i]);
      auto [object, is_new] = objects_.of(reinterpret_cast<uint64_t>(objects[i].ptr()));
      if (is_new) {
        known.emplace_back(objects[i].ptr(), 0);
        seen_[number_of(array)].references++;
      }
      known[object].second += counted[i];
    }
    for (auto [object, references] : known) {
      if (Py_REFCNT(object) > references) {
        visit(*nb::inst_ptr<mx::array>(nb::handle(object)), Holders::UNKNOWN);
      }
    }
    for (size_t i = 0; i < seen_.size(); i++) {
      if (((*seen_[i].array).*open(Descriptor{})).use_count() > seen_[i].references) {
        visit(*seen_[i].array, Holders::UNKNOWN);
      }
    }
    for (auto& each : seen_) {
      if (each.buffer >= 0) {
        auto& held = buffers[each.buffer];
        if (each.array->data_shared_ptr().use_count() > held.arrays) {
          held.holders.add(Holders::UNKNOWN);
        }
      }
    }
  }

 private:
  struct Seen {
    const mx::array* array;
    long references = 0;
    int32_t buffer = -1;
    Holders holders;
  };

  int32_t number_of(const mx::array& array) {
    auto [number, is_new] = numbers_.of(array.id());
    if (is_new) {
      seen_.push_back({&array});
    }
    return number;
  }

  int32_t add(const Buffer& found, int32_t root) {
    if (!found.pointer) {
      return -1;
    }
    auto [number, is_new] = of_buffers_.of(found.pointer);
    if (is_new) {
      buffers.push_back({found});
    }
    buffers[number].holders.add(root);
    return number;
  }

  void visit(const mx::array& start, int32_t root) {
    waiting_.push_back(&start);
    while (!waiting_.empty()) {
      auto& array = *waiting_.back();
      waiting_.pop_back();
      auto number = number_of(array);
      bool is_new = seen_[number].holders.first == Holders::NONE;
      if (!seen_[number].holders.add(root)) {
        continue;
      }
      if (is_new) {
        seen_[number].buffer = add(buffer_of(array, data_of(array)), root);
        bool is_lazy = array.status() == mx::array::Status::unscheduled;
        nodes[current_] += is_lazy && array.has_primitive() && array.sibling_position() == 0;
      }
      if (auto held = seen_[number].buffer; held >= 0) {
        buffers[held].arrays += is_new;
        buffers[held].holders.add(root);
        if (&array != &start && root != Holders::UNKNOWN) {
          behind.emplace_back(current_, held);
        }
      }
      for (auto list : {&array.inputs(), &array.siblings()}) {
        for (auto& each : *list) {
          if (is_new) {
            seen_[number_of(each)].references++;
          }
          waiting_.push_back(&each);
        }
      }
    }
  }

  int32_t current_ = 0;
  Numbers objects_, numbers_, of_buffers_;
  std::vector<Seen> seen_;  // arrays
  std::vector<const mx::array*> waiting_;
};

inline nb::dict read_holdings(
    const nb::list& list,
    const std::vector<int32_t>& roots,
    const std::vector<int32_t>& counted,
    bool graphs) {
  std::vector<nb::handle> objects;
  std::vector<const mx::array*> arrays;
  nb::list lazy, dtypes, shapes;
  std::vector<nb::str> names;
  for (auto item : list) {
    auto array = as_array(item);
    if (!array) {
      throw nb::type_error("read_holdings takes a list of arrays");
    }
    objects.push_back(item);
    arrays.push_back(array);
    lazy.append(array->status() == mx::array::Status::unscheduled);
    auto dtype = static_cast<size_t>(array->dtype().val());
    while (names.size() <= dtype) {
      names.emplace_back(dtype_name(mx::Dtype(static_cast<mx::Dtype::Val>(names.size()), 1)));
    }
    dtypes.append(names[dtype]);
    nb::list shape;
    for (auto extent : array->shape()) {
      shape.append(extent);
    }
    shapes.append(shape);
  }
  if (roots.size() != arrays.size() || counted.size() != arrays.size()) {
    throw nb::value_error("as many roots and counts as arrays");
  }
  Holdings holdings(arrays.size());
  holdings.read(buffers(arrays), roots);
  if (graphs) {
    holdings.read_graphs(objects, roots, counted);
  }
  std::vector<int64_t> bytes;
  std::vector<bool> is_mlx;
  std::vector<int32_t> first, second;
  for (auto& each : holdings.buffers) {
    bytes.push_back(each.buffer.bytes);
    is_mlx.push_back(each.buffer.is_mlx);
    first.push_back(each.holders.first);
    second.push_back(each.holders.second);
  }
  nb::dict read;
  read["lazy"] = lazy;
  read["dtype"] = dtypes;
  read["shape"] = shapes;
  read["buffer"] = holdings.buffer;
  read["nodes"] = holdings.nodes;
  read["behind"] = holdings.behind;
  read["bytes"] = bytes;
  read["is_mlx"] = is_mlx;
  read["first"] = first;
  read["second"] = second;
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
