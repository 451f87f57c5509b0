// A persistent team of threads. The caller is thread 0; the others wait between calls by spinning briefly, then
// yielding, then sleeping: pure spinning collapses when another process wants the core, pure sleeping costs
// microseconds at every one of a step's hundred barriers.
#pragma once
#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace smelt {

// A counter that threads can wait on to change.
class Epoch {
 public:
  uint32_t now() const { return value_.load(std::memory_order_acquire); }
  void advance();
  // Seconds waited after the spinning: 0 where the others came in time.
  double wait_beyond(uint32_t seen);

 private:
  std::atomic<uint32_t> value_{0};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
};

class Pool {
 public:
  explicit Pool(int num_threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int num_threads() const { return num_threads_; }
  // False in a process forked after the pool was made: its threads are not there.
  bool usable() const;

  // Runs task(thread) on `num_active` threads and returns when all are done. task must not throw.
  template <typename Task>
  void run(int num_active, Task& task) {
    launch(num_active, [](void* context, int thread) { (*static_cast<Task*>(context))(thread); }, &task);
  }

  // Inside a task: returns when every active thread has come here.
  void barrier();
  // Thread seconds lost since the last call, waiting for threads that did not run.
  double take_stalled_s() { return 1e-9 * double(stalled_ns_.exchange(0)); }

 private:
  using Call = void (*)(void*, int);
  void launch(int num_active, Call call, void* context);
  void work(int thread);
  void wait(Epoch& epoch, uint32_t seen);

  int num_threads_;
  pid_t owner_;
  std::vector<std::thread> workers_;
  Epoch start_, done_, barrier_;
  std::atomic<int> num_running_{0}, num_arrived_{0};
  std::atomic<bool> stopping_{false};
  std::atomic<int64_t> stalled_ns_{0};
  Call call_ = nullptr;
  void* context_ = nullptr;
  int num_active_ = 1;
};

// How many threads the machine really runs. Where another process takes a core, every barrier waits for a thread that is
// not running: two threads on one free core decode ten times slower than one. So stalls are watched, and for a while
// only as many threads are used as ran.
class Crowding {
 public:
  explicit Crowding(int num_threads) : num_threads_(num_threads), allowed_(num_threads) {}
  // Threads worth using at `now_s`, a steady clock.
  int allowed(double now_s);
  void record(double now_s, double elapsed_s, double stalled_s, int num_active);

 private:
  int num_threads_, allowed_;
  double elapsed_s_ = 0, stalled_s_ = 0, until_s_ = 0;
};

}  // namespace smelt
