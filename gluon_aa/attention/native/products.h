// The two kinds of products, of blocks that stay in registers.
//
// `multiply` makes a panel: PANEL numbers along the vector lanes, such as keys, in rows, such as queries or channels.
// `dot` sums over the lanes of all panels.
#pragma once
#include <algorithm>
#include <cstdint>

#include "simd.h"

namespace gluon_aa {

using std::int64_t;

constexpr int PANEL = PANEL_VECTORS * LANES;  // keys of a panel
constexpr int ROWS = 6;                       // of a register block of `multiply`: ROWS x PANEL_VECTORS vectors
constexpr int TILE_ROWS = 24;                 // queries of a tile

// Results of `multiply`: what a row of a panel starts from, and what is done with it. `panel` has rows of `stride`.
struct Store {
  float* panel;
  int64_t stride;

  template <int VECTORS>
  void start(int, Vector (&x)[VECTORS]) const {
    for (int v = 0; v < VECTORS; ++v) x[v] = Vector{};
  }
  template <int VECTORS>
  void finish(int row, const Vector (&x)[VECTORS]) const {
    for (int v = 0; v < VECTORS; ++v) store(panel + row * stride + v * LANES, x[v]);
  }
};

struct Accumulate : Store {
  template <int VECTORS>
  void start(int row, Vector (&x)[VECTORS]) const {
    for (int v = 0; v < VECTORS; ++v) x[v] = load(panel + row * stride + v * LANES);
  }
};

// Numbers of a tile's queries, (channels, TILE_ROWS): as a matrix of (channels, queries), or of (queries, channels).
struct ByChannel {
  const float* data;
  static constexpr int64_t STEP = TILE_ROWS, COLUMN = 1;
};
struct ByQuery {
  const float* data;
  static constexpr int64_t STEP = 1, COLUMN = TILE_ROWS;
};

// A matrix whose rows are `stride` floats apart.
struct Matrix {
  const float* data;
  int64_t stride;
};

// result[r, j] = start + sum_k a[k, r] b[k, j] for BLOCK rows from `row` on; a (depth, rows), b (depth, PANEL).
template <int BLOCK, int VECTORS, class Left, class Result>
void multiply_block(Left a, Matrix b, int64_t depth, const Result& result, int row) {
  Vector x[BLOCK][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < BLOCK; ++r) result.start(row + r, x[r]);
  const float *left = a.data + row * Left::COLUMN, *right = b.data;
  for (int64_t k = 0; k < depth; ++k, left += Left::STEP, right += b.stride) {
    Vector y[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) y[v] = load(right + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < BLOCK; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) x[r][v] += y[v] * left[r * Left::COLUMN];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < BLOCK; ++r) result.finish(row + r, x[r]);
}

template <int VECTORS, class Left, class Result>
void multiply_rows(Left a, Matrix b, int64_t depth, const Result& result, int rows) {
  const int blocks = (rows + ROWS - 1) / ROWS;
  for (int block = 0, row = 0; block < blocks; ++block) {
    const int count = (rows - row + blocks - block - 1) / (blocks - block);  // blocks as equal as can be
    switch (count) {
      case 1: multiply_block<1, VECTORS>(a, b, depth, result, row); break;
      case 2: multiply_block<2, VECTORS>(a, b, depth, result, row); break;
      case 3: multiply_block<3, VECTORS>(a, b, depth, result, row); break;
      case 4: multiply_block<4, VECTORS>(a, b, depth, result, row); break;
      case 5: multiply_block<5, VECTORS>(a, b, depth, result, row); break;
      default: multiply_block<6, VECTORS>(a, b, depth, result, row);
    }
    row += count;
  }
}

// The first `vectors` vectors of `rows` rows of the result.
template <class Left, class Result>
void multiply(Left a, Matrix b, int64_t depth, const Result& result, int64_t rows, int vectors) {
  const int count = static_cast<int>(rows);
  switch (vectors) {
    case 1: multiply_rows<1>(a, b, depth, result, count); break;
    case 2: multiply_rows<2>(a, b, depth, result, count); break;
    case 3: multiply_rows<PANEL_VECTORS < 3 ? PANEL_VECTORS : 3>(a, b, depth, result, count); break;
    default: multiply_rows<PANEL_VECTORS>(a, b, depth, result, count);
  }
}

// Rows of which each panel of PANEL numbers follows the last after `step` floats.
struct Panelled {
  const float* data;
  int64_t stride, step;
};

// sums[r, c] = sum_j x[r, j] y[c, j] for LANES / CHANNELS rows and CHANNELS channels.
template <int CHANNELS>
Vector dot_block(Panelled x, Panelled y, int64_t vectors) {
  Vector sums[LANES] = {};
  for (; vectors > 0; vectors -= PANEL_VECTORS, x.data += x.step, y.data += y.step) {
    const int here = static_cast<int>(std::min<int64_t>(vectors, PANEL_VECTORS));
    for (int v = 0; v < here; ++v) {
      Vector z[CHANNELS];
#pragma GCC unroll 16
      for (int c = 0; c < CHANNELS; ++c) z[c] = load(y.data + c * y.stride + v * LANES);
#pragma GCC unroll 16
      for (int r = 0; r < LANES / CHANNELS; ++r) {
        const Vector w = load(x.data + r * x.stride + v * LANES);
#pragma GCC unroll 16
        for (int c = 0; c < CHANNELS; ++c) sums[r * CHANNELS + c] += w * z[c];
      }
    }
  }
  return sum_each(sums);
}

template <int CHANNELS>
void dot_rows(Panelled x, Panelled y, int64_t vectors, float* result, int64_t stride, int rows) {
  constexpr int BLOCK = LANES / CHANNELS;
  for (int row = 0; row < rows; row += BLOCK) {  // the last block may compute rows that nobody reads
    float sums[LANES];
    store(sums, dot_block<CHANNELS>({x.data + row * x.stride, x.stride, x.step}, y, vectors));
    for (int r = 0; r < BLOCK; ++r) {
      for (int c = 0; c < CHANNELS; ++c) result[(row + r) * stride + c] += sums[r * CHANNELS + c];
    }
  }
}

// result[r, c] += sum_j x[r, j] y[c, j]
inline void dot(Panelled x, Panelled y, int64_t vectors, float* result, int64_t stride, int rows, int64_t channels) {
  int64_t c = 0;
  const auto from = [&] { return Panelled{y.data + c * y.stride, y.stride, y.step}; };
  for (; c + 4 <= channels; c += 4) dot_rows<4>(x, from(), vectors, result + c, stride, rows);
  if (channels & 2) {
    dot_rows<2>(x, from(), vectors, result + c, stride, rows);
    c += 2;
  }
  if (channels & 1) dot_rows<1>(x, from(), vectors, result + c, stride, rows);
}

}  // namespace gluon_aa
