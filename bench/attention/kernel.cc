// The native kernel alone, without MXNet: milliseconds of forward and backward, and their share of the floor.
//
// The floor is the time that the multiply-adds of the products alone would take at the rate measured here, in turn with
// the kernel, for multiply-adds in registers on as many threads. Of one image and head, N = H W pixels:
//   forward  N^2 (d_k + d_v) + N (H + W) d_k            logits, weighted values, position logits
//   backward N^2 (3 d_k + 2 d_v) + 3 N (H + W) d_k      logits again, dQ, dK, dP, dV, and positions likewise
// Exponentials, sums and all else are overhead.
//
//   N=gluon_aa/attention/native
//   c++ -std=c++17 -O3 -march=native -ffp-contract=fast -fopenmp -I$N bench/attention/kernel.cc $N/kernel.cc -o kernel
//   ./kernel [threads] [repeats]
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "kernel.h"
#include "simd.h"

namespace {

using gluon_aa::Vector;
typedef std::vector<float> Floats;

template <class Work>
double seconds(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}

// Multiply-adds a second of `threads` threads that do nothing else.
double peak(int threads) {
  constexpr int CHAINS = 10;  // enough for two units of a latency of four or five cycles
  constexpr std::int64_t STEPS = 2000000;
  float total = 0;
  const double time = seconds([&] {
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
      const Vector factor = gluon_aa::broadcast(0.999f), summand = gluon_aa::broadcast(0.001f);
      Vector x[CHAINS];
#pragma GCC unroll 16
      for (int i = 0; i < CHAINS; ++i) x[i] = gluon_aa::broadcast(1.0f + i);
      for (std::int64_t step = 0; step < STEPS; ++step) {
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; ++i) x[i] = x[i] * factor + summand;
      }
      Vector sum{};
#pragma GCC unroll 16
      for (int i = 0; i < CHAINS; ++i) sum += x[i];
      total += sum[0];
    }
  });
  if (total < 0) std::puts("");  // so that the result is wanted
  return STEPS * CHAINS * gluon_aa::LANES * threads / time;
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : omp_get_max_threads();
  const int repeats = argc > 2 ? std::atoi(argv[2]) : 15;
  const gluon_aa::Sizes all[] = {  // the maps of aa_wrn28_10
      {8, 8, 32, 32, 20, 2, true}, {32, 8, 16, 16, 20, 4, true}, {128, 8, 8, 8, 20, 8, true}};
  for (const gluon_aa::Sizes& s : all) {
    std::mt19937 generator(0);
    std::normal_distribution<float> normal;
    const auto draw = [&](std::int64_t count) {
      Floats x(count);
      for (float& number : x) number = normal(generator);
      return x;
    };
    const std::int64_t outputs = s.batch * s.heads * s.value_depth * s.pixels();
    const Floats qkv = draw(s.batch * s.channels() * s.pixels()), rel_h = draw((2 * s.height - 1) * s.key_depth),
                 rel_w = draw((2 * s.width - 1) * s.key_depth), d_out = draw(outputs);
    Floats out(outputs), log_sum(s.batch * s.heads * s.pixels()), d_qkv(qkv.size()), d_rel_h(rel_h.size()),
        d_rel_w(rel_w.size());
    const std::int64_t bytes = std::max(gluon_aa::forward_scratch(s, threads), gluon_aa::backward_scratch(s, threads));
    const std::unique_ptr<void, void (*)(void*)> scratch(std::aligned_alloc(64, (bytes + 63) / 64 * 64), std::free);
    std::vector<double> forward, backward, rate;
    for (int repeat = -2; repeat < repeats; ++repeat) {  // two to warm up
      const double one = peak(threads);
      const double two = seconds([&] {
        gluon_aa::forward(s, qkv.data(), rel_h.data(), rel_w.data(), out.data(), log_sum.data(), scratch.get(),
                          threads);
      });
      const double three = seconds([&] {
        gluon_aa::backward(s, qkv.data(), rel_h.data(), rel_w.data(), out.data(), log_sum.data(), d_out.data(),
                           d_qkv.data(), d_rel_h.data(), d_rel_w.data(), scratch.get(), threads);
      });
      if (repeat < 0) continue;
      rate.push_back(one), forward.push_back(two), backward.push_back(three);
    }
    const double n = static_cast<double>(s.pixels()), images = static_cast<double>(s.batch * s.heads);
    const double k = static_cast<double>(s.key_depth), v = static_cast<double>(s.value_depth);
    const double positions = n * static_cast<double>(s.height + s.width) * k;
    const double adds[2] = {images * (n * n * (k + v) + positions), images * (n * n * (3 * k + 2 * v) + 3 * positions)};
    const double time[2] = {median(forward), median(backward)}, speed = median(rate);
    std::printf("%dx%d, %d images, %d threads: multiply-adds alone %.0f GFLOP/s, scratch %.2f MB\n",
                static_cast<int>(s.height), static_cast<int>(s.width), static_cast<int>(s.batch), threads, 2e-9 * speed,
                1e-6 * bytes);
    const auto report = [speed](const char* pass, double seconds, double count) {
      std::printf("  %-8s %7.2f ms  %6.1f GFLOP/s  %.2f of the floor's speed (%.2f ms)\n", pass, 1e3 * seconds,
                  2e-9 * count / seconds, count / speed / seconds, 1e3 * count / speed);
    };
    report("forward", time[0], adds[0]);
    report("backward", time[1], adds[1]);
    report("both", time[0] + time[1], adds[0] + adds[1]);
  }
}
