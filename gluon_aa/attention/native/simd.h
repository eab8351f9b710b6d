// Vectors of floats as wide as the CPU compiled for has, in the vector extension that GCC and Clang share.
#pragma once
#include <cstdint>
#include <utility>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace gluon_aa {

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int PANEL_VECTORS = 4;  // with 6 rows 24 of the 32 registers accumulate
#elif defined(__AVX__)
constexpr int LANES = 8;
constexpr int PANEL_VECTORS = 2;  // 12 of 16
#else
constexpr int LANES = 4;
constexpr int PANEL_VECTORS = 2;
#endif

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef std::int32_t Integers __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void store(float* to, Vector x) { *reinterpret_cast<Unaligned*>(to) = x; }
inline Vector broadcast(float x) { return x - Vector{}; }

inline Integers lane_numbers() {
  Integers numbers;
  for (int lane = 0; lane < LANES; ++lane) numbers[lane] = lane;
  return numbers;
}

// The first `count` lanes of x, zeros in the others.
inline Vector first_lanes(Vector x, int count) { return lane_numbers() < count ? x : Vector{}; }

inline Vector maximum(Vector x, Vector y) { return x > y ? x : y; }  // y where either is NaN

// 2^x for x up to 127, with a relative error of 1e-7; 0, or next to it, for any x below -126; NaN of NaN.
inline Vector exp2(Vector x) {
#ifndef __AVX512F__
  x = maximum(broadcast(-126.0f), x);
  x = x > 127.0f ? broadcast(127.0f) : x;
#endif
  const Vector shifter = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to whole numbers
  const Vector shifted = x + shifter;
  const Vector whole = shifted - shifter;
  const Vector part = x - whole;  // -1/2 to 1/2
  // minimax polynomial of 2^part through 1 at 0: relative error 9.1e-8 (Lawson's algorithm on 4,001 points)
  Vector power = broadcast(1.32647272525e-03f);
  power = power * part + 9.67151278578e-03f;
  power = power * part + 5.55073374447e-02f;
  power = power * part + 2.40222420831e-01f;
  power = power * part + 6.93146977598e-01f;
  power = power * part + 1.0f;
#ifdef __AVX512F__
  return _mm512_mask_scalef_ps(power, 0xffff, power, whole);
#else
  return (Vector)((Integers)power + ((Integers)shifted << 23));
#endif
}

#if defined(__clang__) || __GNUC__ >= 12
#define GLUON_AA_SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define GLUON_AA_SHUFFLE(x, y, ...) __builtin_shuffle(x, y, Integers{__VA_ARGS__})
#endif

// Lane of [x, y] that comes to `lane` when pairs of blocks are merged: blocks of x and y take turns, and of each two
// blocks beside each other the first (offset 0) or the second (offset block) is taken.
constexpr int merged_lane(int lane, int block, int offset) {
  return lane / (2 * block) * 2 * block + lane % block + (lane % (2 * block) < block ? 0 : LANES) + offset;
}

template <int BLOCK, int... LANE>
inline Vector merge(Vector x, Vector y, std::integer_sequence<int, LANE...>) {
  return GLUON_AA_SHUFFLE(x, y, merged_lane(LANE, BLOCK, 0)...) +
         GLUON_AA_SHUFFLE(x, y, merged_lane(LANE, BLOCK, BLOCK)...);
}

template <int BLOCK>
inline Vector merge_all(const Vector* x) {
  constexpr auto lanes = std::make_integer_sequence<int, LANES>{};
  if constexpr (BLOCK == 1) {
    return merge<1>(x[0], x[1], lanes);
  } else {
    return merge<BLOCK>(merge_all<BLOCK / 2>(x), merge_all<BLOCK / 2>(x + BLOCK), lanes);
  }
}

// Lane i of the result is the sum of the lanes of x[i]; x holds LANES vectors.
inline Vector sum_each(const Vector* x) { return merge_all<LANES / 2>(x); }

}  // namespace gluon_aa
