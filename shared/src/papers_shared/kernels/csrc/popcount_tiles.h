// Popcount of (activation xor weight) for 8 output pixels x 16 output channels at once, in four
// instruction sets.  Plain C++17 without torch; binary_conv2d.h builds the convolution on it.
//
// Weights lie as [O / 16][tap * word][16]: a vector holds output channels, an activation word is
// broadcast to all lanes, so there are no horizontal sums.
#pragma once

#include <algorithm>
#include <vector>

#include "instruction_sets.h"

namespace packed {

constexpr int kBlock = 16;    // output channels computed together
constexpr int kMaxPixels = 8; // output pixels computed together

struct Geometry {
  int64_t batch, channels, height, width;      // input
  int64_t out_channels, out_height, out_width; // output
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;

  int64_t words() const { return (channels + 63) / 64; }
  int64_t padded_height() const { return height + 2 * pad_h; }
  int64_t padded_width() const { return width + 2 * pad_w; }
  int64_t padded_pixels() const { return padded_height() * padded_width(); }
  int64_t blocks() const { return (out_channels + kBlock - 1) / kBlock; }
};

// Runs of words that lie together both in the packed image and in the weights: one a kernel
// row, or one a tap where dilation pulls the taps of a row apart.
struct Runs {
  std::vector<int64_t> offsets;
  int64_t length;

  explicit Runs(const Geometry& g) {
    const int64_t words = g.words(), row = g.padded_width() * words;
    const bool joined = g.dilation_w == 1;
    length = joined ? g.kernel_w * words : words;
    for (int64_t i = 0; i < g.kernel_h; ++i)
      for (int64_t j = 0; j < (joined ? 1 : g.kernel_w); ++j)
        offsets.push_back(i * g.dilation_h * row + j * g.dilation_w * words);
  }
};

// out[pixel][16] = popcount of (activation xor weight) over all runs.
using TileFunction = void (*)(const uint64_t* activation, int64_t pixel_step, const Runs& runs,
                              const uint64_t* weight, int pixels, int32_t* out);

// ------------------------------------------------------------------------------- portable

PS_INLINE uint64_t byte_counts(uint64_t v) { // the popcount of every byte, in that byte
  v -= (v >> 1) & 0x5555555555555555ull;
  v = (v & 0x3333333333333333ull) + ((v >> 2) & 0x3333333333333333ull);
  return (v + (v >> 4)) & 0x0f0f0f0f0f0f0f0full;
}

PS_INLINE int32_t sum_of_bytes(uint64_t v) { // for sums up to 8 * 248
  v = (v & 0x00ff00ff00ff00ffull) + ((v >> 8) & 0x00ff00ff00ff00ffull);
  return static_cast<int32_t>((v * 0x0001000100010001ull) >> 48);
}

PS_INLINE int32_t popcount(uint64_t v) { return sum_of_bytes(byte_counts(v)); }

constexpr int kBytesFull = 31; // counts of 8 that a byte holds

inline void tile_portable(const uint64_t* activation, int64_t pixel_step, const Runs& runs,
                          const uint64_t* weight, int pixels, int32_t* out) {
  for (int p = 0; p < pixels; ++p) {
    int32_t* total = out + p * kBlock;
    std::fill_n(total, kBlock, 0);
    uint64_t bytes[kBlock] = {};
    int pending = 0;
    const auto flush = [&] {
      for (int j = 0; j < kBlock; ++j) total[j] += sum_of_bytes(bytes[j]), bytes[j] = 0;
      pending = 0;
    };
    const uint64_t* w = weight;
    for (const int64_t offset : runs.offsets) {
      const uint64_t* a = activation + offset + p * pixel_step;
      for (int64_t k = 0; k < runs.length; ++k, w += kBlock) {
        for (int j = 0; j < kBlock; ++j) bytes[j] += byte_counts(a[k] ^ w[j]);
        if (++pending == kBytesFull) flush();
      }
    }
    flush();
  }
}

// --------------------------------------------------------------------------- x86: AVX-512

#if defined(__x86_64__)

template <int P>
PS_AVX512 void tile_avx512_fixed(const uint64_t* activation, int64_t pixel_step,
                                 const Runs& runs, const uint64_t* weight, int32_t* out) {
  __m512i low[P], high[P]; // output channels 0..7 and 8..15 of each pixel
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) low[p] = high[p] = _mm512_setzero_si512();
  const int64_t length = runs.length;
  for (const int64_t offset : runs.offsets) {
    const uint64_t* a = activation + offset;
    for (int64_t k = 0; k < length; ++k, ++a, weight += kBlock) {
      const __m512i w0 = _mm512_loadu_si512(weight), w1 = _mm512_loadu_si512(weight + 8);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        const __m512i word = _mm512_set1_epi64(static_cast<long long>(a[p * pixel_step]));
        const __m512i x0 = _mm512_popcnt_epi64(_mm512_xor_si512(word, w0));
        const __m512i x1 = _mm512_popcnt_epi64(_mm512_xor_si512(word, w1));
        low[p] = _mm512_add_epi64(low[p], x0);
        high[p] = _mm512_add_epi64(high[p], x1);
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    auto* row = reinterpret_cast<__m256i*>(out + p * kBlock);
    _mm256_storeu_si256(row, _mm512_cvtepi64_epi32(low[p]));
    _mm256_storeu_si256(row + 1, _mm512_cvtepi64_epi32(high[p]));
  }
}

inline void tile_avx512(const uint64_t* activation, int64_t pixel_step, const Runs& runs,
                        const uint64_t* weight, int pixels, int32_t* out) {
  switch (pixels) {
    case 1: return tile_avx512_fixed<1>(activation, pixel_step, runs, weight, out);
    case 2: return tile_avx512_fixed<2>(activation, pixel_step, runs, weight, out);
    case 3: return tile_avx512_fixed<3>(activation, pixel_step, runs, weight, out);
    case 4: return tile_avx512_fixed<4>(activation, pixel_step, runs, weight, out);
    case 5: return tile_avx512_fixed<5>(activation, pixel_step, runs, weight, out);
    case 6: return tile_avx512_fixed<6>(activation, pixel_step, runs, weight, out);
    case 7: return tile_avx512_fixed<7>(activation, pixel_step, runs, weight, out);
    default: return tile_avx512_fixed<8>(activation, pixel_step, runs, weight, out);
  }
}

// XOR, popcount and add on registers alone, 14 x 512 bits a round: the limit of the machine.
PS_AVX512 inline int64_t popcount_only_avx512(int64_t rounds) {
  const __m512i w = _mm512_set1_epi64(0x0ff05a5a3c3c1234);
  __m512i sums[14];
#pragma GCC unroll 14
  for (int i = 0; i < 14; ++i) sums[i] = _mm512_set1_epi64(i);
  for (int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 14
    for (int i = 0; i < 14; ++i) {
      __m512i x = _mm512_xor_si512(w, sums[i]);
      asm volatile("" : "+v"(x)); // keeps the compiler from merging the operations
      sums[i] = _mm512_add_epi64(sums[i], _mm512_popcnt_epi64(x));
    }
  int64_t total = 0;
  for (int i = 0; i < 14; ++i) total += _mm512_reduce_add_epi64(sums[i]);
  return total;
}

// ------------------------------------------------------------------------------ x86: AVX2

// The popcount of a nibble is a table look-up (vpshufb); counts gather in bytes and are summed
// before these can overflow.
template <int P>
PS_AVX2 void tile_avx2_fixed(const uint64_t* activation, int64_t pixel_step, const Runs& runs,
                             const uint64_t* weight, int32_t* out) {
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1,
                                         2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i nibble = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
  __m256i total[P][4], bytes[P][4];
  for (int p = 0; p < P; ++p)
    for (int j = 0; j < 4; ++j) total[p][j] = bytes[p][j] = zero;
  int pending = 0;
  for (size_t r = 0; r < runs.offsets.size(); ++r) {
    const uint64_t* a = activation + runs.offsets[r];
    for (int64_t k = 0; k < runs.length; ++k, ++a, weight += kBlock) {
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) {
        const __m256i word = _mm256_set1_epi64x(static_cast<long long>(a[p * pixel_step]));
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const auto* w = reinterpret_cast<const __m256i*>(weight) + j;
          const __m256i x = _mm256_xor_si256(word, _mm256_loadu_si256(w));
          const __m256i lower = _mm256_and_si256(x, nibble);
          const __m256i upper = _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble);
          bytes[p][j] = _mm256_add_epi8(bytes[p][j], _mm256_shuffle_epi8(table, lower));
          bytes[p][j] = _mm256_add_epi8(bytes[p][j], _mm256_shuffle_epi8(table, upper));
        }
      }
      const bool last = r + 1 == runs.offsets.size() && k + 1 == runs.length;
      if (++pending == kBytesFull || last) {
        for (int p = 0; p < P; ++p)
          for (int j = 0; j < 4; ++j) {
            total[p][j] = _mm256_add_epi64(total[p][j], _mm256_sad_epu8(bytes[p][j], zero));
            bytes[p][j] = zero;
          }
        pending = 0;
      }
    }
  }
  for (int p = 0; p < P; ++p)
    for (int j = 0; j < 4; ++j) {
      alignas(32) int64_t lanes[4];
      _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), total[p][j]);
      for (int i = 0; i < 4; ++i) out[p * kBlock + 4 * j + i] = static_cast<int32_t>(lanes[i]);
    }
}

inline void tile_avx2(const uint64_t* activation, int64_t pixel_step, const Runs& runs,
                      const uint64_t* weight, int pixels, int32_t* out) {
  int p = 0;
  for (; p + 2 <= pixels; p += 2)
    tile_avx2_fixed<2>(activation + p * pixel_step, pixel_step, runs, weight, out + p * kBlock);
  if (p < pixels)
    tile_avx2_fixed<1>(activation + p * pixel_step, pixel_step, runs, weight, out + p * kBlock);
}

#endif // __x86_64__

// ------------------------------------------------------------------------------- ARM: NEON

#if defined(__aarch64__)

// vcnt counts the bits of bytes; bytes are summed pairwise before they can overflow.
template <int P>
void tile_neon_fixed(const uint64_t* activation, int64_t pixel_step, const Runs& runs,
                     const uint64_t* weight, int32_t* out) {
  uint8x16_t bytes[P][8];
  uint64x2_t total[P][8];
  for (int p = 0; p < P; ++p)
    for (int j = 0; j < 8; ++j) bytes[p][j] = vdupq_n_u8(0), total[p][j] = vdupq_n_u64(0);
  int pending = 0;
  for (size_t r = 0; r < runs.offsets.size(); ++r) {
    const uint64_t* a = activation + runs.offsets[r];
    for (int64_t k = 0; k < runs.length; ++k, ++a, weight += kBlock) {
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) {
        const uint64x2_t word = vdupq_n_u64(a[p * pixel_step]);
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
          const uint64x2_t x = veorq_u64(word, vld1q_u64(weight + 2 * j));
          bytes[p][j] = vaddq_u8(bytes[p][j], vcntq_u8(vreinterpretq_u8_u64(x)));
        }
      }
      const bool last = r + 1 == runs.offsets.size() && k + 1 == runs.length;
      if (++pending == kBytesFull || last) {
        for (int p = 0; p < P; ++p)
          for (int j = 0; j < 8; ++j) {
            total[p][j] = vpadalq_u32(total[p][j], vpaddlq_u16(vpaddlq_u8(bytes[p][j])));
            bytes[p][j] = vdupq_n_u8(0);
          }
        pending = 0;
      }
    }
  }
  for (int p = 0; p < P; ++p)
    for (int j = 0; j < 8; ++j) {
      out[p * kBlock + 2 * j] = static_cast<int32_t>(vgetq_lane_u64(total[p][j], 0));
      out[p * kBlock + 2 * j + 1] = static_cast<int32_t>(vgetq_lane_u64(total[p][j], 1));
    }
}

inline void tile_neon(const uint64_t* activation, int64_t pixel_step, const Runs& runs,
                      const uint64_t* weight, int pixels, int32_t* out) {
  int p = 0;
  for (; p + 2 <= pixels; p += 2)
    tile_neon_fixed<2>(activation + p * pixel_step, pixel_step, runs, weight, out + p * kBlock);
  if (p < pixels)
    tile_neon_fixed<1>(activation + p * pixel_step, pixel_step, runs, weight, out + p * kBlock);
}

#endif // __aarch64__

} // namespace packed
