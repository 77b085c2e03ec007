#include "dynamic_routing/dynamic_routing_kernels.h"
#include "dynamic_routing/routing_step.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// The gradients of the votes of a few in-capsules, for all tiles of a group: in the L2.
constexpr int64_t block_bytes = 320 << 10;
// Couplings kept between the passes; more where the weight itself is larger.
constexpr int64_t kept_bytes = 24 << 20;

// First the passes t = iterations - 1 .. stop, each of which needs the R of the one before. They
// keep c and beta of every (sample, in-capsule, out-capsule), so that the last pass gets by without
// votes: X_ij = sum_t c^t sbar^t_j + beta^t v^t_j (the scale is in v), and one task owns an
// in-capsule's grad_u and grad_weight for all samples of the group.
template <class T, class P>
class Backward : RoutingStep<T, P> {
  using Step = RoutingStep<T, P>;
  using Step::D, Step::E, Step::I, Step::in_, Step::O, Step::S, Step::votes_dim_;

  // One product of X: coefficients (a slot of kept_), vectors [tile, O, votes_dim], the same in the
  // out-capsules' own space, and for a shared weight sum_i coefficient_ij u_i.
  struct Term {
    int slot;
    const T *vectors, *own, *weighted_u;
  };

 public:
  Backward(const RoutingBackward& args, Arena arena, int threads)
      : Step(args.inputs, threads, slots(args), kept_limit(args.inputs), 3),
        args_(args),
        steps_(steps(args)),
        first_(first(args)),
        stop_(stop(args)),
        slots_(slots(args)),
        own_(O * E * S) {
    const int64_t tiles = Step::group_tiles_, sums = Step::sums();
    Step::lay_out(arena);
    arena.take(s_, steps_ * tiles * own_);
    arena.take(own_v_, steps_ * tiles * own_);
    arena.take(own_sbar_, steps_ * tiles * own_);
    arena.take(rest_, tiles * own_);
    arena.take(step_, tiles * E * S);
    arena.take(base_, tiles * sums);
    arena.take(delta_, tiles * O * S);
    arena.take(kept_, tiles * I * slots_ * O * S);
    arena.take(terms_, 2 * steps_ + 1);
    if (in_.shared) {
      arena.take(v_, steps_ * tiles * sums);
      arena.take(sbar_, steps_ * tiles * sums);
      arena.take(coupled_, Step::chunks_ * tiles * sums);
      arena.take(weighted_u_, (2 * steps_ + 1) * tiles * sums);
    } else {
      v_ = own_v_;
      sbar_ = own_sbar_;
      arena.take(x_, Step::tasks_ * block() * tiles * own_);
      arena.take(w_, Step::tasks_ * block() * O * E * D);
    }
    used = arena.used;
  }

  void run(const Parallel& parallel) {
    for (int64_t group = 0; group < Step::groups_; ++group) {
      Step::start_group(group);
      add_ = group > 0;
      list_terms();
      Step::pack_u(parallel);
      parallel_for(parallel, int(Step::tiles_), [&](int tile) { start(tile); });
      for (int t = steps_ - 1; t >= stop_; --t) {
        if (in_.over_in) Step::find_stats(parallel, v_ + at(t, Step::sums()));
        Step::for_chunks(parallel, [&](int task, int64_t chunk) { attend(task, chunk, t); });
        parallel_for(parallel, int(Step::tiles_), [&](int tile) { finish(t, tile); });
      }
      if (args_.grad_bias != nullptr) sum_grad_bias();
      if (args_.grad_u == nullptr && args_.grad_weight == nullptr && args_.grad_prior == nullptr)
        continue;
      parallel_for(parallel, int(Step::tasks_), [&](int task) {
        const int64_t begin = I * task / Step::tasks_, end = I * (task + 1) / Step::tasks_;
        if (args_.grad_prior != nullptr)
          for (int64_t i = begin; i < end; ++i) sum_grad_prior(i);
        if (in_.shared)
          shared_grad_u(begin, end);
        else
          for (int64_t i = begin; i < end; i += block())
            differentiate(task, i, min(i + block(), end));
      });
      if (in_.shared && args_.grad_weight != nullptr)
        parallel_for(parallel, int(O), [&](int j) { shared_grad_weight(j); });
    }
  }

  size_t used;

 private:
  // A routing pass is one step with a given v.
  static bool is_pass(const RoutingBackward& args) { return args.iterations == 0; }
  static int steps(const RoutingBackward& args) { return is_pass(args) ? 1 : args.iterations; }
  // The step at which couplings begin to differ from one another.
  static int first(const RoutingBackward& args) {
    const RoutingInputs& in = args.inputs;
    return in.prior == nullptr && in.mask == nullptr && args.v == nullptr ? 1 : 0;
  }
  static int stop(const RoutingBackward& args) {
    const bool last_only =
        args.detach_votes && args.grad_bias == nullptr && args.grad_prior == nullptr;
    return int(max(first(args), last_only ? steps(args) - 1 : 0));
  }
  static int slots(const RoutingBackward& args) {
    return int(max(2 * (steps(args) - stop(args)), 0));
  }
  static int64_t kept_limit(const RoutingInputs& in) {
    const int64_t size = in.f64 ? 8 : 4;
    return max(kept_bytes,
               (in.shared ? 1 : in.in_capsules) * in.out_capsules * in.out_dim * in.in_dim * size);
  }
  int64_t block() const {
    return max(min(block_bytes / max(Step::group_tiles_ * own_ * int64_t(sizeof(T)), 1), I), 1);
  }
  int64_t at(int64_t t, int64_t tile_numbers) const {
    return t * Step::group_tiles_ * tile_numbers;
  }
  T* kept(int64_t tile, int64_t i, int slot) const {
    return kept_ + ((tile * I + i) * slots_ + slot) * O * S;
  }
  int slot(int t) const { return 2 * (t - stop_); }
  bool votes_vary(int t) const { return !args_.detach_votes || t + 1 == steps_; }

  // Step 0 has all couplings equal and a part in X.
  bool starts_alike() const { return first_ == 1 && votes_vary(0); }

  void list_terms() {
    const int64_t sums = Step::sums();
    term_count_ = 0;
    for (int t = stop_; t < steps_; ++t) {
      if (!votes_vary(t)) continue;
      const T* weighted_u = weighted_u_ + at(2 * t, sums);
      terms_[term_count_++] = {slot(t), sbar_ + at(t, sums), own_sbar_ + at(t, own_), weighted_u};
      if (args_.detach_votes || (t == 0 && !is_pass(args_))) continue;
      terms_[term_count_++] = {slot(t) + 1, v_ + at(t, sums), own_v_ + at(t, own_),
                               weighted_u + at(1, sums)};
    }
  }

  P load_tensor(const void* tensor, int64_t tile, int64_t j, int64_t e) const {
    const T* p = static_cast<const T*>(tensor) + (Step::sample(tile) * O + j) * E + e;
    return P::gather(p, O * E, Step::count(tile));
  }

  // Everything that s alone determines, and the last step's sbar.
  void start(int64_t tile) {
    Step::clear(rest_ + tile * own_, own_);
    Step::clear(base_ + tile * Step::sums(), Step::sums());
    const int64_t tensor = in_.batch * O * E;
    for (int64_t j = 0; j < O; ++j) {
      T *v = nullptr, *before = nullptr;
      for (int t = 0; t < steps_; ++t) {
        T* s = s_ + at(t, own_) + tile * own_ + j * E * S;
        for (int64_t e = 0; e < E; ++e)
          load_tensor(static_cast<const T*>(args_.s) + t * tensor, tile, j, e).store(s + e * S);
        v = own_v_ + at(t, own_) + tile * own_ + j * E * S;
        if (t == 0) {
          for (int64_t e = 0; e < E; ++e)
            (args_.v == nullptr ? P::fill(T(0)) : T(in_.scale) * load_tensor(args_.v, tile, j, e))
                .store(v + e * S);
        } else {
          const T* s_before = s - at(1, own_);
          P f, h;
          Step::squash_of(args_.squash, args_.eps, Step::dot(s_before, s_before, E), f, h);
          for (int64_t e = 0; e < E; ++e) {
            const P more = T(in_.scale) * (f * P::load(s_before + e * S));
            (args_.accumulate ? P::load(before + e * S) + more : more).store(v + e * S);
          }
        }
        if (in_.shared)
          Step::to_vote_space(j, v, v_ + at(t, Step::sums()) + (tile * O + j) * votes_dim_ * S);
        before = v;
      }
      T* grad = step_ + tile * E * S;
      for (int64_t e = 0; e < E; ++e) load_tensor(args_.grad, tile, j, e).store(grad + e * S);
      enter(steps_ - 1, tile, j, grad);
    }
    if (in_.shared && starts_alike()) weigh_u_alike(tile);
  }

  // sbar of step t from the gradient of its v.
  void enter(int t, int64_t tile, int64_t j, const T* grad) {
    const int64_t own_at = at(t, own_) + tile * own_ + j * E * S;
    const T* s = s_ + own_at;
    T* sbar = own_sbar_ + own_at;
    P f = P::fill(T(1)), h = P::fill(T(0));
    if (!is_pass(args_)) Step::squash_of(args_.squash, args_.eps, Step::dot(s, s, E), f, h);
    const P along = h * Step::dot(s, grad, E);
    P delta = P::fill(T(0));
    for (int64_t e = 0; e < E; ++e) {
      const P y = f * P::load(grad + e * S) + along * P::load(s + e * S);
      y.store(sbar + e * S);
      const T bias = args_.bias == nullptr ? T(0) : static_cast<const T*>(args_.bias)[j * E + e];
      delta += (P::load(s + e * S) - P::fill(bias)) * y;
    }
    delta.store(delta_ + (tile * O + j) * S);
    T* votes = sbar_ + at(t, Step::sums()) + (tile * O + j) * votes_dim_ * S;
    if (in_.shared) Step::to_vote_space(j, sbar, votes);
    if (t != 0 || !starts_alike()) return;
    T* base = base_ + (tile * O + j) * votes_dim_ * S;
    for (int64_t e = 0; e < votes_dim_; ++e)
      (Step::uniform_coupling() * P::load(votes + e * S)).store(base + e * S);
  }

  void attend(int task, int64_t chunk, int t) {
    Step::clear(Step::partial(chunk, 0), Step::tiles_ * Step::sums());
    T* coupled = nullptr;
    if (in_.shared) {
      coupled = coupled_ + chunk * Step::group_tiles_ * Step::sums();
      Step::clear(coupled, Step::tiles_ * Step::sums());
    }
    const T* v = v_ + at(t, Step::sums());
    const T* sbar = sbar_ + at(t, Step::sums());
    Step::sweep(task, chunk, [&](int64_t tile, int64_t begin, int64_t end, const auto& w) {
      const int64_t sums = tile * Step::sums();
      Step::in_pairs(begin, end, [&](auto size, int64_t i) {
        constexpr int N = decltype(size)::value;
        Step::template vote<N, 2>(task, tile, i, w, v + sums, sbar + sums);
        for (int n = 0; n < N; ++n) couple(task, tile, i + n, 2 * n, t);
        const T* c = kept(tile, i, slot(t));
        const int64_t step = slots_ * O * S;
        Step::template add_votes<N>(task, tile, i, c + O * S, step, Step::partial(chunk, tile));
        if (in_.shared) Step::template add_votes<N>(task, tile, i, c, step, coupled + sums);
      });
    });
  }

  // From the dot products with v and sbar to c and beta, into kept_.
  void couple(int task, int64_t tile, int64_t i, int row, int t) {
    T* sm = Step::dots(task, row);
    const T* cbar = Step::dots(task, row + 1);
    Step::softmax(tile, i, sm);
    const P mask = Step::mask(tile, i);
    P mean = P::fill(T(0));
    for (int64_t j = 0; j < O; ++j) mean += P::load(sm + j * S) * P::load(cbar + j * S);
    T* c = kept(tile, i, slot(t));
    T* beta = c + O * S;
    for (int64_t j = 0; j < O; ++j) {
      const P before = P::load(sm + j * S), after = before * mask, x = P::load(cbar + j * S);
      after.store(c + j * S);
      if (in_.over_in)
        (before * (mask * x - P::load(delta_ + (tile * O + j) * S))).store(beta + j * S);
      else
        (after * (x - mean)).store(beta + j * S);
    }
  }

  // R from the sums, and the sbar of the step before.
  void finish(int t, int64_t tile) {
    const int64_t sums = Step::sums();
    const T* total = Step::total(tile);
    if (in_.shared) {
      T* c_total = weighted_u_ + at(2 * t, sums) + tile * sums;
      Step::clear(c_total, sums);
      for (int64_t chunk = 0; chunk < Step::chunks_; ++chunk)
        Step::add(c_total, coupled_ + (chunk * Step::group_tiles_ + tile) * sums, sums);
      T* beta_total = c_total + at(1, sums);
      Step::clear(beta_total, sums);
      Step::add(beta_total, total, sums);
    }
    for (int64_t j = 0; j < O; ++j) {
      T* rest = rest_ + tile * own_ + j * E * S;
      T* step = step_ + tile * E * S;
      Step::from_vote_space(j, total + j * votes_dim_ * S, step);
      for (int64_t e = 0; e < E; ++e) {
        const P x = T(in_.scale) * P::load(step + e * S);
        (args_.accumulate ? P::load(rest + e * S) + x : x).store(rest + e * S);
        if (args_.grad_v != nullptr) {
          T* to = static_cast<T*>(args_.grad_v) + (Step::sample(tile) * O + j) * E + e;
          x.scatter(to, O * E, Step::count(tile));
        }
      }
      if (t > 0) enter(t - 1, tile, j, rest);
    }
  }

  // The equal couplings' sum_i c_ij u_i, the same for every j.
  void weigh_u_alike(int64_t tile) {
    T* to = weighted_u_ + at(2 * steps_, Step::sums()) + tile * Step::sums();
    for (int64_t d = 0; d < D; ++d) {
      P sum = P::fill(T(0));
      for (int64_t i = 0; i < I; ++i) sum += P::load(Step::u(tile, i) + d * S);
      for (int64_t j = 0; j < O; ++j) (Step::uniform_coupling() * sum).store(to + (j * D + d) * S);
    }
  }

  // sum += sum over the terms of coefficient_ij vector_j, for N dimensions from e on and M
  // in-capsules, whose coefficients lie `kept_step` apart.
  template <int N, int M>
  LAMINA_INLINE void add_terms(int64_t tile, const T* kept, int64_t kept_step, int64_t j, int64_t e,
                               P (&sum)[M][N]) const {
    const int64_t from = tile * Step::sums() + (j * votes_dim_ + e) * S;
    for (int k = 0; k < term_count_; ++k) {
      const T* factors = kept + (terms_[k].slot * O + j) * S;
      const T* vectors = terms_[k].vectors + from;
      P factor[M];
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) factor[m] = P::load(factors + m * kept_step);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const P vector = P::load(vectors + n * S);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) sum[m][n] += factor[m] * vector;
      }
    }
  }

  // X of M in-capsules, `step` apart.
  template <int M>
  void form_x(int64_t tile, int64_t i, T* x, int64_t step) const {
    const T* base = base_ + tile * own_;
    for (int64_t j = 0; j < O; ++j)
      in_blocks<P, M>(E, [&](auto size, int64_t e) {
        constexpr int N = decltype(size)::value;
        const int64_t at = (j * E + e) * S;
        P sum[M][N];
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) sum[m][n] = P::load(base + at + n * S);
        add_terms<N, M>(tile, kept(tile, i, 0), slots_ * O * S, j, e, sum);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) sum[m][n].store(x + m * step + at + n * S);
      });
  }

  // X of a few in-capsules, and with it their grad_u and grad_weight.
  void differentiate(int task, int64_t begin, int64_t end) {
    const int64_t capsule = Step::group_tiles_ * own_;
    T* block = x_ + task * this->block() * capsule;
    const auto w = Step::gather_weights(begin, end, w_ + task * this->block() * O * E * D);
    for (int64_t tile = 0; tile < Step::tiles_; ++tile) {
      T* x = block + tile * own_;
      int64_t i = begin;
      for (; i + 4 <= end; i += 4) form_x<4>(tile, i, x + (i - begin) * capsule, capsule);
      for (; i < end; ++i) form_x<1>(tile, i, x + (i - begin) * capsule, capsule);
      if (args_.grad_u == nullptr) continue;
      for (i = begin; i < end; ++i, x += capsule)
        product<P>({D, Step::sd_, O, w.out_stride, E, Step::se_}, w.at(i, 0), x,
                   [&](int64_t d, const P& y) { store_grad_u(tile, i, d, y); });
    }
    if (args_.grad_weight == nullptr) return;
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < O; ++j)
        outer_products(block + (i - begin) * capsule + j * E * S, own_, Step::u(0, i), I * D * S,
                       grad_weight(i, j), add_);
  }
  void store_grad_u(int64_t tile, int64_t i, int64_t d, const P& y) const {
    T* to = static_cast<T*>(args_.grad_u) + (Step::sample(tile) * I + i) * D + d;
    y.scatter(to, I * D, Step::count(tile));
  }
  T* grad_weight(int64_t i, int64_t j) const {
    return static_cast<T*>(args_.grad_weight) + j * args_.grad_weight_stride[0] +
           i * args_.grad_weight_stride[1];
  }

  // w[e, d] (+)= sum over tiles and lanes of x[e] y[d]: as many sums as a vector has lanes at once,
  // so that one tree of additions ends them all.
  void outer_products(const T* x, int64_t x_tile, const T* y, int64_t y_tile, T* w,
                      bool add) const {
    constexpr int rows = P::width >= 16 ? 4 : P::width >= 4 ? 2 : 1, columns = P::width / rows;
    using Vec = typename P::Vec;
    for (int64_t e = 0; e < E; e += rows)
      for (int64_t d = 0; d < D; d += columns) {
        Vec sum[P::width];
        int64_t left[rows], right[columns];
#pragma GCC unroll 16
        for (int l = 0; l < P::width; ++l) sum[l] = Vec{};
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) left[r] = min(e + r, E - 1) * S;
#pragma GCC unroll 4
        for (int c = 0; c < columns; ++c) right[c] = min(d + c, D - 1) * S;
        for (int64_t tile = 0; tile < Step::tiles_; ++tile)
#pragma GCC unroll 2
          for (int part = 0; part < P::vectors; ++part) {
            const T* a = x + tile * x_tile + part * P::width;
            const T* b = y + tile * y_tile + part * P::width;
            Vec lane[columns];
#pragma GCC unroll 4
            for (int c = 0; c < columns; ++c) lane[c] = *reinterpret_cast<const Vec*>(b + right[c]);
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
              for (int c = 0; c < columns; ++c)
                sum[r * columns + c] += *reinterpret_cast<const Vec*>(a + left[r]) * lane[c];
          }
        const Vec totals = lane_sums<P>(sum);
        for (int r = 0; r < min(rows, E - e); ++r)
          for (int c = 0; c < min(columns, D - d); ++c) {
            T& to =
                w[(e + r) * args_.grad_weight_stride[2] + (d + c) * args_.grad_weight_stride[3]];
            to = (add ? to : T(0)) + totals[r * columns + c];
          }
      }
  }

  void shared_grad_u(int64_t begin, int64_t end) {
    if (args_.grad_u == nullptr) return;
    for (int64_t tile = 0; tile < Step::tiles_; ++tile)
      for (int64_t i = begin; i < end; ++i)
        in_blocks<P>(D, [&](auto size, int64_t d) {
          constexpr int N = decltype(size)::value;
          P sum[1][N];
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) sum[0][n] = P::fill(T(0));
          for (int64_t j = 0; j < O; ++j) {
            const T* base = base_ + tile * Step::sums() + (j * D + d) * S;
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sum[0][n] += P::load(base + n * S);
            add_terms<N, 1>(tile, kept(tile, i, 0), 0, j, d, sum);
          }
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) store_grad_u(tile, i, d + n, sum[0][n]);
        });
  }

  // W_j's gradient: every term's vector times its weighted sum of u.
  void shared_grad_weight(int64_t j) {
    bool add = add_;
    const auto add_term = [&](const T* own, const T* weighted_u) {
      outer_products(own + j * E * S, own_, weighted_u + j * D * S, Step::sums(), grad_weight(0, j),
                     add);
      add = true;
    };
    if (starts_alike()) add_term(own_sbar_, weighted_u_ + at(2 * steps_, Step::sums()));
    for (int k = 0; k < term_count_; ++k) add_term(terms_[k].own, terms_[k].weighted_u);
  }

  static T lane_sum(const P& x) {
    alignas(64) T lanes[S];
    x.store(lanes);
    T sum = T(0);
    for (int l = 0; l < S; ++l) sum += lanes[l];
    return sum;
  }

  void sum_grad_bias() {
    T* grad = static_cast<T*>(args_.grad_bias);
    for (int64_t k = 0; k < O * E; ++k) {
      P sum = P::fill(T(0));
      for (int t = 0; t < steps_; ++t)
        for (int64_t tile = 0; tile < Step::tiles_; ++tile)
          sum += P::load(own_sbar_ + at(t, own_) + tile * own_ + k * S);
      grad[k] = (add_ ? grad[k] : T(0)) + lane_sum(sum);
    }
  }

  void sum_grad_prior(int64_t i) {
    T* grad = static_cast<T*>(args_.grad_prior) + i * O;
    for (int64_t j = 0; j < O; ++j) {
      P total = P::fill(T(0));
      for (int64_t tile = 0; tile < Step::tiles_; ++tile) {
        P sum = P::fill(T(0));
        for (int t = stop_; t < steps_; ++t) sum += P::load(kept(tile, i, slot(t) + 1) + j * S);
        if (in_.prior_per_sample)
          sum.scatter(grad + Step::sample(tile) * I * O + j, I * O, Step::count(tile));
        total += sum;
      }
      if (!in_.prior_per_sample) grad[j] = (add_ ? grad[j] : T(0)) + lane_sum(total);
    }
  }

  const RoutingBackward& args_;
  const int steps_, first_, stop_, slots_;
  const int64_t own_;  // numbers of a tile in the out-capsules' own space
  bool add_ = false;   // to what the groups before have written
  int term_count_ = 0;
  T *s_, *own_v_, *own_sbar_, *v_, *sbar_, *rest_, *step_, *base_, *delta_, *kept_;
  T *coupled_ = nullptr, *weighted_u_ = nullptr, *x_ = nullptr, *w_ = nullptr;
  Term* terms_;
};

template <class F>
void with_backward(const RoutingBackward& args, void* scratch, int threads, const F& f) {
  const int64_t batch = args.inputs.batch;
  const Arena arena{static_cast<char*>(scratch)};
  if (args.inputs.f64) {
    if (batch <= Narrow<double>::samples)
      f(Backward<double, Narrow<double>>(args, arena, threads));
    else
      f(Backward<double, Wide<double>>(args, arena, threads));
  } else {
    if (batch <= Narrow<float>::samples)
      f(Backward<float, Narrow<float>>(args, arena, threads));
    else
      f(Backward<float, Wide<float>>(args, arena, threads));
  }
}

}  // namespace

size_t routing_backward_scratch(const RoutingBackward& args, int threads) {
  size_t bytes = 0;
  with_backward(args, nullptr, threads, [&](const auto& backward) { bytes = backward.used; });
  return bytes;
}

void routing_backward(const RoutingBackward& args, void* scratch, const Parallel& parallel) {
  with_backward(args, scratch, parallel.threads, [&](auto backward) { backward.run(parallel); });
}

}  // namespace LAMINA_ISA
}  // namespace lamina
