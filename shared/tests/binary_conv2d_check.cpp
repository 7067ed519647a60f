// Checks the C++ of the packed convolution without torch: random convolutions against loops over
// the definition. Built natively with sanitizers, and for ARM to run under qemu, by
// test_binary_conv2d_cpp.py.
#include <cstdio>
#include <random>

#include "binary_conv2d.h"

using namespace packed;

struct Case {
  int channels, out_channels, height, width, kernel, stride, pad, dilation;
  bool channels_last, flipped, zeros;
};

template <typename T>
int wrong_values(const Case& k, const Path<T>& path, unsigned seed) {
  constexpr int kBatch = 2;
  std::mt19937 draw(seed);
  std::normal_distribution<double> normal;
  const int reach = k.dilation * (k.kernel - 1) + 1, taps = k.kernel * k.kernel;
  if (k.height + 2 * k.pad < reach || k.width + 2 * k.pad < reach) return 0;
  const int rows = (k.height + 2 * k.pad - reach) / k.stride + 1;
  const int columns = (k.width + 2 * k.pad - reach) / k.stride + 1, outputs = rows * columns;
  const Geometry g{kBatch,   k.channels, k.height, k.width, k.out_channels, rows,       columns,
                   k.kernel, k.kernel,   k.stride, k.stride, k.pad,         k.pad,      k.dilation,
                   k.dilation};
  const T threshold = T(0.25);
  const auto randoms = [&](size_t n) {
    std::vector<T> v(n);
    for (T& value : v) value = static_cast<T>(normal(draw));
    return v;
  };
  std::vector<T> x = randoms(kBatch * k.channels * k.height * k.width);
  if (k.zeros)
    for (size_t i = 0; i < x.size(); i += 7) x[i] = threshold;

  const int words = static_cast<int>(g.words()), padded = static_cast<int>(g.blocks()) * kBlock;
  std::vector<int> sign(k.out_channels * taps * k.channels); // [o][tap][c]
  std::vector<uint64_t> weight(padded * taps * words);
  std::vector<int32_t> total(padded);
  const auto sign_at = [&](int o, int t, int c) -> int& {
    return sign[(o * taps + t) * k.channels + c];
  };
  for (int o = 0; o < k.out_channels; ++o)
    for (int t = 0; t < taps; ++t)
      for (int c = 0; c < k.channels; ++c) {
        sign_at(o, t, c) = draw() % 2 ? 1 : -1;
        if (sign_at(o, t, c) < 0) continue;
        weight[((o / kBlock * taps + t) * words + c / 64) * kBlock + o % kBlock] |= 1ull << c % 64;
        total[o] += 1;
      }

  // Every output pixel is a border class of its own.
  std::vector<int32_t> row_class(rows), column_class(columns), valid(outputs);
  std::vector<int32_t> base(outputs * padded);
  for (int i = 0; i < rows; ++i) row_class[i] = i;
  for (int i = 0; i < columns; ++i) column_class[i] = i;
  const auto input_row = [&](int y, int t) { return y * k.stride - k.pad + t / k.kernel * k.dilation; };
  const auto input_column = [&](int z, int t) { return z * k.stride - k.pad + t % k.kernel * k.dilation; };
  const auto inside = [&](int y, int z, int t) {
    const int i = input_row(y, t), j = input_column(z, t);
    return i >= 0 && i < k.height && j >= 0 && j < k.width;
  };
  for (int p = 0; p < outputs; ++p)
    for (int t = 0; t < taps; ++t) {
      const bool in = inside(p / columns, p % columns, t);
      valid[p] += in * k.channels;
      for (int o = 0; o < k.out_channels; ++o)
        for (int c = 0; c < k.channels; ++c)
          base[p * padded + o] += in ? 1 : 2 * (sign_at(o, t, c) > 0);
    }

  const std::vector<T> a = randoms(padded), b = randoms(padded), e = randoms(outputs * padded);
  const std::vector<T> up = randoms(k.out_channels), down = randoms(k.out_channels);
  const std::vector<T> residual = randoms(kBatch * k.out_channels * outputs);
  std::vector<T> y(residual.size());
  const Problem<T> problem{g, k.channels_last, x.data(), threshold, k.flipped, weight.data(),
                           a.data(), b.data(), e.data(), base.data(), valid.data(), total.data(),
                           row_class.data(), column_class.data(), columns, residual.data(),
                           up.data(), down.data(), y.data()};
  convolve(problem, path, 1, [](int64_t n, int64_t, const auto& body) { body(0, n); });

  const auto index = [&](int image, int c, int i, int j, int channels, int height, int width) {
    return k.channels_last ? ((image * height + i) * width + j) * channels + c
                           : ((image * channels + c) * height + i) * width + j;
  };
  int wrong = 0;
  for (int image = 0; image < kBatch; ++image)
    for (int o = 0; o < k.out_channels; ++o)
      for (int p = 0; p < outputs; ++p) {
        const int i = p / columns, j = p % columns;
        int s = 0, t = 0;
        for (int tap = 0; tap < taps; ++tap)
          for (int c = 0; inside(i, j, tap) && c < k.channels; ++c) {
            const T v = x[index(image, c, input_row(i, tap), input_column(j, tap), k.channels,
                                k.height, k.width)];
            const int q = ((v > threshold) - (v < threshold)) * (k.flipped ? -1 : 1);
            s += q * sign_at(o, tap, c);
            t += q;
          }
        const int at = index(image, o, i, j, k.out_channels, rows, columns);
        const T v = ((a[o] * T(s) + b[o] * T(t)) + e[p * padded + o]) + residual[at];
        wrong += y[at] != v * (v > 0 ? up[o] : down[o]);
      }
  return wrong;
}

template <typename T>
int check(const Case& k, unsigned seed) {
  int wrong = wrong_values(k, portable_path<T>(), seed);
#if defined(__aarch64__)
  wrong += wrong_values(k, neon_path<T>(), seed);
#elif defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) wrong += wrong_values(k, OnAvx2<T>::path(), seed);
  if (__builtin_cpu_supports("avx512vpopcntdq"))
    wrong += wrong_values(k, OnAvx512<T>::path(), seed);
#endif
  return wrong;
}

int main() {
  std::mt19937 draw(1);
  const auto below = [&](int n) { return static_cast<int>(draw() % n); };
  int wrong = 0;
  for (unsigned seed = 0; seed < 40; ++seed) {
    Case k{7 + below(124), 1 + below(40), 4 + below(14), 4 + below(14),  1 + 2 * below(3),
           1 + below(3),   below(5),      1 + below(2),  below(2) == 0,  below(2) == 0,
           below(2) == 0};
    wrong += check<float>(k, seed) + check<double>(k, seed);
  }
  // So long a filter that counts in bytes are emptied many times.
  wrong += check<float>({2500, 17, 5, 5, 3, 1, 1, 1, false, false, false}, 40);
  std::printf("%d wrong values\n", wrong);
  return wrong != 0;
}
