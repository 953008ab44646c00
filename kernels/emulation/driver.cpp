// A CUDA driver without a GPU: libcuda, and as much of cuBLAS and cuRAND as candle opens, for the program as it is built
// for GPUs. percept's kernels run in the emulation, checked; candle's are done by loops that say what each is.
//
// Work of a stream is put off until somebody waits for it, as late as CUDA allows, and then done by one thread: what relies
// on work that nobody has waited for does not find it. Memory that is freed, or was never written, is reported.
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

extern "C" {
void *emu_alloc(size_t bytes, unsigned granule, const char *name);
void emu_free(void *memory);
void emu_copy_init(void *to, const void *from, size_t bytes);
size_t emu_room(const void *memory, size_t bytes);
int emu_kernel_arguments(const char *name, const unsigned char **sizes);
int emu_launch(const char *name, const unsigned *grid, const unsigned *block, unsigned shared, void **arguments,
               const unsigned *sizes, unsigned count, uint64_t seed, char *error, size_t error_size);
}

namespace {
enum Status { OK = 0, OUT_OF_MEMORY = 2, NO_DEVICE = 101, NOT_FOUND = 500, FAILED = 719, CAPTURING = 900 };
constexpr size_t MEMORY = size_t(2) << 30;

// ---- one thread does everything on the device -----------------------------------------------------------------
struct Worker {
  std::mutex lock;
  std::condition_variable wake;
  std::deque<std::function<void()>> asked;
  Worker() {
    std::thread([this] {
      for (;;) {
        std::unique_lock<std::mutex> held(lock);
        wake.wait(held, [this] { return !asked.empty(); });
        auto work = std::move(asked.front());
        asked.pop_front();
        held.unlock();
        work();
      }
    }).detach();
  }
  // Does something there, and waits for it.
  void run(const std::function<void()> &work) {
    std::mutex done_lock;
    std::condition_variable done_wake;
    bool done = false;
    {
      std::lock_guard<std::mutex> held(lock);
      asked.push_back([&] {
        work();
        std::lock_guard<std::mutex> finished(done_lock);
        done = true;
        done_wake.notify_one();
      });
    }
    wake.notify_one();
    std::unique_lock<std::mutex> held(done_lock);
    done_wake.wait(held, [&] { return done; });
  }
};
Worker &worker() {
  static Worker *one = new Worker;  // never ends
  return *one;
}

// The first thing that went wrong. From then on everything fails, as on a GPU.
int broken = OK;
void fail(const std::string &what) {
  if (broken == OK) fprintf(stderr, "emulated device: %s\n", what.c_str());
  broken = FAILED;
}

using Work = std::function<void()>;
struct Stream {
  std::deque<Work> waiting;
  std::vector<Work> *capture = nullptr;
  // Does what was asked for, until there is nothing left or `done` says so.
  template <class Done>
  void work_until(Done done) {
    while (!waiting.empty() && !done()) {
      Work work = std::move(waiting.front());
      waiting.pop_front();
      if (broken == OK) work();
    }
  }
};
struct Event {
  Stream *stream = nullptr;  // where it was recorded
  bool done = true;
  // Has that stream work no further than it must.
  void wait() {
    if (!done) stream->work_until([this] { return done; });
  }
};
struct Module {
  std::string image;
};
struct Function {
  std::string name;
};
struct Graph {
  std::vector<Work> work;
};
Stream ordinary;
std::vector<Stream *> streams{&ordinary};
std::map<char *, size_t> pinned;
std::map<void *, size_t> sizes_of;
size_t used = 0;
// The pool's own account, by what was asked for: long before a stream comes to free it, its next work may have it.
struct Pool {
  size_t used = 0, most = 0;
  void take(size_t bytes) { used += bytes, most = std::max(most, used); }
} pool;

Stream *stream_of(void *handle) { return handle ? static_cast<Stream *>(handle) : &ordinary; }
// Asks for work, in order. Its parameters are copies.
int put(void *handle, Work work) {
  if (broken != OK) return broken;
  worker().run([&] {
    Stream &stream = *stream_of(handle);
    if (stream.capture)
      stream.capture->push_back(std::move(work));
    else
      stream.waiting.push_back(std::move(work));
  });
  return OK;
}
// Does all that a stream was asked for. While it is recorded nobody may wait for it.
int wait_for(void *handle) {
  int status = OK;
  worker().run([&] {
    Stream &stream = *stream_of(handle);
    if (stream.capture)
      status = CAPTURING;
    else
      stream.work_until([] { return false; });
  });
  return broken != OK ? broken : status;
}

// ---- memory ----------------------------------------------------------------------------------------------------
int allocate(uint64_t *address, size_t bytes, void *stream) {
  int status = broken;
  worker().run([&] {
    if (status == OK && used + bytes > MEMORY) status = OUT_OF_MEMORY;
    if (status != OK) return;
    void *memory = emu_alloc(bytes, 0, "device memory");
    sizes_of[memory] = bytes, used += bytes;
    // What a recording allocates is its own.
    if (!stream_of(stream)->capture) pool.take(bytes);
    *address = uint64_t(uintptr_t(memory));
  });
  return status;
}
void release(void *memory) {
  auto found = sizes_of.find(memory);
  if (found == sizes_of.end()) return fail("memory is freed that was not allocated");
  used -= found->second, sizes_of.erase(found);
  emu_free(memory);
}
bool inside(const void *memory, size_t bytes, const char *what) {
  if (!bytes || emu_room(memory, bytes) >= bytes) return true;
  fail(std::string(what) + " of " + std::to_string(bytes) + " bytes lies outside of the device's memory");
  return false;
}
template <class T>
T *at(uint64_t address) {
  return reinterpret_cast<T *>(uintptr_t(address));
}

// ---- candle's kernels --------------------------------------------------------------------------------------------
struct Type {
  const char *name;
  size_t size;
};
constexpr Type TYPES[] = {{"f32", 4}, {"bf16", 2}, {"f16", 2}, {"u32", 4}, {"u8", 1}, {"i64", 8}, {"f64", 8}};
const Type *type_of(const std::string &name) {
  for (const Type &type : TYPES)
    if (name == type.name) return &type;
  return nullptr;
}
double read(const Type &type, uint64_t base, size_t index) {
  const char *from = at<char>(base) + index * type.size;
  uint16_t half;
  memcpy(&half, from, 2 * (type.size > 1));
  if (!strcmp(type.name, "bf16")) {
    const uint32_t bits = uint32_t(half) << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
  }
  if (!strcmp(type.name, "f16")) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const double size = exponent == 31 ? (fraction ? NAN : INFINITY)
                        : exponent     ? std::ldexp(1024 + fraction, exponent - 25)
                                       : std::ldexp(fraction, -24);
    return half >> 15 ? -size : size;
  }
#define READ(NAME, T)            \
  if (!strcmp(type.name, NAME)) { \
    T value;                     \
    memcpy(&value, from, sizeof value); \
    return double(value);        \
  }
  READ("f32", float) READ("u32", uint32_t) READ("u8", uint8_t) READ("i64", int64_t) READ("f64", double)
  return NAN;
}
uint16_t narrow_f16(double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double size = std::fabs(value);
  if (std::isnan(value)) return 0x7e00;
  if (size >= 65520) return sign | 0x7c00;
  if (size < std::ldexp(1, -14)) return sign | uint16_t(std::nearbyint(std::ldexp(size, 24)));
  int exponent;
  const double fraction = std::frexp(size, &exponent);  // 0.5 to 1
  return sign | uint16_t(((exponent + 14) << 10) + int(std::nearbyint(std::ldexp(fraction, 11))) - 1024);
}
void write(const Type &type, uint64_t base, size_t index, double value) {
  char *to = at<char>(base) + index * type.size;
  if (!strcmp(type.name, "bf16")) {
    const float wide = float(value);
    uint32_t bits;
    memcpy(&bits, &wide, 4);
    const uint16_t half = std::isnan(wide) ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    memcpy(to, &half, 2);
  } else if (!strcmp(type.name, "f16")) {
    const uint16_t half = narrow_f16(float(value));
    memcpy(to, &half, 2);
  }
#define WRITE(NAME, T)           \
  if (!strcmp(type.name, NAME)) { \
    const T narrow = T(value);   \
    memcpy(to, &narrow, sizeof narrow); \
  }
  WRITE("f32", float) WRITE("u32", uint32_t) WRITE("u8", uint8_t) WRITE("i64", int64_t) WRITE("f64", double)
}

// Where element `index` of a layout is. info: dimensions and strides, or null for one after another. As in candle's kernels,
// whose index_select gives the layout of its ids: what lies one after another is not looked up.
size_t strided(uint64_t info, size_t dims, size_t which, size_t index) {
  if (!info) return index;
  const size_t *sizes = at<size_t>(info), *strides = sizes + which * dims;
  size_t next = 1;
  bool adjacent = true;
  for (size_t d = dims; d--; next *= sizes[d]) adjacent &= sizes[d] <= 1 || strides[d] == next;
  if (adjacent) return index;
  size_t place = 0;
  for (size_t d = dims; d--; index /= sizes[d]) place += index % sizes[d] * strides[d];
  return place;
}

using Words = std::vector<uint64_t>;
// The parameters of a kernel of candle: bytes of each; empty for those that are not known here.
struct Known {
  std::vector<unsigned> sizes;
  std::function<void(const Words &)> run;
};
struct Unary {
  const char *name;
  double (*apply)(double);
};
constexpr Unary UNARY[] = {
    {"ucopy", [](double x) { return x; }},       {"uexp", [](double x) { return std::exp(x); }},
    {"ulog", [](double x) { return std::log(x); }}, {"usin", [](double x) { return std::sin(x); }},
    {"ucos", [](double x) { return std::cos(x); }}, {"uneg", [](double x) { return -x; }},
    {"usqr", [](double x) { return x * x; }},    {"usqrt", [](double x) { return std::sqrt(x); }},
    {"uabs", [](double x) { return std::fabs(x); }}, {"utanh", [](double x) { return std::tanh(x); }},
    {"urecip", [](double x) { return 1 / x; }},
    {"usilu", [](double x) { return x / (1 + std::exp(-x)); }},
    {"usigmoid", [](double x) { return 1 / (1 + std::exp(-x)); }},
};
struct Binary {
  const char *name;
  double (*apply)(double, double);
  bool compares;
};
constexpr Binary BINARY[] = {
    {"badd", [](double x, double y) { return x + y; }, false},
    {"bsub", [](double x, double y) { return x - y; }, false},
    {"bmul", [](double x, double y) { return x * y; }, false},
    {"bdiv", [](double x, double y) { return x / y; }, false},
    {"bmaximum", [](double x, double y) { return std::fmax(x, y); }, false},
    {"bminimum", [](double x, double y) { return std::fmin(x, y); }, false},
    {"eq", [](double x, double y) { return double(x == y); }, true},
    {"ne", [](double x, double y) { return double(x != y); }, true},
    {"lt", [](double x, double y) { return double(x < y); }, true},
    {"le", [](double x, double y) { return double(x <= y); }, true},
    {"gt", [](double x, double y) { return double(x > y); }, true},
    {"ge", [](double x, double y) { return double(x >= y); }, true},
};
struct Reduction {
  const char *name;
  double (*of)(double, double);
  bool small;  // told how many results there are, instead of how many numbers
};
const Reduction REDUCTIONS[] = {
    {"fast_sum", [](double x, double y) { return x + y; }, false},
    {"fast_sum_small", [](double x, double y) { return x + y; }, true},
    {"fast_max", [](double x, double y) { return std::fmax(x, y); }, false},
    {"fast_min", [](double x, double y) { return std::fmin(x, y); }, false},
};
// What a kernel has written, so that it may be read.
void written(uint64_t address, size_t bytes) {
  if (inside(at<void>(address), bytes, "a result")) emu_copy_init(at<void>(address), nullptr, bytes);
}

Known known(const std::string &name) {
  const std::vector<unsigned> five(5, 8);
  auto ends = [&](const std::string &root) {
    return name.compare(0, root.size() + 1, root + "_") ? nullptr : type_of(name.substr(root.size() + 1));
  };
  for (const Unary &op : UNARY)
    if (const Type *type = ends(op.name))
      return {five, [=](const Words &w) {  // count, dimensions, info, from (null: in place), to
                std::vector<double> out(w[0]);
                for (size_t i = 0; i < w[0]; i++)
                  out[i] = op.apply(w[3] ? read(*type, w[3], strided(w[2], w[1], 1, i)) : read(*type, w[4], i));
                for (size_t i = 0; i < w[0]; i++) write(*type, w[4], i, out[i]);
                written(w[4], w[0] * type->size);
              }};
  for (const Binary &op : BINARY)
    if (const Type *type = ends(op.name)) {
      const Type *to = op.compares ? type_of("u8") : type;
      return {std::vector<unsigned>(6, 8), [=](const Words &w) {  // count, dimensions, info, left, right, to
                for (size_t i = 0; i < w[0]; i++) {
                  const double x = read(*type, w[3], strided(w[2], w[1], 1, i));
                  write(*to, w[5], i, op.apply(x, read(*type, w[4], strided(w[2], w[1], 2, i))));
                }
                written(w[5], w[0] * to->size);
              }};
    }
  for (const Reduction &op : REDUCTIONS)
    if (const Type *type = ends(op.name))
      return {std::vector<unsigned>(6, 8), [=](const Words &w) {  // count, numbers of a result, dimensions, info, from, to
                const size_t results = op.small ? w[0] : w[0] / w[1];
                for (size_t i = 0; i < results; i++) {
                  double sum = read(*type, w[4], strided(w[3], w[2], 1, i * w[1]));
                  for (size_t j = 1; j < w[1]; j++)
                    sum = op.of(sum, read(*type, w[4], strided(w[3], w[2], 1, i * w[1] + j)));
                  write(*type, w[5], i, sum);
                }
                written(w[5], results * type->size);
              }};
  if (const Type *type = ends("affine")) {
    const unsigned size = unsigned(type->size);
    return {{8, 8, 8, 8, 8, size, size}, [=](const Words &w) {  // count, dimensions, info, from, to, factor, more
              const Words factors{w[5], w[6]};
              const uint64_t by = uint64_t(uintptr_t(&factors[0])), more = uint64_t(uintptr_t(&factors[1]));
              for (size_t i = 0; i < w[0]; i++) {
                const double x = w[3] ? read(*type, w[3], strided(w[2], w[1], 1, i)) : read(*type, w[4], i);
                write(*type, w[4], i, x * read(*type, by, 0) + read(*type, more, 0));
              }
              written(w[4], w[0] * type->size);
            }};
  }
  if (const Type *type = ends("const_set")) {
    return {{8, 8, 8, unsigned(type->size), 8}, [=](const Words &w) {  // count, dimensions, info, value, to
              const uint64_t value = uint64_t(uintptr_t(&w[3]));
              for (size_t i = 0; i < w[0]; i++) {
                const size_t place = strided(w[2], w[1], 1, i);
                write(*type, w[4], place, read(*type, value, 0));
                written(w[4] + place * type->size, type->size);
              }
            }};
  }
  if (const Type *type = ends("copy2d")) {
    return {{8, 8, 4, 4, 4, 4}, [=](const Words &w) {  // from, to, rows, columns, stride of each
              for (size_t row = 0; row < w[2]; row++) {
                const size_t bytes = w[3] * type->size;
                const uint64_t from = w[0] + row * w[4] * type->size, to = w[1] + row * w[5] * type->size;
                if (!inside(at<void>(from), bytes, "a source") || !inside(at<void>(to), bytes, "a copy")) return;
                memmove(at<void>(to), at<void>(from), bytes);
                emu_copy_init(at<void>(to), at<void>(from), bytes);
              }
            }};
  }
  if (const Type *type = ends("rope_thd")) {
    // from, cosines, sines, to, batches, rows, heads, width, elements of a batch whose angles are its own
    return {{8, 8, 8, 8, 4, 4, 4, 4, 4}, [=](const Words &w) {
              const size_t rows = w[5], heads = w[6], half = w[7] / 2;
              for (size_t i = 0; i < w[4] * rows * heads * half; i++) {
                const size_t head = i / half, at = i % half, row = head / heads % rows;
                const size_t angle = row * half + at + (w[8] ? 2 * i / w[8] * rows * half : 0);
                const double x = read(*type, w[0], 2 * half * head + at), y = read(*type, w[0], 2 * half * head + half + at);
                const double c = read(*type, w[1], angle), s = read(*type, w[2], angle);
                write(*type, w[3], 2 * half * head + at, x * c - y * s);
                write(*type, w[3], 2 * half * head + half + at, x * s + y * c);
              }
              written(w[3], 2 * w[4] * rows * heads * half * type->size);
            }};
  }
  for (const Type &ids : TYPES) {
    const std::string root = std::string("is_") + ids.name;
    if (const Type *type = ends(root))
      // count, dimensions, info, ids, from, to, left, rows, ids, right
      return {std::vector<unsigned>(10, 8), [=](const Words &w) {
                for (size_t i = 0; i < w[0]; i++) {
                  const size_t left = i / (w[8] * w[9]), right = i % w[9];
                  const size_t row = size_t(read(ids, w[3], i / w[9] % w[8]));
                  if (row >= w[7]) return fail("there is no row " + std::to_string(row) + " of " + std::to_string(w[7]));
                  const size_t from = strided(w[2], w[1], 1, (left * w[7] + row) * w[9] + right);
                  memcpy(at<char>(w[5]) + i * type->size, at<char>(w[4]) + from * type->size, type->size);
                }
                written(w[5], w[0] * type->size);
              }};
  }
  for (const Type &from : TYPES)
    if (const Type *to = ends(std::string("cast_") + from.name))
      return {five, [=](const Words &w) {  // count, dimensions, info, from, to
                for (size_t i = 0; i < w[0]; i++) {
                  const size_t place = strided(w[2], w[1], 1, i);
                  write(*to, w[4], i, read(from, w[3], place));
                }
                written(w[4], w[0] * to->size);
              }};
  return {};
}
}  // namespace

// ---- the driver -----------------------------------------------------------------------------------------------------
#define API extern "C" __attribute__((visibility("default"))) int
API cuInit(unsigned) { return OK; }
API cuDriverGetVersion(int *version) { return *version = 13000, OK; }
API cuDeviceGetCount(int *count) { return *count = 1, OK; }
API cuDeviceGet(int *device, int ordinal) { return *device = 0, ordinal == 0 ? OK : NO_DEVICE; }
API cuDeviceGetName(char *name, int room, int) { return snprintf(name, size_t(room), "emulated device"), OK; }
API cuDeviceGetAttribute(int *value, int attribute, int) {
  // Compute capability 8.0; memory pools.
  *value = attribute == 75 ? 8 : attribute == 76 ? 0 : attribute == 115 ? 1 : 0;
  return OK;
}
API cuDevicePrimaryCtxRetain(void **context, int) { return *context = &ordinary, OK; }
API cuDevicePrimaryCtxRelease_v2(int) { return OK; }
static thread_local void *current;
API cuCtxSetCurrent(void *context) { return current = context, OK; }
API cuCtxGetCurrent(void **context) { return *context = current, OK; }
API cuCtxSynchronize() {
  int status = OK;
  for (Stream *stream : std::vector<Stream *>(streams))
    if (int failed = wait_for(stream)) status = failed;
  return status;
}
API cuGetErrorName(int, const char **name) { return *name = "EMULATED", OK; }
API cuGetErrorString(int status, const char **text) {
  *text = status == FAILED      ? "an emulated launch has failed; it is said above why"
          : status == CAPTURING ? "not while a stream is recorded"
          : status == NO_DEVICE ? "there is no such device"
                                : "an error of the emulated device";
  return OK;
}
API cuDeviceGetDefaultMemPool(void **pool, int) { return *pool = &ordinary, OK; }
constexpr int USED = 7, MOST_USED = 8;  // CUmemPool_attribute
API cuMemPoolGetAttribute(void *, int attribute, void *value) {
  if (attribute != USED && attribute != MOST_USED) return fail("it has no such attribute of a pool"), broken;
  worker().run([&] { *static_cast<uint64_t *>(value) = attribute == USED ? pool.used : pool.most; });
  return OK;
}
API cuMemPoolSetAttribute(void *, int attribute, void *) {
  if (attribute == MOST_USED) worker().run([] { pool.most = pool.used; });
  return OK;
}
API cuMemGetInfo_v2(size_t *free, size_t *total) {
  worker().run([&] { *free = MEMORY - used, *total = MEMORY; });
  return OK;
}

API cuStreamCreate(void **stream, unsigned) {
  worker().run([&] { streams.push_back(new Stream), *stream = streams.back(); });
  return OK;
}
API cuStreamDestroy_v2(void *stream) { return wait_for(stream); }
API cuStreamSynchronize(void *stream) { return wait_for(stream); }
API cuEventCreate(void **event, unsigned) { return *event = new Event, OK; }
API cuEventDestroy_v2(void *event) { return delete static_cast<Event *>(event), OK; }
API cuEventRecord(void *event, void *stream) {
  Event *mark = static_cast<Event *>(event);
  mark->stream = stream_of(stream), mark->done = false;
  return put(stream, [mark] { mark->done = true; });
}
API cuEventSynchronize(void *event) {
  worker().run([event] { static_cast<Event *>(event)->wait(); });
  return broken;
}
API cuStreamWaitEvent(void *stream, void *event, unsigned) {
  return put(stream, [event] { static_cast<Event *>(event)->wait(); });
}

API cuMemAllocAsync(uint64_t *address, size_t bytes, void *stream) { return allocate(address, bytes, stream); }
API cuMemFreeAsync(uint64_t address, void *stream) {
  bool recorded = false;
  worker().run([&] {
    recorded = stream_of(stream)->capture;
    if (auto found = sizes_of.find(at<void>(address)); !recorded && found != sizes_of.end()) pool.used -= found->second;
  });
  // What a recording has allocated is its own for as long as it lives.
  return recorded ? int(OK) : put(stream, [address] { release(at<void>(address)); });
}
API cuMemHostAlloc(void **memory, size_t bytes, unsigned) {
  *memory = malloc(bytes);
  worker().run([&] { pinned[static_cast<char *>(*memory)] = bytes; });
  return OK;
}
API cuMemFreeHost(void *memory) {
  worker().run([&] { pinned.erase(static_cast<char *>(memory)); });
  return free(memory), OK;
}
API cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream) {
  return put(stream, [=] {
    if (!inside(at<void>(to), bytes, "memory to be set")) return;
    memset(at<void>(to), value, bytes);
    emu_copy_init(at<void>(to), nullptr, bytes);
  });
}
API cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
  // What is not pinned is staged.
  auto staged = std::make_shared<std::vector<char>>(static_cast<const char *>(from), static_cast<const char *>(from) + bytes);
  return put(stream, [=] {
    if (!inside(at<void>(to), bytes, "an upload")) return;
    memcpy(at<void>(to), staged->data(), bytes);
    emu_copy_init(at<void>(to), nullptr, bytes);
  });
}
API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
  return put(stream, [=] {
    if (!inside(at<void>(to), bytes, "a copy") || !inside(at<void>(from), bytes, "a source")) return;
    memmove(at<void>(to), at<void>(from), bytes);
    emu_copy_init(at<void>(to), at<void>(from), bytes);
  });
}
API cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
  bool is_pinned = false;
  worker().run([&] {
    auto next = pinned.upper_bound(static_cast<char *>(to));
    is_pinned = next != pinned.begin() && (--next, static_cast<char *>(to) + bytes <= next->first + next->second);
  });
  const int status = put(stream, [=] {
    if (inside(at<void>(from), bytes, "a download")) memcpy(to, at<void>(from), bytes);
  });
  // To memory that is not pinned the copy is made before this returns.
  return status != OK || is_pinned ? status : wait_for(stream);
}

API cuModuleLoadData(void **module, const void *image) {
  return *module = new Module{static_cast<const char *>(image)}, OK;
}
API cuModuleUnload(void *module) { return delete static_cast<Module *>(module), OK; }
API cuModuleGetFunction(void **function, void *module, const char *name) {
  const std::string entry = std::string(".entry ") + name + "(";
  if (static_cast<Module *>(module)->image.find(entry) == std::string::npos) return NOT_FOUND;
  return *function = new Function{name}, OK;
}
API cuFuncSetAttribute(void *, int, int) { return OK; }
API cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **parameters, void **) {
  const std::string name = static_cast<Function *>(function)->name;
  const unsigned char *own = nullptr;
  const int count = emu_kernel_arguments(name.c_str(), &own);
  auto copied = [&](unsigned index, unsigned size) {
    uint64_t word = 0;
    return memcpy(&word, parameters[index], size), word;
  };
  Words words;
  if (count < 0) {
    Known kernel = known(name);
    if (!kernel.run) return fail("it has no kernel " + name), broken;
    for (unsigned i = 0; i < kernel.sizes.size(); i++) words.push_back(copied(i, kernel.sizes[i]));
    return put(stream, [=] { kernel.run(words); });
  }
  std::vector<unsigned> sizes;
  for (int i = 0; i < count; i++) sizes.push_back(own[i]), words.push_back(copied(unsigned(i), own[i]));
  return put(stream, [=]() mutable {
    const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
    std::vector<void *> arguments;
    for (uint64_t &word : words) arguments.push_back(&word);
    char error[2048];
    if (emu_launch(name.c_str(), grid, block, shared, arguments.data(), sizes.data(), unsigned(count), 0, error,
                   sizeof error))
      fail(error);
  });
}

API cuStreamBeginCapture_v2(void *stream, int) {
  if (int status = wait_for(stream)) return status;
  worker().run([&] { stream_of(stream)->capture = new std::vector<Work>; });
  return OK;
}
API cuStreamIsCapturing(void *stream, int *status) {
  worker().run([&] { *status = stream_of(stream)->capture ? 1 : 0; });
  return OK;
}
API cuStreamGetCaptureInfo_v2(void *stream, int *status, uint64_t *, void **, const void ***, size_t *) {
  return cuStreamIsCapturing(stream, status);
}
API cuStreamEndCapture(void *stream, void **graph) {
  worker().run([&] {
    Stream *recorded = stream_of(stream);
    *graph = new Graph{*recorded->capture};
    delete recorded->capture, recorded->capture = nullptr;
  });
  return OK;
}
API cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long) {
  return *exec = new Graph(*static_cast<Graph *>(graph)), OK;
}
API cuGraphUpload(void *, void *) { return OK; }
API cuGraphLaunch(void *exec, void *stream) {
  for (const Work &work : static_cast<Graph *>(exec)->work)
    if (int status = put(stream, work)) return status;
  return OK;
}
API cuGraphDestroy(void *graph) { return delete static_cast<Graph *>(graph), OK; }
API cuGraphExecDestroy(void *exec) { return delete static_cast<Graph *>(exec), OK; }

// ---- what candle opens besides ---------------------------------------------------------------------------------------
API cublasCreate_v2(void **handle) { return *handle = &ordinary, OK; }
API cublasDestroy_v2(void *) { return OK; }
API cublasSetStream_v2(void *, void *) { return OK; }
API curandCreateGenerator(void **generator, int) { return *generator = &ordinary, OK; }
API curandDestroyGenerator(void *) { return OK; }
API curandSetStream(void *, void *) { return OK; }
API curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return OK; }
