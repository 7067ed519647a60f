// Convolution of two-valued activations with two-valued weights by XOR and popcount.
// Plain C++17 without torch: binary_conv2d.cpp adds tensors and threads.
//
// The mathematics stands in kernels/binary_conv2d.py.  Here, per image:
//   1. pack    activations -> bits[Hp][Wp][words], channel c in bit c % 64 of word c / 64;
//              the border of padded pixels and the tail bits of the last word stay 0
//   2. sums    T = conv(s, ones), one integer an output pixel, from the pixels' popcounts
//   3. tile    X = popcount(activation xor weight), see popcount_tiles.h
//   4. finish  S = base - 2 X (an exact integer), y = (a S + b T) + e, residual, slopes
// An activation exactly at the threshold has s = 0.  Where one occurs, a second plane z marks
// those, and conv(z, s_w) = popcount(w) - popcount(z xor w) goes through the same tiles.
//
// Compiled without contraction to fused multiply-adds, so every path gives the same bits.
#pragma once

#include <atomic>
#include <type_traits>

#include "activation_bits.h"
#include "popcount_tiles.h"

namespace packed {

constexpr int kPackPixels = 256; // input pixels packed together

// What one call computes.  Rows of a, b, e, base, total are padded to whole blocks of 16.
template <typename T>
struct Problem {
  Geometry shape;
  bool channels_last;                           // of input, residual and output alike
  const T* input;
  T threshold;
  bool flipped;                                 // bit = input < threshold
  const uint64_t* weight;                       // [O / 16][taps * words][16]
  const T *a, *b;                               // [O]
  const T* e;                                   // [classes][O]
  const int32_t* base;                          // [classes][O]: C V + 2 popcount(padded taps)
  const int32_t* valid;                         // [classes]: C V
  const int32_t* total;                         // [O]: popcount of the whole filter
  const int32_t *row_class, *column_class;      // of output rows and columns
  int64_t column_classes;
  const T *residual, *positive_slope, *negative_slope; // or null
  T* output;
};

template <typename T>
struct Path { // one instruction set
  bool (*pack)(const Problem<T>&, const T* image, Test, int64_t begin, int64_t end,
               uint64_t* bits, int32_t* counts);
  TileFunction tile;
  void (*finish)(const Problem<T>&, int64_t image, int64_t block, int64_t row, int64_t rows,
                 const int32_t* sums, const int32_t* x, const int32_t* z, T* values);
};

// ----------------------------------------------------------------------------------- pack

// Packs input pixels begin .. end (row by row) of one image.  `counts` of a padded pixel becomes
// 2 popcount(a); with Test::equal popcount(z) is added to it.
template <typename T, typename Bits>
PS_INLINE bool pack(const Problem<T>& problem, const T* image, Test test, int64_t begin,
                    int64_t end, uint64_t* bits, int32_t* counts) {
  const Geometry& g = problem.shape;
  const int64_t words = g.words(), pixels = g.height * g.width;
  bool at = false;
  for (int64_t p = begin; p < end; p += kPackPixels) {
    const int n = static_cast<int>(std::min<int64_t>(kPackPixels, end - p));
    int64_t place[kPackPixels];
    int32_t count[kPackPixels] = {};
    int64_t row = p / g.width, column = p - row * g.width;
    for (int i = 0; i < n; ++i) {
      place[i] = (row + g.pad_h) * g.padded_width() + column + g.pad_w;
      if (++column == g.width) column = 0, ++row;
    }
    for (int64_t w = 0; w < words; ++w) {
      const int channels = static_cast<int>(std::min<int64_t>(64, g.channels - 64 * w));
      uint64_t word[kPackPixels] = {};
      at |= problem.channels_last
                ? Bits::interleaved(image + p * g.channels + 64 * w, g.channels, channels, n,
                                    problem.threshold, test, word)
                : Bits::planar(image + 64 * w * pixels + p, pixels, channels, n,
                               problem.threshold, test, word);
      for (int i = 0; i < n; ++i) {
        bits[place[i] * words + w] = word[i];
        count[i] += __builtin_popcountll(word[i]);
      }
    }
    for (int i = 0; i < n; ++i)
      counts[place[i]] = test == Test::equal ? counts[place[i]] + count[i] : 2 * count[i];
  }
  return at;
}

// ----------------------------------------------------------------------------------- sums

// T = conv(s, ones) of every output pixel; `counts` as pack() leaves them, `column` is scratch.
template <typename T>
void tap_sums(const Problem<T>& problem, const int32_t* counts, int32_t* column, int32_t* sums) {
  const Geometry& g = problem.shape;
  const int64_t width = g.padded_width();
  for (int64_t y = 0; y < g.out_height; ++y) {
    std::fill_n(column, width, 0);
    for (int64_t i = 0; i < g.kernel_h; ++i) {
      const int32_t* row = counts + (y * g.stride_h + i * g.dilation_h) * width;
      for (int64_t x = 0; x < width; ++x) column[x] += row[x];
    }
    const int32_t* valid = problem.valid + problem.row_class[y] * problem.column_classes;
    int32_t* out = sums + y * g.out_width;
    for (int64_t x = 0; x < g.out_width; ++x) out[x] = -valid[problem.column_class[x]];
    for (int64_t j = 0; j < g.kernel_w; ++j) {
      const int32_t* tap = column + j * g.dilation_w;
      for (int64_t x = 0; x < g.out_width; ++x) out[x] += tap[x * g.stride_w];
    }
  }
}

// --------------------------------------------------------------------------------- finish

template <typename T>
struct PlainTranspose {
  static PS_INLINE void run(const T* from, T* to) { // 16 x 16
    for (int j = 0; j < kBlock; ++j)
      for (int i = 0; i < kBlock; ++i) to[j * kBlock + i] = from[i * kBlock + j];
  }
};

#if defined(__x86_64__)
struct Avx512Transpose {
  PS_AVX512 static void run(const float* from, float* to) {
    __m512 r[16], s[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(from + 16 * i);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) { // pairs of rows
      s[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      s[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) // four rows: lane k of r[i + j] holds column 4 k + j
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        const __m512d x = _mm512_castps_pd(s[i + j]), y = _mm512_castps_pd(s[i + j + 2]);
        r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
        r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
      }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) { // gather the lanes of all four groups
      const __m512 a = _mm512_shuffle_f32x4(r[j], r[j + 4], 0x88);
      const __m512 b = _mm512_shuffle_f32x4(r[j], r[j + 4], 0xdd);
      const __m512 c = _mm512_shuffle_f32x4(r[j + 8], r[j + 12], 0x88);
      const __m512 d = _mm512_shuffle_f32x4(r[j + 8], r[j + 12], 0xdd);
      _mm512_storeu_ps(to + 16 * j, _mm512_shuffle_f32x4(a, c, 0x88));
      _mm512_storeu_ps(to + 16 * (j + 4), _mm512_shuffle_f32x4(b, d, 0x88));
      _mm512_storeu_ps(to + 16 * (j + 8), _mm512_shuffle_f32x4(a, c, 0xdd));
      _mm512_storeu_ps(to + 16 * (j + 12), _mm512_shuffle_f32x4(b, d, 0xdd));
    }
  }
};
#endif

template <typename T>
PS_INLINE T slopes(T value, T positive, T negative) {
  return value * (value > 0 ? positive : negative);
}

// values[pixel][16] = (a S + b T) + e for `rows` output rows.
template <typename T>
PS_INLINE void combine(const Problem<T>& p, int64_t first, int64_t row, int64_t rows,
                       const int32_t* __restrict sums, const int32_t* __restrict x,
                       const int32_t* __restrict z, T* __restrict values) {
  const int64_t width = p.shape.out_width, stride = p.shape.blocks() * kBlock;
  T a[kBlock], b[kBlock];
  int32_t total[kBlock];
  for (int j = 0; j < kBlock; ++j)
    a[j] = p.a[first + j], b[j] = p.b[first + j], total[j] = p.total[first + j];
  for (int64_t y = row; y < row + rows; ++y) {
    const int64_t row_group = p.row_class[y] * p.column_classes;
    for (int64_t c = 0; c < width; ++c, x += kBlock, values += kBlock) {
      const int64_t group = (row_group + p.column_class[c]) * stride + first;
      const int32_t* __restrict base = p.base + group;
      const T* __restrict e = p.e + group;
      const T t = static_cast<T>(sums[y * width + c]);
      int32_t s[kBlock];
      for (int j = 0; j < kBlock; ++j) s[j] = base[j] - 2 * x[j];
      if (z) {
        for (int j = 0; j < kBlock; ++j) s[j] += total[j] - z[j];
        z += kBlock;
      }
      for (int j = 0; j < kBlock; ++j) values[j] = (a[j] * static_cast<T>(s[j]) + b[j] * t) + e[j];
    }
  }
}

// Residual, slopes and the store of 16 values (Full) or the first n; the slopes advance by `step`.
template <bool Full, typename T>
PS_INLINE void store(T* __restrict v, int count, const T* __restrict residual,
                     const T* __restrict positive, const T* __restrict negative, int step,
                     T* __restrict output) {
  const int n = Full ? kBlock : count; // a constant lets the compiler stay in registers
  if (residual)
    for (int j = 0; j < n; ++j) v[j] += residual[j];
  if (positive)
    for (int j = 0; j < n; ++j) v[j] = slopes(v[j], positive[j * step], negative[j * step]);
  for (int j = 0; j < n; ++j) {
    output[j] = v[j];
    if (!Full) asm volatile("" : : : "memory"); // stays a loop: calling memcpy costs more
  }
}

// Integers of `rows` output rows and 16 output channels -> the output tensor.
template <typename T, typename Transpose>
PS_INLINE void finish(const Problem<T>& p, int64_t image, int64_t block, int64_t row,
                      int64_t rows, const int32_t* sums, const int32_t* x, const int32_t* z,
                      T* values) {
  const Geometry& g = p.shape;
  const int64_t first = block * kBlock;
  combine(p, first, row, rows, sums, x, z, values);

  const int64_t pixels = rows * g.out_width, begin = row * g.out_width;
  const int64_t plane = g.out_height * g.out_width, offset = image * g.out_channels * plane;
  const int lanes = static_cast<int>(std::min<int64_t>(kBlock, g.out_channels - first));
  const T* positive = p.positive_slope ? p.positive_slope + first : nullptr;
  const T* negative = p.positive_slope ? p.negative_slope + first : nullptr;
  if (p.channels_last) {
    for (int64_t i = 0; i < pixels; ++i) {
      const int64_t place = offset + (begin + i) * g.out_channels + first;
      const T* residual = p.residual ? p.residual + place : nullptr;
      T* v = values + i * kBlock;
      if (lanes == kBlock) store<true>(v, kBlock, residual, positive, negative, 1, p.output + place);
      else store<false>(v, lanes, residual, positive, negative, 1, p.output + place);
    }
    return;
  }
  T turned[kBlock * kBlock];
  for (int64_t i = 0; i < pixels; i += kBlock) { // values has room for whole blocks
    Transpose::run(values + i * kBlock, turned);
    const int n = static_cast<int>(std::min<int64_t>(kBlock, pixels - i));
    for (int j = 0; j < lanes; ++j) {
      const int64_t place = offset + (first + j) * plane + begin + i;
      const T* residual = p.residual ? p.residual + place : nullptr;
      const T *up = positive ? positive + j : nullptr, *down = negative ? negative + j : nullptr;
      T* v = turned + j * kBlock;
      if (n == kBlock) store<true>(v, kBlock, residual, up, down, 0, p.output + place);
      else store<false>(v, n, residual, up, down, 0, p.output + place);
    }
  }
}

// ----------------------------------------------------------------------------------- paths

template <typename T>
Path<T> portable_path() {
  return {pack<T, PlainBits<T>>, tile_portable, finish<T, PlainTranspose<T>>};
}

#if defined(__x86_64__)
template <typename T>
struct OnAvx2 {
  PS_AVX2 static bool pack_bits(const Problem<T>& p, const T* image, Test test, int64_t begin,
                                int64_t end, uint64_t* bits, int32_t* counts) {
    return pack<T, PlainBits<T>>(p, image, test, begin, end, bits, counts);
  }
  PS_AVX2 static void finish_rows(const Problem<T>& p, int64_t image, int64_t block, int64_t row,
                                  int64_t rows, const int32_t* sums, const int32_t* x,
                                  const int32_t* z, T* values) {
    finish<T, PlainTranspose<T>>(p, image, block, row, rows, sums, x, z, values);
  }
  static Path<T> path() { return {pack_bits, tile_avx2, finish_rows}; }
};

template <typename T>
struct OnAvx512 {
  static constexpr bool kFloat = std::is_same_v<T, float>;
  using Bits = std::conditional_t<kFloat, Avx512Bits, PlainBits<T>>;
  using Transpose = std::conditional_t<kFloat, Avx512Transpose, PlainTranspose<T>>;
  PS_AVX512 static bool pack_bits(const Problem<T>& p, const T* image, Test test, int64_t begin,
                                  int64_t end, uint64_t* bits, int32_t* counts) {
    return pack<T, Bits>(p, image, test, begin, end, bits, counts);
  }
  PS_AVX512 static void finish_rows(const Problem<T>& p, int64_t image, int64_t block,
                                    int64_t row, int64_t rows, const int32_t* sums,
                                    const int32_t* x, const int32_t* z, T* values) {
    finish<T, Transpose>(p, image, block, row, rows, sums, x, z, values);
  }
  static Path<T> path() { return {pack_bits, tile_avx512, finish_rows}; }
};
#elif defined(__aarch64__)
template <typename T>
Path<T> neon_path() {
  return {pack<T, PlainBits<T>>, tile_neon, finish<T, PlainTranspose<T>>};
}
#endif

// ----------------------------------------------------------------------------------- image

template <typename T>
struct Workspace { // of one image; the zero border survives from image to image
  std::vector<uint64_t> bits, marks;
  std::vector<int32_t> counts, column, sums;

  explicit Workspace(const Geometry& g)
      : bits(g.padded_pixels() * g.words()), counts(g.padded_pixels()),
        column(g.padded_width()), sums(g.out_height * g.out_width) {}
};

// `parallel(count, grain, body)` calls body(begin, end) over parts of 0 .. count.
template <typename T, typename Parallel>
void convolve_image(const Problem<T>& problem, const Path<T>& path, const Runs& runs,
                    int64_t image, Workspace<T>& work, const Parallel& parallel) {
  const Geometry& g = problem.shape;
  const T* input = problem.input + image * g.channels * g.height * g.width;
  const int64_t pixels = g.height * g.width;

  std::atomic<bool> at_threshold{false};
  const Test test = problem.flipped ? Test::below : Test::above;
  const int64_t pack_grain = std::max<int64_t>(16, 65536 / g.channels / 16 * 16);
  parallel(pixels, pack_grain, [&](int64_t begin, int64_t end) {
    if (path.pack(problem, input, test, begin, end, work.bits.data(), work.counts.data()))
      at_threshold = true;
  });
  if (at_threshold) {
    work.marks.resize(work.bits.size());
    path.pack(problem, input, Test::equal, 0, pixels, work.marks.data(), work.counts.data());
  }
  tap_sums(problem, work.counts.data(), work.column.data(), work.sums.data());

  const int64_t words = g.words(), filter = kBlock * g.kernel_h * g.kernel_w * words;
  const int64_t tiles = (g.out_width + kMaxPixels - 1) / kMaxPixels;
  const int64_t rows = std::min(g.out_height, std::max<int64_t>(1, 112 / g.out_width));
  const int64_t parts = (g.out_height + rows - 1) / rows;
  parallel(g.blocks() * parts, 1, [&](int64_t begin, int64_t end) {
    const int64_t room = (rows * g.out_width + kBlock) * kBlock;
    std::vector<int32_t> x(room), z(at_threshold ? room : 0);
    std::vector<T> values(room);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / parts, row = task % parts * rows;
      const int64_t count = std::min(rows, g.out_height - row);
      const uint64_t* weight = problem.weight + block * filter;
      if (row == 0 && block + 1 < g.blocks()) // the next block's weights, 64 bytes a line
        for (int64_t i = 0; i < filter; i += 8) __builtin_prefetch(weight + filter + i, 0, 2);
      for (int64_t y = 0; y < count; ++y)
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const int64_t first = tile * g.out_width / tiles;
          const int n = static_cast<int>((tile + 1) * g.out_width / tiles - first);
          const int64_t place =
              ((row + y) * g.stride_h * g.padded_width() + first * g.stride_w) * words;
          const int64_t out = (y * g.out_width + first) * kBlock;
          path.tile(work.bits.data() + place, g.stride_w * words, runs, weight, n, &x[out]);
          if (at_threshold)
            path.tile(work.marks.data() + place, g.stride_w * words, runs, weight, n, &z[out]);
        }
      path.finish(problem, image, block, row, count, work.sums.data(), x.data(),
                  at_threshold ? z.data() : nullptr, values.data());
    }
  });
}

// Images go to threads where there are enough of them, else the parts of each image do.
template <typename T, typename Parallel>
void convolve(const Problem<T>& problem, const Path<T>& path, int threads,
              const Parallel& parallel) {
  const Geometry& g = problem.shape;
  const Runs runs(g);
  const auto serial = [](int64_t count, int64_t, const auto& body) { body(0, count); };
  if (g.batch >= threads) {
    parallel(g.batch, 1, [&](int64_t begin, int64_t end) {
      Workspace<T> work(g);
      for (int64_t image = begin; image < end; ++image)
        convolve_image(problem, path, runs, image, work, serial);
    });
  } else {
    Workspace<T> work(g);
    for (int64_t image = 0; image < g.batch; ++image)
      convolve_image(problem, path, runs, image, work, parallel);
  }
}

} // namespace packed
