// One head of one image at a time, TILE_ROWS queries at a time, all their logits at once: the tile.
//
//   logits[i, j] = (q_i.k_j + q_i.rel_h[jy - iy + H - 1] + q_i.rel_w[jx - ix + W - 1]) / sqrt(d)
//   weights = softmax over j;  out_i = sum_j weights[i, j] v_j
//
// Forward. A query's logits are at most b_i = |q_i| (max |k| + max |rel_h| + max |rel_w|) / sqrt(d) (Cauchy-Schwarz),
// so that exp(logit - b_i) needs no pass to find the largest logit: floating point does not mind that all are small,
// and the few queries whose weights come near underflow are done again with their true maximum. What is kept for the
// backward pass is the logarithm of each query's sum.
//
// Backward (as in FlashAttention: Dao et al. 2022, arXiv 2205.14135, section 3.1). The weights are computed again:
//   weights[i, j] = exp(logits[i, j] - log_sum_i)             dV_j = sum_i weights[i, j] dO_i
//   dL[i, j] = weights[i, j] (dO_i.v_j - dO_i.out_i)          dK_j = sum_i dL[i, j] q_i / sqrt(d)
//   dQ_i = sum_j dL[i, j] (k_j + rel_h[..] + rel_w[..]) / sqrt(d)
//
// The entries of the tables are keys too, with one logit for each offset: a query's logit for row jy of the map is
// the one at offset jy - iy + H - 1, and the gradient of that logit is the sum of dL over the row.
//
// Keys lie along the vector lanes, in panels of PANEL keys: (channels, PANEL) of keys, values and their gradients,
// (TILE_ROWS, PANEL) of the tile. All products are then of two kinds: `multiply`, whose result is a panel, and
// `dot`, which sums over all keys. Logits are in base 2: queries are scaled by log2(e) / sqrt(d) once.
#include "kernel.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "products.h"

namespace gluon_aa {
namespace {

using std::int64_t;

constexpr float NO_KEY = -1e30f;  // logit of the padding after the last key
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;
constexpr float SMALLEST_SUM = 1e-30f;  // of exponentials, below which they may have lost digits
constexpr float LARGEST_SUM = 1e30f;    // above it the bound was rounded down, and they may have overflowed

int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// ---------------------------------------------------------------- results of products

// The logits that positions add to a panel's, where a vector of keys lies within one row of the map.
struct Positions {
  const float *const *rows, *const *columns;  // of each query: its logits for the map's rows and columns
  int64_t y[PANEL_VECTORS], x[PANEL_VECTORS];  // where each vector begins

  template <int VECTORS>
  void start(int row, Vector (&logits)[VECTORS]) const {
    for (int v = 0; v < VECTORS; ++v) logits[v] = load(columns[row] + x[v]) + rows[row][y[v]];
  }
};

// 2^(logit - bound), kept in the panel, and summed up where SUM.
template <class Logits, bool SUM>
struct Weights : Logits {
  float* weights;      // (rows, PANEL)
  const float* bound;  // (rows)
  float* sum;          // (rows, LANES)

  template <int VECTORS>
  void finish(int row, const Vector (&logits)[VECTORS]) const {
    Vector total{};
    for (int v = 0; v < VECTORS; ++v) {
      const Vector weight = exp2(logits[v] - bound[row]);
      store(weights + row * PANEL + v * LANES, weight);
      total += weight;
    }
    if (SUM) store(sum + row * LANES, load(sum + row * LANES) + total);
  }
};

// Weights, in the panel, become gradients of logits: times dO_i.v_j - dO_i.out_i.
struct LogitGradients {
  float* panel;       // (rows, PANEL)
  const float* mean;  // (rows): dO_i.out_i

  template <int VECTORS>
  void start(int row, Vector (&x)[VECTORS]) const {
    for (int v = 0; v < VECTORS; ++v) x[v] = broadcast(-mean[row]);
  }
  template <int VECTORS>
  void finish(int row, const Vector (&x)[VECTORS]) const {
    for (int v = 0; v < VECTORS; ++v) {
      float* weights = panel + row * PANEL + v * LANES;
      store(weights, load(weights) * x[v]);
    }
  }
};

// ---------------------------------------------------------------- memory

// Hands out parts of a block of memory; without a block it only counts.
class Arena {
 public:
  explicit Arena(void* memory) : next_(static_cast<char*>(memory)) {}

  float* floats(int64_t count) {
    char* part = next_ == nullptr ? nullptr : next_ + bytes_;
    bytes_ += round_up(count * static_cast<int64_t>(sizeof(float)), ALIGNMENT);
    return reinterpret_cast<float*>(part);
  }
  int64_t bytes() const { return bytes_; }

  static constexpr int64_t ALIGNMENT = 64;

 private:
  char* next_;
  int64_t bytes_ = 0;
};

void clear(float* x, int64_t count) { std::memset(x, 0, count * sizeof(float)); }

// ---------------------------------------------------------------- one head of one image

// Channels (count, pixels) as panels, padded with zeros.
struct Panels {
  int64_t channels, panels;
  float* data;

  Panels(Arena& arena, int64_t channels, int64_t pixels)
      : channels(channels), panels((pixels + PANEL - 1) / PANEL),
        data(arena.floats(channels * panels * PANEL)) {}

  float* panel(int64_t number) const { return data + number * channels * PANEL; }
  Matrix matrix(int64_t number) const { return {panel(number), PANEL}; }
  Panelled rows() const { return {data, PANEL, channels * PANEL}; }
  float& at(int64_t channel, int64_t pixel) const { return panel(pixel / PANEL)[channel * PANEL + pixel % PANEL]; }

  void read(const float* from, int64_t pixels) const {
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t count = std::min<int64_t>(PANEL, pixels - p * PANEL);
      for (int64_t c = 0; c < channels; ++c) {
        float* row = panel(p) + c * PANEL;
        std::memcpy(row, from + c * pixels + p * PANEL, count * sizeof(float));
        if (count < PANEL) clear(row + count, PANEL - count);
      }
    }
  }

  void clear_all() const { clear(data, channels * panels * PANEL); }

  // to[c, j] = factor * data, or += where `add`
  void write(float* to, int64_t pixels, float factor, bool add) const {
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t count = std::min<int64_t>(PANEL, pixels - p * PANEL);
      for (int64_t c = 0; c < channels; ++c) {
        const float* row = panel(p) + c * PANEL;
        float* target = to + c * pixels + p * PANEL;
        for (int64_t j = 0; j < count; ++j) target[j] = factor * row[j] + (add ? target[j] : 0.0f);
      }
    }
  }
};

// The queries of a tile, or the gradients of their outputs: (channels, TILE_ROWS).
struct QueryChannels {
  int64_t channels;
  float* data;

  QueryChannels(Arena& arena, int64_t channels)
      : channels(channels), data(arena.floats(channels * TILE_ROWS + LANES)) {}

  ByChannel by_channel() const { return {data}; }
  ByQuery by_query() const { return {data}; }

  void read(const float* from, int64_t pixels, int64_t first, int count, float factor) const {
    for (int64_t c = 0; c < channels; ++c) {
      for (int r = 0; r < count; ++r) data[c * TILE_ROWS + r] = factor * from[c * pixels + first + r];
    }
  }
};

// The entries of both relative tables, rel_h's then rel_w's, as further keys.
struct Offsets : Panels {
  int64_t height, width, depth;

  Offsets(Arena& arena, const Sizes& s)
      : Panels(arena, s.key_depth, s.relative ? 2 * s.height + 2 * s.width - 2 : 0), height(s.height), width(s.width),
        depth(s.key_depth) {}

  int64_t of_row(int64_t iy, int64_t jy) const { return jy - iy + height - 1; }
  int64_t of_column(int64_t ix, int64_t jx) const { return 2 * height - 1 + jx - ix + width - 1; }
  int64_t count() const { return panels == 0 ? 0 : 2 * height + 2 * width - 2; }

  void read(const float* rel_h, const float* rel_w) const {
    clear_all();
    for (int64_t offset = 0; offset < count(); ++offset) {
      for (int64_t c = 0; c < depth; ++c) at(c, offset) = entry(rel_h, rel_w, offset, c);
    }
  }

  // The number of a table at an offset; `Number` is float or const float.
  template <class Number>
  Number& entry(Number* rel_h, Number* rel_w, int64_t offset, int64_t c) const {
    const int64_t first = 2 * height - 1;
    return offset < first ? rel_h[offset * depth + c] : rel_w[(offset - first) * depth + c];
  }

  // The length of the longest entry of rel_h plus that of rel_w.
  float longest() const {
    float square[2] = {0, 0};
    for (int64_t offset = 0; offset < count(); ++offset) {
      float sum = 0;
      for (int64_t c = 0; c < depth; ++c) sum += at(c, offset) * at(c, offset);
      float& largest = square[offset >= 2 * height - 1];
      largest = std::max(largest, sum);
    }
    return std::sqrt(square[0]) + std::sqrt(square[1]);
  }
};

// What the threads share.
struct Shared {
  const Sizes sizes;
  const Offsets offsets;
  float longest_offset = 0;

  Shared(Arena& arena, const Sizes& sizes) : sizes(sizes), offsets(arena, sizes) {}

  void read(const float* rel_h, const float* rel_w) {
    if (!sizes.relative) return;
    offsets.read(rel_h, rel_w);
    longest_offset = offsets.longest();
  }
};

// Where one head of one image lies in the packed arrays.
struct Place {
  int64_t q, k, v, out, log_sum;

  Place(const Sizes& s, int64_t number) {
    const int64_t image = number / s.heads, head = number % s.heads, pixels = s.pixels();
    q = image * s.channels() * pixels + head * s.key_depth * pixels;
    k = q + s.heads * s.key_depth * pixels;
    v = image * s.channels() * pixels + (2 * s.heads * s.key_depth + head * s.value_depth) * pixels;
    out = (image * s.heads + head) * s.value_depth * pixels;
    log_sum = number * pixels;
  }
};

// One thread's memory for both passes: a head's keys and values, and a tile of queries with all their weights.
class Worker {
 public:
  Worker(Arena& arena, const Shared& shared)
      : s_(shared.sizes), offsets_(shared.offsets), shared_(shared), pixels_(s_.pixels()),
        vectors_((pixels_ + LANES - 1) / LANES), keys_(arena, s_.key_depth, pixels_),
        values_(arena, s_.value_depth, pixels_), queries_(arena, s_.key_depth),
        tile_(arena.floats(keys_.panels * TILE_PANEL + LANES * PANEL)),
        sums_(arena.floats(round_up(TILE_ROWS, LANES) * LANES)),
        bounds_(arena.floats(round_up(TILE_ROWS, LANES))), position_stride_(offsets_.panels * PANEL + LANES),
        position_logits_(arena.floats((TILE_ROWS + LANES) * position_stride_)),
        result_stride_(round_up(std::max(s_.key_depth, s_.value_depth), LANES)),
        result_(arena.floats((TILE_ROWS + LANES) * result_stride_)) {}

  void read_head(const float* qkv, const Place& place) {
    keys_.read(qkv + place.k, pixels_);
    values_.read(qkv + place.v, pixels_);
    float largest = 0;
    for (int64_t p = 0; p < keys_.panels; ++p) {
      float squares[PANEL] = {};
      for (int64_t c = 0; c < s_.key_depth; ++c) {
        const float* row = keys_.panel(p) + c * PANEL;
        for (int j = 0; j < PANEL; ++j) squares[j] += row[j] * row[j];
      }
      largest = std::max(largest, *std::max_element(squares, squares + PANEL));
    }
    longest_key_ = std::sqrt(largest) + shared_.longest_offset;
  }

  void forward(const float* qkv, const Place& place, int64_t first, int count, float* out, float* log_sum) {
    begin_tile(qkv, place, first, count);
    find_bounds();
    clear(sums_, TILE_ROWS * LANES);
    for (int64_t p = 0; p < keys_.panels; ++p) weigh<true>(p, count);
    float sums[TILE_ROWS + LANES];
    add_lanes(sums, count);
    if (!std::all_of(sums, sums + count, [](float sum) { return sum > SMALLEST_SUM && sum < LARGEST_SUM; })) {
      weigh_by_largest(count);
      add_lanes(sums, count);
    }
    clear(result_, TILE_ROWS * result_stride_);
    dot(tile(), values_.rows(), vectors_, result_, result_stride_, count, s_.value_depth);
    for (int r = 0; r < count; ++r) {
      log_sum[place.log_sum + first + r] = bounds_[r] + std::log2(sums[r]);
      sums[r] = 1.0f / sums[r];
    }
    for (int64_t c = 0; c < s_.value_depth; ++c) {
      float* row = out + place.out + c * pixels_ + first;
      for (int r = 0; r < count; ++r) row[r] = result_[r * result_stride_ + c] * sums[r];
    }
  }

 protected:
  static constexpr int64_t TILE_PANEL = TILE_ROWS * PANEL;

  Panelled tile() const { return {tile_, PANEL, TILE_PANEL}; }

  int vectors_of(int64_t p) const {
    return static_cast<int>(std::min<int64_t>(PANEL_VECTORS, vectors_ - p * PANEL_VECTORS));
  }

  int offset_vectors_of(int64_t p) const {
    const int64_t vectors = (offsets_.count() + LANES - 1) / LANES;
    return static_cast<int>(std::min<int64_t>(PANEL_VECTORS, vectors - p * PANEL_VECTORS));
  }

  void begin_tile(const float* qkv, const Place& place, int64_t first, int count) {
    queries_.read(qkv + place.q, pixels_, first, count, LOG2_E / std::sqrt(static_cast<float>(s_.key_depth)));
    if (!s_.relative) return;
    for (int64_t p = 0; p < offsets_.panels; ++p) {
      multiply(queries_.by_channel(), offsets_.matrix(p), s_.key_depth,
               Store{position_logits_ + p * PANEL, position_stride_}, count, offset_vectors_of(p));
    }
    for (int r = 0; r < count; ++r) {
      const int64_t iy = (first + r) / s_.width, ix = (first + r) % s_.width;
      float* logits = position_logits_ + r * position_stride_;
      rows_[r] = logits + offsets_.of_row(iy, 0);
      columns_[r] = logits + offsets_.of_column(ix, 0);
    }
  }

  void find_bounds() {
    for (int r = 0; r < TILE_ROWS; r += LANES) {
      Vector square{};
      for (int64_t c = 0; c < s_.key_depth; ++c) {
        const Vector x = load(queries_.data + c * TILE_ROWS + r);
        square += x * x;
      }
      store(bounds_ + r, square);
    }
    for (int r = 0; r < TILE_ROWS; ++r) bounds_[r] = std::sqrt(bounds_[r]) * longest_key_;
  }

  // The weights of panel p of the tile, to the power of two: relative to the queries' bounds.
  template <bool SUM>
  void weigh(int64_t p, int count) {
    float* panel = tile_ + p * TILE_PANEL;
    if (s_.relative && s_.width % LANES == 0) {
      Weights<Positions, SUM> weights;
      weights.rows = rows_;
      weights.columns = columns_;
      for (int64_t v = 0; v < PANEL_VECTORS; ++v) {
        const int64_t j = std::min(p * PANEL + v * LANES, pixels_ - LANES);
        weights.y[v] = j / s_.width;
        weights.x[v] = j % s_.width;
      }
      weights.weights = panel;
      weights.bound = bounds_;
      weights.sum = sums_;
      multiply_keys(p, count, weights);
    } else {
      Weights<Accumulate, SUM> weights;
      weights.panel = weights.weights = panel;
      weights.stride = PANEL;
      weights.bound = bounds_;
      weights.sum = sums_;
      place_positions(p, count);
      multiply_keys(p, count, weights);
    }
  }

  template <class Result>
  void multiply_keys(int64_t p, int count, const Result& result) {
    multiply(queries_.by_channel(), keys_.matrix(p), s_.key_depth, result, count, vectors_of(p));
  }

  // Puts into panel p what the logits of `count` queries have beside q.k.
  void place_positions(int64_t p, int count) {
    const int64_t begin = p * PANEL, end = std::min(begin + PANEL, pixels_);
    const int64_t first_y = begin / s_.width, first_x = begin % s_.width;
    for (int r = 0; r < count; ++r) {
      float* row = tile_ + p * TILE_PANEL + r * PANEL;
      if (s_.relative) {
        int64_t y = first_y, x = first_x;
        for (int64_t j = begin; j < end; ++y, x = 0) {
          const int64_t width = std::min(s_.width - x, end - j);
          const Vector row_logit = broadcast(rows_[r][y]);
          // what is written too far is written again, by the next row of the map or of the tile
          for (int64_t o = 0; o < width; o += LANES) store(row + j - begin + o, load(columns_[r] + x + o) + row_logit);
          j += width;
        }
      } else {
        clear(row, PANEL);
      }
      for (int64_t j = end - begin; j < vectors_of(p) * LANES; ++j) row[j] = NO_KEY;
    }
  }

  void add_lanes(float* sums, int count) const {
    for (int r = 0; r < count; r += LANES) {
      Vector rows[LANES];
      for (int i = 0; i < LANES; ++i) rows[i] = load(sums_ + (r + i) * LANES);
      store(sums + r, sum_each(rows));
    }
  }

  // The weights of the tile again, relative to each query's largest logit.
  void weigh_by_largest(int count) {
    for (int64_t p = 0; p < keys_.panels; ++p) {
      place_positions(p, count);
      multiply_keys(p, count, Accumulate{{tile_ + p * TILE_PANEL, PANEL}});
    }
    clear(sums_, TILE_ROWS * LANES);
    for (int r = 0; r < count; ++r) {
      const auto place = [&](int64_t v) {
        return tile_ + v / PANEL_VECTORS * TILE_PANEL + r * PANEL + v % PANEL_VECTORS * LANES;
      };
      Vector largest = broadcast(NO_KEY);
      for (int64_t v = 0; v < vectors_; ++v) largest = maximum(largest, load(place(v)));
      float lanes[LANES];
      store(lanes, largest);
      bounds_[r] = *std::max_element(lanes, lanes + LANES);
      Vector total{};
      for (int64_t v = 0; v < vectors_; ++v) {
        const Vector weight = exp2(load(place(v)) - bounds_[r]);
        store(place(v), weight);
        total += weight;
      }
      store(sums_ + r * LANES, total);
    }
  }

  const Sizes& s_;
  const Offsets& offsets_;
  const Shared& shared_;
  const int64_t pixels_, vectors_;
  const Panels keys_, values_;
  const QueryChannels queries_;
  float *const tile_, *const sums_, *const bounds_;
  const int64_t position_stride_;
  float* const position_logits_;  // (TILE_ROWS, position_stride_): by offset
  const int64_t result_stride_;
  float* const result_;
  const float *rows_[TILE_ROWS], *columns_[TILE_ROWS];  // within position_logits_: by the map's row, by its column
  float longest_key_ = 0;
};

class BackwardWorker : public Worker {
 public:
  BackwardWorker(Arena& arena, const Shared& shared)
      : Worker(arena, shared), d_outs_(arena, s_.value_depth), means_(arena.floats(TILE_ROWS)),
        d_offsets_(arena, s_), d_position_logits_(arena.floats((TILE_ROWS + LANES) * position_stride_)) {}

  const Offsets& d_offsets() const { return d_offsets_; }

  void backward(const float* qkv, const Place& place, int64_t first, int count, const float* out, const float* log_sum,
                const float* d_out, float* d_qkv, const Panels& d_keys, const Panels& d_values) {
    begin_tile(qkv, place, first, count);
    d_outs_.read(d_out + place.out, pixels_, first, count, 1.0f);
    for (int r = 0; r < count; ++r) {
      bounds_[r] = log_sum[place.log_sum + first + r];
      means_[r] = 0;
    }
    for (int64_t c = 0; c < s_.value_depth; ++c) {
      const float* row = out + place.out + c * pixels_ + first;
      for (int r = 0; r < count; ++r) means_[r] += row[r] * d_outs_.data[c * TILE_ROWS + r];
    }
    for (int64_t p = 0; p < keys_.panels; ++p) {
      float* panel = tile_ + p * TILE_PANEL;
      const int vectors = vectors_of(p);
      weigh<false>(p, count);
      multiply(d_outs_.by_query(), {panel, PANEL}, count, accumulate(d_values, p), s_.value_depth, vectors);
      multiply(d_outs_.by_channel(), values_.matrix(p), s_.value_depth, LogitGradients{panel, means_}, count, vectors);
      multiply(queries_.by_query(), {panel, PANEL}, count, accumulate(d_keys, p), s_.key_depth, vectors);
    }
    clear(result_, TILE_ROWS * result_stride_);
    dot(tile(), keys_.rows(), vectors_, result_, result_stride_, count, s_.key_depth);
    if (s_.relative) differentiate_positions(first, count);
    const float scale = 1.0f / std::sqrt(static_cast<float>(s_.key_depth));
    for (int64_t c = 0; c < s_.key_depth; ++c) {
      float* row = d_qkv + place.q + c * pixels_ + first;
      for (int r = 0; r < count; ++r) row[r] = scale * result_[r * result_stride_ + c];
    }
  }

 private:
  static Accumulate accumulate(const Panels& panels, int64_t p) { return {{panels.panel(p), PANEL}}; }

  // From the gradients of logits, in the tile, to those of the queries and of the tables.
  void differentiate_positions(int64_t first, int count) {
    clear(d_position_logits_, TILE_ROWS * position_stride_);
    for (int r = 0; r < count; ++r) {
      float* logits = d_position_logits_ + r * position_stride_;
      float* rows = logits + offsets_.of_row((first + r) / s_.width, 0);
      float* columns = logits + offsets_.of_column((first + r) % s_.width, 0);
      for (int64_t x = 0; x < s_.width; x += 2 * LANES) {
        const int64_t width = std::min<int64_t>(2 * LANES, s_.width - x);
        if (width > LANES) {
          sum_columns<2>(r, x, width, rows, columns);
        } else {
          sum_columns<1>(r, x, width, rows, columns);
        }
      }
    }
    const int64_t vectors = (offsets_.count() + LANES - 1) / LANES;
    dot({d_position_logits_, position_stride_, PANEL}, offsets_.rows(), vectors, result_, result_stride_, count,
        s_.key_depth);
    for (int64_t p = 0; p < offsets_.panels; ++p) {
      multiply(queries_.by_query(), {d_position_logits_ + p * PANEL, position_stride_}, count,
               accumulate(d_offsets_, p), s_.key_depth, offset_vectors_of(p));
    }
  }

  const float* in_tile(int r, int64_t j) const { return tile_ + j / PANEL * TILE_PANEL + r * PANEL + j % PANEL; }

  // Query r's gradients of logits summed over rows and columns of the map, `width` columns from `x` on: at most
  // VECTORS vectors. Zeros are added beyond the last row, and written beyond the last column.
  template <int VECTORS>
  void sum_columns(int r, int64_t x, int64_t width, float* rows, float* columns) const {
    const int last = static_cast<int>(width - (VECTORS - 1) * LANES);  // columns of the last vector
    Vector column_sums[VECTORS] = {};
    for (int64_t first = 0; first < s_.height; first += LANES) {
      Vector row_sums[LANES] = {};
      const int64_t count = std::min<int64_t>(LANES, s_.height - first);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t j = (first + i) * s_.width + x;
        const float* from = in_tile(r, j);
        float joined[VECTORS * LANES];
        if (j % PANEL + width > PANEL) {  // in two panels
          for (int64_t k = 0; k < width; ++k) joined[k] = *in_tile(r, j + k);
          from = joined;
        }
        for (int v = 0; v < VECTORS; ++v) {
          Vector part = load(from + v * LANES);
          if (v == VECTORS - 1 && last < LANES) part = first_lanes(part, last);
          column_sums[v] += part;
          row_sums[i] += part;
        }
      }
      store(rows + first, load(rows + first) + sum_each(row_sums));
    }
    for (int v = 0; v < VECTORS; ++v) store(columns + x + v * LANES, column_sums[v]);
  }

  const QueryChannels d_outs_;
  float* const means_;
  const Offsets d_offsets_;
  float* const d_position_logits_;
};

// ---------------------------------------------------------------- all heads of all images

// Heads of images, each cut into as many parts of its queries as it takes to give every thread about as much to do.
struct Division {
  int64_t heads, parts, tiles;

  Division(const Sizes& s, int threads)
      : heads(s.batch * s.heads), parts(1), tiles((s.pixels() + TILE_ROWS - 1) / TILE_ROWS) {
    const auto idle = [&] { return round_up(heads * parts, threads) - heads * parts; };
    // until less than an eighth of the time is spent waiting for the thread that has most to do
    while (heads > 0 && parts < std::min<int64_t>(tiles, threads) && 8 * idle() > heads * parts) ++parts;
  }

  int64_t count() const { return heads * parts; }
  int64_t first(int thread, int threads) const { return count() * thread / threads; }  // of a thread's share
};

// Calls work(head, its first query, queries) for every tile of part `number`.
template <class Work>
void for_each_tile(const Division& division, int64_t number, int64_t pixels, const Work& work) {
  const int64_t part = number % division.parts;
  const int64_t end = division.tiles * (part + 1) / division.parts;
  for (int64_t tile = division.tiles * part / division.parts; tile < end; ++tile) {
    const int64_t first = tile * TILE_ROWS;
    work(first, static_cast<int>(std::min<int64_t>(TILE_ROWS, pixels - first)));
  }
}

// All memory of a forward pass.
struct ForwardPlan {
  Arena arena;
  Shared shared;
  std::vector<Worker> workers;

  ForwardPlan(const Sizes& sizes, int threads, void* memory) : arena(memory), shared(arena, sizes) {
    for (int thread = 0; thread < threads; ++thread) workers.emplace_back(arena, shared);
  }
};

// All memory of a backward pass. Where heads are cut into parts, each part has gradients of the keys and values of its
// own, which are added up in order afterwards; else a thread's serve one head after the other.
struct BackwardPlan {
  Arena arena;
  Shared shared;
  Division division;
  std::vector<BackwardWorker> workers;
  std::vector<Panels> d_keys, d_values;

  BackwardPlan(const Sizes& sizes, int threads, void* memory)
      : arena(memory), shared(arena, sizes), division(sizes, threads) {
    for (int thread = 0; thread < threads; ++thread) workers.emplace_back(arena, shared);
    const std::int64_t slots = division.parts == 1 ? threads : division.count();
    for (std::int64_t slot = 0; slot < slots; ++slot) {
      d_keys.emplace_back(arena, sizes.key_depth, sizes.pixels());
      d_values.emplace_back(arena, sizes.value_depth, sizes.pixels());
    }
  }
};

// The tables' gradients: LN_2 * the sum of the threads'.
void add_tables(const std::vector<BackwardWorker>& workers, const Offsets& offsets, float* d_rel_h, float* d_rel_w) {
  for (int64_t offset = 0; offset < offsets.count(); ++offset) {
    for (int64_t c = 0; c < offsets.depth; ++c) {
      float sum = 0;
      for (const BackwardWorker& worker : workers) sum += worker.d_offsets().at(c, offset);
      offsets.entry(d_rel_h, d_rel_w, offset, c) = LN_2 * sum;
    }
  }
}

}  // namespace

int64_t forward_scratch(const Sizes& sizes, int threads) { return ForwardPlan(sizes, threads, nullptr).arena.bytes(); }

int64_t backward_scratch(const Sizes& sizes, int threads) {
  return BackwardPlan(sizes, threads, nullptr).arena.bytes();
}

void forward(const Sizes& sizes, const float* qkv, const float* rel_h, const float* rel_w, float* out, float* log_sum,
             void* scratch, int threads) {
  ForwardPlan plan(sizes, threads, scratch);
  const Division division(sizes, threads);
  plan.shared.read(rel_h, rel_w);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int thread = 0; thread < threads; ++thread) {
    Worker& worker = plan.workers[thread];
    for (int64_t number = division.first(thread, threads); number < division.first(thread + 1, threads); ++number) {
      const Place place(sizes, number / division.parts);
      worker.read_head(qkv, place);
      for_each_tile(division, number, sizes.pixels(),
                    [&](int64_t first, int count) { worker.forward(qkv, place, first, count, out, log_sum); });
    }
  }
}

void backward(const Sizes& sizes, const float* qkv, const float* rel_h, const float* rel_w, const float* out,
              const float* log_sum, const float* d_out, float* d_qkv, float* d_rel_h, float* d_rel_w, void* scratch,
              int threads) {
  BackwardPlan plan(sizes, threads, scratch);
  const Division& division = plan.division;
  const int64_t pixels = sizes.pixels();
  plan.shared.read(rel_h, rel_w);
  // keys' gradients were summed from queries that had been scaled by log2(e) / sqrt(d)
  const auto write = [&](int64_t head, int64_t slot, bool add) {
    const Place place(sizes, head);
    plan.d_keys[slot].write(d_qkv + place.k, pixels, LN_2, add);
    plan.d_values[slot].write(d_qkv + place.v, pixels, 1.0f, add);
  };
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static, 1)
    for (int thread = 0; thread < threads; ++thread) {
      BackwardWorker& worker = plan.workers[thread];
      worker.d_offsets().clear_all();
      for (int64_t number = division.first(thread, threads); number < division.first(thread + 1, threads); ++number) {
        const int64_t head = number / division.parts, slot = division.parts == 1 ? thread : number;
        const Place place(sizes, head);
        worker.read_head(qkv, place);
        plan.d_keys[slot].clear_all();
        plan.d_values[slot].clear_all();
        for_each_tile(division, number, pixels, [&](int64_t first, int count) {
          worker.backward(qkv, place, first, count, out, log_sum, d_out, d_qkv, plan.d_keys[slot],
                          plan.d_values[slot]);
        });
        if (division.parts == 1) write(head, slot, false);
      }
    }
    if (division.parts > 1) {
#pragma omp for schedule(static, 1)
      for (int64_t head = 0; head < division.heads; ++head) {
        for (int64_t part = 0; part < division.parts; ++part) write(head, head * division.parts + part, part > 0);
      }
    }
  }
  add_tables(plan.workers, plan.shared.offsets, d_rel_h, d_rel_w);
}

}  // namespace gluon_aa
