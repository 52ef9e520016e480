// Runs a function that was exported from Python: @NAME@.mlxfn.
//
//   ./@NAME@ [INPUTS [OUTPUTS [FUNCTION]]]
//
//   INPUTS    @NAME@_inputs.safetensors: an array for each name below; or a .npy file, where the
//             function takes a single array
//   OUTPUTS   @NAME@_outputs.safetensors: written
//   FUNCTION  @NAME@.mlxfn
//
// Inputs have the shapes and dtypes that the function was exported with.
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "mlx/mlx.h"

namespace mx = mlx::core;

using Arrays = std::unordered_map<std::string, mx::array>;

// In the order that the function takes and gives them; keywords are given by name.
const std::vector<std::string> positional = {@POSITIONAL@};
const std::vector<std::string> keywords = {@KEYWORDS@};
const std::vector<std::string> results = {@RESULTS@};

Arrays load(const std::string& file) {
  if (file.size() > 4 && file.substr(file.size() - 4) == ".npy") {
    auto& name = positional.empty() ? keywords.at(0) : positional.at(0);
    return {{name, mx::load(file)}};
  }
  return mx::load_safetensors(file).first;
}

const mx::array& named(const Arrays& arrays, const std::string& name) {
  auto found = arrays.find(name);
  if (found == arrays.end()) {
    throw std::invalid_argument("the inputs hold no array called " + name);
  }
  return found->second;
}

std::vector<mx::array> call(const mx::ImportedFunction& function, const Arrays& inputs) {
  mx::Args args;
  for (auto& name : positional) {
    args.push_back(named(inputs, name));
  }
  mx::Kwargs kwargs;
  for (auto& name : keywords) {
    kwargs.insert({name, named(inputs, name)});
  }
  return function(args, kwargs);
}

int main(int argc, char** argv) {
  std::string inputs = argc > 1 ? argv[1] : "@NAME@_inputs.safetensors";
  std::string outputs = argc > 2 ? argv[2] : "@NAME@_outputs.safetensors";
  std::string file = argc > 3 ? argv[3] : "@NAME@.mlxfn";
  try {
    auto function = mx::import_function(file);
    auto arrays = call(function, load(inputs));
    mx::eval(arrays);  // until here nothing was computed

    Arrays named;
    for (size_t i = 0; i < arrays.size(); i++) {
      std::cout << results.at(i) << " " << arrays[i].dtype() << " " << arrays[i].shape() << "\n";
      named.insert({results.at(i), arrays[i]});
    }
    mx::save_safetensors(outputs, named);
  } catch (const std::exception& error) {
    std::cerr << argv[0] << ": " << error.what() << "\n";
    return 1;
  }
}
