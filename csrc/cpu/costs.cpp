// What the algorithms of a 3x3 convolution cost, and the choice between them.
#include "costs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "checks.h"
#include "operators.h"
#include "tables.h"

namespace sparse_dset {
namespace {

// What a unit of work costs, for the choice of an algorithm.
struct Costs {
  double indirect, winograd2, winograd4;  // a multiply-add
  double transform2, transform4;          // a channel of a tile, in and out
  double weight;                          // a packed weight, which every call reads once
};
Costs costs = {0.006, 0.0037, 0.0020, 3.7, 10.9, 0.17};  // nanoseconds, see ops/costs.py

}  // namespace

Derivation parse_algorithm(c10::string_view name) {
  if (name == "indirect") return Derivation::indirect;
  if (name == "winograd2") return Derivation::winograd2;
  if (name == "winograd4") return Derivation::winograd4;
  CHECK_ARGUMENT(false, "algorithm must be auto, indirect, winograd2 or winograd4, got ", std::string(name));
}

const char* name_of(Derivation algorithm) {
  if (algorithm == Derivation::winograd2) return "winograd2";
  return algorithm == Derivation::winograd4 ? "winograd4" : "indirect";
}

int tile_size(Derivation algorithm) { return algorithm == Derivation::winograd2 ? 2 : 4; }

Derivation choose(const at::Tensor& table, const std::optional<at::Tensor>& row_map,
                  int64_t in_channels, int64_t out_channels) {
  if (!row_map) return Derivation::indirect;
  const SiteCounts counts = counts_of(table, *row_map);
  const double products = double(in_channels) * out_channels;
  const double channels = double(in_channels + out_channels);
  const double indirect = products * (counts.pairs * costs.indirect + 9 * costs.weight);
  const double two = products * (16 * counts.tiles2 * costs.winograd2 + 16 * costs.weight) +
                     channels * counts.tiles2 * costs.transform2;
  const double four = products * (36 * counts.tiles4 * costs.winograd4 + 36 * costs.weight) +
                      channels * counts.tiles4 * costs.transform4;
  if (indirect <= std::min(two, four)) return Derivation::indirect;
  return two < four ? Derivation::winograd2 : Derivation::winograd4;
}

std::string chosen_algorithm(const at::Tensor& table, const std::optional<at::Tensor>& row_map,
                             int64_t in_channels, int64_t out_channels) {
  check_table(table);
  check_range("in_channels", in_channels, 1, std::numeric_limits<int32_t>::max());
  check_range("out_channels", out_channels, 1, std::numeric_limits<int32_t>::max());
  return name_of(choose(table, row_map, in_channels, out_channels));
}

void set_costs(at::ArrayRef<double> values) {
  CHECK_ARGUMENT(values.size() == 6, "6 costs are needed, got ", values.size());
  for (const double value : values)
    CHECK_ARGUMENT(std::isfinite(value) && value >= 0, "a cost must be finite and not below 0, got ", value);
  costs = {values[0], values[1], values[2], values[3], values[4], values[5]};
}

std::vector<double> get_costs() {
  return {costs.indirect,   costs.winograd2,  costs.winograd4,
          costs.transform2, costs.transform4, costs.weight};
}

}  // namespace sparse_dset
