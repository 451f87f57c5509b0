#include "pool.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

namespace smelt {

namespace {
constexpr int kSpins = 1000;   // some 30 us of pauses: a barrier of an undisturbed step ends within them
constexpr int kYields = 200;   // then let others run, still without the cost of a sleep

constexpr double kWindowS = 0.02;  // stalls are judged over this much stepping,
constexpr double kCalmS = 0.3;     // and the judgement holds this long: trying again costs a few milliseconds

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

double Epoch::wait_beyond(uint32_t seen) {
  for (int i = 0; i < kSpins; ++i) {
    if (now() != seen) return 0;
    pause();
  }
  const auto start = std::chrono::steady_clock::now();
  const auto waited = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  for (int i = 0; i < kYields; ++i) {
    if (now() != seen) return waited();
    sched_yield();
  }
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return value_.load(std::memory_order_seq_cst) != seen; });
  }
  sleepers_.fetch_sub(1, std::memory_order_seq_cst);
  return waited();
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
  while (num_running_.load(std::memory_order_acquire) > 0) wait(done_, seen);
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
    wait(barrier_, seen);
  }
}

void Pool::wait(Epoch& epoch, uint32_t seen) {
  const double stalled_s = epoch.wait_beyond(seen);
  if (stalled_s > 0) stalled_ns_.fetch_add(int64_t(stalled_s * 1e9), std::memory_order_relaxed);
}

int Crowding::allowed(double now_s) {
  if (allowed_ < num_threads_ && now_s > until_s_) allowed_ = num_threads_;
  return allowed_;
}

void Crowding::record(double now_s, double elapsed_s, double stalled_s, int num_active) {
  if (num_active < 2) return;
  elapsed_s_ += elapsed_s;
  stalled_s_ += stalled_s;
  if (elapsed_s_ < kWindowS) return;
  const double running = num_active - stalled_s_ / elapsed_s_;
  elapsed_s_ = stalled_s_ = 0;
  const int useful = std::clamp(int(running + 0.7), 1, num_active);  // two threads must be worth 1.3
  if (useful == num_active) return;
  allowed_ = useful;
  until_s_ = now_s + kCalmS;
}

}  // namespace smelt
