#pragma once

#include "common/arena.h"
#include "common/parallel.h"
#include "common/workspace.h"
#include "gemm/micro_kernel.h"
#include "gemm/pack.h"
#include "gemm/prefetch.h"
#include "gemm/work.h"

// C[m, n] = A[m, k] * B[k, n], seen only through two operands (pack.h) and an epilogue:
//   void operator()(const T* tile, int64_t row, int rows, int64_t column, int columns) const
// called once for each micro-tile of finished sums, from any thread; element (i, j) of the tile is
// tile[i * tile_columns<T> + j]; nothing is said of what lies past `columns`.
//
// The sum of each element is taken in an order that depends on the shape alone: the same bits come
// out for any number of threads. It is one chain for each pass_depth <= blocking.depth steps of k:
// the shorter, the less is lost in rounding, and the more often sums are stored and loaded.

namespace lamina {
namespace LAMINA_ISA {
namespace {

template <class T, class A, class B, class Epilogue>
class Gemm {
 public:
  Gemm(int64_t m, int64_t n, int64_t k, const A& a, const B& b, const Epilogue& epilogue,
       const Parallel& parallel, int pass_depth)
      : m_(m),
        n_(n),
        k_(k),
        a_(a),
        b_(b),
        epilogue_(epilogue),
        parallel_(parallel),
        pass_depth_(pass_depth),
        rows_(m, R),
        column_panels_(ceil_div(n, C)) {}

  void run() {
    const int64_t items = ceil_div(rows_.panels, blocking.row_tiles) *
                          ceil_div(column_panels_, blocking.column_tiles);
    const int64_t splits = min64(max_splits, k_ / (2 * blocking.depth));
    if (items < min_items && splits > 1 && k_ >= 2 * m_ && k_ >= 2 * n_)
      run_split(splits);
    else
      run_shared();
  }

 private:
  static constexpr int R = tile_rows<T>;
  static constexpr int C = tile_columns<T>;
  static constexpr int64_t tile_elements = R * C;
  using Target = decltype(target_panel<T>(*static_cast<const Epilogue*>(nullptr), 0, 0, 0));
  static constexpr int64_t max_splits = 16;
  static constexpr int64_t min_items = 8;
  // What is fetched ahead of A may take so much of the L2.
  static constexpr int64_t fetched_bytes = 256 << 10;
  // Below this a second thread costs more than it brings.
  static constexpr double serial_work = 1e6;

  // A panel's elements; packing may spill over the end of a panel of A.
  static int64_t a_panel(int64_t depths) { return round_up(depths * R + lanes<T>, lanes<T>); }
  static int64_t b_panel(int64_t depths) { return depths * C; }

  int columns(int64_t panel) const { return static_cast<int>(min64(C, n_ - panel * C)); }

  int threads(int64_t items) const {
    if (static_cast<double>(m_) * n_ * (k_ + 16) < serial_work) return 1;
    return static_cast<int>(min64(parallel_.threads, items));
  }

  // Column panels of an item, where items are nothing but columns: enough items, and of the sizes
  // near that the one with which threads finish together.
  int64_t even_tiles() const {
    const int64_t threads = parallel_.threads;
    const int64_t most = min64(blocking.column_tiles, ceil_div(column_panels_, 4 * threads));
    int64_t best = most, shortest = column_panels_;
    for (int64_t tiles = most; 2 * tiles > most; --tiles) {
      const int64_t whole = column_panels_ / tiles, rest = column_panels_ % tiles;
      const int64_t longest = whole / threads * tiles + (whole % threads > 0 ? tiles : rest);
      if (longest < shortest) best = tiles, shortest = longest;
    }
    return best;
  }

  // `first_time` tells the operand's sums (packed) from mere repetitions.
  template <int WIDTH, class Operand>
  void pack(const Operand& operand, T* panel, int64_t first, int count, int64_t depth,
            int64_t depths, bool first_time) const {
    for (int64_t d = 0; d < depths; d += pass_depth_) {
      const int block = static_cast<int>(min64(pass_depth_, depths - d));
      if (WIDTH == R && in_place<T>(operand, first, count, depth + d, block, 0).data != nullptr)
        continue;
      operand.template pack<WIDTH>(panel + d * WIDTH, first, count, depth + d, block);
      if (first_time)
        operand.template packed<WIDTH>(panel + d * WIDTH, first, count, depth + d, block);
    }
  }

  // A block of B that need not be packed, or null: the micro-kernel reads whole vectors.
  InPlace<T> b_in_place(int64_t j, int64_t depth, int64_t depths) const {
    if (columns(j) < C) return {nullptr, 0, 0};
    const InPlace<T> panel = in_place<T>(b_, j * C, C, depth, static_cast<int>(depths), 0);
    return panel.row_stride == 1 ? panel : InPlace<T>{nullptr, 0, 0};
  }

  // What will be packed after this: of the panel that is so many further on, from this depth on;
  // or -1.
  struct Next {
    int64_t panels, depth;
  };
  // The panels of B of one pass: packed ones, `stride` apart, but for those of `direct` (unless
  // that is null) that have data, which are read as they lie.
  struct Panels {
    const T* first;
    int64_t stride;
    const InPlace<T>* direct;
    Next a, b;
    InPlace<T> panel(int64_t j) const {
      if (direct != nullptr && direct[j].data != nullptr) return direct[j];
      return {first + j * stride, 1, C};
    }
  };
  // A part of K: is it added to sums that there are, are they finished with it?
  struct Part {
    int64_t first, depths;
    bool accumulate, last;
  };
  // All micro-tiles of row panels [i0, i1) x column panels [j0, j1) over a part of K. The packed
  // panels of A lie at a; panels_of_b(d, depth) gives those of one pass. tile(i, j) is where sums
  // stay between passes.
  template <class PanelsOfB, class Sums, class Finished>
  void compute(int64_t i0, int64_t i1, int64_t j0, int64_t j1, const T* a,
               const PanelsOfB& panels_of_b, const Part& part, const Sums& tile,
               const Finished& finished) const {
    const int rows = static_cast<int>(i1 - i0), columns = static_cast<int>(j1 - j0);
    Target targets[blocking.column_tiles];
    for (int64_t d = 0; d == 0 || d < part.depths; d += pass_depth_) {
      const int64_t depth = min64(pass_depth_, part.depths - d);
      const bool last = d + pass_depth_ >= part.depths;
      const Panels b = panels_of_b(d, depth);
      if (last && part.last)
        for (int j = 0; j < columns; ++j)
          targets[j] = target_panel<T>(epilogue_, (j0 + j) * C, this->columns(j0 + j), 0);
      const int64_t share = ceil_div(depth, rows);
      const Shares a_shares(b.a, pass_depth_, k_, columns), b_shares(b.b, pass_depth_, k_, rows);
      int i = 0, j = 0;
      for (int t = 0; t < rows * columns; ++t) {
        const int64_t row_panel = i0 + i, column_panel = j0 + j;
        const InPlace<T> panel_b = b.panel(j);
        if (!blocking.columns_inner && j + 1 < columns)
          prefetch_panel(b.panel(j + 1), i * share, min64(depth, (i + 1) * share));
        if (b_shares.any(i)) prefetch_columns(column_panel + b.b.panels, b_shares, i);
        if (a_shares.any(j)) prefetch_rows(row_panel + b.a.panels, a_shares, j);
        if (last)
          prefetch_target(epilogue_, rows_.first(row_panel), rows_.count(row_panel),
                          column_panel * C, 0);
        const bool put = last && part.last && targets[j].data != nullptr;
        T* const sums = tile(row_panel, column_panel);
        multiply(
            row_panel, column_panel, part.first + d, depth, a + i * a_panel(part.depths) + d * R,
            panel_b,
            {sums, part.accumulate || d > 0, put ? &targets[j] : nullptr, rows_.first(row_panel)});
        if (last && !put) finished(sums, row_panel, column_panel);
        int& inner = blocking.columns_inner ? j : i;
        int& outer = blocking.columns_inner ? i : j;
        if (++inner == (blocking.columns_inner ? columns : rows)) inner = 0, ++outer;
      }
    }
  }

  void multiply(int64_t i, int64_t j, int64_t k, int64_t depth, const T* a, const InPlace<T>& b,
                const Output<T, Target>& output) const {
    const int rows = rows_.count(i), columns = this->columns(j);
    InPlace<T> panel = in_place<T>(a_, rows_.first(i), rows, k, static_cast<int>(depth), 0);
    if (panel.data == nullptr) panel = {a, 1, R};
    if (panel.row_stride == 1)
      find_micro_kernel<T, Target>(rows, columns)(depth, panel.data, panel.depth_stride, b.data,
                                                  b.depth_stride, output);
    else
      find_micro_kernel_by_row<T, Target>(rows, columns)(depth, panel.data, panel.row_stride,
                                                         b.data, b.depth_stride, output);
  }

  static void prefetch_panel(const InPlace<T>& b, int64_t first, int64_t past) {
    for (int64_t d = first; d < past; ++d)
      for (int64_t e = 0; e < C; e += 64 / static_cast<int64_t>(sizeof(T)))
        __builtin_prefetch(b.data + d * b.depth_stride + e);
  }
  // While the sums of a tile run, one of so many shares of what a panel will be packed from.
  struct Shares {
    int64_t depth, depths, each;
    Shares(const Next& next, int64_t pass_depth, int64_t k, int shares)
        : depth(next.depth),
          depths(depth < 0 ? 0 : min64(pass_depth, k - depth)),
          each(ceil_div(depths, shares)) {}
    bool any(int share) const { return share * each < depths; }
    int64_t first(int share) const { return depth + share * each; }
    int count(int share) const { return static_cast<int>(min64(each, depths - share * each)); }
  };
  void prefetch_columns(int64_t panel, const Shares& of, int share) const {
    if (panel >= column_panels_) return;
    prefetch_source<C>(b_, panel * C, columns(panel), of.first(share), of.count(share), 0);
  }
  void prefetch_rows(int64_t panel, const Shares& of, int share) const {
    if (panel >= rows_.panels) return;
    prefetch_source<R>(a_, rows_.first(panel), rows_.count(panel), of.first(share), of.count(share),
                       0);
  }
  void emit(const T* tile, int64_t i, int64_t j) const {
    epilogue_(tile, rows_.first(i), rows_.count(i), j * C, columns(j));
  }

  // Threads share packed panels: for each chunk of K and each range of columns, all of B is packed
  // first, then blocks of rows follow, each packed by whoever is free and used by all. With one
  // block of rows no panel of B is used twice: each work item packs its own, pass by pass, and uses
  // them while they are in its L2.
  void run_shared() {
    const int64_t chunks = k_ > 0 ? ceil_div(k_, chunk_depth) : 1;
    // At least one pass, also without any depth: then the sums are zeros for the epilogue.
    const int64_t chunk = k_ > 0 ? round_up(ceil_div(k_, chunks), pass_depth_) : pass_depth_;
    const bool own_b = rows_.panels <= 2 * blocking.row_tiles;
    const int64_t block =
        own_b ? rows_.panels : ceil_div(rows_.panels, ceil_div(rows_.panels, blocking.row_tiles));
    const int64_t row_blocks = ceil_div(rows_.panels, block);
    const int64_t column_tiles = own_b ? even_tiles() : blocking.column_tiles;
    const int64_t panel_bytes = b_panel(chunk) * static_cast<int64_t>(sizeof(T));
    int64_t range = round_up(ceil_div(packed_bytes, panel_bytes), column_tiles);
    range = own_b ? column_panels_ : ceil_div(column_panels_, ceil_div(column_panels_, range));
    const int64_t column_blocks = ceil_div(range, column_tiles);

    const int workers = threads(row_blocks * column_blocks);
    const int64_t slots = min64(row_blocks, 2 + workers / column_blocks);
    const int64_t b_elements =
        own_b ? workers * column_tiles * b_panel(pass_depth_) : range * b_panel(chunk);
    // Rows are packed so many blocks after these, and wait in the L2.
    const int64_t blocks_ahead = workers / column_blocks > 1 ? workers / column_blocks : 1;
    const bool fetch_a = block * a_panel(chunk) * static_cast<int64_t>(sizeof(T)) <= fetched_bytes;
    const bool keep_all = chunks > 1;
    const bool keep_block = chunk > pass_depth_;
    const int64_t block_tiles = keep_block ? block * column_tiles : 1;
    const int64_t all_tiles = keep_all ? rows_.panels * column_panels_ : 0;

    Arena arena{static_cast<char*>(
        workspace(Arena::bytes<int64_t>(2 + 2 * row_blocks) + Arena::bytes<T>(b_elements) +
                  Arena::bytes<T>(slots * block * a_panel(chunk)) +
                  Arena::bytes<T>(workers * block_tiles * tile_elements) +
                  Arena::bytes<T>(all_tiles * tile_elements)))};
    int64_t* const counters = arena.take<int64_t>(2 + 2 * row_blocks);
    T* const packed_b = arena.take<T>(b_elements);
    T* const packed_a = arena.take<T>(slots * block * a_panel(chunk));
    T* const scratch = arena.take<T>(workers * block_tiles * tile_elements);
    T* const sums = arena.take<T>(all_tiles * tile_elements);

    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t k0 = c * chunk;
      const int64_t depths = min64(chunk, k_ - k0);
      const bool last_chunk = c == chunks - 1;
      for (int64_t j0 = 0; j0 < column_panels_; j0 += range) {
        const int64_t j1 = min64(j0 + range, column_panels_);
        const int64_t blocks_here = ceil_div(j1 - j0, column_tiles);
        const int64_t items_per_block = block + blocks_here;
        const int64_t b_items = own_b ? 0 : j1 - j0;
        const int64_t items = b_items + row_blocks * items_per_block;
        int64_t *next = counters, *b_ready = counters + 1;
        int64_t *a_ready = counters + 2, *done = a_ready + row_blocks;
        for (int64_t i = 0; i < 2 + 2 * row_blocks; ++i) counters[i] = 0;

        const auto work = [&](int worker) {
          T* const own_tiles = scratch + worker * block_tiles * tile_elements;
          InPlace<T> direct[blocking.column_tiles];
          for (int64_t item; (item = claim(next)) < items;) {
            if (item < b_items) {
              const int64_t j = j0 + item;
              pack<C>(b_, packed_b + item * b_panel(depths), j * C, columns(j), k0, depths, true);
              finish(b_ready);
              continue;
            }
            const int64_t row_block = (item - b_items) / items_per_block;
            const int64_t part = (item - b_items) % items_per_block;
            const int64_t i0 = row_block * block, i1 = min64(i0 + block, rows_.panels);
            T* const a = packed_a + row_block % slots * block * a_panel(chunk);
            if (part < block) {
              const int64_t i = i0 + part;
              if (row_block >= slots) wait_for(done + row_block - slots, blocks_here);
              if (i < i1) {
                T* const panel = a + part * a_panel(depths);
                pack<R>(a_, panel, rows_.first(i), rows_.count(i), k0, depths, j0 == 0);
              }
              finish(a_ready + row_block);
              continue;
            }
            const int64_t jb = j0 + (part - block) * column_tiles;
            const int64_t je = min64(jb + column_tiles, j1);
            wait_for(b_ready, b_items);
            wait_for(a_ready + row_block, block);
            const auto tile = [&](int64_t i, int64_t j) {
              if (keep_all) return sums + (j * rows_.panels + i) * tile_elements;
              return own_tiles + (keep_block ? ((j - jb) * block + (i - i0)) * tile_elements : 0);
            };
            const auto finished = [&](const T* sum, int64_t i, int64_t j) {
              if (last_chunk) emit(sum, i, j);
            };
            const auto panels_of_b = [&](int64_t d, int64_t depth) -> Panels {
              if (!own_b)
                return {packed_b + (jb - j0) * b_panel(depths) + d * C,
                        b_panel(depths),
                        nullptr,
                        {blocks_ahead * block, fetch_a ? k0 + d : -1},
                        {0, -1}};
              T* const own = packed_b + worker * column_tiles * b_panel(pass_depth_);
              for (int64_t j = jb; j < je; ++j) {
                direct[j - jb] = b_in_place(j, k0 + d, depth);
                if (direct[j - jb].data == nullptr)
                  pack<C>(b_, own + (j - jb) * b_panel(depth), j * C, this->columns(j), k0 + d,
                          depth, true);
              }
              const Next next =
                  d + depth < depths ? Next{0, k0 + d + depth} : Next{workers * column_tiles, k0};
              return {own, b_panel(depth), direct, {0, -1}, next};
            };
            compute(i0, i1, jb, je, a, panels_of_b, {k0, depths, k0 > 0, last_chunk}, tile,
                    finished);
            finish(done + row_block);
          }
        };
        if (workers == 1)
          work(0);
        else
          parallel_for(parallel_, workers, work);
      }
    }
  }

  // C is too small to go round: K is split into a number of parts that depends on the shape only.
  // Each is summed alone, and a second stage adds them up in order.
  void run_split(int64_t splits) {
    const int64_t part = round_up(ceil_div(k_, splits), pass_depth_);
    splits = ceil_div(k_, part);
    const int64_t chunk = pass_depth_;
    const int64_t tiles = rows_.panels * column_panels_;
    const int64_t a_elements = rows_.panels * a_panel(chunk);
    const int64_t b_elements = column_panels_ * b_panel(chunk);
    const int workers = threads(splits);

    Arena arena{static_cast<char*>(workspace(
        Arena::bytes<int64_t>(2) + Arena::bytes<T>(workers * a_elements) +
        Arena::bytes<T>(workers * b_elements) + Arena::bytes<T>(splits * tiles * tile_elements)))};
    int64_t* const next = arena.take<int64_t>(2);
    T* const packed_a = arena.take<T>(workers * a_elements);
    T* const packed_b = arena.take<T>(workers * b_elements);
    T* const sums = arena.take<T>(splits * tiles * tile_elements);
    next[0] = next[1] = 0;

    const auto sum_part = [&](int worker) {
      T* const a = packed_a + worker * a_elements;
      T* const b = packed_b + worker * b_elements;
      for (int64_t split; (split = claim(next)) < splits;) {
        const int64_t end = min64(k_, (split + 1) * part);
        for (int64_t k0 = split * part; k0 < end; k0 += chunk) {
          const int64_t depths = min64(chunk, end - k0);
          for (int64_t j = 0; j < column_panels_; ++j)
            pack<C>(b_, b + j * b_panel(depths), j * C, columns(j), k0, depths, true);
          for (int64_t i = 0; i < rows_.panels; ++i) {
            pack<R>(a_, a + i * a_panel(depths), rows_.first(i), rows_.count(i), k0, depths, true);
          }
          const auto tile = [&](int64_t i, int64_t j) {
            return sums + (split * tiles + j * rows_.panels + i) * tile_elements;
          };
          const auto panels_of_b = [&](int64_t, int64_t) -> Panels {
            const Next next{0, k0 + chunk < k_ ? k0 + chunk : -1};
            return {b, b_panel(depths), nullptr, next, next};
          };
          compute(0, rows_.panels, 0, column_panels_, a, panels_of_b,
                  {k0, depths, k0 > split * part, false}, tile, [](const T*, int64_t, int64_t) {});
        }
      }
    };
    const auto add_parts = [&](int) {
      for (int64_t t; (t = claim(next + 1)) < tiles;) {
        T* const sum = sums + t * tile_elements;
        for (int64_t split = 1; split < splits; ++split) {
          const T* const other = sum + split * tiles * tile_elements;
          for (int64_t e = 0; e < tile_elements; e += lanes<T>)
            store(sum + e, load(sum + e) + load(other + e));
        }
        emit(sum, t % rows_.panels, t / rows_.panels);
      }
    };
    if (workers == 1) {
      sum_part(0);
      add_parts(0);
    } else {
      parallel_for(parallel_, workers, sum_part);
      parallel_for(parallel_, workers, add_parts);
    }
  }

  const int64_t m_, n_, k_;
  const A& a_;
  const B& b_;
  const Epilogue& epilogue_;
  const Parallel& parallel_;
  const int64_t pass_depth_;
  const RowPanels rows_;
  const int64_t column_panels_;
};

template <class T, class A, class B, class Epilogue>
void gemm(int64_t m, int64_t n, int64_t k, const A& a, const B& b, const Epilogue& epilogue,
          const Parallel& parallel, int pass_depth = blocking.depth) {
  if (m > 0 && n > 0) Gemm<T, A, B, Epilogue>(m, n, k, a, b, epilogue, parallel, pass_depth).run();
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina
