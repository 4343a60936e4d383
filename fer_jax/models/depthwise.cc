// BatchNorm's affine pass, ReLU and the depthwise 3x3 convolution in one pass over memory, the
// gradients of all three in another, and BatchNorm's sums, as custom calls of XLA on its own
// threads. kernels.py compiles this file for the processor that it runs on.
//
// Arrays are [images, height, width, channels] in float32 or bfloat16; all arithmetic is float32.
// A task is one image and some blocks of channels, and nothing is added up across tasks, so that
// results depend neither on the number of threads nor on their order.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
constexpr int kTaps = 9;
// Pixels whose sum is formed before it is added to the total: one long sum in float32 is less exact.
constexpr int kPixelsInASum = 64;

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Mask __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

struct BFloat16 {
  uint16_t bits;
};

inline Floats Load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline Floats Load(const BFloat16* from) {
  Halves x;
  std::memcpy(&x, from, sizeof x);
  return (Floats)(__builtin_convertvector(x, Bits) << 16);
}

inline void Store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

// Rounds to nearest, ties to even, and keeps NaN.
inline void Store(BFloat16* to, Floats x) {
  Bits bits = (Bits)x, nan = (Bits)(x != x);
  bits += 0x7fffu + ((bits >> 16) & 1u);
  bits = (nan & 0x7fc00000u) | (~nan & bits);
  Halves half = __builtin_convertvector(bits >> 16, Halves);
  std::memcpy(to, &half, sizeof half);
}

// A block is kLanes channels; with kPart the array has fewer than that, `count`.
template <bool kPart, class T>
inline Floats Load(const T* from, int count) {
  if (!kPart) return Load(from);
  T part[kLanes] = {};
  std::memcpy(part, from, count * sizeof(T));
  return Load(part);
}

template <bool kPart, class T>
inline void Store(T* to, Floats x, int count) {
  if (!kPart) return Store(to, x);
  T part[kLanes];
  Store(part, x);
  std::memcpy(to, part, count * sizeof(T));
}

inline Floats Select(Mask mask, Floats x) { return (Floats)((Mask)x & mask); }

struct Shape {
  int images, height, width, channels;

  size_t RowSize() const { return size_t(width) * channels; }
  size_t ImageSize() const { return height * RowSize(); }
  int Blocks() const { return std::max(channels / kLanes, 1); }
  int Lanes() const { return std::min(channels, kLanes); }
};

// Channels of a task: from `first`, in steps of kLanes, to `end`. The last block of an array begins
// earlier where it would end past it, and computes some channels twice.
struct Channels {
  int first, end;

  int Count() const { return (end - first + kLanes - 1) / kLanes; }
  int Begin(int block, const Shape& shape) const {
    return std::max(0, std::min(first + block * kLanes, shape.channels - kLanes));
  }
};

// Three rows of one block of channels with a zero pixel at both ends, the last rows that were read.
class Rows {
 public:
  explicit Rows(int width) : size_(size_t(width + 2) * kLanes), data_(3 * size_) {}

  float* Row(int row) { return data_.data() + (row + 3) % 3 * size_; }
  void Clear(int row) { std::fill_n(Row(row), size_, 0.0f); }

 private:
  size_t size_;
  std::vector<float> data_;
};

// Calls use(row) for each row after row and row + 1 were read; rows outside the image are zero.
template <class Read, class Clear, class Use>
void ForEachRow(int height, Read read, Clear clear, Use use) {
  clear(-1);
  read(0);
  for (int row = 0; row < height; row++) {
    row + 1 < height ? read(row + 1) : clear(row + 1);
    use(row);
  }
}

template <class T, bool kRelu, bool kPart>
void ReadActivated(const T* from, const Shape& shape, Floats scale, Floats offset, float* row) {
  for (int pixel = 0; pixel < shape.width; pixel++) {
    Floats x = Load<kPart>(from + size_t(pixel) * shape.channels, shape.channels) * scale + offset;
    if (kRelu) x = Select(~(x <= 0), x);  // NaN stays
    Store(row + (pixel + 1) * kLanes, x);
  }
}

template <class T, bool kRelu, bool kPart>
void ForwardBlock(const T* x, const float* scale, const float* offset, const float* kernel, T* y,
                  const Shape& shape, Rows& rows) {
  const int channels = shape.channels;
  const Floats scales = Load<kPart>(scale, channels), offsets = Load<kPart>(offset, channels);
  Floats taps[kTaps];
  for (int tap = 0; tap < kTaps; tap++) taps[tap] = Load<kPart>(kernel + tap * channels, channels);
  auto read = [&](int row) {
    ReadActivated<T, kRelu, kPart>(x + row * shape.RowSize(), shape, scales, offsets, rows.Row(row));
  };
  auto use = [&](int row) {
    const float *above = rows.Row(row - 1), *here = rows.Row(row), *below = rows.Row(row + 1);
    T* out = y + row * shape.RowSize();
    Floats a0 = Load(above), a1 = Load(above + kLanes), b0 = Load(here), b1 = Load(here + kLanes),
           c0 = Load(below), c1 = Load(below + kLanes);
    for (int pixel = 0; pixel < shape.width; pixel++) {
      const int next = (pixel + 2) * kLanes;
      const Floats a2 = Load(above + next), b2 = Load(here + next), c2 = Load(below + next);
      const Floats sum = (a0 * taps[0] + a1 * taps[1] + a2 * taps[2]) +
                         (b0 * taps[3] + b1 * taps[4] + b2 * taps[5]) +
                         (c0 * taps[6] + c1 * taps[7] + c2 * taps[8]);
      Store<kPart>(out + size_t(pixel) * channels, sum, channels);
      a0 = a1, a1 = a2, b0 = b1, b1 = b2, c0 = c1, c1 = c2;
    }
  };
  ForEachRow(shape.height, read, [&](int row) { rows.Clear(row); }, use);
}

// of_kernel is [9, channels] and of_affine [2, channels], scale's gradient and offset's, of one
// image. The convolution with the flipped kernel and all eleven sums read each row once.
template <class T, bool kRelu, bool kPart>
void BackwardBlock(const T* x, const float* scale, const float* offset, const float* kernel,
                   const T* gradient, T* of_x, float* of_kernel, float* of_affine,
                   const Shape& shape, Rows& rows, Rows& gradients) {
  const int channels = shape.channels;
  const Floats scales = Load<kPart>(scale, channels), offsets = Load<kPart>(offset, channels);
  const Floats ones = Floats{} + 1, zeros = {};
  Floats flipped[kTaps], totals[kTaps] = {}, of_scale = {}, of_offset = {};
  for (int tap = 0; tap < kTaps; tap++) {
    flipped[tap] = Load<kPart>(kernel + (kTaps - 1 - tap) * channels, channels);
  }
  auto read = [&](int row) {
    const size_t start = row * shape.RowSize();
    ReadActivated<T, kRelu, kPart>(x + start, shape, scales, offsets, rows.Row(row));
    ReadActivated<T, false, kPart>(gradient + start, shape, ones, zeros, gradients.Row(row));
  };
  auto clear = [&](int row) {
    rows.Clear(row);
    gradients.Clear(row);
  };
  auto use = [&](int row) {
    const float *above = rows.Row(row - 1), *here = rows.Row(row), *below = rows.Row(row + 1);
    const float* middle = gradients.Row(row) + kLanes;
    Floats sums[kTaps] = {};
    for (int pixel = 0; pixel < shape.width; pixel++) {
      const int at = pixel * kLanes;
      const Floats g = Load(middle + at);
      for (int tap = 0; tap < 3; tap++) {
        sums[tap] += Load(above + at + tap * kLanes) * g;
        sums[3 + tap] += Load(here + at + tap * kLanes) * g;
        sums[6 + tap] += Load(below + at + tap * kLanes) * g;
      }
    }
    for (int tap = 0; tap < kTaps; tap++) totals[tap] += sums[tap];

    const float *g_above = gradients.Row(row - 1), *g_here = gradients.Row(row),
                *g_below = gradients.Row(row + 1);
    const size_t start = row * shape.RowSize();
    Floats scale_sum = {}, offset_sum = {};
    for (int pixel = 0; pixel < shape.width; pixel++) {
      const int at = pixel * kLanes;
      const size_t place = start + size_t(pixel) * channels;
      Floats a = {}, b = {}, c = {};
      for (int tap = 0; tap < 3; tap++) {
        a += Load(g_above + at + tap * kLanes) * flipped[tap];
        b += Load(g_here + at + tap * kLanes) * flipped[3 + tap];
        c += Load(g_below + at + tap * kLanes) * flipped[6 + tap];
      }
      Floats sum = a + b + c;
      if (kRelu) sum = Select(Load(here + at + kLanes) > 0, sum);
      scale_sum += sum * Load<kPart>(x + place, channels);
      offset_sum += sum;
      Store<kPart>(of_x + place, sum * scales, channels);
    }
    of_scale += scale_sum;
    of_offset += offset_sum;
  };
  ForEachRow(shape.height, read, clear, use);
  for (int tap = 0; tap < kTaps; tap++) {
    Store<kPart>(of_kernel + tap * channels, totals[tap], channels);
  }
  Store<kPart>(of_affine, of_scale, channels);
  Store<kPart>(of_affine + channels, of_offset, channels);
}

// sums is [2, channels], of the values and of their squares, of one image.
template <class T, bool kPart>
void Sums(const T* x, float* sums, const Shape& shape, Channels part) {
  const int channels = shape.channels, pixels = shape.height * shape.width;
  std::vector<Floats> totals(2 * part.Count());
  for (int start = 0; start < pixels; start += kPixelsInASum) {
    const int count = std::min(kPixelsInASum, pixels - start);
    for (int block = 0; block < part.Count(); block++) {
      const T* from = x + size_t(start) * channels + part.Begin(block, shape);
      Floats sum = {}, squares = {};
      for (int pixel = 0; pixel < count; pixel++) {
        const Floats value = Load<kPart>(from + size_t(pixel) * channels, channels);
        sum += value;
        squares += value * value;
      }
      totals[2 * block] += sum;
      totals[2 * block + 1] += squares;
    }
  }
  for (int block = 0; block < part.Count(); block++) {
    float* to = sums + part.Begin(block, shape);
    Store<kPart>(to, totals[2 * block], channels);
    Store<kPart>(to + channels, totals[2 * block + 1], channels);
  }
}

// Calls task(0) ... task(count - 1) on the pool's threads and on this one, which waits for all.
template <class Task>
void ForEach(int count, ffi::ThreadPool& pool, const Task& task) {
  struct Progress {
    std::atomic<int> started{0}, done{0};
  };
  // A thread may come when all tasks are done, and this function has returned.
  auto progress = std::make_shared<Progress>();
  auto work = [progress, count, &task] {
    for (int i; (i = progress->started++) < count; progress->done++) task(i);
  };
  const int threads = std::min<int64_t>(std::max<int64_t>(pool.num_threads(), 1), count);
  for (int i = 1; i < threads; i++) pool.Schedule(decltype(work)(work));
  work();
  while (progress->done < count) std::this_thread::yield();
}

// Calls task(image, channels): several parts of the channels where there are fewer images than
// threads can share.
template <class Task>
void ForEachImage(const Shape& shape, ffi::ThreadPool& pool, const Task& task) {
  const int wanted = 4 * std::max<int64_t>(pool.num_threads(), 1);
  const int parts = std::clamp(wanted / std::max(shape.images, 1), 1, shape.Blocks());
  ForEach(shape.images * parts, pool, [&](int i) {
    const int part = i % parts, blocks = shape.Blocks();
    const int end = part + 1 < parts ? blocks * (part + 1) / parts * kLanes : shape.channels;
    task(i / parts, Channels{blocks * part / parts * kLanes, end});
  });
}

using Argument = ffi::AnyBuffer;
using Result = ffi::Result<ffi::AnyBuffer>;

Shape ShapeOf(const Argument& x) {
  auto size = x.dimensions();
  return {int(size[0]), int(size[1]), int(size[2]), int(size[3])};
}

template <class T>
T* Data(const Argument& x) {
  return static_cast<T*>(x.untyped_data());
}

// Calls call(T, relu, part): the element type as a pointer, the rest as std::bool_constant.
template <class Call>
ffi::Error Dispatch(const Argument& x, bool relu, Call call) {
  auto by_part = [&](auto type, auto relu) {
    ShapeOf(x).channels < kLanes ? call(type, relu, std::true_type{})
                                 : call(type, relu, std::false_type{});
  };
  auto by_relu = [&](auto type) {
    relu ? by_part(type, std::true_type{}) : by_part(type, std::false_type{});
  };
  if (x.dimensions().size() != 4) return ffi::Error::InvalidArgument("four axes are needed");
  if (x.element_type() == ffi::DataType::F32) {
    by_relu(static_cast<float*>(nullptr));
  } else if (x.element_type() == ffi::DataType::BF16) {
    by_relu(static_cast<BFloat16*>(nullptr));
  } else {
    return ffi::Error::InvalidArgument("float32 or bfloat16 is needed");
  }
  return ffi::Error::Success();
}

ffi::Error Forward(ffi::ThreadPool pool, Argument x, Argument scale, Argument offset,
                   Argument kernel, bool relu, Result y) {
  return Dispatch(x, relu, [&](auto type, auto relu, auto part) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Shape shape = ShapeOf(x);
    ForEachImage(shape, pool, [&](int image, Channels channels) {
      const size_t start = image * shape.ImageSize();
      Rows rows(shape.width);
      for (int block = 0; block < channels.Count(); block++) {
        const int c = channels.Begin(block, shape);
        ForwardBlock<T, relu, part>(Data<T>(x) + start + c, Data<float>(scale) + c,
                                    Data<float>(offset) + c, Data<float>(kernel) + c,
                                    Data<T>(*y) + start + c, shape, rows);
      }
    });
  });
}

ffi::Error Backward(ffi::ThreadPool pool, Argument x, Argument scale, Argument offset,
                    Argument kernel, Argument gradient, bool relu, Result of_x, Result of_kernel,
                    Result of_affine) {
  return Dispatch(x, relu, [&](auto type, auto relu, auto part) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Shape shape = ShapeOf(x);
    ForEachImage(shape, pool, [&](int image, Channels channels) {
      const size_t start = image * shape.ImageSize(), row = size_t(image) * shape.channels;
      Rows rows(shape.width), gradients(shape.width);
      for (int block = 0; block < channels.Count(); block++) {
        const int c = channels.Begin(block, shape);
        BackwardBlock<T, relu, part>(
            Data<T>(x) + start + c, Data<float>(scale) + c, Data<float>(offset) + c,
            Data<float>(kernel) + c, Data<T>(gradient) + start + c, Data<T>(*of_x) + start + c,
            Data<float>(*of_kernel) + kTaps * row + c, Data<float>(*of_affine) + 2 * row + c,
            shape, rows, gradients);
      }
    });
  });
}

ffi::Error Moments(ffi::ThreadPool pool, Argument x, Result sums) {
  return Dispatch(x, false, [&](auto type, auto, auto part) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Shape shape = ShapeOf(x);
    ForEachImage(shape, pool, [&](int image, Channels channels) {
      Sums<T, part>(Data<T>(x) + image * shape.ImageSize(),
                    Data<float>(*sums) + size_t(2) * image * shape.channels, shape, channels);
    });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(forward, Forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Attr<bool>("relu")
                                  .Ret<ffi::AnyBuffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(backward, Backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Attr<bool>("relu")
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    moments, Moments,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Argument>().Ret<ffi::AnyBuffer>());
