// Which instructions a function may use: all paths of an architecture live in one library.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#define PS_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx2,popcnt")))
#define PS_AVX2 __attribute__((target("avx2,popcnt")))
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
// Bodies marked so are compiled once inside every instruction set's entry point.
#define PS_INLINE inline __attribute__((always_inline))
