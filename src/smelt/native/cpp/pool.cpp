#include "pool.h"

#include <sched.h>
#include <unistd.h>

namespace smelt {

namespace {
constexpr int kSpins = 1000;   // some 30 us of pauses: a barrier of an undisturbed step ends within them
constexpr int kYields = 200;   // then let others run, still without the cost of a sleep

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}
}  // namespace

void Epoch::advance() {
  value_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    // The lock orders us after a sleeper that has checked the value but does not wait yet.
    std::lock_guard<std::mutex> lock(mutex_);
    changed_.notify_all();
  }
}

void Epoch::wait_beyond(uint32_t seen) {
  for (int i = 0; i < kSpins; ++i) {
    if (now() != seen) return;
    pause();
  }
  for (int i = 0; i < kYields; ++i) {
    if (now() != seen) return;
    sched_yield();
  }
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return value_.load(std::memory_order_seq_cst) != seen; });
  }
  sleepers_.fetch_sub(1, std::memory_order_seq_cst);
}

Pool::Pool(int num_threads) : num_threads_(num_threads), owner_(getpid()) {
  for (int thread = 1; thread < num_threads_; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

Pool::~Pool() {
  if (!usable()) {  // after a fork there is nobody to join
    for (std::thread& worker : workers_) worker.detach();
    return;
  }
  stopping_.store(true);
  start_.advance();
  for (std::thread& worker : workers_) worker.join();
}

bool Pool::usable() const { return getpid() == owner_; }

void Pool::launch(int num_active, Call call, void* context) {
  if (num_active > num_threads_) num_active = num_threads_;
  num_active_ = num_active;
  if (num_active <= 1) {
    call(context, 0);
    return;
  }
  call_ = call;
  context_ = context;
  // Every worker answers, the inactive ones at once, so that none can still read call_ when it changes.
  num_running_.store(num_threads_ - 1);
  const uint32_t seen = done_.now();
  start_.advance();
  call(context, 0);
  while (num_running_.load(std::memory_order_acquire) > 0) done_.wait_beyond(seen);
}

void Pool::work(int thread) {
  uint32_t seen = 0;
  while (true) {
    start_.wait_beyond(seen);
    ++seen;
    if (stopping_.load()) return;
    if (thread < num_active_) call_(context_, thread);
    if (num_running_.fetch_sub(1, std::memory_order_acq_rel) == 1) done_.advance();
  }
}

void Pool::barrier() {
  if (num_active_ <= 1) return;
  const uint32_t seen = barrier_.now();
  if (num_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_active_) {
    num_arrived_.store(0, std::memory_order_relaxed);
    barrier_.advance();
  } else {
    barrier_.wait_beyond(seen);
  }
}

}  // namespace smelt
