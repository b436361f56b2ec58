// y = f(h + BN(z)), z = x * w (a 3x3 convolution) or z = x, and its gradients, with AVX512-BF16.
//
// Images are (N, H, W, C) in memory, C a multiple of 16; weights are (O, 3, 3, C). Each thread has
// its fixed share of the images and partial sums are added in the order of the threads, so that the
// same number of threads gives the same bits.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace {

using bf16 = uint16_t;
using Int = int64_t;
using Vector = __m512;  // 16 floats
constexpr int P = 8;    // rows of sums that are kept in registers

inline Vector load(const float* p) { return _mm512_loadu_ps(p); }
inline Vector load(const bf16* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
inline void store(bf16* p, Vector v) {
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v));
}

template <typename T>
struct Buffer {  // zeros, on cache lines
  explicit Buffer(Int n) : data((T*)std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64)) {
    std::fill_n(data.get(), n, T(0));
  }
  operator T*() const { return data.get(); }
  struct Free { void operator()(T* p) const { std::free(p); } };
  std::unique_ptr<T, Free> data;
};

// work(thread, first, last) for each thread's share of 0..n.
void shared(Int n, int threads, const auto& work) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int t = 0; t < threads; ++t) work(t, n * t / threads, n * (t + 1) / threads);
}

// out[i] = the sum of parts[t][i] over the threads t.
void add_up(const auto* parts, int threads, Int n, auto* out) {
  for (Int i = 0; i < n; ++i)
    for (int t = 0; t < threads; ++t) out[i] += parts[t * n + i];
}

// --- Batch normalisation: Ioffe and Szegedy 2015 -------------------------------------------------

// Two sums a channel: `terms(i, c, s, q)` adds what the 16 elements from i on, of channels c on,
// give. A float adds 512 rows at most, a double the rest.
void column_sums(Int rows, Int C, int threads, double* sums, const auto& terms) {
  Buffer<double> parts(threads * 2 * C);
  shared(rows, threads, [&](int t, Int first, Int last) {
    Buffer<float> S(2 * C);
    float* Q = S + C;
    for (Int chunk = first; chunk < last; chunk += 512) {
      const Int end = std::min(last, chunk + 512);
      std::fill_n(+S, 2 * C, 0.f);
      for (Int r = chunk; r < end; r += 8)
        for (Int c = 0; c < C; c += 16) {
          Vector s = load(S + c), q = load(Q + c);
          for (Int k = r; k < std::min(r + 8, end); ++k) terms(k * C + c, c, s, q);
          store(S + c, s), store(Q + c, q);
        }
      for (Int c = 0; c < 2 * C; ++c) parts[t * 2 * C + c] += S[c];
    }
  });
  add_up(+parts, threads, 2 * C, sums);
}

// body(c)(i) works on the 16 elements from i on, of channels c on. Wide rows are taken one by one.
void elements(Int rows, Int C, int threads, const auto& body) {
  shared(rows, threads, [&](int, Int first, Int last) {
    for (Int r = first, tile = std::max(Int(1), 512 / C); r < last; r += tile)
      for (Int c = 0; c < C; c += 16) {
        const auto element = body(c);
        for (Int k = r; k < std::min(r + tile, last); ++k) element(k * C + c);
      }
  });
}

// --- 3x3 convolution ----------------------------------------------------------------------------

// acc[p][b] += left[k][p] right[k][b] over k, both pairs of numbers: `left` advances by `step` and
// has a row each `pitch`; `right` advances by `advance` and has a block each `block`.
template <int B>
inline __attribute__((always_inline)) void multiply(Vector (&acc)[P][B], const bf16* left,
                                                    Int pitch, Int step, const bf16* right,
                                                    Int block, Int advance, Int K) {
  for (Int k = 0; k < K; ++k, left += step, right += advance) {
    __m512bh r[B];
#pragma GCC unroll 3
    for (int b = 0; b < B; ++b) r[b] = (__m512bh)_mm512_loadu_si512(right + b * block);
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      const __m512bh l = (__m512bh)_mm512_set1_epi32(*(const int*)(left + p * pitch));
#pragma GCC unroll 3
      for (int b = 0; b < B; ++b) acc[p][b] = _mm512_dpbf16_ps(acc[p][b], l, r[b]);
    }
  }
}

// [out / 16][tap][in / 2][16][2] from weight(out, tap, in).
void pack(bf16* packed, Int in, Int out, int threads, const auto& weight) {
  shared(out / 16, threads, [&](int, Int first, Int last) {
    for (Int i = first * 9 * in; i < last * 9 * in; ++i) {
      const Int block = i / (9 * in), tap = i / in % 9, c = i % in;
      float values[16];
      bf16 rounded[16];
      for (int l = 0; l < 16; ++l) values[l] = weight(block * 16 + l, tap, c);
      store(rounded, load(values));
      for (int l = 0; l < 16; ++l) packed[(i - c % 2) * 16 + 2 * l + c % 2] = rounded[l];
    }
  });
}

// From an image with a border of zeros to (H, W, O), or of a transposed convolution (U > 1) to
// (U H, U W, O); h is added if it is given. Neighbours of the output are S pixels of the image
// apart. `sums` gets the sums and the sums of squares of the O channels.
template <int B>
void convolve(const bf16* padded, const bf16* packed, const bf16* h, bf16* y, double* sums, Int H,
              Int W, Int C, Int O, Int S, Int U) {
  const Int pitch = (W * S + 2) * C;
  for (Int phase = 0; phase < U * U; ++phase) {
    const Int a = phase / U, b = phase % U;
    Int from[9], taps[9], count = 0;  // tap (i, j) meets the pixels of this phase, or zeros only
    for (Int i = 0; i < 3; ++i)
      for (Int j = 0; j < 3; ++j)
        if ((a + i + 1) % U == 0 && (b + j + 1) % U == 0) {
          from[count] = (a + i - 1 + U) / U * pitch + (b + j - 1 + U) / U * C;
          taps[count++] = i * 3 + j;
        }
    for (Int o = 0; o < O; o += 16 * B) {
      Vector s[B] = {}, q[B] = {};
      for (Int r = 0; r < H; ++r)
        for (Int w = 0; w < W; w += P) {
          Vector acc[P][B] = {};
          for (Int t = 0; t < count; ++t)
            multiply(acc, padded + r * S * pitch + w * S * C + from[t], S * C, 2,
                     packed + (o * 9 + taps[t] * 16) * C, 9 * 16 * C, 32, C / 2);
#pragma GCC unroll 16
          for (int p = 0; p < P; ++p)
#pragma GCC unroll 3
            for (int k = 0; k < B; ++k) {
              const Int i = ((r * U + a) * W * U + (w + p) * U + b) * O + o + 16 * k;
              store(y + i, h ? _mm512_add_ps(acc[p][k], load(h + i)) : acc[p][k]);
              s[k] = _mm512_add_ps(s[k], acc[p][k]);
              q[k] = _mm512_fmadd_ps(acc[p][k], acc[p][k], q[k]);
            }
        }
#pragma GCC unroll 3
      for (int k = 0; k < B; ++k)
        for (int l = 0; l < 16; ++l)
          sums[o + 16 * k + l] += s[k][l], sums[O + o + 16 * k + l] += q[k][l];
    }
  }
}

// p[0], q[0], p[1], q[1], ...
inline void interleave(const bf16* p, const bf16* q, bf16* out, Int n) {
  for (Int i = 0; i < n; i += 16) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(p + i)));
    _mm512_storeu_si512(out + 2 * i, _mm512_or_si512(low, (__m512i)load(q + i)));
  }
}

// dw[o][i][j][c] += x[S h + i][S w + j][c] dz[h][w][o], x and dz with their borders. Pairs of
// pixels (w, w + 1) are multiplied; those of x are laid out in `right` for each j.
void correlate(const bf16* x, const bf16* dz, bf16* left, bf16* right, float* dw, Int H, Int W,
               Int C, Int O, Int S) {
  const Int half = W / 2, row = half * 2 * C, plane = (H * S + 2) * row;
  for (int j = 0; j < 3; ++j)
    for (Int h = 0; h < H * S + 2; ++h)
      for (Int k = 0; k < half; ++k) {
        const bf16* p = x + (h * (W * S + 2) + 2 * k * S + j) * C;
        interleave(p, p + S * C, right + j * plane + h * row + k * 2 * C, C);
      }
  for (Int h = 0; h < H; ++h)
    for (Int k = 0; k < half; ++k) {
      const bf16* p = dz + ((h + 1) * (W + 2) + k * 2 + 1) * O;
      interleave(p, p + O, left + (h * half + k) * 2 * O, O);
    }
  for (Int o = 0; o < O; o += P)
    for (int j = 0; j < 3; ++j)
      for (Int c = 0; c < C; c += 16) {
        const bf16* columns = right + j * plane + c * 2;
        float* to = dw + (o * 9 + j) * C + c;
        Vector acc[P][3];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
          for (int i = 0; i < 3; ++i) acc[p][i] = load(to + (p * 9 + i * 3) * C);
        for (Int h = 0; h < H; ++h)
          multiply(acc, left + (h * half * O + o) * 2, 2, 2 * O, columns + h * S * row, row, 2 * C,
                   half);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
          for (int i = 0; i < 3; ++i) store(to + (p * 9 + i * 3) * C, acc[p][i]);
      }
}

// --- Both ----------------------------------------------------------------------------------------

void copy_padded(const bf16* x, bf16* out, Int H, Int W, Int C) {
  for (Int h = 0; h < H; ++h) std::copy_n(x + h * W * C, W * C, out + ((h + 1) * (W + 2) + 1) * C);
}

template <typename T>
void forward(const T* x, const float* w, T* z, const T* h, T* y, const float* gamma,
             const float* beta, float* mean, float* inverse, float* running_mean,
             float* running_var, Int N, Int H, Int W, Int C, Int O, Int S, double momentum,
             double eps, int relu, int threads) {
  const Int rows = N * H * W;
  Buffer<double> sums(2 * O);
  Buffer<float> origin(O), scale(O);
  if constexpr (sizeof(T) == 2)
    if (w) {
      Buffer<bf16> packed(9 * C * O);
      pack(packed, C, O, threads, [&](Int o, Int tap, Int c) { return w[(o * 9 + tap) * C + c]; });
      Buffer<double> parts(threads * 2 * O);
      shared(N, threads, [&](int t, Int first, Int last) {
        Buffer<bf16> padded((H * S + 2) * (W * S + 2) * C);
        for (Int n = first; n < last; ++n) {
          copy_padded(x + n * H * W * S * S * C, padded, H * S, W * S, C);
          (O % 32 ? convolve<1> : convolve<2>)(padded, packed, nullptr, z + n * H * W * O,
                                               parts + t * 2 * O, H, W, C, O, S, 1);
        }
      });
      add_up(+parts, threads, 2 * O, +sums);
    }
  if (!w) {
    // Less the first row: squares alone would lose the variance of a channel far from zero.
    for (Int c = 0; c < O; c += 16) store(origin + c, load(z + c));
    column_sums(rows, O, threads, sums, [&](Int i, Int c, Vector& s, Vector& q) {
      const Vector d = _mm512_sub_ps(load(z + i), load(origin + c));
      s = _mm512_add_ps(s, d), q = _mm512_fmadd_ps(d, d, q);
    });
  }
  for (Int c = 0; c < O; ++c) {
    const double d = sums[c] / rows, var = std::max(0., sums[O + c] / rows - d * d);
    mean[c] = origin[c] + d, inverse[c] = 1 / std::sqrt(var + eps);
    scale[c] = gamma[c] * inverse[c];
    running_mean[c] += momentum * (mean[c] - running_mean[c]);
    running_var[c] += momentum * (var * rows / (rows - 1) - running_var[c]);
  }
  elements(rows, O, threads, [=, &scale](Int c) {
    return [=, m = load(mean + c), a = load(scale + c), b = load(beta + c)](Int i) {
      Vector v = _mm512_fmadd_ps(_mm512_sub_ps(load(z + i), m), a, b);
      if (h) v = _mm512_add_ps(v, load(h + i));
      if (relu) v = _mm512_max_ps(_mm512_setzero_ps(), v);  // in this order NaN stays
      store(y + i, v);
    };
  });
}

template <typename T>
void backward(const T* dy, const T* skip, const T* x, const float* w, const T* z, const T* y, T* dx,
              float* dw, T* dh, const float* gamma, const float* mean, const float* inverse,
              float* dgamma, float* dbeta, Int N, Int H, Int W, Int C, Int O, Int S, int threads) {
  const Int rows = N * H * W;
  const auto g = [=](Int i) {  // y is given where there is a ReLU
    if (!y) return load(dy + i);
    const auto on = _mm512_cmp_ps_mask(load(y + i), _mm512_setzero_ps(), _CMP_NLE_UQ);
    return _mm512_maskz_mov_ps(on, load(dy + i));
  };
  Buffer<double> sums(2 * O);
  column_sums(rows, O, threads, sums, [&](Int i, Int c, Vector& s, Vector& q) {
    const Vector v = g(i);
    s = _mm512_add_ps(s, v);
    q = _mm512_fmadd_ps(v, _mm512_sub_ps(load(z + i), load(mean + c)), q);
  });
  Buffer<float> scale(O), shift(O), slope(O);
  for (Int c = 0; c < O; ++c) {
    dbeta[c] = sums[c], dgamma[c] = sums[O + c] * inverse[c], scale[c] = gamma[c] * inverse[c];
    shift[c] = sums[c] / rows, slope[c] = dgamma[c] * inverse[c] / rows;
  }
  // dz = gamma / sigma (g - mean(g) - (z - mean) mean(g (z - mean)) / sigma^2)
  const auto dz = [=, &scale, &shift, &slope](Int c) {
    return [=, m = load(mean + c), a = load(scale + c), b = load(shift + c),
            k = load(slope + c)](Int i) {
      const Vector v = g(i), d = _mm512_sub_ps(load(z + i), m);
      if (dh) store(dh + i, v);
      return _mm512_mul_ps(_mm512_fnmadd_ps(d, k, _mm512_sub_ps(v, b)), a);
    };
  };
  if (!w) return elements(rows, O, threads, [=, &dz](Int c) {
    return [=, dz = dz(c)](Int i) {
      store(dx + i, skip ? _mm512_add_ps(dz(i), load(skip + i)) : dz(i));
    };
  });
  if constexpr (sizeof(T) == 2) {
    Buffer<bf16> packed(9 * C * O);
    pack(packed, O, C, threads,
         [&](Int c, Int tap, Int o) { return w[(o * 9 + 8 - tap) * C + c]; });
    Buffer<float> parts(threads * 9 * C * O);
    shared(N, threads, [&](int t, Int first, Int last) {
      const Int map = H * W * S * S * C;
      Buffer<bf16> image((H * S + 2) * (W * S + 2) * C), grad((H + 2) * (W + 2) * O);
      Buffer<bf16> left(H * W * O), right(3 * (H * S + 2) * W * C);
      Buffer<double> unused(2 * C);
      for (Int n = first; n < last; ++n) {
        for (Int r = 0; r < H; ++r)
          for (Int k = 0; k < W; ++k)
            for (Int c = 0; c < O; c += 16)
              store(grad + ((r + 1) * (W + 2) + k + 1) * O + c,
                    dz(c)(((n * H + r) * W + k) * O + c));
        copy_padded(x + n * map, image, H * S, W * S, C);
        correlate(image, grad, left, right, parts + t * 9 * C * O, H, W, C, O, S);
        (C % 32 ? convolve<1> : convolve<2>)(grad, packed, skip ? skip + n * map : skip,
                                             dx + n * map, unused, H, W, O, C, 1, S);
      }
    });
    std::fill_n(dw, 9 * C * O, 0.f);
    add_up(+parts, threads, 9 * C * O, dw);
  }
}

}  // namespace

extern "C" {
auto forward_float32 = forward<float>;
auto forward_bfloat16 = forward<bf16>;
auto backward_float32 = backward<float>;
auto backward_bfloat16 = backward<bf16>;
}
