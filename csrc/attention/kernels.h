// One image of one descriptor at a time: the arithmetic, written once and compiled for each instruction set.
//
// A file that includes this names the namespace, AGMH_ISA, and the lanes of a vector, AGMH_LANES, after it has included
// the standard headers and chosen the target. Matrices are row-major; a product is rows × depth by depth × columns,
// where the left side may have any strides and the right side lies in panels of two vectors.
#include "attention/products.h"

namespace agmh::AGMH_ISA {

// An image's features as rows of padded(C) channels, float32, padding zero: where they lie if they do so already, else
// in `scratch` (n, scratch_stride(C)).
const float* rows_of_features(const Tile& x, int64_t& stride, float* scratch, bool copy = false) {
  const int64_t width = padded(x.channels);
  if (!x.bfloat16 && x.channel == 1 && x.channels == width && !copy) {
    stride = x.position;
    return static_cast<const float*>(x.data);
  }
  stride = scratch_stride(x.channels);
  if (!x.bfloat16 && x.channel == 1) {
    for (int64_t p = 0; p < x.positions; ++p) {
      const float* from = static_cast<const float*>(x.data) + p * x.position;
      std::fill(std::copy(from, from + x.channels, scratch + p * stride), scratch + p * stride + width, 0.0f);
    }
    return scratch;
  }
  if (!x.bfloat16 && x.position == 1) {
    transposed<false>(static_cast<const float*>(x.data), x.channel, x.channels, x.positions, scratch, stride);
    for (int64_t p = 0; p < x.positions; ++p)
      std::fill(scratch + p * stride + x.channels, scratch + p * stride + width, 0.0f);
    return scratch;
  }
  for (int64_t p = 0; p < x.positions; ++p)
    for (int64_t c = 0; c < width; ++c) {
      const int64_t at = p * x.position + c * x.channel;
      float value = 0;
      if (c < x.channels)
        value = x.bfloat16 ? widened(static_cast<const uint16_t*>(x.data)[at]) : static_cast<const float*>(x.data)[at];
      scratch[p * stride + c] = value;
    }
  return scratch;
}

// Rows of features back into the image's own layout and type.
void store_features(const float* rows, int64_t stride, const Tile& x) {
  if (!x.bfloat16 && x.position == 1) {
    transposed<true>(rows, stride, x.positions, x.channels, static_cast<float*>(x.data), x.channel);
    return;
  }
  for (int64_t p = 0; p < x.positions; ++p)
    for (int64_t c = 0; c < x.channels; ++c) {
      const int64_t at = p * x.position + c * x.channel;
      if (x.bfloat16)
        static_cast<uint16_t*>(x.data)[at] = narrowed(rows[p * stride + c]);
      else
        static_cast<float*>(x.data)[at] = rows[p * stride + c];
    }
}

// a (n, Kp) and slot_sum (n) of one image; weight packed, depth C.
void attend(const Tile& x, const float* weight, int64_t slots, float* a, float* slot_sum, float* scratch) {
  const int64_t n = x.positions, Kp = padded(slots);
  int64_t stride;
  const float* rows = rows_of_features(x, stride, scratch);
  const Left features{rows, stride, 1};
  const Right w = packed(weight, x.channels);
  in_strips(n, [&]<int M>(int64_t first, int64_t) {
    strip<M>(first, 0, Kp, x.channels, features, w,
             [&](int i, int64_t j, Vec p, Vec q) { store_pair(a + (first + i) * Kp + j, p, q); });
  });
  for (int64_t j = 0; j < Kp; j += kLanes) {
    Vec top = load(a + j), sum{};
    for (int64_t p = 1; p < n; ++p) {
      const Vec z = load(a + p * Kp + j);
      top = z > top ? z : top;
    }
    for (int64_t p = 0; p < n; ++p) {
      const Vec e = exp_nonpositive(load(a + p * Kp + j) - top);
      sum += e;
      store(a + p * Kp + j, e);
    }
    Vec scale = 1.0f / sum;
    for (int i = 0; i < kLanes; ++i)
      if (j + i >= slots) scale[i] = 0;
    for (int64_t p = 0; p < n; ++p) store(a + p * Kp + j, load(a + p * Kp + j) * scale);
  }
  for (int64_t p = 0; p < n; ++p) {
    float* row = a + p * Kp;
    Vec sum{};
    for (int64_t j = 0; j < Kp; j += kLanes) sum += load(row + j);
    slot_sum[p] = 1e-9f + total(sum);
    const float scale = 1.0f / slot_sum[p];
    for (int64_t j = 0; j < Kp; j += kLanes) store(row + j, load(row + j) * scale);
  }
}

// Adds h = a − 1/K to sums (Kp) and h hᵀ to products (Kp, Kp), of which only the panels on and right of the diagonal
// are formed; `h` is scratch (n, Kp).
void add_moments(const float* a, int64_t n, int64_t slots, float* sums, float* products, float* h) {
  const int64_t Kp = padded(slots);
  const float mean = 1.0f / static_cast<float>(slots);
  for (int64_t p = 0; p < n; ++p)
    for (int64_t k = 0; k < Kp; ++k) {
      h[p * Kp + k] = k < slots ? a[p * Kp + k] - mean : 0.0f;
      sums[k] += h[p * Kp + k];
    }
  in_strips(slots, [&]<int M>(int64_t first, int64_t fresh) {
    strip<M>(first, first / kPair * kPair, Kp, n, Left{h, 1, Kp}, rows_of(h, Kp), [&](int i, int64_t j, Vec p, Vec q) {
      if (first + i < fresh) return;
      add_pair(products + (first + i) * Kp + j, p, q);
    });
  });
}

// Peaks (n) and their channels of one image; projection packed, depth K; shift (Cp), −∞ in the padding.
void peak(const Tile& x, const float* a, const float* projection, const float* shift, int64_t slots, float* peaks,
          int32_t* channel, float* scratch) {
  const int64_t n = x.positions, Cp = padded(x.channels), Kp = padded(slots);
  int64_t stride;
  const float* rows = rows_of_features(x, stride, scratch);
  const Right right = packed(projection, slots);
  Ints lane{};
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  in_strips(n, [&]<int M>(int64_t first, int64_t) {
    Vec top[M];
    Ints at[M], bad[M];
    for (int i = 0; i < M; ++i) {
      top[i] = splat(-std::numeric_limits<float>::infinity());
      at[i] = bad[i] = Ints{};
    }
    strip<M>(first, 0, Cp, slots, Left{a, Kp, 1}, right, [&](int i, int64_t j, Vec p, Vec q) {
      const float* f = rows + (first + i) * stride + j;
      p += load(f) + load(shift + j);
      q += load(f + kLanes) + load(shift + j + kLanes);
      bad[i] |= (p != p) | (q != q);
      const Ints low = lane + static_cast<int32_t>(j), high = low + kLanes;
      at[i] = p > top[i] ? low : at[i];
      top[i] = p > top[i] ? p : top[i];
      at[i] = q > top[i] ? high : at[i];
      top[i] = q > top[i] ? q : top[i];
    });
    for (int i = 0; i < M; ++i) {
      float best = top[i][0];
      int32_t where = at[i][0], nan = bad[i][0];
      for (int l = 1; l < kLanes; ++l) {
        nan |= bad[i][l];
        const bool better = top[i][l] > best || (top[i][l] == best && at[i][l] < where);
        best = better ? top[i][l] : best;
        where = better ? at[i][l] : where;
      }
      peaks[first + i] = nan ? std::numeric_limits<float>::quiet_NaN() : std::max(best, 0.0f);
      channel[first + i] = where;
    }
  });
}

// Adds F dz to dweight (C, Kp); dz is (n, Kp).
void add_weight_gradient(const Tile& x, const float* dz, int64_t Kp, float* dweight, float* scratch) {
  const int64_t n = x.positions;
  int64_t stride;
  const float* rows = rows_of_features(x, stride, scratch, true);
  in_strips(x.channels, [&]<int M>(int64_t first, int64_t fresh) {
    strip<M>(first, 0, Kp, n, Left{rows, 1, stride}, rows_of(dz, Kp), [&](int i, int64_t j, Vec p, Vec q) {
      if (first + i < fresh) return;
      add_pair(dweight + (first + i) * Kp + j, p, q);
    });
  });
}

// dF of one image, and its share of dW_zᵀ added to dweight (C, Kp). projection (C, Kp) rows; feedback packed, depth K,
// or null; weight packed, depth K, columns C; dz is scratch (n + 1, Kp), scratch is for features.
void spread(const Tile& x, const float* g, const int32_t* channel, const float* a, const float* slot_sum,
            const float* projection, const float* feedback, const float* offset, const float* weight, int64_t slots,
            const Tile& dx, float* dweight, float* dz, float* scratch) {
  const int64_t n = x.positions, Kp = padded(slots), Cp = padded(x.channels);
  if (feedback != nullptr) {
    in_strips(n, [&]<int M>(int64_t first, int64_t) {
      strip<M>(first, 0, Kp, slots, Left{a, Kp, 1}, packed(feedback, slots), [&](int i, int64_t j, Vec p, Vec q) {
        store_pair(dz + (first + i) * Kp + j, p + load(offset + j), q + load(offset + j + kLanes));
      });
    });
  } else {
    std::fill(dz, dz + n * Kp, 0.0f);
  }
  float* u = dz + n * Kp;
  std::fill(u, u + Kp, 0.0f);
  for (int64_t p = 0; p < n; ++p) {
    float* row = dz + p * Kp;
    const float *own = a + p * Kp, *peaked = projection + channel[p] * Kp;
    Vec dot{};
    for (int64_t k = 0; k < Kp; k += kLanes) {
      const Vec da = load(peaked + k) * g[p] - load(row + k);
      dot += da * load(own + k);
      store(row + k, da);
    }
    const float mean = total(dot);
    for (int64_t k = 0; k < Kp; k += kLanes) {
      const Vec w = load(own + k) * (load(row + k) - mean);
      store(row + k, w);
      store(u + k, load(u + k) + w);
    }
  }
  for (int64_t p = 0; p < n; ++p)
    for (int64_t k = 0; k < Kp; k += kLanes) {
      float* to = dz + p * Kp + k;
      store(to, load(to) - load(a + p * Kp + k) * slot_sum[p] * load(u + k));
    }
  add_weight_gradient(x, dz, Kp, dweight, scratch);
  const bool direct = !dx.bfloat16 && dx.channel == 1 && x.channels == Cp;
  float* rows = direct ? static_cast<float*>(dx.data) : scratch;
  const int64_t stride = direct ? dx.position : scratch_stride(x.channels);
  in_strips(n, [&]<int M>(int64_t first, int64_t) {
    strip<M>(first, 0, Cp, slots, Left{dz, Kp, 1}, packed(weight, slots),
             [&](int i, int64_t j, Vec p, Vec q) { store_pair(rows + (first + i) * stride + j, p, q); });
  });
  for (int64_t p = 0; p < n; ++p) rows[p * stride + channel[p]] += g[p];
  if (!direct) store_features(rows, stride, dx);
}

const KernelTable kTable{pack, attend, add_moments, peak, spread};

#undef AGMH_INLINE
#undef AGMH_TRANSPOSE

}  // namespace agmh::AGMH_ISA
