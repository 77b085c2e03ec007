#pragma once

#include "dynamic_routing/lanes.h"

// Softmaxes of packs of logits, one pack for each out-capsule.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Over the out-capsules, in place. leaky: one more logit, 0, whose coefficient is dropped.
template <class P, class T>
inline void softmax_over_out(int64_t outs, bool leaky, T* logits) {
  constexpr int S = P::samples;
  P largest = leaky ? P::fill(T(0)) : P::load(logits);
  for (int64_t j = 0; j < outs; ++j) largest = P::max(P::load(logits + j * S), largest);
  P sum = leaky ? P::exp(P::fill(T(0)) - largest) : P::fill(T(0));
  for (int64_t j = 0; j < outs; ++j) {
    const P e = P::exp(P::load(logits + j * S) - largest);
    e.store(logits + j * S);
    sum += e;
  }
  const P inverse = P::fill(T(1)) / sum;
  for (int64_t j = 0; j < outs; ++j) (P::load(logits + j * S) * inverse).store(logits + j * S);
}

// Over the in-capsules, whose logits come one after the other. The running stats of an out-capsule
// are three packs: the largest logit so far, the sum of exponentials, and that of exponentials
// times x. The largest starts at a finite number, so that logits of -inf get a coefficient of 0.
constexpr int64_t stats_packs = 3;
template <class T>
constexpr T lowest = sizeof(T) == 4 ? T(-3.4e38) : T(-1.7e308);

template <class P, class T>
inline void start_stats(T* stats, bool leaky = false) {
  P::fill(leaky ? T(0) : lowest<T>).store(stats);
  P::fill(leaky ? T(1) : T(0)).store(stats + P::samples);
  P::fill(T(0)).store(stats + 2 * P::samples);
}

template <class P, class T>
inline void merge_stats(T* stats, const P& largest, const P& sum, const P& weighted) {
  constexpr int S = P::samples;
  const P before = P::load(stats), now = P::max(largest, before);
  const P keep = P::exp(before - now), add = P::exp(largest - now);
  now.store(stats);
  (P::load(stats + S) * keep + sum * add).store(stats + S);
  (P::load(stats + 2 * S) * keep + weighted * add).store(stats + 2 * S);
}

// From a softmax sm and the gradients x of the masked coefficients to those coefficients, c, and
// the gradients of the logits, beta; packs of c and of beta lie `step` apart. With in_mean(j), the
// mean of mask x by sm over the in-capsules, for a softmax over these.
template <class P, class T, class Mean>
inline void couple_backward(int64_t outs, bool over_in, const P& mask, const T* sm, const T* x,
                            const Mean& in_mean, T* c, T* beta, int64_t step) {
  constexpr int S = P::samples;
  P mean = P::fill(T(0));
  for (int64_t j = 0; j < outs && !over_in; ++j) mean += P::load(sm + j * S) * P::load(x + j * S);
  for (int64_t j = 0; j < outs; ++j) {
    const P before = P::load(sm + j * S), after = before * mask, grad = P::load(x + j * S);
    after.store(c + j * step);
    (over_in ? before * (mask * grad - in_mean(j)) : after * (grad - mean)).store(beta + j * step);
  }
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina
