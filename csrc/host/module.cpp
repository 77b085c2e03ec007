#include <pybind11/pybind11.h>

#include "common/isa.h"
#include "host/probes.h"

// What Python asks of the build and of this CPU. Ops are not here: they are registered with torch.

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts and CPU features of Lamina's compiled modules";
  m.attr("version") = LAMINA_VERSION;
  m.attr("compiler") = __VERSION__;
  m.attr("built_against") = LAMINA_TORCH_DIRECTORY;
  m.def(
      "isa", [] { return lamina::isa_name(lamina::selected_isa()); },
      "The instruction set whose kernels run: baseline, avx2 or avx512");
  m.attr("multiplies_bf16") = lamina::multiplies_bf16();
  m.def("peak_flops", &lamina::peak_flops, py::arg("f64"), py::arg("threads"),
        py::arg("seconds") = 0.05, py::call_guard<py::gil_scoped_release>(),
        "Floating-point operations a second, in registers; a multiply-add counts as two");
  m.def("copy_bandwidth", &lamina::copy_bandwidth, py::arg("bytes"), py::arg("threads"),
        py::arg("seconds") = 0.05, py::call_guard<py::gil_scoped_release>(),
        "Bytes read plus bytes written a second by a copy of so many bytes");
  m.def("round_trip", &lamina::round_trip, py::arg("seconds") = 0.02,
        py::call_guard<py::gil_scoped_release>(),
        "Seconds that a cache line takes to another thread and back");
}
