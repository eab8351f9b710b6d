// Exact multi-head self-attention over the pixels of a map, with 2-D relative position embeddings: forward and
// backward without a map of logits. Bello et al. 2019 (arXiv 1904.09925), section 3.2; see kernel.cc for the method.
#pragma once
#include <cstdint>

namespace gluon_aa {

struct Sizes {
  std::int64_t batch, heads, height, width;
  std::int64_t key_depth, value_depth;  // channels of one head
  bool relative;

  std::int64_t pixels() const { return height * width; }
  std::int64_t channels() const { return heads * (2 * key_depth + value_depth); }
};

// Bytes of scratch memory that a pass needs on `threads` threads; it grows with height * width.
std::int64_t forward_scratch(const Sizes& sizes, int threads);
std::int64_t backward_scratch(const Sizes& sizes, int threads);

// qkv (batch, channels, height, width): all heads' queries, then keys, then values
// rel_h (2 * height - 1, key_depth), rel_w (2 * width - 1, key_depth): unused where not relative
// out (batch, heads * value_depth, height, width)
// log_sum (batch, heads, height * width): base-2 logarithm of the sum of each query's exponentiated logits
void forward(const Sizes& sizes, const float* qkv, const float* rel_h, const float* rel_w, float* out, float* log_sum,
             void* scratch, int threads);

// From the gradient d_out of `out`, and what `forward` returned, the gradients of its inputs. The same number of
// threads gives the same results, bit for bit.
void backward(const Sizes& sizes, const float* qkv, const float* rel_h, const float* rel_w, const float* out,
              const float* log_sum, const float* d_out, float* d_qkv, float* d_rel_h, float* d_rel_w, void* scratch,
              int threads);

}  // namespace gluon_aa
