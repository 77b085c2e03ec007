#include "dynamic_routing/dynamic_routing_kernels.h"
#include "dynamic_routing/outer_products.h"
#include "dynamic_routing/routing_step.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// The most products that one sum in registers runs over.
constexpr int64_t chain = 64;
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
        own_(O * E * S),
        outer_{in_.shared ? E : O * E, D} {
    const int64_t tiles = Step::group_tiles_, sums = Step::sums();
    Step::lay_out(arena);
    arena.take(s_, steps_ * tiles * own_);
    arena.take(own_v_, steps_ * tiles * own_);
    arena.take(own_sbar_, steps_ * tiles * own_);
    arena.take(rest_, tiles * own_);
    arena.take(step_, tiles * E * S);
    arena.take(base_, tiles * sums);
    arena.take(delta_, tiles * O * S);
    keep(arena);
    arena.take(terms_, 2 * steps_ + 1);
    arena.take(grad_u_, Step::tasks_ * Step::block_ * D * S);
    if (in_.shared) {
      arena.take(v_, steps_ * tiles * sums);
      arena.take(sbar_, steps_ * tiles * sums);
      arena.take(coupled_, Step::chunks_ * tiles * sums);
      arena.take(weighted_u_, (2 * steps_ + 1) * tiles * sums);
      arena.take(products_, O * outer_.numbers());
    } else {
      v_ = own_v_;
      sbar_ = own_sbar_;
      arena.take(x_, Step::tasks_ * Step::block_ * own_);
      arena.take(products_, Step::tasks_ * Step::block_ * outer_.numbers());
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
          shared_grad_u(task, begin, end);
        else
          for (int64_t i = begin; i < end; i += Step::block_)
            differentiate(task, i, min(i + Step::block_, end));
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
  int64_t at(int64_t t, int64_t tile_numbers) const {
    return t * Step::group_tiles_ * tile_numbers;
  }
  // Where c and beta are kept: in the scratch, or, if they fit, in the gradient of the same
  // weights, which is written when they have been read.
  void keep(Arena& arena) {
    const int64_t numbers = slots_ * S, weights = E * D, line = 64 / int(sizeof(T));
    const int64_t* stride = args_.grad_weight_stride;
    const bool lent = args_.grad_weight != nullptr && !in_.shared && Step::groups_ == 1 &&
                      numbers * Step::group_tiles_ <= weights &&
                      (E - 1) * stride[2] + (D - 1) * stride[3] + 1 == weights &&
                      stride[0] % line == 0 && stride[1] % line == 0 &&
                      reinterpret_cast<uintptr_t>(args_.grad_weight) % 64 == 0;
    if (lent) {
      kept_ = static_cast<T*>(args_.grad_weight);
      kept_tile_ = numbers;
      kept_in_ = stride[1];
      kept_out_ = stride[0];
    } else {
      kept_out_ = numbers;
      kept_in_ = O * kept_out_;
      kept_tile_ = I * kept_in_;
      arena.take(kept_, Step::group_tiles_ * kept_tile_);
    }
  }
  // Of out-capsule 0; the others' lie kept_out_ apart.
  T* kept(int64_t tile, int64_t i, int slot) const {
    return kept_ + tile * kept_tile_ + i * kept_in_ + slot * S;
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
      for (int64_t i = begin; i < end; ++i)
        for (int64_t j = 0; j < O; ++j)
          prefetch<true>(kept(tile, i, slot(t)) + j * kept_out_, 2 * S);
      Step::template vote<2>(task, tile, begin, end, w, v + sums, sbar + sums);
      for (int64_t i = begin; i < end; ++i)
        couple(tile, i, Step::dots(task, i - begin, 0), Step::dots(task, i - begin, 1), t);
      const typename Step::Factors c{kept(tile, begin, slot(t)), kept_in_, kept_out_};
      const typename Step::Factors beta{c.data + S, kept_in_, kept_out_};
      Step::add_votes(task, tile, begin, end, beta, Step::partial(chunk, tile));
      if (in_.shared) Step::add_votes(task, tile, begin, end, c, coupled + sums);
    });
  }

  // From the dot products with v and sbar to c and beta, to be kept.
  void couple(int64_t tile, int64_t i, T* sm, const T* cbar, int t) {
    Step::softmax(tile, i, sm);
    const P mask = Step::mask(tile, i);
    P mean = P::fill(T(0));
    for (int64_t j = 0; j < O; ++j) mean += P::load(sm + j * S) * P::load(cbar + j * S);
    T* c = kept(tile, i, slot(t));
    for (int64_t j = 0; j < O; ++j, c += kept_out_) {
      const P before = P::load(sm + j * S), after = before * mask, x = P::load(cbar + j * S);
      after.store(c);
      if (in_.over_in)
        (before * (mask * x - P::load(delta_ + (tile * O + j) * S))).store(c + S);
      else
        (after * (x - mean)).store(c + S);
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
  // in-capsules from `kept` on; packs Q from lane `lane` on.
  template <class Q, int N, int M>
  LAMINA_INLINE void add_terms(int64_t tile, const T* kept, int64_t j, int64_t e, int lane,
                               Q (&sum)[M][N]) const {
    const int64_t from = tile * Step::sums() + (j * votes_dim_ + e) * S + lane;
    for (int k = 0; k < term_count_; ++k) {
      const T* factors = kept + terms_[k].slot * S + j * kept_out_ + lane;
      const T* vectors = terms_[k].vectors + from;
      Q factor[M];
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) factor[m] = Q::load(factors + m * kept_in_);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const Q vector = Q::load(vectors + n * S);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) sum[m][n] += factor[m] * vector;
      }
    }
  }

  // X of M in-capsules; `next` are the coefficients that will be read next.
  template <int M>
  void form_x(int64_t tile, int64_t i, T* x, const T* next) const {
    using Q = Pack<T, P::width, 1>;
    const T* base = base_ + tile * own_;
    for (int64_t j = 0; j < O; ++j) {
      for (int m = 0; m < M; ++m) prefetch<false>(next + m * kept_in_ + j * kept_out_, slots_ * S);
      for (int lane = 0; lane < S; lane += P::width)
        in_blocks<accumulators / 4>(E, [&](auto size, int64_t e) {
          constexpr int N = decltype(size)::value;
          const int64_t at = (j * E + e) * S + lane;
          Q sum[M][N];
#pragma GCC unroll 4
          for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sum[m][n] = Q::load(base + at + n * S);
          add_terms<Q, N, M>(tile, kept(tile, i, 0), j, e, lane, sum);
#pragma GCC unroll 4
          for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sum[m][n].store(x + m * own_ + at + n * S);
        });
    }
  }

  // X of a block of in-capsules, and with it their grad_u and grad_weight.
  void differentiate(int task, int64_t begin, int64_t end) {
    T* block = x_ + task * Step::block_ * own_;
    T* grad_u = grad_u_ + task * Step::block_ * D * S;
    T* sums = products_ + task * Step::block_ * outer_.numbers();
    const auto w = Step::gather_weights(begin, end,
                                        Step::weights_ + task * Step::weight_capsules_ * O * E * D);
    if (args_.grad_weight != nullptr)
      __builtin_memset(sums, 0, (end - begin) * outer_.numbers() * sizeof(T));
    for (int64_t tile = 0; tile < Step::tiles_; ++tile) {
      const bool last = tile + 1 == Step::tiles_;
      const T* next = kept(last ? 0 : tile + 1, last ? end : begin, 0);
      in_blocks<block_capsules>(end - begin, [&](auto size, int64_t n) {
        form_x<decltype(size)::value>(tile, begin + n, block + n * own_, next + n * kept_in_);
      });
      for (int64_t i = begin; i < end; ++i) {
        const T* x = block + (i - begin) * own_;
        if (args_.grad_u != nullptr) add_grad_u(w, i, x, grad_u + (i - begin) * D * S);
        if (args_.grad_weight != nullptr)
          outer_.add(x, Step::u(tile, i), Step::count(tile), sums + (i - begin) * outer_.numbers());
      }
      if (args_.grad_u != nullptr) store_grad_u(tile, begin, end, grad_u);
    }
    if (args_.grad_weight == nullptr) return;
    for (int64_t i = begin; i < end; ++i)
      store_grad_weight(sums + (i - begin) * outer_.numbers(), 0, i);
  }

  // W_i^T X_i into `sums` [D]. One chain of roundings for each few out-capsules.
  void add_grad_u(const typename Step::Weights& w, int64_t i, const T* x, T* sums) const {
    const int64_t step = max(chain / E, 1);
    for (int64_t j = 0; j < O; j += step)
      product<P>({D, Step::sd_, min(step, O - j), w.out_stride, E, Step::se_, w.out_stride},
                 w.at(i, j), x + j * E * S, [&](int64_t d, const P& y) {
                   (j == 0 ? y : P::load(sums + d * S) + y).store(sums + d * S);
                 });
  }

  void store_grad_u(int64_t tile, int64_t begin, int64_t end, const T* packs) const {
    from_packs<P>(packs, (end - begin) * D,
                  static_cast<T*>(args_.grad_u) + (Step::sample(tile) * I + begin) * D, I * D,
                  Step::count(tile));
  }
  // From out-capsule j on.
  void store_grad_weight(const T* sums, int64_t j, int64_t i) const {
    const int64_t* stride = args_.grad_weight_stride;
    T* to = static_cast<T*>(args_.grad_weight) + j * stride[0] + i * stride[1];
    outer_.store(sums, E, stride, add_, to);
  }

  void shared_grad_u(int task, int64_t begin, int64_t end) {
    if (args_.grad_u == nullptr) return;
    T* grad_u = grad_u_ + task * Step::block_ * D * S;
    for (int64_t tile = 0; tile < Step::tiles_; ++tile)
      for (int64_t i = begin; i < end; ++i) {
        in_blocks<row_block<P>>(D, [&](auto size, int64_t d) {
          constexpr int N = decltype(size)::value;
          P sum[1][N];
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) sum[0][n] = P::fill(T(0));
          for (int64_t j = 0; j < O; ++j) {
            const T* base = base_ + tile * Step::sums() + (j * D + d) * S;
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sum[0][n] += P::load(base + n * S);
            add_terms<P, N, 1>(tile, kept(tile, i, 0), j, d, 0, sum);
          }
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) sum[0][n].store(grad_u + (d + n) * S);
        });
        store_grad_u(tile, i, i + 1, grad_u);
      }
  }

  // W_j's gradient: every term's vector times its weighted sum of u.
  void shared_grad_weight(int64_t j) {
    T* sums = products_ + j * outer_.numbers();
    __builtin_memset(sums, 0, outer_.numbers() * sizeof(T));
    for (int64_t tile = 0; tile < Step::tiles_; ++tile) {
      const auto add_term = [&](const T* own, const T* weighted_u) {
        outer_.add(own + tile * own_ + j * E * S, weighted_u + tile * Step::sums() + j * D * S,
                   Step::count(tile), sums);
      };
      if (starts_alike()) add_term(own_sbar_, weighted_u_ + at(2 * steps_, Step::sums()));
      for (int k = 0; k < term_count_; ++k) add_term(terms_[k].own, terms_[k].weighted_u);
    }
    store_grad_weight(sums, j, 0);
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
        for (int t = stop_; t < steps_; ++t)
          sum += P::load(kept(tile, i, slot(t) + 1) + j * kept_out_);
        if (in_.prior_per_sample)
          sum.scatter(grad + Step::sample(tile) * I * O + j, I * O, Step::count(tile));
        total += sum;
      }
      if (!in_.prior_per_sample) grad[j] = (add_ ? grad[j] : T(0)) + lane_sum(total);
    }
  }

  const RoutingBackward& args_;
  const int steps_, first_, stop_, slots_;
  const int64_t own_;                // numbers of a tile in the out-capsules' own space
  const OuterProducts<P, T> outer_;  // grad_weight of an in-capsule, or of a shared W_j
  bool add_ = false;                 // to what the groups before have written
  int term_count_ = 0;
  int64_t kept_tile_, kept_in_, kept_out_;
  T *s_, *own_v_, *own_sbar_, *v_, *sbar_, *rest_, *step_, *base_, *delta_, *kept_;
  T *coupled_ = nullptr, *weighted_u_ = nullptr, *x_ = nullptr, *products_, *grad_u_;
  Term* terms_;
};

template <class F>
void with_backward(const RoutingBackward& args, void* scratch, int threads, const F& f) {
  const int64_t batch = args.inputs.batch;
  const Arena arena{static_cast<char*>(scratch)};
  const auto of = [&](auto number) {
    using T = decltype(number);
    with_tile<T>(batch, [&](auto tile) { f(Backward<T, decltype(tile)>(args, arena, threads)); });
  };
  args.inputs.f64 ? of(double()) : of(float());
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
