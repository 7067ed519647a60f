// Products of float vectors with packed matrices of 2, 3 and 4 bits; called from
// kernels/packed_linear_cpu.py alone, which checks shapes and dtypes.
//
// Layout of the words: (blocks of 4 rows, chunks, 4 rows, words, 16 lanes of 32 bits). With 2 and 4
// bits each half of a lane is a lane of its own: code k of half-lane m is input 32 k + m of the
// chunk, so that 32 codes meet 32 neighbouring inputs (bfloat16), or 16 even and 16 odd ones
// (float32, which the caller sorts so). With 3 bits a lane holds 32 codes over three words; code k
// of lane l is input 16 k + l.
#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "instruction_sets.h"

namespace {

using at::Tensor;

constexpr int kLanes = 16, kRows = 4;
constexpr int kAhead = 4096;  // bytes; the hardware's own prefetching ends with a page

template <int kBits>
struct Chunk {
  static constexpr int kWords = kBits == 3 ? 3 : 1;
  static constexpr int kCodes = 32 * kWords / kBits;
  static constexpr int kInputs = kLanes * kCodes;
};

struct Matrix {
  const int32_t* words;
  const float* scale;  // (blocks * 4, groups)
  const float* zero;
  int64_t blocks, chunks, groups, pairs_per_group;
};

// ---- portable

// The code that meets input 16 * vector + lane of a chunk (even and odd ones apart but at 3 bits).
template <int kBits>
inline int code_at(const int32_t* lane, int vector) {
  constexpr uint32_t kMask = (1u << kBits) - 1;
  const int bit = kBits == 3 ? vector * kBits : vector / 2 * kBits + vector % 2 * 16;
  const int word = bit / 32, offset = bit % 32;
  uint32_t value = static_cast<uint32_t>(lane[word * kLanes]) >> offset;
  if (offset + kBits > 32)
    value |= static_cast<uint32_t>(lane[(word + 1) * kLanes]) << (32 - offset);
  return static_cast<int>(value & kMask);
}

// One block of 4 rows: products with `count` inputs, or (out not null) the weights themselves.
template <int kBits>
void block_portable(const Matrix& m, int64_t block, const float* x, int64_t x_stride, int64_t count,
                    float* y, int64_t y_stride, float* out, int64_t out_stride) {
  using C = Chunk<kBits>;
  for (int r = 0; r < kRows; ++r) {
    const float* scale = m.scale + (block * kRows + r) * m.groups;
    const float* zero = m.zero + (block * kRows + r) * m.groups;
    for (int64_t i = 0; i < count; ++i) y[i * y_stride + r] = 0;
    for (int64_t c = 0; c < m.chunks; ++c) {
      const int32_t* words = m.words + ((block * m.chunks + c) * kRows + r) * C::kWords * kLanes;
      for (int k = 0; k < C::kCodes; ++k) {
        const int64_t vector = c * C::kCodes + k;
        const int64_t g = std::min(vector / (2 * m.pairs_per_group), m.groups - 1);
        for (int l = 0; l < kLanes; ++l) {
          const float w = (static_cast<float>(code_at<kBits>(words + l, k)) - zero[g]) * scale[g];
          if (out) out[r * out_stride + vector * kLanes + l] = w;
          for (int64_t i = 0; i < count; ++i)
            y[i * y_stride + r] += w * x[i * x_stride + vector * kLanes + l];
        }
      }
    }
  }
}

#if defined(__x86_64__)
#define PL_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define PL_INLINE PL_AVX512 inline __attribute__((always_inline))

// What 16 codes of R rows meet, and where in the groups that is.
template <int kBits, int R, int M>
struct State {
  const Matrix& m;
  const float *scale, *zero, *x;
  int64_t x_stride, position = 0, group = 0, left;
  float* out;
  int64_t out_stride;
  __m512 table[R], steps[R], sum[R][M ? M : 1], total[R][M ? M : 1];
};

// The table of a code is its value less the zero point. Codes are not masked: a permutation looks
// at four bits alone, and where fewer matter the table repeats itself.
template <int kBits, int R, int M>
PL_INLINE void begin_group(State<kBits, R, M>& s) {
  alignas(64) static const float kCodes[3][16] = {
      {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3},
      {0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7},
      {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}};
  const __m512 codes = _mm512_load_ps(kCodes[kBits - 2]);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    s.table[r] = _mm512_sub_ps(codes, _mm512_set1_ps(s.zero[r * s.m.groups + s.group]));
    s.steps[r] = _mm512_set1_ps(s.scale[r * s.m.groups + s.group]);
    if constexpr (M == 0) s.table[r] = _mm512_mul_ps(s.table[r], s.steps[r]);
  }
}

template <int kBits, int R, int M>
PL_INLINE void use(State<kBits, R, M>& s, const __m512i* index) {
  if constexpr (M == 0) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
      _mm512_storeu_ps(s.out + r * s.out_stride + s.position,
                       _mm512_permutexvar_ps(index[r], s.table[r]));
  } else {
    __m512 x[M ? M : 1];
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) x[i] = _mm512_loadu_ps(s.x + i * s.x_stride + s.position);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const __m512 w = _mm512_permutexvar_ps(index[r], s.table[r]);
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) s.sum[r][i] = _mm512_fmadd_ps(w, x[i], s.sum[r][i]);
    }
  }
  s.position += kLanes;
}

// Two vectors are done: 32 inputs, what every group is a multiple of.
template <int kBits, int R, int M>
PL_INLINE void advance(State<kBits, R, M>& s) {
  if (__builtin_expect(--s.left != 0, 1)) return;
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) {
      s.total[r][i] = _mm512_fmadd_ps(s.sum[r][i], s.steps[r], s.total[r][i]);
      s.sum[r][i] = _mm512_setzero_ps();
    }
  s.group = std::min(s.group + 1, s.m.groups - 1);  // beyond the last input x is 0
  s.left = s.m.pairs_per_group;
  begin_group(s);
}

template <int kBits, int R, int M>
PL_INLINE void shift(__m512i* word) {
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) word[r] = _mm512_srli_epi32(word[r], kBits);
}

// R rows from `first` of a block on, M inputs at a time (M = 0: the weights are written to out).
template <int kBits, int R, int M>
PL_AVX512 void rows_avx512(const Matrix& m, int64_t block, int first, const float* x,
                           int64_t x_stride, float* y, int64_t y_stride, float* out,
                           int64_t out_stride) {
  using C = Chunk<kBits>;
  const int64_t row = block * kRows + first;
  State<kBits, R, M> s{m, m.scale + row * m.groups, m.zero + row * m.groups, x, x_stride, 0, 0,
                       m.pairs_per_group, out, out_stride};
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < M; ++i) s.sum[r][i] = s.total[r][i] = _mm512_setzero_ps();
  begin_group(s);
  const int32_t* words =
      m.words + (block * m.chunks * kRows + first) * C::kWords * kLanes;
  for (int64_t c = 0; c < m.chunks; ++c, words += kRows * C::kWords * kLanes) {
    __m512i w[C::kWords][R];
#pragma GCC unroll 3
    for (int j = 0; j < C::kWords; ++j)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
        w[j][r] = _mm512_loadu_si512(words + (r * C::kWords + j) * kLanes);
    if constexpr (R == kRows)
#pragma GCC unroll 12
      for (int line = 0; line < kRows * C::kWords; ++line)
        _mm_prefetch(reinterpret_cast<const char*>(words + line * kLanes) + kAhead, _MM_HINT_T0);
    if constexpr (kBits != 3) {
      __m512i odd[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) odd[r] = _mm512_srli_epi32(w[0][r], 16);
#pragma GCC unroll 8
      for (int k = 0; k < C::kCodes / 2; ++k) {
        use(s, w[0]);
        use(s, odd);
        advance(s);
        shift<kBits, R, M>(w[0]);
        shift<kBits, R, M>(odd);
      }
    } else {  // 10 codes and 2 bits, 1 bit and 10 codes and 1 bit, 2 bits and 10 codes
      __m512i across[R];
#pragma GCC unroll 10
      for (int k = 0; k < 10; ++k) {
        use(s, w[0]);
        if (k % 2) advance(s);
        shift<kBits, R, M>(w[0]);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        across[r] = _mm512_or_si512(w[0][r], _mm512_slli_epi32(w[1][r], 2));
        w[1][r] = _mm512_srli_epi32(w[1][r], 1);
      }
      use(s, across);
#pragma GCC unroll 10
      for (int k = 0; k < 10; ++k) {
        use(s, w[1]);
        if (k % 2 == 0) advance(s);
        shift<kBits, R, M>(w[1]);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        across[r] = _mm512_or_si512(w[1][r], _mm512_slli_epi32(w[2][r], 1));
        w[2][r] = _mm512_srli_epi32(w[2][r], 2);
      }
      use(s, across);
      advance(s);
#pragma GCC unroll 10
      for (int k = 0; k < 10; ++k) {
        use(s, w[2]);
        if (k % 2) advance(s);
        shift<kBits, R, M>(w[2]);
      }
    }
  }
  if constexpr (M > 0)
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < M; ++i)
        y[i * y_stride + first + r] = _mm512_reduce_add_ps(
            _mm512_fmadd_ps(s.sum[r][i], s.steps[r], s.total[r][i]));
}

#define PL_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

// The codes that five bits can be, less half of their range, as bfloat16 (whole numbers: exact).
template <int kBits>
PL_BF16 inline __attribute__((always_inline)) __m512i table_bf16() {
  alignas(64) uint16_t table[32];
  for (int i = 0; i < 32; ++i) {
    const float value = static_cast<float>(i % (1 << kBits) - (1 << (kBits - 1)));
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    table[i] = static_cast<uint16_t>(bits >> 16);
  }
  return _mm512_load_si512(table);
}

// The four rows of a block with one bfloat16 input: 32 weights a permutation and a dot product of
// pairs, which adds up exact products in float32. Zero points come in at the end, with the sums of
// the inputs of each group: sum_g s (half - z) sums.
template <int kBits>
PL_BF16 void block_bf16(const Matrix& m, int64_t block, const uint16_t* x, const float* sums,
                        float* y) {
  constexpr int kPairs = 16 / kBits;
  constexpr float kHalf = 1 << (kBits - 1);
  const float* scale = m.scale + block * kRows * m.groups;
  const float* zero = m.zero + block * kRows * m.groups;
  const int32_t* words = m.words + block * m.chunks * kRows * kLanes;
  const __m512i table = table_bf16<kBits>();
  __m512 sum[kRows], total[kRows];
  int64_t group = 0, left = m.pairs_per_group;
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) sum[r] = total[r] = _mm512_setzero_ps();
  for (int64_t c = 0; c < m.chunks; ++c, words += kRows * kLanes, x += 32 * kPairs) {
    __m512i w[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      w[r] = _mm512_loadu_si512(words + r * kLanes);
      _mm_prefetch(reinterpret_cast<const char*>(words + r * kLanes) + kAhead, _MM_HINT_T0);
    }
#pragma GCC unroll 8
    for (int k = 0; k < kPairs; ++k) {
      const __m512bh inputs = (__m512bh)_mm512_loadu_si512(x + 32 * k);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        sum[r] = _mm512_dpbf16_ps(sum[r], (__m512bh)_mm512_permutexvar_epi16(w[r], table), inputs);
        w[r] = _mm512_srli_epi16(w[r], kBits);
      }
      if (__builtin_expect(--left == 0, 0)) {
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          total[r] = _mm512_fmadd_ps(sum[r], _mm512_set1_ps(scale[r * m.groups + group]), total[r]);
          sum[r] = _mm512_setzero_ps();
        }
        group = std::min(group + 1, m.groups - 1);  // beyond the last input x is 0
        left = m.pairs_per_group;
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const float* s = scale + r * m.groups;
    const float* z = zero + r * m.groups;
    float offset = 0;
    for (int64_t g = 0; g < m.groups; ++g) offset += s[g] * (kHalf - z[g]) * sums[g];
    y[r] = offset + _mm512_reduce_add_ps(
                        _mm512_fmadd_ps(sum[r], _mm512_set1_ps(s[group]), total[r]));
  }
}

template <int kBits>
PL_AVX512 void block_avx512(const Matrix& m, int64_t block, const float* x, int64_t x_stride,
                            int64_t count, float* y, int64_t y_stride, float* out,
                            int64_t out_stride) {
  if (out) {
    rows_avx512<kBits, 4, 0>(m, block, 0, nullptr, 0, nullptr, 0, out, out_stride);
    return;
  }
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int r = 0; r < kRows; ++r)
      rows_avx512<kBits, 1, 4>(m, block, r, x + i * x_stride, x_stride, y + i * y_stride, y_stride,
                               nullptr, 0);
  for (; i + 2 <= count; i += 2)
    for (int r = 0; r < kRows; r += 2)
      rows_avx512<kBits, 2, 2>(m, block, r, x + i * x_stride, x_stride, y + i * y_stride, y_stride,
                               nullptr, 0);
  for (; i < count; ++i)
    rows_avx512<kBits, 4, 1>(m, block, 0, x + i * x_stride, x_stride, y + i * y_stride, y_stride,
                             nullptr, 0);
}
#endif

// Whether multiply_bf16 runs here.
bool has_bf16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

bool supported(const std::string& path) {
  if (path == "portable") return true;
#if defined(__x86_64__)
  if (path == "avx512")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return false;
}

std::vector<std::string> paths() {
  std::vector<std::string> names;
  for (const char* name : {"avx512", "portable"})
    if (supported(name)) names.emplace_back(name);
  return names;
}

using Block = void (*)(const Matrix&, int64_t, const float*, int64_t, int64_t, float*, int64_t,
                       float*, int64_t);

Block block_named(const std::string& path, int64_t bits) {
  TORCH_CHECK_VALUE(supported(path), "this CPU has no path ", path);
  TORCH_CHECK_VALUE(2 <= bits && bits <= 4, "2, 3 or 4 bits, not ", bits);
#if defined(__x86_64__)
  if (path == "avx512")
    return bits == 2 ? block_avx512<2> : bits == 3 ? block_avx512<3> : block_avx512<4>;
#endif
  return bits == 2 ? block_portable<2> : bits == 3 ? block_portable<3> : block_portable<4>;
}

Matrix matrix_of(const Tensor& words, const Tensor& scale, const Tensor& zero, int64_t group) {
  return {words.const_data_ptr<int32_t>(),
          scale.const_data_ptr<float>(),
          zero.const_data_ptr<float>(),
          words.size(0),
          words.size(1),
          scale.size(1),
          (group + 2 * kLanes - 1) / (2 * kLanes)};
}

// x (count, inputs of all chunks, in the order of the products) float32 -> (count, blocks * 4).
Tensor multiply(const Tensor& x, const Tensor& words, const Tensor& scale, const Tensor& zero,
                int64_t bits, int64_t group, const std::string& path) {
  const Matrix m = matrix_of(words, scale, zero, group);
  const Block run = block_named(path, bits);
  Tensor y = at::empty({x.size(0), m.blocks * kRows}, x.options());
  const float* from = x.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  at::parallel_for(0, m.blocks, 16, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      run(m, b, from, x.stride(0), x.size(0), to + b * kRows, y.stride(0), nullptr, 0);
  });
  return y;
}

// One input (1, inputs of all chunks) bfloat16, its sums by group, 2 or 4 bits -> (1, blocks * 4).
Tensor multiply_bf16(const Tensor& x, const Tensor& sums, const Tensor& words, const Tensor& scale,
                     const Tensor& zero, int64_t bits, int64_t group) {
  TORCH_CHECK_VALUE(has_bf16(), "this CPU has no AVX512_BF16");
  const Matrix m = matrix_of(words, scale, zero, group);
  Tensor y = at::empty({1, m.blocks * kRows}, scale.options());
  float* to = y.mutable_data_ptr<float>();
#if defined(__x86_64__)
  const auto run = bits == 2 ? block_bf16<2> : block_bf16<4>;
  const auto* from = reinterpret_cast<const uint16_t*>(x.const_data_ptr<at::BFloat16>());
  const float* of_groups = sums.const_data_ptr<float>();
  at::parallel_for(0, m.blocks, 16, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) run(m, b, from, of_groups, to + b * kRows);
  });
#endif
  return y;
}

// (blocks * 4, inputs of all chunks) float32; inputs in the order of the products.
Tensor dequantize(const Tensor& words, const Tensor& scale, const Tensor& zero, int64_t bits,
                  int64_t group, int64_t inputs, const std::string& path) {
  const Matrix m = matrix_of(words, scale, zero, group);
  const Block run = block_named(path, bits);
  Tensor out = at::empty({m.blocks * kRows, inputs}, scale.options());
  float* to = out.mutable_data_ptr<float>();
  at::parallel_for(0, m.blocks, 16, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      run(m, b, nullptr, 0, 0, nullptr, 0, to + b * kRows * inputs, inputs);
  });
  return out;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("paths", &paths);
  m.def("has_bf16", &has_bf16);
  using pybind11::arg;
  const pybind11::call_guard<pybind11::gil_scoped_release> no_gil;
  m.def("multiply", &multiply, no_gil, arg("x"), arg("words"), arg("scale"), arg("zero"),
        arg("bits"), arg("group"), arg("path"));
  m.def("multiply_bf16", &multiply_bf16, no_gil, arg("x"), arg("sums"), arg("words"), arg("scale"),
        arg("zero"), arg("bits"), arg("group"));
  m.def("dequantize", &dequantize, no_gil, arg("words"), arg("scale"), arg("zero"), arg("bits"),
        arg("group"), arg("inputs"), arg("path"));
}
