// Copies rows [rows, units] to slots of the cache [slots, units], in place. One block per row.
//
// A unit is as large as the row's width and the addresses allow; what it holds does not matter here.
// Rows may lie `stride` units apart. A slot outside the cache is a fault of the caller and ends the launch. A row that goes
// where the row before it goes is the same, and is not written twice.
#include "device.cuh"

template <class U>
__device__ __forceinline__ void kv_write(U *cache, const U *rows, const unsigned *slots, unsigned units,
                                         unsigned stride, unsigned cache_slots) {
  const unsigned slot = slots[blockIdx.x];
  if (slot >= cache_slots) __trap();
  if (blockIdx.x && slots[blockIdx.x - 1] == slot) return;
  U *to = cache + size_t(slot) * units;
  const U *from = rows + size_t(blockIdx.x) * stride;
  for (unsigned i = threadIdx.x; i < units; i += blockDim.x) to[i] = from[i];
}

#define EACH_UNIT(U, BYTES)                                                                                           \
  GLOBAL void __launch_bounds__(256) kv_write_##BYTES(U *cache, const U *rows, const unsigned *slots, unsigned units, \
                                                      unsigned stride, unsigned cache_slots) {                        \
    kv_write(cache, rows, slots, units, stride, cache_slots);                                                         \
  }                                                                                                                   \
  KERNEL(kv_write_##BYTES)
EACH_UNIT(unsigned short, 2)
EACH_UNIT(unsigned, 4)
EACH_UNIT(uint4, 16)
