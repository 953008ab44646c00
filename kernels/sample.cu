// Draws one token per row of logits [rows, width]: sample.rs has the definition, launch/sample.rs packs what is wanted.
//
// `sample_read` widens a row into a workspace of f32 and finds its largest logit. `sample_draw` does the rest there, where
// more than the largest logit is wanted. Both have one block per row, and no sum depends on an order: counts are integers,
// and weights, which are at most 1, are summed as integers with FRACTION bits behind the point. What is drawn from a row is
// therefore the same in any company. Adjusted logits are the host's to the bit; weights are as `expf` rounds them.
#include "device.cuh"

using u64 = unsigned long long;

constexpr int THREADS = 1024, WARPS = 32;
// A histogram has a bin for each thread.
constexpr unsigned DIGIT = 10, BINS = 1 << DIGIT;
// Sums of a bin are kept in PIECES of so many bits each: shared memory adds 32 bits at once and no more. With 2^19 ids, the
// most that launch/sample.rs lets pass, no piece overflows.
constexpr int PIECE = 13, PIECES = 3, FRACTION = PIECE * PIECES;
// Of sums that are not made in histograms.
constexpr int FINE = 44;
constexpr unsigned NOWHERE = ~0u;
constexpr float OUT = -INFINITY;

// What one row wants; all of the same size as the words that launch/sample.rs writes.
struct Draw {
  unsigned vocabulary;         // ids from here on are padding
  unsigned place, weights_at;  // rows of the workspace: of logits, and of weights; NOWHERE for the largest alone
  unsigned wants;              // of WANTS_
  unsigned top, top_at;        // so many of the most probable tokens, from this word of the output on
  unsigned top_k;              // 0 keeps all
  unsigned top_p_low, top_p_high, random_low, random_high;  // with 64 bits behind the point
  float min_p, temperature, repetition, frequency, presence;
  // Where lists begin in the words, and how many entries they have.
  unsigned seen, seen_count, bias, bias_count, ids, ids_count, ranges, ranges_count, mask, mask_count;
  unsigned rivals, rivals_end;
};
static_assert(sizeof(Draw) == 28 * 4, "as launch/sample.rs has it");
constexpr unsigned WANTS_LOGPROBS = 1, WANTS_TOP_P = 2, WANTS_MASK = 4, WANTS_RIVALS = 8;

// What is said of one row.
struct Found {
  unsigned finite, id;
  float logit, total;  // of the id; logarithm of the sum over all
  unsigned top;        // pairs of id and logit at Draw::top_at, in no order
};

struct Shared {
  u64 parts[WARPS];
  unsigned bins[PIECES][BINS];
  unsigned bin, count;
  u64 above, at;
  float total;
};

// Rises with x, also between -0 and 0, as f32::total_cmp.
__device__ __forceinline__ unsigned rank(float x) {
  const unsigned bits = __float_as_uint(x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float of_rank(unsigned rank) {
  return __uint_as_float(rank >> 31 ? rank & 0x7fffffffu : ~rank);
}

// Rises with x; of equals, the lowest id has the largest.
__device__ __forceinline__ u64 candidate(float x, unsigned id) {
  // A sum with 0 is 0 for -0, which is no smaller.
  return u64(rank(x + 0.f)) << 32 | ~id;
}

// A weight in 0..1 as an integer, rounded down. 1 is the largest that has BITS bits.
template <int BITS>
__device__ __forceinline__ u64 fixed(float weight) {
  return min(u64(weight * float(1ull << BITS)), (1ull << BITS) - 1);
}

struct Larger {
  __device__ __forceinline__ u64 operator()(u64 a, u64 b) const { return a > b ? a : b; }
};
struct Sum {
  __device__ __forceinline__ u64 operator()(u64 a, u64 b) const { return a + b; }
};

// Joins a value of each thread, for every thread.
template <class Join>
__device__ __forceinline__ u64 over_block(Shared &shared, u64 value, Join join) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int d = 16; d; d >>= 1) value = join(value, __shfl_xor_sync(FULL, value, d));
  __syncthreads();  // the parts before have been read
  if (lane == 0) shared.parts[warp] = value;
  __syncthreads();
  value = shared.parts[lane];
#pragma unroll
  for (int d = 16; d; d >>= 1) value = join(value, __shfl_xor_sync(FULL, value, d));
  return value;
}

// The sum over this lane and those before it.
__device__ __forceinline__ u64 upto_lane(u64 value) {
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const u64 before = __shfl_up_sync(FULL, value, d);
    if (int(threadIdx.x % 32) >= d) value += before;
  }
  return value;
}

// Calls visit(x, id) for a row, of which each thread has its own part. Behind `count` the row is filled up to a whole four.
template <class Visit>
__device__ __forceinline__ void over(const float *row, int count, Visit visit) {
  for (int i = threadIdx.x * 4; i < count; i += THREADS * 4) {
    float x[4];
    load<float, 4>(x, row + i);
#pragma unroll
    for (int j = 0; j < 4; j++) visit(x[j], unsigned(i + j));
  }
}

// The first id at which the sum of value(x, id) over the ids up to it is more than target(total); NOWHERE if it is never.
template <class Value, class Target>
__device__ __forceinline__ unsigned find(Shared &shared, const float *row, int count, Value value, Target target) {
  constexpr int STEP = 128;  // that a warp reads at once
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto four = [&](int i, u64(&each)[4]) {
    float x[4];
    load<float, 4>(x, row + i);
    u64 sum = 0;
#pragma unroll
    for (int j = 0; j < 4; j++) sum += each[j] = value(x[j], unsigned(i + j));
    return sum;
  };
  u64 each[4] = {}, left = 0;
  int from = 0, end = count;
  bool first = true;
  // The warps divide what is left between them, until one step is left. The total is needed first, so one round is made.
  while (first || end - from > STEP) {
    const int share = ((end - from + WARPS - 1) / WARPS + STEP - 1) / STEP * STEP;
    const int begin = from + warp * share, stop = min(begin + share, end);
    u64 sum = 0;
    for (int i = begin + lane * 4; i < stop; i += STEP) sum += four(i, each);
    sum = __shfl_sync(FULL, upto_lane(sum), 31);
    __syncthreads();  // the parts before have been read
    if (lane == 0) shared.parts[warp] = sum;
    __syncthreads();
    const u64 part = shared.parts[lane], upto = upto_lane(part);
    if (first) left = target(__shfl_sync(FULL, upto, 31));
    first = false;
    const unsigned behind = __ballot_sync(FULL, upto > left);
    if (!behind) return NOWHERE;
    const int chosen = __ffs(behind) - 1;
    left -= __shfl_sync(FULL, upto - part, chosen);
    from += chosen * share;
    end = min(from + share, end);
  }
  // Every warp does the same, so that every thread knows.
  u64 sum = 0;
  const int i = from + lane * 4;
  if (i < end) sum = four(i, each);  // of the others, none is chosen
  u64 upto = upto_lane(sum);
  const unsigned behind = __ballot_sync(FULL, upto > left);
  if (!behind) return NOWHERE;
  upto -= sum;
  unsigned id = i;
#pragma unroll
  for (int j = 0; j < 4; j++) upto += each[j], id += upto <= left;
  return __shfl_sync(FULL, id, __ffs(behind) - 1);
}

// A key, and the values of all larger keys, and of this one.
struct Cut {
  unsigned key;
  u64 above, at;
};

// The largest key at which the values of the keys from it on reach `wanted`; 0 if all of them do not. `each` calls
// visit(key, value) for the keys of this thread, none of them 0. COUNTS: their sums fit 32 bits.
// Each level settles ten bits, from the highest down; bits below the last level are the same in all keys.
template <int LEVELS, bool COUNTS, class Each>
__device__ __forceinline__ Cut select(Shared &shared, Each each, u64 wanted) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Cut cut{0, 0, 0};
  unsigned known = 0;
#pragma unroll 1
  for (int level = 0; level < LEVELS; level++) {
    const int shift = max(22 - int(DIGIT) * level, 0);
    for (int p = 0; p < (COUNTS ? 1 : PIECES); p++) shared.bins[p][threadIdx.x] = 0;
    __syncthreads();  // the bins are empty
    each([&](unsigned key, u64 value) {
      if ((key ^ cut.key) & known) return;
      const unsigned bin = key >> shift & (BINS - 1);
      if (COUNTS) {
        atomicAdd(&shared.bins[0][bin], unsigned(value));
      } else {
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
          const unsigned piece = unsigned(value >> p * PIECE) & ((1u << PIECE) - 1);
          if (piece) atomicAdd(&shared.bins[p][bin], piece);
        }
      }
    });
    __syncthreads();  // the bins are full
    // The largest keys come first.
    const unsigned bin = BINS - 1 - threadIdx.x;
    u64 own = 0;
    for (int p = 0; p < (COUNTS ? 1 : PIECES); p++) own += u64(shared.bins[p][bin]) << p * PIECE;
    const u64 within = upto_lane(own);
    if (lane == 31) shared.parts[warp] = within;
    __syncthreads();
    const u64 warps = upto_lane(shared.parts[lane]);
    const u64 before = __shfl_sync(FULL, warps, (warp + 31) % 32), total = __shfl_sync(FULL, warps, 31);
    if (cut.above + total < wanted) return Cut{0, 0, 0};
    const u64 upto = cut.above + (warp ? before : 0) + within;
    if (upto >= wanted && upto - own < wanted) shared.bin = bin, shared.above = upto - own, shared.at = own;
    __syncthreads();
    cut = Cut{cut.key | shared.bin << shift, shared.above, shared.at};
    known |= (BINS - 1) << shift;
  }
  return cut;
}

// The `wanted`th largest of all keys. `mine` is the largest one of this thread, 0 if it has none.
template <int LEVELS, class Each>
__device__ __forceinline__ Cut largest_few(Shared &shared, Each each, unsigned mine, u64 wanted) {
  // No less than the same of the threads' largest, so that few of the rest have to be counted.
  auto own = [&](auto visit) {
    if (mine) visit(mine, 1ull);
  };
  const unsigned least = select<LEVELS, true>(shared, own, wanted).key;
  auto rest = [&](auto visit) {
    each([&](unsigned key) {
      if (key >= least) visit(key, 1ull);
    });
  };
  return select<LEVELS, true>(shared, rest, wanted);
}

// Penalties, bias and what is forbidden, in place.
__device__ __forceinline__ void adjust(Shared &shared, float *logits, const Draw &draw, const unsigned *words) {
  const unsigned count = draw.vocabulary;
  // Products that are rounded before the sum, as on the host.
  const unsigned *seen = words + draw.seen;
  for (unsigned i = threadIdx.x; i < draw.seen_count; i += THREADS) {
    const unsigned id = seen[2 * i], generated = seen[2 * i + 1];
    if (id >= count) continue;
    float x = logits[id];
    x = x > 0.f ? x / draw.repetition : __fmul_rn(x, draw.repetition);
    if (generated) x -= __fadd_rn(__fmul_rn(draw.frequency, float(generated)), draw.presence);
    logits[id] = x;
  }
  __syncthreads();  // penalties come before bias
  // Sorted by id: the first entry of an id adds them all, in their order.
  const unsigned *bias = words + draw.bias;
  for (unsigned i = threadIdx.x; i < draw.bias_count; i += THREADS) {
    const unsigned id = bias[2 * i];
    if (id >= count || (i && bias[2 * i - 2] == id)) continue;
    float x = logits[id];
    for (unsigned k = i; k < draw.bias_count && bias[2 * k] == id; k++) x += __uint_as_float(bias[2 * k + 1]);
    logits[id] = x;
  }
  __syncthreads();  // what is forbidden stays so
  // An id may be in the list twice.
  for (unsigned i = threadIdx.x; i < draw.ids_count; i += THREADS)
    if (words[draw.ids + i] < count)
      atomicExch(reinterpret_cast<unsigned *>(logits + words[draw.ids + i]), __float_as_uint(OUT));
  __syncthreads();
  for (unsigned range = 0; range < draw.ranges_count; range++) {
    const unsigned *bounds = words + draw.ranges + 2 * range;
    for (unsigned id = bounds[0] + threadIdx.x; id < min(bounds[1], count); id += THREADS) logits[id] = OUT;
    __syncthreads();  // ranges may overlap
  }
  if (draw.wants & WANTS_MASK) {
    const unsigned *mask = words + draw.mask;
    for (unsigned id = threadIdx.x; id < count; id += THREADS)
      if (id / 32 >= draw.mask_count || !(mask[id / 32] >> id % 32 & 1)) logits[id] = OUT;
    __syncthreads();
  }
  if (!(draw.wants & WANTS_RIVALS)) return;
  unsigned front = 0, most = 0;
  for (unsigned id = threadIdx.x; id < draw.rivals; id += THREADS) front = max(front, rank(logits[id]));
  for (unsigned id = draw.rivals + threadIdx.x; id < draw.rivals_end; id += THREADS) most = max(most, rank(logits[id]));
  front = unsigned(over_block(shared, front, Larger()));
  most = unsigned(over_block(shared, most, Larger()));
  if (most <= rank(OUT)) return;
  u64 sum = 0;
  for (unsigned id = draw.rivals + threadIdx.x; id < draw.rivals_end; id += THREADS)
    sum += fixed<FINE>(expf(logits[id] - of_rank(most)));
  sum = over_block(shared, sum, Sum());
  // One thread knows: the others need no logarithm of 64 bits.
  if (threadIdx.x == 0) shared.total = float(double(of_rank(most)) + log(double(sum) / double(1ull << FINE)));
  __syncthreads();
  // Without a front its rank is 0, that of no number.
  if (front && shared.total > of_rank(front))
    for (unsigned id = threadIdx.x; id < draw.rivals; id += THREADS) logits[id] = OUT;
  __syncthreads();
}

// Writes the most probable tokens and says how many there are.
__device__ __forceinline__ unsigned write_top(Shared &shared, unsigned *out, const float *logits, const Draw &draw,
                                              unsigned mine) {
  const int count = int(draw.vocabulary);
  auto ranks = [&](auto visit) {
    over(logits, count, [&](float x, unsigned) {
      if (x > OUT) visit(rank(x));
    });
  };
  const Cut cut = largest_few<4>(shared, ranks, mine > rank(OUT) ? mine : 0, draw.top);
  unsigned last = NOWHERE;  // id of those at the cut
  const u64 wanted = draw.top - cut.above;
  if (cut.at > wanted)
    last = find(
        shared, logits, count, [&](float x, unsigned) { return u64(rank(x) == cut.key); },
        [&](u64) { return wanted - 1; });
  if (threadIdx.x == 0) shared.count = 0;
  __syncthreads();
  over(logits, count, [&](float x, unsigned id) {
    if (!(x > OUT) || rank(x) < cut.key || (rank(x) == cut.key && id > last)) return;
    const unsigned slot = atomicAdd(&shared.count, 1u);
    if (slot >= draw.top) return;
    out[draw.top_at + 2 * slot] = id;
    out[draw.top_at + 2 * slot + 1] = __float_as_uint(x);
  });
  __syncthreads();
  return min(shared.count, draw.top);
}

// Draws with temperature. Weights are exp((logit - largest) / temperature), at most 1, so that they rise with their bits.
__device__ __forceinline__ unsigned draw_id(Shared &shared, float *weights, const float *logits, const Draw &draw,
                                            float largest) {
  const int count = int(draw.vocabulary);
  const float temperature = draw.temperature;
  unsigned most = 0;
  u64 sum = 0;
  for (int i = threadIdx.x * 4; i < count; i += THREADS * 4) {
    float x[4];
    load<float, 4>(x, logits + i);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      // The smaller of a number and no number is the number.
      x[j] = fminf(expf((x[j] - largest) / temperature), 1.f);
      sum += fixed<FRACTION>(x[j]);
      most = max(most, __float_as_uint(x[j]));
    }
    store<float, 4>(weights + i, x);
  }
  __syncthreads();  // the weights are there
  // Those are kept whose weight has larger bits than `least`, and up to id `last` those with the same bits.
  unsigned least = 0, last = NOWHERE;
  auto kept = [&](float weight, unsigned id) {
    const unsigned bits = __float_as_uint(weight);
    return bits > least || (bits == least && id <= last);
  };
  // The first so many of those at the cut.
  auto cut_at = [&](unsigned bits, u64 wanted) {
    return find(
        shared, weights, count, [&](float weight, unsigned) { return u64(__float_as_uint(weight) == bits); },
        [&](u64) { return wanted - 1; });
  };
  // Keys of 32 bits of which the lowest two are zero: three levels settle them.
  if (draw.top_k && draw.top_k < draw.vocabulary) {
    auto keys = [&](auto visit) {
      over(weights, count, [&](float weight, unsigned) {
        if (weight > 0.f) visit(__float_as_uint(weight) << 2);
      });
    };
    const Cut cut = largest_few<3>(shared, keys, most << 2, draw.top_k);
    const u64 wanted = draw.top_k - cut.above;
    least = cut.key >> 2;
    if (cut.at > wanted) last = cut_at(least, wanted);
  }
  if (draw.wants & WANTS_TOP_P) {
    if (least) {
      sum = 0;
      over(weights, count, [&](float weight, unsigned id) { sum += kept(weight, id) ? fixed<FRACTION>(weight) : 0; });
    }
    sum = over_block(shared, sum, Sum());
    const u64 top_p = u64(draw.top_p_high) << 32 | draw.top_p_low;
    // Rounded up; at least one is kept, also for a share of 0.
    const u64 wanted = max(__umul64hi(top_p, sum) + (top_p * sum != 0), 1ull);
    // Smaller values are not needed: all of them together are no more than what may be missing.
    const u64 needed = max((sum - wanted) / u64(count), 1ull);
    auto keys = [&](auto visit) {
      over(weights, count, [&](float weight, unsigned id) {
        const u64 value = fixed<FRACTION>(weight);
        if (value >= needed && kept(weight, id)) visit(__float_as_uint(weight) << 2, value);
      });
    };
    const Cut cut = select<3, false>(shared, keys, wanted);
    const unsigned bits = cut.key >> 2;
    const u64 value = fixed<FRACTION>(__uint_as_float(bits)), enough = (wanted - cut.above + value - 1) / value;
    if (enough * value < cut.at)
      last = cut_at(bits, enough);
    else if (bits > least)
      last = NOWHERE;
    least = bits;
  }
  if (__float_as_uint(draw.min_p) > least) least = __float_as_uint(draw.min_p), last = NOWHERE;
  const u64 random = u64(draw.random_high) << 32 | draw.random_low;
  return find(
      shared, weights, count,
      [&](float weight, unsigned id) { return kept(weight, id) ? fixed<FRACTION>(weight) : 0; },
      [&](u64 total) { return __umul64hi(random, total); });
}

// Widens the first ids of a row into its place of the workspace [places, stride], and fills up with -inf to a whole N.
template <class T, int N>
__device__ __forceinline__ u64 read_row(float *to, const T *logits, int count, bool &broken) {
  u64 best = 0;
  const int whole = (count + 3) / 4 * 4;  // as `over` reads it
  for (int i = threadIdx.x * N; i < whole; i += THREADS * N) {
    float x[N];
    if (N > 1 || i < count) load<T, N>(x, logits + i);
#pragma unroll
    for (int j = 0; j < N; j++) {
      if (i + j < count) {
        broken |= !(fabsf(x[j]) < INFINITY);
        best = max(best, candidate(x[j], i + j));
      } else {
        x[j] = OUT;
      }
    }
    if (!to) continue;
    if constexpr (N > 1) {
#pragma unroll
      for (int j = 0; j < N; j += 4) {
        const float four[4] = {x[j], x[j + 1], x[j + 2], x[j + 3]};
        store<float, 4>(to + i + j, four);
      }
    } else {
      to[i] = x[0];
    }
  }
  return best;
}

// grid (rows), block 1024. `wide`: width and addresses allow loads of 16 bytes.
template <class T>
__device__ __forceinline__ void read(Shared &shared, Found *out, float *workspace, const T *logits, const Draw *draws,
                                     int width, int stride, int wide) {
  const Draw &draw = draws[blockIdx.x];
  const int count = int(draw.vocabulary);
  float *to = draw.place == NOWHERE ? nullptr : workspace + size_t(draw.place) * stride;
  const T *row = logits + size_t(blockIdx.x) * width;
  bool broken = false;
  u64 best = wide ? read_row<T, 16 / sizeof(T)>(to, row, count, broken) : read_row<T, 1>(to, row, count, broken);
  const bool finite = !__syncthreads_or(broken) && count > 0;
  best = over_block(shared, best, Larger());
  if (threadIdx.x == 0)
    out[blockIdx.x] = Found{finite, finite ? ~unsigned(best) : 0, finite ? of_rank(unsigned(best >> 32)) : 0.f, 0.f, 0};
}

// out: a Found for each row, and behind them the lists of the most probable tokens, zero before. words: a Draw for each row,
// and behind them the lists. grid (rows), block 1024.
GLOBAL void __launch_bounds__(THREADS)
    sample_draw(unsigned *out, float *workspace, const unsigned *words, int stride) {
  __shared__ Shared shared;
  const Draw &draw = reinterpret_cast<const Draw *>(words)[blockIdx.x];
  Found &found = reinterpret_cast<Found *>(out)[blockIdx.x];
  if (draw.place == NOWHERE || !found.finite) return;
  __syncthreads();  // all have read what is written below
  float *logits = workspace + size_t(draw.place) * stride;
  const int count = int(draw.vocabulary);
  adjust(shared, logits, draw, words);
  unsigned mine = 0;
  u64 best = 0;
  over(logits, count, [&](float x, unsigned id) {
    mine = max(mine, rank(x));
    best = max(best, candidate(x, id));
  });
  best = over_block(shared, best, Larger());
  const float largest = of_rank(unsigned(best >> 32));
  if (largest == OUT) {
    if (threadIdx.x == 0) found.finite = 0;
    return;
  }
  unsigned top = 0;
  if (draw.wants & WANTS_LOGPROBS) {
    u64 sum = 0;
    over(logits, count, [&](float x, unsigned) { sum += fixed<FINE>(expf(x - largest)); });
    sum = over_block(shared, sum, Sum());
    if (threadIdx.x == 0) found.total = float(double(largest) + log(double(sum) / double(1ull << FINE)));
    if (draw.top) top = write_top(shared, out, logits, draw, mine);
  }
  unsigned id = ~unsigned(best);
  if (draw.temperature != 0.f) {
    float *weights = workspace + size_t(draw.weights_at) * stride;
    const unsigned drawn = draw_id(shared, weights, logits, draw, largest);
    if (drawn < draw.vocabulary) id = drawn;
  }
  if (threadIdx.x == 0) {
    found.id = id, found.top = top;
    found.logit = draw.wants & WANTS_LOGPROBS ? logits[id] : 0.f;
  }
}
KERNEL(sample_draw)

// The tokens of the step behind: words[i] becomes the id that row from[i] has drawn, and a row that drew nothing has an id,
// too. grid (1), block as wide as rows are, 1024 at most.
GLOBAL void __launch_bounds__(THREADS) sample_feed(unsigned *words, const Found *out, const unsigned *from, int rows) {
  for (int i = threadIdx.x; i < rows; i += blockDim.x) words[i] = out[from[i]].id;
}
KERNEL(sample_feed)

// Of an id of a row, and over how many ids.
struct Wanted {
  unsigned id, count;
};

// The probability of one id of each row. grid (rows), block 1024.
template <class T>
__device__ __forceinline__ void probability(Shared &shared, float *out, const T *logits, const Wanted *wanted,
                                            int width) {
  const auto [id, count] = wanted[blockIdx.x];
  const T *row = logits + size_t(blockIdx.x) * width;
  unsigned most = 0;
  bool broken = false;
  for (unsigned i = threadIdx.x; i < count; i += THREADS) {
    const float x = to_f(row[i]);
    broken |= !(x < INFINITY);
    most = max(most, rank(x));
  }
  broken = __syncthreads_or(broken);
  const float largest = of_rank(unsigned(over_block(shared, most, Larger())));
  broken |= largest == OUT;
  u64 sum = 0;
  for (unsigned i = threadIdx.x; i < count && !broken; i += THREADS) sum += fixed<FINE>(expf(to_f(row[i]) - largest));
  sum = over_block(shared, sum, Sum());
  if (threadIdx.x) return;
  const float total = float(double(largest) + log(double(sum) / double(1ull << FINE)));
  // What is outside has none; a row that is not finite has no probabilities, and says so.
  out[blockIdx.x] = id >= count ? 0.f : broken ? __uint_as_float(0x7fc00000u) : expf(to_f(row[id]) - total);
}

#define EACH_TYPE(T)                                                                                              \
  GLOBAL void __launch_bounds__(THREADS)                                                                          \
      sample_read_##T(Found *out, float *workspace, const T *logits, const Draw *draws, int width, int stride,    \
                      int wide) {                                                                                 \
    __shared__ Shared shared;                                                                                     \
    read(shared, out, workspace, logits, draws, width, stride, wide);                                             \
  }                                                                                                               \
  KERNEL(sample_read_##T)                                                                                         \
  GLOBAL void __launch_bounds__(THREADS) sample_probability_##T(float *out, const T *logits, const Wanted *wanted, \
                                                                int width) {                                      \
    __shared__ Shared shared;                                                                                     \
    probability(shared, out, logits, wanted, width);                                                              \
  }                                                                                                               \
  KERNEL(sample_probability_##T)
EACH_TYPE(f32)
EACH_TYPE(bf16)
EACH_TYPE(f16)
