// The kernel alone: inputs from standard input, results to standard output, as float32. Every array is an allocation of
// its own, so that AddressSanitizer sees an access beyond any of them; scratch memory is one, and begins as NaN, so that
// what is read before it is written shows in the results.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "kernel.h"

namespace {

typedef std::vector<float> Floats;

Floats read(std::int64_t count) {
  Floats x(count);
  if (count > 0 && std::fread(x.data(), sizeof(float), count, stdin) != static_cast<std::size_t>(count)) std::exit(2);
  return x;
}

void write(const Floats& x) {
  if (!x.empty()) std::fwrite(x.data(), sizeof(float), x.size(), stdout);
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
typedef std::unique_ptr<void, Free> Memory;

Memory scratch(std::int64_t bytes) {
  Memory memory(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
  std::memset(memory.get(), 0xff, bytes);
  return memory;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 9) return 1;
  std::int64_t n[8];
  for (int i = 0; i < 8; ++i) n[i] = std::atoll(argv[i + 1]);
  const gluon_aa::Sizes s{n[0], n[1], n[2], n[3], n[4], n[5], n[6] != 0};
  const int threads = static_cast<int>(n[7]);
  const std::int64_t tables[2] = {s.relative ? (2 * s.height - 1) * s.key_depth : 0,
                                  s.relative ? (2 * s.width - 1) * s.key_depth : 0};
  const Floats qkv = read(s.batch * s.channels() * s.pixels()), rel_h = read(tables[0]), rel_w = read(tables[1]);
  const Floats d_out = read(s.batch * s.heads * s.value_depth * s.pixels());
  Floats out(d_out.size()), log_sum(s.batch * s.heads * s.pixels());
  gluon_aa::forward(s, qkv.data(), rel_h.data(), rel_w.data(), out.data(), log_sum.data(),
                    scratch(gluon_aa::forward_scratch(s, threads)).get(), threads);
  Floats d_qkv(qkv.size()), d_rel_h(rel_h.size()), d_rel_w(rel_w.size());
  gluon_aa::backward(s, qkv.data(), rel_h.data(), rel_w.data(), out.data(), log_sum.data(), d_out.data(), d_qkv.data(),
                     d_rel_h.data(), d_rel_w.data(), scratch(gluon_aa::backward_scratch(s, threads)).get(), threads);
  for (const Floats* x : {&out, &d_qkv, &d_rel_h, &d_rel_w}) write(*x);
}
