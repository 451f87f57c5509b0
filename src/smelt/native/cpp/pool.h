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
  void wait_beyond(uint32_t seen);

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

 private:
  using Call = void (*)(void*, int);
  void launch(int num_active, Call call, void* context);
  void work(int thread);

  int num_threads_;
  pid_t owner_;
  std::vector<std::thread> workers_;
  Epoch start_, done_, barrier_;
  std::atomic<int> num_running_{0}, num_arrived_{0};
  std::atomic<bool> stopping_{false};
  Call call_ = nullptr;
  void* context_ = nullptr;
  int num_active_ = 1;
};

}  // namespace smelt
