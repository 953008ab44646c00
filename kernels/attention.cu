// Softmax attention over fresh rows or pages of the cache, queries grouped over key heads, in three forms:
//
// - decode: sequences with one new row over pages. The positions are cut into splits, one block each, and all query
//   heads of a key head share what is read; `attention_merge` then joins the splits.
// - tiles: many rows of a sequence, 64 queries by 64 keys at once on the tensor cores.
// - rows: what tiles has no kernel for (f32, other head sizes): one block per row and head.
//
// Softmax runs in one pass with a running maximum (https://arxiv.org/abs/1805.02867), to base 2. Splits and tiles are
// cut by position, so a row's result does not depend on the other sequences of the step.
//
// The page table, lengths and offsets are on the device: the host cannot check them without waiting, so the kernels do,
// and end the launch where one does not fit.
#include "device.cuh"

constexpr int WARPS = 4;
constexpr int TILE_ROWS = 64, TILE_KEYS = 64;

// One sequence: its new rows, its visible rows, and where keys and values are.
struct Sequence {
  int first, rows, visible;
  const unsigned *pages;  // null: keys lie as the rows do
  unsigned page_size, page_count;

  __device__ __forceinline__ Sequence(int index, const unsigned *offsets, const unsigned *lengths,
                                      const unsigned *table, unsigned most_pages, unsigned page_size_,
                                      unsigned page_count_, unsigned all_rows)
      : page_size(page_size_), page_count(page_count_) {
    const unsigned start = offsets[index], end = offsets[index + 1];
    if (start > end || end > all_rows) __trap();
    first = start, rows = end - start;
    visible = table ? lengths[index] : rows;
    pages = table ? table + size_t(index) * most_pages : nullptr;
    if (table && size_t(visible) > size_t(most_pages) * page_size) __trap();
  }

  // The place of a visible position among all keys.
  __device__ __forceinline__ size_t place(int position) const {
    if (!pages) return first + position;
    const unsigned page = pages[position / page_size];
    if (page >= page_count) __trap();
    return size_t(page) * page_size + position % page_size;
  }
};

// Elements `at` and `at + 1` of a head. `paired`: head size, strides and addresses allow one load for both.
template <class T>
__device__ __forceinline__ float2 pair_at(const T *head, int at, int width, int paired) {
  if (at >= width) return make_float2(0.f, 0.f);
  if (!paired) return make_float2(to_f(head[at]), at + 1 < width ? to_f(head[at + 1]) : 0.f);
  if constexpr (sizeof(T) == 4)
    return *reinterpret_cast<const float2 *>(head + at);
  else
    return split2<T>(*reinterpret_cast<const unsigned *>(head + at));
}

// The maximum is -inf where nothing was seen, or only NaN, which must reach the output.
__device__ __forceinline__ float finite_base(float largest) { return largest == -INFINITY ? 0.f : largest; }

// A softmax in progress for G query heads. A lane holds elements 2 * (lane + 32 * i) and the next.
template <int N, int G>
struct Running {
  float2 query[G][N], total[G][N];
  float largest[G], weight[G];
};

template <class T, int N, int G>
__device__ __forceinline__ void begin(Running<N, G> &running, const T *query, int heads, int width, int paired) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int g = 0; g < G; g++) {
    running.largest[g] = -INFINITY, running.weight[g] = 0.f;
#pragma unroll
    for (int i = 0; i < N; i++) {
      running.total[g][i] = make_float2(0.f, 0.f);
      running.query[g][i] =
          g < heads ? pair_at(query + size_t(g) * width, 2 * (lane + 32 * i), width, paired) : make_float2(0.f, 0.f);
    }
  }
}

// Positions start..end, a warp at each.
template <class T, int N, int G>
__device__ __forceinline__ void attend(Running<N, G> &running, const Sequence &sequence, const T *keys, const T *values,
                                       unsigned key_stride, unsigned value_stride, int start, int end, int width,
                                       int paired, float scale) {
  const int lane = threadIdx.x % 32;
  for (int position = start + int(threadIdx.x / 32); position < end; position += WARPS) {
    const size_t place = sequence.place(position);
    float2 key[N], value[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
      key[i] = pair_at(keys + place * key_stride, 2 * (lane + 32 * i), width, paired);
      value[i] = pair_at(values + place * value_stride, 2 * (lane + 32 * i), width, paired);
    }
#pragma unroll
    for (int g = 0; g < G; g++) {
      float dot = 0.f;
#pragma unroll
      for (int i = 0; i < N; i++) dot += running.query[g][i].x * key[i].x + running.query[g][i].y * key[i].y;
      const float score = warp_sum(dot) * scale, largest = fmaxf(running.largest[g], score);
      const float base = finite_base(largest), shrink = ex2(running.largest[g] - base), by = ex2(score - base);
      running.largest[g] = largest;
      running.weight[g] = running.weight[g] * shrink + by;
#pragma unroll
      for (int i = 0; i < N; i++) {
        running.total[g][i].x = running.total[g][i].x * shrink + by * value[i].x;
        running.total[g][i].y = running.total[g][i].y * shrink + by * value[i].y;
      }
    }
  }
}

// What the warps have, joined: calls write(head, element, total, largest, weight) for each element of each head.
// Dynamic shared memory: WARPS * G * (64 * N + 2) floats.
template <int N, int G, class Write>
__device__ __forceinline__ void join_warps(const Running<N, G> &running, int heads, int width, Write write) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float *totals = reinterpret_cast<float *>(smem), *largest = totals + WARPS * G * 64 * N,
        *weight = largest + WARPS * G;
#pragma unroll
  for (int g = 0; g < G; g++) {
#pragma unroll
    for (int i = 0; i < N; i++)
      *reinterpret_cast<float2 *>(totals + (warp * G + g) * 64 * N + 2 * (lane + 32 * i)) = running.total[g][i];
    if (lane == 0) largest[warp * G + g] = running.largest[g], weight[warp * G + g] = running.weight[g];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < heads * width; i += blockDim.x) {
    const int g = i / width, element = i % width;
    float most = -INFINITY, sum = 0.f, total = 0.f;
    for (int w = 0; w < WARPS; w++) most = fmaxf(most, largest[w * G + g]);
    for (int w = 0; w < WARPS; w++) {
      const float by = ex2(largest[w * G + g] - finite_base(most));
      sum += by * weight[w * G + g];
      total += by * totals[(w * G + g) * 64 * N + element];
    }
    write(g, element, total, most, sum);
  }
}

__device__ __forceinline__ float share(float weight) { return weight > 0.f ? 1.f / weight : 0.f; }

// q [rows, heads, width], keys and values [pages, page_size, kv_heads, width], table [sequences, most_pages]
// parts [sequences, heads, splits, width] and stats [sequences, heads, splits, 2]: written where a split has positions
// grid (splits, kv_heads * chunks of G query heads, sequences)
template <class T, int N, int G>
__device__ __forceinline__ void decode(float *parts, float2 *stats, const T *q, const T *keys, const T *values,
                                       const unsigned *offsets, const unsigned *lengths, const unsigned *table,
                                       unsigned rows, unsigned q_stride, unsigned kv_heads, unsigned group,
                                       unsigned width, unsigned most_pages, unsigned page_size, unsigned page_count,
                                       unsigned split_size, unsigned window, int paired, float scale) {
  const Sequence sequence(blockIdx.z, offsets, lengths, table, most_pages, page_size, page_count, rows);
  if (sequence.rows != 1) return;
  const int kv_head = blockIdx.y % kv_heads, skipped = blockIdx.y / kv_heads * G, heads = min(G, int(group) - skipped);
  const int seen_from = max(0, sequence.visible - int(window));
  const int start = max(seen_from, int(blockIdx.x * split_size));
  const int end = min(sequence.visible, int((blockIdx.x + 1) * split_size));
  if (start >= end) return;
  const unsigned first_head = kv_head * group + skipped, stride = kv_heads * width;
  Running<N, G> running;
  begin(running, q + size_t(sequence.first) * q_stride + size_t(first_head) * width, heads, width, paired);
  attend(running, sequence, keys + size_t(kv_head) * width, values + size_t(kv_head) * width, stride, stride, start,
         end, width, paired, scale);
  const size_t head_at = size_t(blockIdx.z) * kv_heads * group + first_head;
  join_warps<N, G>(running, heads, width, [&](int g, int element, float total, float largest, float weight) {
    const size_t at = (head_at + g) * gridDim.x + blockIdx.x;
    parts[at * width + element] = total;
    if (element == 0) stats[at] = make_float2(largest, weight);
  });
}

// out [rows, heads, width]; grid (heads, sequences)
template <class T>
__device__ __forceinline__ void merge(T *out, const float *parts, const float2 *stats, const unsigned *offsets,
                                      const unsigned *lengths, unsigned width, unsigned splits, unsigned split_size,
                                      unsigned window) {
  const unsigned row = offsets[blockIdx.y];
  if (offsets[blockIdx.y + 1] - row != 1) return;
  const int visible = lengths[blockIdx.y], from = max(0, visible - int(window)) / int(split_size);
  const int to = (visible + int(split_size) - 1) / int(split_size);
  const size_t head_at = (size_t(blockIdx.y) * gridDim.x + blockIdx.x) * splits;
  float largest = -INFINITY;
  for (int split = from; split < to; split++) largest = fmaxf(largest, stats[head_at + split].x);
  for (unsigned element = threadIdx.x; element < width; element += blockDim.x) {
    float sum = 0.f, total = 0.f;
    for (int split = from; split < to; split++) {
      const float2 stat = stats[head_at + split];
      const float by = ex2(stat.x - finite_base(largest));
      sum += by * stat.y;
      total += by * parts[(head_at + split) * width + element];
    }
    out[(size_t(row) * gridDim.x + blockIdx.x) * width + element] = from_f<T>(total * share(sum));
  }
}

// Every argument of the forms for many rows. `table` and `lengths` null: keys and values lie as the rows do.
template <class T>
struct Many {
  T *out;
  const T *q, *keys, *values;
  const unsigned *offsets, *lengths, *table;
  unsigned rows, q_stride, key_stride, value_stride, kv_heads, width, most_pages, page_size, page_count;
  int causal;
  unsigned window;
  int paired;
  float scale;

  // Decode has the sequences with one row over pages.
  __device__ __forceinline__ bool has(const Sequence &sequence) const { return !table || sequence.rows != 1; }
};

// grid (rows of the longest sequence, heads, sequences)
template <class T, int N>
__device__ __forceinline__ void rows(const Many<T> &in) {
  const Sequence sequence(blockIdx.z, in.offsets, in.lengths, in.table, in.most_pages, in.page_size, in.page_count,
                          in.rows);
  const int row = blockIdx.x;
  if (row >= sequence.rows || !in.has(sequence)) return;
  if (in.causal && sequence.visible < sequence.rows) __trap();
  const int sees = in.causal ? sequence.visible - sequence.rows + row + 1 : sequence.visible;
  const int head = blockIdx.y, kv_head = head / (gridDim.y / in.kv_heads), width = in.width;
  Running<N, 1> running;
  begin(running, in.q + size_t(sequence.first + row) * in.q_stride + size_t(head) * width, 1, width, in.paired);
  attend(running, sequence, in.keys + size_t(kv_head) * width, in.values + size_t(kv_head) * width, in.key_stride,
         in.value_stride, max(0, sees - int(in.window)), sees, width, in.paired, in.scale);
  T *out = in.out + (size_t(sequence.first + row) * gridDim.y + head) * width;
  join_warps<N, 1>(running, 1, width, [&](int, int element, float total, float, float weight) {
    out[element] = from_f<T>(total * share(weight));
  });
}

// 64 heads of neighbouring rows or positions, those from `count` on as zeros; a row of the tile is padded by 16 bytes,
// so that eight rows of ldmatrix fall into different banks.
template <class T, int D, class Place>
__device__ __forceinline__ void load_tile(T *tile, const T *from, unsigned stride, int first, int count, Place place) {
  for (int i = threadIdx.x; i < 64 * (D / 8); i += blockDim.x) {
    const int row = i / (D / 8), column = i % (D / 8) * 8;
    const bool in = first + row < count;
    cp_async16(tile + row * (D + 8) + column, in ? from + place(first + row) * stride + column : from, in ? 16 : 0);
  }
}

// grid (ceil(rows of the longest sequence / 64), heads, sequences), block 128: a warp has 16 of the 64 rows.
// Dynamic shared memory: 5 * 64 * (D + 8) elements: the queries, and two tiles of keys and of values each, of which one
// is read while the other arrives.
template <class T, int D>
__device__ __forceinline__ void tiles(const Many<T> &in) {
  constexpr int LINE = D + 8;
  const Sequence sequence(blockIdx.z, in.offsets, in.lengths, in.table, in.most_pages, in.page_size, in.page_count,
                          in.rows);
  const int first_row = blockIdx.x * TILE_ROWS;
  if (first_row >= sequence.rows || !in.has(sequence)) return;
  if (in.causal && sequence.visible < sequence.rows) __trap();
  const int head = blockIdx.y, kv_head = head / (gridDim.y / in.kv_heads);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane / 4, in_quad = lane % 4;
  T *queries = reinterpret_cast<T *>(smem), *key_tiles = queries + TILE_ROWS * LINE;
  T *value_tiles = key_tiles + 2 * TILE_KEYS * LINE;
  const T *q = in.q + size_t(sequence.first) * in.q_stride + size_t(head) * D;
  const T *keys = in.keys + size_t(kv_head) * D, *values = in.values + size_t(kv_head) * D;
  // Row i sees the positions up to i + ahead.
  const int ahead = in.causal ? sequence.visible - sequence.rows : 0;
  const int end = in.causal ? min(first_row + TILE_ROWS, sequence.rows) + ahead : sequence.visible;
  const int start = in.causal ? max(0, first_row + ahead + 1 - int(in.window)) : 0;
  const int first_tile = start / TILE_KEYS, last_tile = (end + TILE_KEYS - 1) / TILE_KEYS;
  const auto in_order = [](int row) { return size_t(row); };
  const auto place = [&](int position) { return sequence.place(position); };
  const auto load_keys = [&](int tile) {
    const int at = (tile - first_tile) % 2 * TILE_KEYS * LINE;
    load_tile<T, D>(key_tiles + at, keys, in.key_stride, tile * TILE_KEYS, end, place);
    load_tile<T, D>(value_tiles + at, values, in.value_stride, tile * TILE_KEYS, end, place);
    cp_async_commit();
  };

  unsigned query[D / 16][4];
  float total[D / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, weight[2] = {};
  const int row[2] = {first_row + warp * 16 + quad, first_row + warp * 16 + quad + 8};
  if (first_tile < last_tile) {
    load_tile<T, D>(queries, q, in.q_stride, first_row, sequence.rows, in_order);
    load_keys(first_tile);
  }
  for (int tile = first_tile; tile < last_tile; tile++) {
    if (tile + 1 < last_tile) {
      load_keys(tile + 1);
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    __syncthreads();
    const T *key_tile = key_tiles + (tile - first_tile) % 2 * TILE_KEYS * LINE;
    const T *value_tile = value_tiles + (tile - first_tile) % 2 * TILE_KEYS * LINE;
    if (tile == first_tile) {
#pragma unroll
      for (int i = 0; i < D / 16; i++)
        ldmatrix_x4(query[i], queries + (warp * 16 + lane % 16) * LINE + i * 16 + lane / 16 * 8);
    }

    float score[TILE_KEYS / 8][4] = {};
#pragma unroll
    for (int i = 0; i < D / 16; i++)
#pragma unroll
      for (int n = 0; n < TILE_KEYS / 16; n++) {
        unsigned key[4];
        ldmatrix_x4(key, key_tile + (n * 16 + lane / 16 * 8 + lane % 8) * LINE + i * 16 + lane / 8 % 2 * 8);
        mma16816<T>(score[2 * n], query[i], key[0], key[1]);
        mma16816<T>(score[2 * n + 1], query[i], key[2], key[3]);
      }
    float most[2] = {largest[0], largest[1]};
#pragma unroll
    for (int n = 0; n < TILE_KEYS / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int position = tile * TILE_KEYS + n * 8 + 2 * in_quad + (i & 1);
        const int sees = in.causal ? row[i >> 1] + ahead + 1 : sequence.visible;
        const bool visible = position < min(sees, end) && position >= sees - int(in.window);
        score[n][i] = visible ? score[n][i] * in.scale : -INFINITY;
        most[i >> 1] = fmaxf(most[i >> 1], score[n][i]);
      }
    float base[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      most[i] = fmaxf(most[i], __shfl_xor_sync(FULL, most[i], 1));
      most[i] = fmaxf(most[i], __shfl_xor_sync(FULL, most[i], 2));
      base[i] = finite_base(most[i]);
      const float shrink = ex2(largest[i] - base[i]);
      largest[i] = most[i], weight[i] *= shrink;
#pragma unroll
      for (int n = 0; n < D / 8; n++) total[n][2 * i] *= shrink, total[n][2 * i + 1] *= shrink;
    }
#pragma unroll
    for (int n = 0; n < TILE_KEYS / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) score[n][i] = ex2(score[n][i] - base[i >> 1]), weight[i >> 1] += score[n][i];
    // The layout of a product is that of the next one's left side: weights need not move between lanes.
#pragma unroll
    for (int i = 0; i < TILE_KEYS / 16; i++) {
      const unsigned by[4] = {pack2<T>(score[2 * i][0], score[2 * i][1]), pack2<T>(score[2 * i][2], score[2 * i][3]),
                              pack2<T>(score[2 * i + 1][0], score[2 * i + 1][1]),
                              pack2<T>(score[2 * i + 1][2], score[2 * i + 1][3])};
#pragma unroll
      for (int n = 0; n < D / 16; n++) {
        unsigned value[4];
        ldmatrix_x4_trans(value, value_tile + (i * 16 + lane % 16) * LINE + n * 16 + lane / 16 * 8);
        mma16816<T>(total[2 * n], by, value[0], value[1]);
        mma16816<T>(total[2 * n + 1], by, value[2], value[3]);
      }
    }
    __syncthreads();  // the tile after the next one overwrites this one
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    weight[i] += __shfl_xor_sync(FULL, weight[i], 1);
    weight[i] += __shfl_xor_sync(FULL, weight[i], 2);
    if (row[i] >= sequence.rows) continue;
    const float by = share(weight[i]);
    T *out = in.out + (size_t(sequence.first + row[i]) * gridDim.y + head) * D;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
      reinterpret_cast<unsigned *>(out)[n * 4 + in_quad] = pack2<T>(total[n][2 * i] * by, total[n][2 * i + 1] * by);
  }
}

// Blocks that must fit a multiprocessor. Left to itself, ptxas spills for sm_90 to fit more of them.
constexpr int blocks_of_decode(int pairs, int heads) { return pairs * heads >= 16 ? 2 : 4; }

#define EACH_DECODE(T, N, G)                                                                                        \
  GLOBAL void __launch_bounds__(32 * WARPS, blocks_of_decode(N, G)) attention_decode_##T##_n##N##_g##G(             \
      float *parts, float2 *stats, const T *q, const T *keys, const T *values, const unsigned *offsets,             \
      const unsigned *lengths, const unsigned *table, unsigned rows, unsigned q_stride, unsigned kv_heads,          \
      unsigned group, unsigned width, unsigned most_pages, unsigned page_size, unsigned page_count,                 \
      unsigned split_size, unsigned window, int paired, float scale) {                                              \
    decode<T, N, G>(parts, stats, q, keys, values, offsets, lengths, table, rows, q_stride, kv_heads, group, width, \
                    most_pages, page_size, page_count, split_size, window, paired, scale);                          \
  }                                                                                                                 \
  KERNEL(attention_decode_##T##_n##N##_g##G)
#define EACH_MERGE(T)                                                                                    \
  GLOBAL void __launch_bounds__(128) attention_merge_##T(                                                \
      T *out, const float *parts, const float2 *stats, const unsigned *offsets, const unsigned *lengths, \
      unsigned width, unsigned splits, unsigned split_size, unsigned window) {                           \
    merge<T>(out, parts, stats, offsets, lengths, width, splits, split_size, window);                    \
  }                                                                                                      \
  KERNEL(attention_merge_##T)
#define MANY(T, NAME, BODY)                                                                                      \
  GLOBAL void __launch_bounds__(128)                                                                             \
      NAME(T *out, const T *q, const T *keys, const T *values, const unsigned *offsets, const unsigned *lengths, \
           const unsigned *table, unsigned rows_, unsigned q_stride, unsigned key_stride, unsigned value_stride, \
           unsigned kv_heads, unsigned width, unsigned most_pages, unsigned page_size, unsigned page_count,      \
           int causal, unsigned window, int paired, float scale) {                                               \
    BODY(Many<T>{                                                                                                \
        out,          q,        keys,  values,     offsets,   lengths,    table,  rows_,  q_stride, key_stride,  \
        value_stride, kv_heads, width, most_pages, page_size, page_count, causal, window, paired,   scale});     \
  }                                                                                                              \
  KERNEL(NAME)
#define EACH_ROWS(T, N) MANY(T, attention_rows_##T##_n##N, (rows<T, N>))
#define EACH_TILES(T, D) MANY(T, attention_tiles_##T##_d##D, (tiles<T, D>))
EACH_DECODE(f32, 1, 1)
EACH_DECODE(f32, 1, 4)
EACH_DECODE(f32, 1, 8)
EACH_ROWS(f32, 1)
EACH_DECODE(f32, 2, 1)
EACH_DECODE(f32, 2, 4)
EACH_DECODE(f32, 2, 8)
EACH_ROWS(f32, 2)
EACH_DECODE(f32, 4, 1)
EACH_DECODE(f32, 4, 4)
EACH_DECODE(f32, 4, 8)
EACH_ROWS(f32, 4)
EACH_MERGE(f32)
EACH_DECODE(bf16, 1, 1)
EACH_DECODE(bf16, 1, 4)
EACH_DECODE(bf16, 1, 8)
EACH_ROWS(bf16, 1)
EACH_DECODE(bf16, 2, 1)
EACH_DECODE(bf16, 2, 4)
EACH_DECODE(bf16, 2, 8)
EACH_ROWS(bf16, 2)
EACH_DECODE(bf16, 4, 1)
EACH_DECODE(bf16, 4, 4)
EACH_DECODE(bf16, 4, 8)
EACH_ROWS(bf16, 4)
EACH_MERGE(bf16)
EACH_DECODE(f16, 1, 1)
EACH_DECODE(f16, 1, 4)
EACH_DECODE(f16, 1, 8)
EACH_ROWS(f16, 1)
EACH_DECODE(f16, 2, 1)
EACH_DECODE(f16, 2, 4)
EACH_DECODE(f16, 2, 8)
EACH_ROWS(f16, 2)
EACH_DECODE(f16, 4, 1)
EACH_DECODE(f16, 4, 4)
EACH_DECODE(f16, 4, 8)
EACH_ROWS(f16, 4)
EACH_MERGE(f16)
EACH_TILES(bf16, 64)
EACH_TILES(bf16, 80)
EACH_TILES(bf16, 96)
EACH_TILES(bf16, 128)
EACH_TILES(f16, 64)
EACH_TILES(f16, 80)
EACH_TILES(f16, 96)
EACH_TILES(f16, 128)
