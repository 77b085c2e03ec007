#pragma once

namespace lamina {

// How kernels get threads without knowing torch. `run` calls body(task, context) once for every
// task in 0..tasks-1 on up to `threads` threads and returns when all are done. It may run all of
// them on one thread, so a body must never wait for a task with a higher index.
struct Parallel {
  int threads;
  void (*run)(int tasks, void (*body)(int task, void* context), void* context);
};

// body(task) for every task in 0..tasks-1; body is any callable. Static: per-ISA objects must not
// share instantiations.
template <class Body>
static void parallel_for(const Parallel& parallel, int tasks, const Body& body) {
  parallel.run(
      tasks, [](int task, void* context) { (*static_cast<const Body*>(context))(task); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace lamina
