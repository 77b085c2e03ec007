#pragma once

#include <cstdint>

#include "common/ceil_div.h"

namespace lamina {

// The shape of C and how its work is cut. There may be several products of one shape, the groups of
// a convolution.
struct GemmPlan {
  int64_t rows, columns, depth;
  int splits;           // of K
  int64_t split_depth;  // a multiple of every Math's depth
  int groups;

  int64_t partial_sums() const { return splits > 1 ? groups * splits * rows * columns : 0; }
};

// It depends on the shape alone, so that results don't change from one GPU to another.
inline GemmPlan plan_gemm(int64_t rows, int64_t columns, int64_t depth, int groups = 1) {
  constexpr int64_t tile = 128, wanted_blocks = 264, min_depth = 256, granule = 32;
  const int64_t tiles = groups * ceil_div(rows, tile) * ceil_div(columns, tile);
  int64_t splits = tiles ? wanted_blocks / tiles : 1;
  if (splits > depth / min_depth) splits = depth / min_depth;
  if (splits < 1) splits = 1;
  const int64_t split_depth = ceil_div(ceil_div(depth, splits), granule) * granule;
  if (split_depth) splits = ceil_div(depth, split_depth);
  return {rows, columns, depth, static_cast<int>(splits), split_depth, groups};
}

}  // namespace lamina
