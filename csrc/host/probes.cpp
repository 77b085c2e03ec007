#include "host/probes.h"

#include <time.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "host/probe_kernels.h"

namespace lamina {
namespace {

using Clock = std::chrono::steady_clock;

// Seconds that this thread has had a core.
double processor_time() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return now.tv_sec + now.tv_nsec * 1e-9;
}

// The work that `threads` threads get done a second: step(thread) does some and returns how much.
// Every thread counts over its own processor time, so that neither starting them nor other programs
// that take turns with them cost anything.
template <class Step>
double rate(int threads, double seconds, const Step& step) {
  std::vector<double> rates(threads);
  std::vector<std::thread> pool;
  for (int thread = 0; thread < threads; ++thread)
    pool.emplace_back([&, thread] {
      step(thread);  // Warms the core up.
      const double begin = processor_time();
      double done = 0, elapsed = 0;
      while (elapsed < seconds) {
        done += step(thread);
        elapsed = processor_time() - begin;
      }
      rates[thread] = done / elapsed;
    });
  for (auto& thread : pool) thread.join();
  double total = 0;
  for (double each : rates) total += each;
  return total;
}

}  // namespace

double peak_flops(bool f64, int threads, double seconds) {
  const auto kernel = f64 ? LAMINA_DISPATCH(multiply_add_f64) : LAMINA_DISPATCH(multiply_add_f32);
  return rate(threads, seconds, [&](int) {
    volatile double sink = 0;
    return kernel(100000, &sink);
  });
}

double copy_bandwidth(long bytes, int threads, double seconds) {
  const size_t share = static_cast<size_t>(bytes) / threads;
  std::vector<std::unique_ptr<char[]>> sources, targets;
  for (int thread = 0; thread < threads; ++thread) {
    sources.emplace_back(new char[share]);
    targets.emplace_back(new char[share]);
    std::memset(sources.back().get(), 1, share);
    std::memset(targets.back().get(), 0, share);
  }
  return rate(threads, seconds, [&](int thread) {
    std::memcpy(targets[thread].get(), sources[thread].get(), share);
    return 2.0 * share;
  });
}

double round_trip(double seconds) {
  constexpr int64_t unwatched = 100, over = -1;  // turns between looks at the clock
  alignas(128) std::atomic<int64_t> turn{0};     // in lines of its own
  std::thread other([&] {
    for (int64_t mine = 1;; mine += 2) {
      int64_t now;
      while ((now = turn.load(std::memory_order_acquire)) != mine)
        if (now == over) return;
      turn.store(mine + 1, std::memory_order_release);
    }
  });
  const auto begin = Clock::now();
  int64_t turns = 0;
  double elapsed = 0;
  while (elapsed < seconds) {
    for (int64_t i = 0; i < unwatched; ++i, turns += 2) {
      turn.store(turns + 1, std::memory_order_release);
      while (turn.load(std::memory_order_acquire) != turns + 2) continue;
    }
    elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
  }
  turn.store(over, std::memory_order_release);
  other.join();
  return 2 * elapsed / static_cast<double>(turns);
}

}  // namespace lamina
