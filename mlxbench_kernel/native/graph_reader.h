// Reads a lazy graph into flat arrays, without evaluating it, changing it, or recursion.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "arguments.h"
#include "mlx/array.h"

namespace bench {

// Texts that many nodes share, each kept once.
class Texts {
 public:
  int32_t of(std::string text) {
    auto [found, is_new] = numbers_.try_emplace(std::move(text), static_cast<int32_t>(all_.size()));
    if (is_new) {
      all_.push_back(&found->first);
    }
    return found->second;
  }

  std::vector<std::string> all() const {
    std::vector<std::string> texts;
    texts.reserve(all_.size());
    for (auto text : all_) {
      texts.push_back(*text);
    }
    return texts;
  }

 private:
  std::unordered_map<std::string, int32_t> numbers_;
  std::vector<const std::string*> all_;  // an unordered_map does not move its keys
};

// A node is a primitive with its outputs, or an array that nothing computes. Nodes stand in an
// order in which each comes after what it needs. See mlxbench_kernel/graph/model.py.
struct FlatGraph {
  // of nodes
  std::vector<int32_t> primitive, arguments, stream;
  std::vector<uint8_t> device;
  std::vector<int32_t> output_start{0}, input_start{0};
  std::vector<int32_t> inputs;  // arrays
  // of arrays
  std::vector<int32_t> node, shape_start{0}, dtype, held;
  std::vector<int64_t> extents, nbytes;
  std::vector<uint8_t> status;
  std::vector<uint64_t> id, buffer;
  std::vector<int64_t> buffer_bytes;
  std::vector<int32_t> outputs;  // those that were asked for
  std::vector<std::pair<int32_t, std::vector<std::string>>> fused;
  std::vector<std::string> primitives, dtypes, texts;
  std::vector<const mx::array*> arrays;
};

class GraphReader {
 public:
  // `own`: ids of arrays, once for each holder that does not count.
  FlatGraph read(const std::vector<mx::array>& outputs, const std::vector<uint64_t>& own = {}) {
    primitives_.of("");
    texts_.of("");
    for (auto& output : outputs) {
      visit(output);
    }
    for (auto& output : outputs) {
      flat_.outputs.push_back(numbers_.at(output.id()));
      references_[flat_.outputs.back()]++;  // the list it came in
    }
    for (auto id : own) {
      if (auto found = numbers_.find(id); found != numbers_.end()) {
        references_[found->second]++;
      }
    }
    for (size_t i = 0; i < flat_.held.size(); i++) {
      auto count = ((*flat_.arrays[i]).*open(Descriptor{})).use_count();
      flat_.held[i] = static_cast<int32_t>(count) - references_[i];
    }
    flat_.primitives = primitives_.all();
    flat_.dtypes = dtypes_.all();
    flat_.texts = texts_.all();
    return std::move(flat_);
  }

 private:
  void visit(const mx::array& output) {
    // Pointers into the graph stay where they are: nothing is changed meanwhile.
    std::vector<std::pair<const mx::array*, size_t>> path{{&output, 0}};
    while (!path.empty()) {
      auto& [array, next] = path.back();
      if (next == 0 && numbers_.count(array->id())) {
        path.pop_back();
        continue;
      }
      if (next < array->inputs().size()) {
        auto input = &array->inputs()[next++];
        if (!numbers_.count(input->id())) {
          path.emplace_back(input, 0);
        }
        continue;
      }
      if (!numbers_.count(array->id())) {
        add(*array);
      }
      path.pop_back();
    }
  }

  void add(const mx::array& array) {
    auto number = static_cast<int32_t>(flat_.primitive.size());
    if (array.has_primitive()) {
      auto& primitive = array.primitive();
      std::string_view name = primitive.name();
      flat_.primitive.push_back(primitives_.of(std::string(name)));
      flat_.arguments.push_back(texts_.of(arguments_of(primitive, name)));
      flat_.stream.push_back(primitive.stream().index);
      flat_.device.push_back(primitive.stream().device == mx::Device::gpu);
      if (auto compiled = dynamic_cast<const mx::Compiled*>(&primitive)) {
        std::vector<std::string> names;
        for (auto& inner : compiled->*open(FusedTape{})) {
          names.emplace_back(inner.primitive().name());
        }
        flat_.fused.emplace_back(number, std::move(names));
      }
    } else {
      flat_.primitive.push_back(0);
      flat_.arguments.push_back(0);
      flat_.stream.push_back(-1);
      flat_.device.push_back(0);
    }
    auto siblings = static_cast<int32_t>(array.siblings().size());
    for (auto& input : array.inputs()) {
      auto from = numbers_.at(input.id());
      flat_.inputs.push_back(from);
      references_[from] += 1 + siblings;  // each output has a list of its inputs (make_arrays)
    }
    flat_.input_start.push_back(static_cast<int32_t>(flat_.inputs.size()));
    auto position = array.sibling_position();
    for (int32_t i = 0; i <= siblings; i++) {
      add_output(i == position ? array : array.siblings()[i < position ? i : i - 1], number);
      references_.back() += siblings;  // each of the others holds it
    }
    flat_.output_start.push_back(static_cast<int32_t>(flat_.node.size()));
  }

  void add_output(const mx::array& array, int32_t node) {
    numbers_.emplace(array.id(), static_cast<int32_t>(flat_.node.size()));
    references_.push_back(0);
    flat_.arrays.push_back(&array);
    flat_.node.push_back(node);
    flat_.held.push_back(0);
    flat_.id.push_back(array.id());
    flat_.dtype.push_back(dtypes_.of(dtype_name(array.dtype())));
    flat_.nbytes.push_back(static_cast<int64_t>(array.nbytes()));
    flat_.status.push_back(static_cast<uint8_t>(array.status()));
    for (auto extent : array.shape()) {
      flat_.extents.push_back(extent);
    }
    flat_.shape_start.push_back(static_cast<int32_t>(flat_.extents.size()));
    bool evaluated = array.status() != mx::array::Status::unscheduled;
    auto data = evaluated ? array.data_shared_ptr().get() : nullptr;
    auto pointer = data ? data->buffer().ptr() : nullptr;
    flat_.buffer.push_back(reinterpret_cast<uint64_t>(pointer));
    flat_.buffer_bytes.push_back(
        !pointer             ? 0
            : data->is_owned() ? static_cast<int64_t>(mx::allocator::allocator().size(data->buffer()))
                               : static_cast<int64_t>(array.data_size() * array.itemsize()));
  }

  FlatGraph flat_;
  Texts primitives_, dtypes_, texts_;
  std::unordered_map<uint64_t, int32_t> numbers_;  // of arrays, by id
  std::vector<int32_t> references_;  // that the graph itself holds
};

}  // namespace bench
