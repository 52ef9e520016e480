// What MLX's primitives tell of their arguments, as text: "axis=1, reverse=true".
#pragma once

#include <array>
#include <functional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "mlx/distributed/primitives.h"
#include "mlx/fast_primitives.h"
#include "mlx/primitives.h"

namespace bench {

namespace mx = mlx::core;

// Standard C++ lets an explicit instantiation name private members: the only way to those for
// which MLX has no accessor.
template <auto Member, typename Key>
struct Opened {
  friend auto open(Key) {
    return Member;
  }
};

struct SendTo {
  friend auto open(SendTo);
};
struct ReceiveFrom {
  friend auto open(ReceiveFrom);
};
struct FusedTape {
  friend auto open(FusedTape);
};
struct Descriptor {
  friend auto open(Descriptor);
};
template struct Opened<&mx::distributed::Send::dst_, SendTo>;
template struct Opened<&mx::distributed::Recv::src_, ReceiveFrom>;
template struct Opened<&mx::Compiled::tape_, FusedTape>;
template struct Opened<&mx::array::array_desc_, Descriptor>;

// MLX keeps its own to itself.
inline const char* dtype_name(mx::Dtype dtype) {
  constexpr const char* names[] = {
      "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16",
      "int32", "int64", "float16", "float32", "float64", "bfloat16", "complex64"};
  return names[static_cast<int>(dtype.val())];
}

template <typename T>
void write(std::string& text, const T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    text += value ? "true" : "false";
  } else if constexpr (std::is_same_v<T, mx::Dtype>) {
    text += dtype_name(value);
  } else if constexpr (std::is_enum_v<T>) {
    text += std::to_string(static_cast<int>(value));
  } else if constexpr (std::is_floating_point_v<T>) {
    char buffer[32];
    snprintf(buffer, sizeof(buffer), "%g", static_cast<double>(value));
    text += buffer;
  } else if constexpr (std::is_integral_v<T>) {
    text += std::to_string(value);
  } else if constexpr (requires { value.begin(); }) {
    text += '[';
    const char* between = "";
    for (const auto& each : value) {
      text += between;
      write(text, each);
      between = ", ";
    }
    text += ']';
  } else {
    text += '?';  // an optional or a null pointer: nothing that can be said in a word
  }
}

constexpr const char* REDUCTIONS[] = {"and", "or", "sum", "prod", "min", "max"};
constexpr const char* SCANS[] = {"max", "min", "sum", "prod", "logaddexp"};
constexpr const char* SCATTERS[] = {"max", "min", "sum", "prod", "none"};
constexpr const char* BITWISE[] = {"and", "or", "xor", "left shift", "right shift"};

// A part of a primitive's state with the name that MLX's Python functions have for it; "" leaves
// it out. `words` say what an enumeration means.
struct Argument {
  const char* name;
  const char* const* words = nullptr;
};

template <typename T>
void add(std::string& text, const Argument& argument, const T& value) {
  if (*argument.name == '\0') {
    return;
  }
  text += text.empty() ? "" : ", ";
  text += argument.name;
  text += '=';
  if constexpr (std::is_enum_v<T>) {
    if (argument.words) {
      text += argument.words[static_cast<int>(value)];
      return;
    }
  }
  write(text, value);
}

template <typename State, size_t N>
std::string describe(const State& state, const std::array<Argument, N>& arguments) {
  std::string text;
  if constexpr (requires { std::tuple_size<State>::value; }) {
    static_assert(std::tuple_size_v<State> == N);
    [&]<size_t... I>(std::index_sequence<I...>) {
      (add(text, arguments[I], std::get<I>(state)), ...);
    }(std::make_index_sequence<N>{});
  } else {
    add(text, arguments[0], state);
  }
  return text;
}

using Describe = std::function<std::string(const mx::Primitive&)>;

// By name and not by type: the types' identities are hidden in MLX's library.
template <typename P, typename... Arguments>
std::pair<std::string, Describe> known(const char* name, Arguments... arguments) {
  std::array<Argument, sizeof...(Arguments)> all{arguments...};
  return {name, [all](const mx::Primitive& primitive) {
            return describe(static_cast<const P&>(primitive).state(), all);
          }};
}

inline const std::unordered_map<std::string_view, Describe>& descriptions() {
  using A = Argument;
  static const std::vector<std::pair<std::string, Describe>> all = {
      known<mx::AddMM>("AddMM", A{"alpha"}, A{"beta"}),
      known<mx::Arange>("Arange", A{"start"}, A{"stop"}, A{"step"}),
      known<mx::ArgPartition>("ArgPartition", A{"kth"}, A{"axis"}),
      known<mx::ArgSort>("ArgSort", A{"axis"}),
      known<mx::AsType>("AsType", A{"dtype"}),
      known<mx::AsStrided>("AsStrided", A{"shape"}, A{"strides"}, A{"offset"}),
      known<mx::BitwiseBinary>("BitwiseBinary", A{"op", BITWISE}),
      known<mx::BlockMaskedMM>("BlockMaskedMM", A{"block_size"}),
      known<mx::GatherMM>("GatherMM", A{"left_sorted"}, A{"right_sorted"}),
      known<mx::Broadcast>("Broadcast", A{"shape"}),
      known<mx::Concatenate>("Concatenate", A{"axis"}),
      known<mx::Convolution>(
          "Convolution", A{"stride"}, A{"padding_low"}, A{"padding_high"}, A{"kernel_dilation"},
          A{"input_dilation"}, A{"groups"}, A{"flip"}),
      known<mx::ExpandDims>("ExpandDims", A{"axes"}),
      known<mx::FFT>("FFT", A{"axes"}, A{"inverse"}, A{"real"}, A{""}),
      known<mx::Flatten>("Flatten", A{"start_axis"}, A{"end_axis"}),
      known<mx::Gather>("Gather", A{"axes"}, A{"slice_sizes"}),
      known<mx::GatherAxis>("GatherAxis", A{"axis"}),
      known<mx::Hadamard>("Hadamard", A{"scale"}),
      known<mx::Pad>("Pad", A{"axes"}, A{"low"}, A{"high"}),
      known<mx::Partition>("Partition", A{"kth"}, A{"axis"}),
      known<mx::QuantizedMatmul>(
          "QuantizedMatmul", A{"group_size"}, A{"bits"}, A{""}, A{"transpose"}),
      known<mx::GatherQMM>(
          "GatherQMM", A{"group_size"}, A{"bits"}, A{""}, A{"transpose"}, A{"left_sorted"},
          A{"right_sorted"}),
      known<mx::RandomBits>("RandomBits", A{"shape"}, A{"width"}),
      known<mx::Reshape>("Reshape", A{"shape"}),
      known<mx::Scan>("Scan", A{"op", SCANS}, A{"axis"}, A{"reverse"}, A{"inclusive"}),
      known<mx::Scatter>("Scatter", A{"op", SCATTERS}, A{"axes"}),
      known<mx::ScatterAxis>("ScatterAxis", A{""}, A{"axis"}),
      known<mx::Slice>("Slice", A{"start"}, A{"end"}, A{"strides"}),
      known<mx::SliceUpdate>("SliceUpdate", A{""}, A{"start"}, A{"end"}, A{"strides"}),
      known<mx::DynamicSlice>("DynamicSlice", A{"axes"}, A{"size"}),
      known<mx::DynamicSliceUpdate>("DynamicSliceUpdate", A{"axes"}),
      known<mx::Softmax>("Softmax", A{"precise"}),
      known<mx::Sort>("Sort", A{"axis"}),
      known<mx::Split>("Split", A{"indices"}, A{"axis"}),
      known<mx::Squeeze>("Squeeze", A{"axes"}),
      known<mx::Transpose>("Transpose", A{"axes"}),
      known<mx::Unflatten>("Unflatten", A{"axis"}, A{"shape"}),
      known<mx::View>("View", A{"dtype"}),
  };
  static const std::unordered_map<std::string_view, Describe> by_name(all.begin(), all.end());
  return by_name;
}

// The arguments of a primitive, "" where MLX does not tell.
inline std::string arguments_of(const mx::Primitive& primitive, std::string_view name) {
  namespace dist = mx::distributed;
  if (name.ends_with("AllReduce") || name == "AllGather" || name.ends_with("ReduceScatter")) {
    auto& group = static_cast<const dist::DistPrimitive&>(primitive).group();
    return "ranks=" + std::to_string(group.size());
  }
  if (name == "Send") {
    return "to=" + std::to_string(static_cast<const dist::Send&>(primitive).*open(SendTo{}));
  }
  if (name == "Recv") {
    return "from=" + std::to_string(static_cast<const dist::Recv&>(primitive).*open(ReceiveFrom{}));
  }
  if (auto reduce = dynamic_cast<const mx::Reduce*>(&primitive)) {
    return describe(reduce->state(), std::array{Argument{""}, Argument{"axes"}});
  }
  if (auto reduce = dynamic_cast<const mx::ArgReduce*>(&primitive)) {
    return describe(reduce->state(), std::array{Argument{""}, Argument{"axis"}});
  }
  auto found = descriptions().find(name);
  return found == descriptions().end() ? "" : found->second(primitive);
}

}  // namespace bench
