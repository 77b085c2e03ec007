#pragma once

#include "common/vec.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// A micro-tile is tile_rows rows of tile_vectors vectors: as many accumulators as the registers
// hold beside a row of B and one broadcast element of A. Its columns are a multiple of 8, so that
// no byte of a 1-bit mask is shared between tiles.
template <class T>
constexpr int tile_vectors = 8 / lanes<T> > 2 ? 8 / lanes<T> : 2;
#if defined(__AVX512F__)
template <class T>
constexpr int tile_rows = 14;
#elif defined(__AVX2__)
template <class T>
constexpr int tile_rows = 6;
#else
template <class T>
constexpr int tile_rows = 8 / tile_vectors<T>;
#endif
template <class T>
constexpr int tile_columns = tile_vectors<T> * lanes<T>;

// One pass of the micro-kernel goes `depth` deep. A block of C of row_tiles x column_tiles
// micro-tiles is one work item. Inside it either the rows are the inner loop, with a panel of B
// staying in the L1, or the columns are, with a panel of A staying there: the smaller of the two
// panels should. Up to unpacked_rows rows nothing is packed (dot.h), in the backward pass up to
// unpacked_gradient_rows (few_rows.h): beyond, packing pays for itself.
struct Blocking {
  int depth;         // KC
  int row_tiles;     // MC / tile_rows
  int column_tiles;  // the columns of a work item / tile_columns
  bool columns_inner;
  int unpacked_rows;
  int unpacked_gradient_rows;
};
#if defined(__AVX512F__)
constexpr Blocking blocking = {256, 10, 8, true, 32, 32};
#elif defined(__AVX2__)
constexpr Blocking blocking = {256, 24, 16, false, 24, 16};
#else
constexpr Blocking blocking = {256, 24, 16, false, 24, 16};
#endif

// Packed B is at most this large, and K is cut into chunks of at most chunk_depth.
constexpr int64_t packed_bytes = 8 << 20;
constexpr int64_t chunk_depth = 4096;

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina
