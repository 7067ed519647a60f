// Tensors and threads for binary_conv2d.h; called from kernels/binary_conv2d_cpu.py alone, which
// checks shapes and dtypes.
#include <ATen/Parallel.h>
#include <torch/extension.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <chrono>
#include <optional>
#include <string>

#include "binary_conv2d.h"

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

bool supported(const std::string& path) {
  if (path == "portable") return true;
#if defined(__x86_64__)
  if (path == "avx2") return __builtin_cpu_supports("avx2");
  if (path == "avx512")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vpopcntdq");
#elif defined(__aarch64__)
  if (path == "neon") return true;
#endif
  return false;
}

template <typename T>
packed::Path<T> path_named(const std::string& name) {
  TORCH_CHECK_VALUE(supported(name), "this CPU has no path ", name);
#if defined(__x86_64__)
  if (name == "avx512") return packed::OnAvx512<T>::path();
  if (name == "avx2") return packed::OnAvx2<T>::path();
#elif defined(__aarch64__)
  if (name == "neon") return packed::neon_path<T>();
#endif
  return packed::portable_path<T>();
}

const auto parallel = [](int64_t count, int64_t grain, const auto& body) {
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { body(begin, end); });
};

template <typename T>
const T* data_or_null(const OptionalTensor& tensor) {
  return tensor ? tensor->const_data_ptr<T>() : nullptr;
}

// The fastest path of this CPU comes first.
std::vector<std::string> paths() {
  std::vector<std::string> names;
  for (const char* name : {"avx512", "avx2", "neon", "portable"})
    if (supported(name)) names.emplace_back(name);
  return names;
}

// The kernel is so fast that the page faults of a fresh, large output can cost half as much as
// the convolution: 4 KiB pages are asked for as 2 MiB ones where the system leaves the choice.
void prefer_huge_pages(const Tensor& tensor) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = 2u << 20;
  const auto first = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t begin = (first + kHuge - 1) / kHuge * kHuge;
  const uintptr_t end = (first + tensor.nbytes()) / kHuge * kHuge;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

Tensor binary_conv2d(const Tensor& input, double threshold, bool flipped, const Tensor& weight,
                     const Tensor& a, const Tensor& b, const Tensor& e, const Tensor& base,
                     const Tensor& valid, const Tensor& total, const Tensor& row_class,
                     const Tensor& column_class, int64_t column_classes, int64_t out_channels,
                     const std::vector<int64_t>& geometry, const OptionalTensor& residual,
                     const OptionalTensor& positive_slope, const OptionalTensor& negative_slope,
                     bool channels_last, const std::string& path) {
  packed::Geometry g{input.size(0),       input.size(1),          input.size(2), input.size(3),
                     out_channels,        row_class.size(0),      column_class.size(0),
                     geometry[0],         geometry[1],            geometry[2],   geometry[3],
                     geometry[4],         geometry[5],            geometry[6],   geometry[7]};
  Tensor output = at::empty({g.batch, g.out_channels, g.out_height, g.out_width}, input.options(),
                            channels_last ? at::MemoryFormat::ChannelsLast
                                          : at::MemoryFormat::Contiguous);
  prefer_huge_pages(output);
  AT_DISPATCH_FLOATING_TYPES(input.scalar_type(), "binary_conv2d", [&] {
    packed::Problem<scalar_t> problem{
        g,
        channels_last,
        input.const_data_ptr<scalar_t>(),
        static_cast<scalar_t>(threshold),
        flipped,
        reinterpret_cast<const uint64_t*>(weight.const_data_ptr<int64_t>()),
        a.const_data_ptr<scalar_t>(),
        b.const_data_ptr<scalar_t>(),
        e.const_data_ptr<scalar_t>(),
        base.const_data_ptr<int32_t>(),
        valid.const_data_ptr<int32_t>(),
        total.const_data_ptr<int32_t>(),
        row_class.const_data_ptr<int32_t>(),
        column_class.const_data_ptr<int32_t>(),
        column_classes,
        data_or_null<scalar_t>(residual),
        data_or_null<scalar_t>(positive_slope),
        data_or_null<scalar_t>(negative_slope),
        output.mutable_data_ptr<scalar_t>()};
    packed::convolve(problem, path_named<scalar_t>(path), at::get_num_threads(), parallel);
  });
  return output;
}

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Bits a second that one thread XORs and counts in tiles of 7 pixels, 16 output channels and
// `words` words, from the first-level cache: the innermost loop without what surrounds it.
double tile_rate(const std::string& path, int64_t words, int64_t rounds) {
  const auto tile = path_named<float>(path).tile;
  packed::Geometry g{1, 64 * words, 1, 7, 16, 1, 7, 1, 1, 1, 1, 0, 0, 1, 1};
  const packed::Runs runs(g);
  std::vector<uint64_t> activation(7 * words, 0x5a5a5a5a5a5a5a5aull);
  std::vector<uint64_t> weight(16 * words, 0x0ff00ff00ff00ff0ull);
  std::vector<int32_t> out(8 * 16);
  const auto start = Clock::now();
  for (int64_t i = 0; i < rounds; ++i)
    tile(activation.data(), words, runs, weight.data(), 7, out.data());
  return 7.0 * 16 * 64 * words * rounds / seconds_since(start);
}

// Bits a second that one thread XORs, counts and adds in registers; 0 without VPOPCNTDQ.
double popcount_rate(int64_t rounds) {
#if defined(__x86_64__)
  if (supported("avx512")) {
    const auto start = Clock::now();
    volatile int64_t sink = packed::popcount_only_avx512(rounds);
    (void)sink;
    return 14.0 * 512 * rounds / seconds_since(start);
  }
#endif
  return 0;
}

} // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("paths", &paths);
  using pybind11::arg;
  const pybind11::call_guard<pybind11::gil_scoped_release> no_gil;
  m.def("binary_conv2d", &binary_conv2d, no_gil, arg("input"), arg("threshold"), arg("flipped"),
        arg("weight"), arg("a"), arg("b"), arg("e"), arg("base"), arg("valid"), arg("total"),
        arg("row_class"), arg("column_class"), arg("column_classes"), arg("out_channels"),
        arg("geometry"), arg("residual"), arg("positive_slope"), arg("negative_slope"),
        arg("channels_last"), arg("path"));
  m.def("tile_rate", &tile_rate, no_gil, arg("path"), arg("words"), arg("rounds"));
  m.def("popcount_rate", &popcount_rate, no_gil, arg("rounds"));
}
