// The passes over memory that XLA:CPU splits into many, as custom calls on XLA's own threads:
// BatchNorm's affine pass with ReLU and the depthwise 3x3 convolution, their gradient, and sums over
// pixels. kernels.py compiles this file for the processor that it runs on.
//
// Arrays are [images, height, width, channels] in float32 or bfloat16, with at least 16 channels; all
// arithmetic is float32.
// A block of channels of one image is computed by one thread, and no sum goes over images, so that
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
using Array = ffi::AnyBuffer;
using Result = ffi::Result<ffi::AnyBuffer>;

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
constexpr int kTaps = 9;

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

struct BFloat16 {
  uint16_t bits;
};

template <class Vector, class T>
inline Vector Copy(const T* from) {
  Vector x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline Floats Load(const float* from) { return Copy<Floats>(from); }
inline Floats Load(const BFloat16* from) {
  return (Floats)(__builtin_convertvector(Copy<Halves>(from), Bits) << 16);
}

inline void Store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }
inline void Store(BFloat16* to, Floats x) {
  Bits bits = (Bits)x, nan = (Bits)(x != x);
  bits += 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
  Halves rounded = __builtin_convertvector(((nan & 0x7fc00000u) | (~nan & bits)) >> 16, Halves);
  std::memcpy(to, &rounded, sizeof rounded);
}

inline Floats Select(Ints mask, Floats x) { return (Floats)((Ints)x & mask); }

struct Layout {
  int images, height, width, channels;

  explicit Layout(const Array& x)
      : images(x.dimensions()[0]), height(x.dimensions()[1]), width(x.dimensions()[2]),
        channels(x.dimensions()[3]) {}

  size_t Place(int row, int column) const { return (size_t(row) * width + column) * channels; }
};

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

// Blocks of channels of one image: a last one that would end past the array begins earlier, and
// computes some channels twice.
struct Blocks {
  int first, end, last;

  int Count() const { return (end - first + kLanes - 1) / kLanes; }
  int operator[](int i) const { return std::min(first + i * kLanes, last); }
};

// Calls task(size, image, blocks): with all blocks of an image, or where there are few images with
// a part of them.
template <class Task>
void ForEachImage(const Layout& size, ffi::ThreadPool& pool, const Task& task) {
  const int blocks = size.channels / kLanes;
  const int wanted = 4 * std::max<int64_t>(pool.num_threads(), 1);
  const int parts = std::clamp(wanted / std::max(size.images, 1), 1, blocks);
  ForEach(size.images * parts, pool, [&](int i) {
    const int part = i % parts, first = blocks * part / parts * kLanes;
    const int end = part + 1 < parts ? blocks * (part + 1) / parts * kLanes : size.channels;
    task(size, i / parts, Blocks{first, end, size.channels - kLanes});
  });
}

// Calls task(size, image, c) for each block of channels, from c.
template <class Task>
void ForEachBlock(const Layout& size, ffi::ThreadPool& pool, const Task& task) {
  ForEachImage(size, pool, [&](Layout size, int image, Blocks blocks) {
    for (int i = 0; i < blocks.Count(); i++) task(size, image, blocks[i]);
  });
}

// Where a block of channels begins: of an image, and of [channels] or a row of [rows, channels].
template <class T>
T* At(const Array& x, const Layout& size, int image, int c) {
  return static_cast<T*>(x.untyped_data()) + image * size.Place(size.height, 0) + c;
}
inline float* Of(const Array& x, size_t place) {
  return static_cast<float*>(x.untyped_data()) + place;
}

// The last three rows of one block of channels, with a zero pixel at both ends.
class Rows {
 public:
  explicit Rows(int width) : size_(size_t(width + 2) * kLanes), data_(3 * size_) {}

  float* operator[](int row) { return data_.data() + (row + 3) % 3 * size_; }

  template <class T, class Function>
  void Read(const Layout& size, int row, const T* x, Function function) {
    float* to = (*this)[row];
    if (row < 0 || row >= size.height) return void(std::fill_n(to, size_, 0.0f));
    for (int column = 0; column < size.width; column++) {
      Store(to + (column + 1) * kLanes, function(Load(x + size.Place(row, column))));
    }
  }

 private:
  size_t size_;
  std::vector<float> data_;
};

// Applies BatchNorm's affine pass and, with `relu`, a ReLU, after which NaN stays NaN.
auto Activation(Floats scale, Floats offset, bool relu) {
  const Ints always = Ints{} - !relu;
  return [=](Floats x) {
    x = x * scale + offset;
    return Select(~(x <= 0) | always, x);
  };
}

// Calls call with a value of the array's element type.
template <class Call>
ffi::Error Dispatch(const Array& x, const Call& call) {
  if (x.dimensions()[3] < kLanes) return ffi::Error::InvalidArgument("too few channels");
  switch (x.element_type()) {
    case ffi::DataType::F32: call(float{}); break;
    case ffi::DataType::BF16: call(BFloat16{}); break;
    default: return ffi::Error::InvalidArgument("float32 or bfloat16 is needed");
  }
  return ffi::Error::Success();
}

ffi::Error Forward(ffi::ThreadPool pool, Array x, Array scale, Array offset, Array kernel,
                   bool relu, Result y) {
  return Dispatch(x, [&](auto type) {
    using T = decltype(type);
    ForEachBlock(Layout(x), pool, [&](Layout size, int image, int c) {
      const int channels = size.channels, width = size.width;
      const T* in = At<T>(x, size, image, c);
      T* out = At<T>(*y, size, image, c);
      const auto activate = Activation(Load(Of(scale, c)), Load(Of(offset, c)), relu);
      Floats taps[kTaps];
      for (int tap = 0; tap < kTaps; tap++) {
        taps[tap] = Load(Of(kernel, tap * channels + c));
      }
      Rows rows(width);
      rows.Read(size, 0, in, activate);
      for (int row = 0; row < size.height; row++) {
        rows.Read(size, row + 1, in, activate);
        const float *above = rows[row - 1], *here = rows[row], *below = rows[row + 1];
        Floats a0 = Load(above), a1 = Load(above + kLanes), b0 = Load(here),
               b1 = Load(here + kLanes), c0 = Load(below), c1 = Load(below + kLanes);
        for (int column = 0; column < width; column++) {
          const int next = (column + 2) * kLanes;
          const Floats a2 = Load(above + next), b2 = Load(here + next), c2 = Load(below + next);
          Store(out + size.Place(row, column), (a0 * taps[0] + a1 * taps[1] + a2 * taps[2]) +
                                                   (b0 * taps[3] + b1 * taps[4] + b2 * taps[5]) +
                                                   (c0 * taps[6] + c1 * taps[7] + c2 * taps[8]));
          a0 = a1, a1 = a2, b0 = b1, b1 = b2, c0 = c1, c1 = c2;
        }
      }
    });
  });
}

// sums is [images, 11, channels]: the gradients of the nine taps, of scale and of offset.
ffi::Error Backward(ffi::ThreadPool pool, Array x, Array scale, Array offset, Array kernel,
                    Array gradient, bool relu, Result of_x, Result sums) {
  return Dispatch(x, [&](auto type) {
    using T = decltype(type);
    ForEachBlock(Layout(x), pool, [&](Layout size, int image, int c) {
      const int channels = size.channels, width = size.width;
      const T* in = At<T>(x, size, image, c);
      const T* of_y = At<T>(gradient, size, image, c);
      T* out = At<T>(*of_x, size, image, c);
      const Floats scales = Load(Of(scale, c));
      const auto activate = Activation(scales, Load(Of(offset, c)), relu);
      const auto same = [](Floats x) { return x; };
      Floats flipped[kTaps], totals[kTaps + 2] = {};
      for (int tap = 0; tap < kTaps; tap++) {
        flipped[kTaps - 1 - tap] = Load(Of(kernel, tap * channels + c));
      }
      Rows rows(width), gradients(width);
      rows.Read(size, 0, in, activate);
      gradients.Read(size, 0, of_y, same);
      for (int row = 0; row < size.height; row++) {
        rows.Read(size, row + 1, in, activate);
        gradients.Read(size, row + 1, of_y, same);
        const float *above = rows[row - 1], *here = rows[row], *below = rows[row + 1];
        const float *g_above = gradients[row - 1], *g_here = gradients[row],
                    *g_below = gradients[row + 1];
        Floats of_taps[kTaps] = {}, of_scale = {}, of_offset = {};
        for (int column = 0; column < width; column++) {
          const int at = column * kLanes;
          const Floats g = Load(g_here + at + kLanes);
          for (int tap = 0; tap < 3; tap++) {
            of_taps[tap] += Load(above + at + tap * kLanes) * g;
            of_taps[3 + tap] += Load(here + at + tap * kLanes) * g;
            of_taps[6 + tap] += Load(below + at + tap * kLanes) * g;
          }
        }
        for (int column = 0; column < width; column++) {
          const int at = column * kLanes;
          const size_t place = size.Place(row, column);
          Floats a = {}, b = {}, c = {};
          for (int tap = 0; tap < 3; tap++) {
            a += Load(g_above + at + tap * kLanes) * flipped[tap];
            b += Load(g_here + at + tap * kLanes) * flipped[3 + tap];
            c += Load(g_below + at + tap * kLanes) * flipped[6 + tap];
          }
          Floats sum = a + b + c;
          if (relu) sum = Select(Load(here + at + kLanes) > 0, sum);
          of_scale += sum * Load(in + place);
          of_offset += sum;
          Store(out + place, sum * scales);
        }
        for (int tap = 0; tap < kTaps; tap++) totals[tap] += of_taps[tap];
        totals[kTaps] += of_scale;
        totals[kTaps + 1] += of_offset;
      }
      for (int i = 0; i < kTaps + 2; i++) {
        Store(Of(*sums, (size_t(kTaps + 2) * image + i) * channels + c), totals[i]);
      }
    });
  });
}

// sums is [images, 2, channels], of a and of a * b. A row's sums are added at once: one long sum in
// float32 is less exact.
ffi::Error Sums(ffi::ThreadPool pool, Array a, Array b, Result sums) {
  return Dispatch(a, [&](auto type) {
    using T = decltype(type);
    ForEachImage(Layout(a), pool, [&](Layout size, int image, Blocks blocks) {
      std::vector<Floats> of_a(blocks.Count()), of_product(blocks.Count());
      for (int row = 0; row < size.height; row++) {
        for (int block = 0; block < blocks.Count(); block++) {
          const T* as = At<T>(a, size, image, blocks[block]) + size.Place(row, 0);
          const T* bs = At<T>(b, size, image, blocks[block]) + size.Place(row, 0);
          Floats sum[2] = {}, product[2] = {};
          const auto add = [&](int column, Floats& sum, Floats& product) {
            const Floats value = Load(as + size_t(column) * size.channels);
            sum += value;
            product += value * Load(bs + size_t(column) * size.channels);
          };
          for (int column = 0; column + 1 < size.width; column += 2) {  // two chains of additions
            add(column, sum[0], product[0]);
            add(column + 1, sum[1], product[1]);
          }
          if (size.width % 2) add(size.width - 1, sum[0], product[0]);
          of_a[block] += sum[0] + sum[1];
          of_product[block] += product[0] + product[1];
        }
      }
      for (int block = 0; block < blocks.Count(); block++) {
        float* to = Of(*sums, size_t(2) * image * size.channels + blocks[block]);
        Store(to, of_a[block]);
        Store(to + size.channels, of_product[block]);
      }
    });
  });
}

auto Arguments() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>(); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    forward, Forward, Arguments().Arg<Array>().Arg<Array>().Attr<bool>("relu").Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    backward, Backward,
    Arguments().Arg<Array>().Arg<Array>().Arg<Array>().Attr<bool>("relu").Ret<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(sums, Sums, Arguments().Ret<Array>());
