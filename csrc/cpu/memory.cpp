// Memory of results, kept for the next ones.
#include "memory.h"

#include <ATen/Functions.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <list>
#include <mutex>
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace sparse_dset {
namespace {

constexpr size_t LARGE = size_t(1) << 20;  // bytes; smaller blocks stay in the C library's heap
constexpr int SPAN = 512;                  // loans, some forward passes, after which a peak fades

class Pool {
 public:
  c10::DataPtr take(size_t size) {
    Block block = find(size);
    if (block.size == 0) block = {c10::GetCPUAllocator()->allocate(size), size};
    const std::lock_guard<std::mutex> lock(mutex_);
    in_use_ += block.size;
    recent_peak_ = std::max(recent_peak_, in_use_);
    peak_ = std::max(peak_, in_use_);
    void* data = block.memory.get();
    return {data, new Loan{this, std::move(block)}, &Loan::end, c10::Device(c10::kCPU)};
  }

 private:
  struct Block {
    c10::DataPtr memory;
    size_t size = 0;
  };

  struct Loan {
    Pool* pool;
    Block block;
    static void end(void* loan) {
      auto* self = static_cast<Loan*>(loan);
      self->pool->give_back(std::move(self->block));
      delete self;
    }
  };

  // A free block that fits and wastes less than half of it, or none.
  Block find(size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto best = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it)
      if (it->size >= size && it->size < 2 * size && (best == free_.end() || it->size < best->size))
        best = it;
    if (best == free_.end()) return {};
    Block block = std::move(*best);
    kept_ -= block.size;
    free_.erase(best);
    return block;
  }

  void give_back(Block block) {
    std::list<Block> dropped;  // freed after the lock is gone
    bool faded = false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      in_use_ -= block.size;
      kept_ += block.size;
      free_.push_front(std::move(block));
      if (++loans_ == SPAN) {
        // One large picture does not hold memory for good: what it needed is forgotten by halves.
        faded = recent_peak_ < peak_;
        peak_ = std::max(recent_peak_, peak_ / 2);
        recent_peak_ = in_use_;
        loans_ = 0;
      }
      while (kept_ > 2 * peak_) {
        kept_ -= free_.back().size;
        dropped.splice(dropped.end(), free_, std::prev(free_.end()));
      }
    }
    dropped.clear();
    if (faded) return_heap();
  }

  // The C library keeps what was freed below its last block in use.
  static void return_heap() {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
  }

  std::mutex mutex_;
  std::list<Block> free_;  // the latest first
  size_t in_use_ = 0, peak_ = 0, recent_peak_ = 0, kept_ = 0;
  int loans_ = 0;
};

Pool& pool() {
  static auto* pool = new Pool();  // outlives the tensors that die at exit
  return *pool;
}

}  // namespace

at::Tensor empty_floats(at::IntArrayRef sizes) {
  const int64_t count = c10::multiply_integers(sizes);
  const size_t size = size_t(count) * sizeof(float);
  if (size < LARGE) return at::empty(sizes, at::kFloat);
  c10::Storage storage(c10::Storage::use_byte_size_t(), size, pool().take(size), nullptr, false);
  return at::empty({0}, at::kFloat).set_(std::move(storage), 0, sizes);
}

}  // namespace sparse_dset
