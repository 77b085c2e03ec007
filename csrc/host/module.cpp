#include <pybind11/pybind11.h>

#include "common/isa.h"

// What Python asks of the build and of this CPU. Ops are not here: they are registered with torch.

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts and CPU features of Lamina's compiled modules";
  m.attr("version") = LAMINA_VERSION;
  m.attr("compiler") = __VERSION__;
  m.attr("built_against") = LAMINA_TORCH_DIRECTORY;
  m.def(
      "isa", [] { return lamina::isa_name(lamina::selected_isa()); },
      "The instruction set whose kernels run: baseline, avx2 or avx512");
}
