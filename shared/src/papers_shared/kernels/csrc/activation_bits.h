// Comparing activations with their threshold: 64 channels of a pixel become one word.
// Plain C++17 without torch.
#pragma once

#include "instruction_sets.h"

namespace packed {

enum class Test { above, below, equal };

template <typename T>
PS_INLINE bool passes(T value, T threshold, Test test) {
  return test == Test::above   ? value > threshold
         : test == Test::below ? value < threshold
                               : !(value < threshold || value > threshold); // NaN as well
}

// Adds the bits of one channel to the words of neighbouring pixels: bit `channel` of each word.
// Returns whether a value is at the threshold.
template <typename T>
PS_INLINE bool plane_bits(const T* values, int pixels, int channel, T threshold, Test test,
                          uint64_t* word) {
  uint64_t at = 0;
  for (int i = 0; i < pixels; ++i) {
    word[i] |= static_cast<uint64_t>(passes(values[i], threshold, test)) << channel;
    at |= static_cast<uint64_t>(passes(values[i], threshold, Test::equal));
  }
  return at != 0;
}

// Adds the bits of up to 64 channels of one pixel.
template <typename T>
PS_INLINE bool pixel_bits(const T* values, int channels, T threshold, Test test, uint64_t* word) {
  uint64_t bits = 0, at = 0;
  for (int c = 0; c < channels; ++c) {
    bits |= static_cast<uint64_t>(passes(values[c], threshold, test)) << c;
    at |= static_cast<uint64_t>(passes(values[c], threshold, Test::equal));
  }
  *word = bits;
  return at != 0;
}

// planar: values[channel * stride + pixel]; interleaved: values[pixel * stride + channel].
// Both walk through memory in its order.  `word` starts as zeros.
template <typename T>
struct PlainBits {
  static PS_INLINE bool planar(const T* values, int64_t stride, int channels, int pixels,
                               T threshold, Test test, uint64_t* word) {
    bool at = false;
    for (int c = 0; c < channels; ++c)
      at |= plane_bits(values + c * stride, pixels, c, threshold, test, word);
    return at;
  }
  static PS_INLINE bool interleaved(const T* values, int64_t stride, int channels, int pixels,
                                    T threshold, Test test, uint64_t* word) {
    bool at = false;
    for (int i = 0; i < pixels; ++i)
      at |= pixel_bits(values + i * stride, channels, threshold, test, word + i);
    return at;
  }
};

#if defined(__x86_64__)
struct Avx512Bits { // 16 floats a comparison
  template <int predicate>
  PS_AVX512 static bool planar_as(const float* values, int64_t stride, int channels, int pixels,
                                  float threshold, uint64_t* word) {
    const __m512 limit = _mm512_set1_ps(threshold);
    __m512i bit = _mm512_set1_epi64(1);
    __mmask16 at = 0;
    for (int c = 0; c < channels; ++c, values += stride) {
      for (int i = 0; i < pixels; i += 16) {
        const int left = pixels - i;
        const __mmask16 valid = left >= 16 ? 0xffff : static_cast<__mmask16>((1 << left) - 1);
        const __m512 x = _mm512_maskz_loadu_ps(valid, values + i);
        const __mmask16 mask = _mm512_mask_cmp_ps_mask(valid, x, limit, predicate);
        at |= _mm512_mask_cmp_ps_mask(valid, x, limit, _CMP_EQ_UQ);
        const __m512i low = _mm512_loadu_si512(word + i), high = _mm512_loadu_si512(word + i + 8);
        const auto m0 = static_cast<__mmask8>(mask), m1 = static_cast<__mmask8>(mask >> 8);
        _mm512_storeu_si512(word + i, _mm512_mask_or_epi64(low, m0, low, bit));
        _mm512_storeu_si512(word + i + 8, _mm512_mask_or_epi64(high, m1, high, bit));
      }
      bit = _mm512_add_epi64(bit, bit);
    }
    return at != 0;
  }
  template <int predicate>
  PS_AVX512 static bool interleaved_as(const float* values, int64_t stride, int channels,
                                       int pixels, float threshold, uint64_t* word) {
    const __m512 limit = _mm512_set1_ps(threshold);
    __mmask16 at = 0;
    for (int i = 0; i < pixels; ++i, values += stride) {
      uint64_t bits = 0;
      for (int c = 0; c < channels; c += 16) {
        const int left = channels - c;
        const __mmask16 valid = left >= 16 ? 0xffff : static_cast<__mmask16>((1 << left) - 1);
        const __m512 x = _mm512_maskz_loadu_ps(valid, values + c);
        at |= _mm512_mask_cmp_ps_mask(valid, x, limit, _CMP_EQ_UQ);
        const uint64_t mask = _mm512_mask_cmp_ps_mask(valid, x, limit, predicate);
        bits |= mask << c;
      }
      word[i] = bits;
    }
    return at != 0;
  }
  static bool planar(const float* values, int64_t stride, int channels, int pixels,
                     float threshold, Test test, uint64_t* word) {
    const auto run = test == Test::above   ? planar_as<_CMP_GT_OQ>
                     : test == Test::below ? planar_as<_CMP_LT_OQ>
                                           : planar_as<_CMP_EQ_UQ>;
    return run(values, stride, channels, pixels, threshold, word);
  }
  static bool interleaved(const float* values, int64_t stride, int channels, int pixels,
                          float threshold, Test test, uint64_t* word) {
    const auto run = test == Test::above   ? interleaved_as<_CMP_GT_OQ>
                     : test == Test::below ? interleaved_as<_CMP_LT_OQ>
                                           : interleaved_as<_CMP_EQ_UQ>;
    return run(values, stride, channels, pixels, threshold, word);
  }
};
#endif

} // namespace packed
