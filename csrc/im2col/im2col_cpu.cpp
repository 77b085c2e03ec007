#include <torch/csrc/stable/library.h>

#include "common/check.h"
#include "common/parallel_torch.h"
#include "conv2d/conv2d_checks.h"
#include "im2col/im2col.h"
#include "im2col/im2col_kernels.h"

namespace lamina {
namespace {

using Ints = std::vector<int64_t>;

void check_pairs(const Ints& kernel, const Ints& dilation, const Ints& padding,
                 const Ints& stride) {
  check_pair("im2col: kernel", kernel, 1);
  check_pair("im2col: dilation", dilation, 1);
  check_pair("im2col: padding", padding, 0);
  check_pair("im2col: stride", stride, 1);
}

Im2col window(const Tensor& like, int64_t planes, int64_t height, int64_t width, const Ints& kernel,
              const Ints& dilation, const Ints& padding, const Ints& stride) {
  Im2col args;
  args.type = float_type(like);
  args.planes = planes;
  args.height = height;
  args.width = width;
  args.out_height = conv_output_size(height, kernel[0], stride[0], padding[0], dilation[0]);
  args.out_width = conv_output_size(width, kernel[1], stride[1], padding[1], dilation[1]);
  STD_TORCH_CHECK(args.out_height > 0 && args.out_width > 0,
                  "im2col: the kernel is larger than the padded image");
  for (int d : {0, 1}) {
    args.kernel[d] = kernel[d];
    args.dilation[d] = dilation[d];
    args.padding[d] = padding[d];
    args.stride[d] = stride[d];
  }
  return args;
}

Tensor columns_of(const Tensor& given, Ints kernel, Ints dilation, Ints padding, Ints stride) {
  check_pairs(kernel, dilation, padding, stride);
  STD_TORCH_CHECK(given.dim() == 4, "im2col: the image must be [N, C, H, W], got ",
                  shown(given.sizes()));
  const Tensor image = as_contiguous(given);
  Im2col args = window(image, image.size(0) * image.size(1), image.size(2), image.size(3), kernel,
                       dilation, padding, stride);
  Tensor columns = torch::stable::new_empty(
      image,
      {image.size(0), image.size(1) * kernel[0] * kernel[1], args.out_height * args.out_width});
  prefer_huge_pages(columns);
  args.image = image.data_ptr();
  args.columns = columns.data_ptr();
  LAMINA_DISPATCH(im2col)(args, torch_threads());
  return columns;
}

Tensor image_of(const Tensor& given, Ints size, Ints kernel, Ints dilation, Ints padding,
                Ints stride) {
  check_pairs(kernel, dilation, padding, stride);
  check_pair("im2col: size", size, 1);
  STD_TORCH_CHECK(given.dim() == 3, "im2col: columns must be [N, C * R * S, L], got ",
                  shown(given.sizes()));
  const Tensor columns = as_contiguous(given);
  const int64_t taps = kernel[0] * kernel[1], channels = columns.size(1) / taps;
  Im2col args = window(columns, columns.size(0) * channels, size[0], size[1], kernel, dilation,
                       padding, stride);
  check_sizes("im2col: columns", columns,
              {columns.size(0), channels * taps, args.out_height * args.out_width});
  Tensor image = torch::stable::new_empty(columns, {columns.size(0), channels, size[0], size[1]});
  prefer_huge_pages(image);
  args.image = image.data_ptr();
  args.columns = columns.data_ptr();
  LAMINA_DISPATCH(col2im)(args, torch_threads());
  return image;
}

}  // namespace
}  // namespace lamina

STABLE_TORCH_LIBRARY_FRAGMENT(lamina, m) {
  m.def(lamina::im2col_forward_schema);
  m.def(lamina::im2col_backward_schema);
  m.def(lamina::col2im_forward_schema);
  m.def(lamina::col2im_backward_schema);
}

STABLE_TORCH_LIBRARY_IMPL(lamina, CPU, m) {
  m.impl("im2col_forward", TORCH_BOX(&lamina::columns_of));
  m.impl("im2col_backward", TORCH_BOX(&lamina::image_of));
  m.impl("col2im_forward", TORCH_BOX(&lamina::image_of));
  m.impl("col2im_backward", TORCH_BOX(&lamina::columns_of));
}
